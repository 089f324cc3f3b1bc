"""Durable tables of the present (SQLite or memory, one contract) and the run history in a database of its own.

`open_journal` and `open_history` are what the daemon composes; `MemoryJournal` is the same contract without a disk.
"""

from eventd.journal.history import SqliteHistory, open_history
from eventd.journal.memory import MemoryJournal
from eventd.journal.memory_tables import MemoryTables
from eventd.journal.sqlite import SqliteJournal, open_journal

__all__ = ["MemoryJournal", "MemoryTables", "SqliteHistory", "SqliteJournal", "open_history", "open_journal"]
