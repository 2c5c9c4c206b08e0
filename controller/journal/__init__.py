"""What was done and why, in SQLite."""

from controller.journal.journal import Journal
from controller.journal.reader import JournalReader, JournalUnreadableError

__all__ = ["Journal", "JournalReader", "JournalUnreadableError"]
