"""What the operator wants: the policy's schema, its loading with line numbers, its checks."""
