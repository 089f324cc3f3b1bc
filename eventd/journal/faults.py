"""Which storage errors there are: a full disk, which heals, and all others, which end the journal."""

from __future__ import annotations

import errno
from typing import Final

import apsw

from eventd.errors import EventdError

_RESTORE: Final = "Check the disk and restore the state folder from a backup."


class DiskFull(Exception):
    """SQLITE_FULL, or a write that met the end of a quota. The transaction is gone, the connection is sound."""


def extended(error: apsw.Error) -> int:
    """SQLite's extended result code, 0 when the error did not come from SQLite."""
    return int(getattr(error, "extendedresult", 0))


def is_full(error: apsw.Error, connection: apsw.Connection) -> bool:
    """Whether a disk or quota ran out, and nothing worse: only a write may fail so, never an fsync."""
    if isinstance(error, apsw.FullError):
        return True
    return extended(error) == apsw.SQLITE_IOERR_WRITE and connection.system_errno in (errno.EDQUOT, errno.ENOSPC)


def explain(error: BaseException) -> EventdError:
    """What ended the journal, as the code that the daemon exits with."""
    match error:
        case EventdError():
            return error
        case apsw.Error():
            name = apsw.mapping_extended_result_codes.get(extended(error), type(error).__name__)
            return EventdError("E-STORAGE", f"journal.db: {name}: {error}.", "Check the disk (dmesg tells more), then start eventd again.")
        case UnicodeDecodeError():
            return EventdError("E-DAMAGED", f"journal.db: a stored text is not UTF-8 ({error.reason}).", _RESTORE)
        case OSError():
            return EventdError("E-STORAGE", f"the state folder failed: {error}.", "Check the disk and the folder's owner.")
        case _:
            return EventdError("E-INTERNAL", f"the journal's writer stopped on {type(error).__name__}: {error}", "Please report this.")
