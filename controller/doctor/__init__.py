"""What stands in the governor's way here, and what to change. It changes nothing itself."""
