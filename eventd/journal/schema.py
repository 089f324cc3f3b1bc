"""journal.db: its tables, how it is opened, and how an older one is brought forward.

Schema facts. `events.data` is the last column, so that listings never touch a payload's overflow pages. A queue is one
(binding, function) pair under a small number; `invocations` carries the number, its digest covers the names. Row numbers of
states are those of `codec.STATES`; the partial indexes hold only what their readers look for: ready rows in the order of the
queue, running rows, held rows, dead rows; `state` stands in those that are counted, so that counting reads no row.
`dedup.seq` is the first event's seq, so the oldest rows are the lowest.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import apsw

from eventd.errors import EventdError
from eventd.journal.folder import storage_error

SCHEMA: Final = 1
APPLICATION: Final = 0x45564A31
"""`application_id`, so that another program's database is not taken for ours."""

CREATE: Final = (
    """CREATE TABLE events(
        seq INTEGER PRIMARY KEY, id TEXT NOT NULL, source TEXT NOT NULL, trigger TEXT, received_at INTEGER NOT NULL, key TEXT,
        flags INTEGER NOT NULL, fingerprint BLOB NOT NULL, trace TEXT NOT NULL, members BLOB NOT NULL, bytes INTEGER NOT NULL,
        data_digest BLOB NOT NULL, digest BLOB NOT NULL, data BLOB NOT NULL)""",
    "CREATE INDEX events_id ON events(id)",
    "CREATE TABLE queues(queue INTEGER PRIMARY KEY, binding TEXT, function TEXT NOT NULL)",
    """CREATE TABLE invocations(
        seq INTEGER PRIMARY KEY, id TEXT NOT NULL, event INTEGER NOT NULL, queue INTEGER NOT NULL, state INTEGER NOT NULL,
        due_at INTEGER NOT NULL, accepted_at INTEGER NOT NULL, attempts INTEGER NOT NULL, lost INTEGER NOT NULL, key TEXT,
        flags INTEGER NOT NULL, reason TEXT, first_at INTEGER, error_type TEXT, error_message TEXT, run TEXT, began_at INTEGER,
        dead_at INTEGER, digest BLOB NOT NULL)""",
    "CREATE INDEX invocations_id ON invocations(id)",
    "CREATE INDEX invocations_ready ON invocations(queue, due_at, seq, state) WHERE state IN (0, 2)",
    "CREATE INDEX invocations_running ON invocations(seq) WHERE state = 1",
    "CREATE INDEX invocations_held ON invocations(queue, state) WHERE state = 3",
    "CREATE INDEX invocations_dead ON invocations(dead_at, seq) WHERE state = 4",
    "CREATE INDEX invocations_dead_queue ON invocations(queue, dead_at, seq, state) WHERE state = 4",
    "CREATE TABLE dedup(seq INTEGER PRIMARY KEY, identity BLOB NOT NULL, fingerprint BLOB NOT NULL, expires_at INTEGER NOT NULL)",
    "CREATE UNIQUE INDEX dedup_identity ON dedup(identity)",
    "CREATE TABLE ledger(trigger TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, digest BLOB NOT NULL,"
    " PRIMARY KEY(trigger, key)) WITHOUT ROWID",
    "CREATE TABLE owed(seq INTEGER PRIMARY KEY, trigger TEXT NOT NULL, event TEXT NOT NULL, key TEXT, ok INTEGER NOT NULL,"
    " digest BLOB NOT NULL)",
    "CREATE INDEX owed_trigger ON owed(trigger, seq)",
    "CREATE TABLE outbox(seq INTEGER PRIMARY KEY, data BLOB NOT NULL, digest BLOB NOT NULL)",
    "CREATE TABLE paused(kind TEXT NOT NULL, name TEXT NOT NULL, PRIMARY KEY(kind, name)) WITHOUT ROWID",
    "CREATE TABLE meta(key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
    "INSERT INTO meta VALUES('next_event', 1), ('next_invocation', 1), ('next_owed', 1), ('next_outbox', 1)",
)

MIGRATIONS: Final[Mapping[int, Sequence[str]]] = {}
"""From the schema version that is the key to the next one, one statement per string. Only ever added to."""

CACHE_KIB: Final = 16 * 1024
WAL_KEEP: Final = 16 * 1024**2

PRAGMAS: Final[tuple[tuple[str, str | int, object], ...]] = (
    ("locking_mode", "EXCLUSIVE", "exclusive"),
    ("page_size", 4096, 4096),
    ("auto_vacuum", "INCREMENTAL", 2),
    ("journal_mode", "WAL", "wal"),
    ("synchronous", "FULL", 2),
    ("wal_autocheckpoint", 0, 0),
    ("mmap_size", 0, 0),
    ("temp_store", "MEMORY", 2),
    ("cache_size", -CACHE_KIB, -CACHE_KIB),
    ("journal_size_limit", WAL_KEEP, WAL_KEEP),
    ("busy_timeout", 2000, 2000),
    ("foreign_keys", "OFF", 0),
    ("recursive_triggers", "OFF", 0),
    ("cell_size_check", "ON", 1),
    ("trusted_schema", "OFF", 0),
)
"""Name, value, and what reading it back must give. Exclusive locking means that nothing else can open the file meanwhile, and
no shared-memory file when it is set before the file is first looked at. Checkpoints are ours alone: SQLite's automatic one
swallows fsync errors."""


def set_pragma(connection: apsw.Connection, name: str, value: str | int, expected: object) -> None:
    """One PRAGMA by itself, then read back (D33): `execute` of several stops at the first that returns a row.

    What already is as it should be is not set again: some would write to the file, which a start on a full disk cannot.
    """
    actual = connection.execute(f"PRAGMA {name}").fetchall()
    if actual != [(expected,)]:
        connection.execute(f"PRAGMA {name} = {value}").fetchall()
        actual = connection.execute(f"PRAGMA {name}").fetchall()
    if actual != [(expected,)]:
        got = actual[0][0] if actual and len(actual[0]) == 1 else actual
        raise EventdError(
            "E-STORAGE",
            f"journal.db: PRAGMA {name} reads back {got!r} after it was set to {value!r}; {expected!r} is needed.",
            "The SQLite library or the file does not do what eventd relies on; reinstall eventd's dependencies.",
        )


def configure(connection: apsw.Connection) -> None:
    """Every PRAGMA, each read back. Raises E-STORAGE for the first that did not take."""
    # A connection that closes after a storage error must not checkpoint: what is in the WAL is the only copy.
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    for name, value, expected in PRAGMAS:
        set_pragma(connection, name, value, expected)


def version_of(connection: apsw.Connection) -> int:
    rows: list[tuple[Any, ...]] = connection.execute("PRAGMA user_version").fetchall()
    return int(rows[0][0])


def prepare(connection: apsw.Connection, path: Path, program: str, migrations: Mapping[int, Sequence[str]] = MIGRATIONS) -> None:
    """Create the tables in an empty database, or bring an older one forward; refuse a newer one or a stranger's.

    Raises E-SCHEMA (both versions named), E-STORAGE. A migration is one transaction, with a verified copy beside it first.
    """
    version = version_of(connection)
    newest = max(migrations, default=SCHEMA - 1) + 1
    application = connection.execute("PRAGMA application_id").fetchall()[0][0]
    if version > newest:
        raise EventdError(
            "E-SCHEMA",
            f"{path} was written by a newer eventd: its schema is version {version}, this eventd {program} knows up to version {newest}.",
            "Install that newer eventd again, or restore the copy it left beside the journal when it migrated.",
        )
    if version == 0:
        if connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()[0][0]:
            raise EventdError("E-STORAGE", f"{path} is not a journal of eventd.", "Move the file away, or set another [daemon] state.")
        statements: list[str] = [*CREATE, f"PRAGMA application_id = {APPLICATION}", f"PRAGMA user_version = {SCHEMA}"]
        _transaction(connection, statements)
        version = SCHEMA
    elif application != APPLICATION:
        raise EventdError("E-STORAGE", f"{path} is not a journal of eventd.", "Move the file away, or set another [daemon] state.")
    if version < newest:
        keep_copy(connection, path, version)
        steps = [statement for step in range(version, newest) for statement in migrations[step]]
        _transaction(connection, [*steps, f"PRAGMA user_version = {newest}"])


def _transaction(connection: apsw.Connection, statements: Sequence[str]) -> None:
    connection.execute("BEGIN IMMEDIATE").fetchall()
    try:
        for statement in statements:
            connection.execute(statement).fetchall()
        connection.execute("COMMIT").fetchall()
    except apsw.Error:
        if connection.in_transaction:
            connection.execute("ROLLBACK").fetchall()
        raise


def keep_copy(connection: apsw.Connection, path: Path, version: int) -> Path:
    """A verified copy of the database as `journal.db.schema-N`, durable when this returns. Raises E-STORAGE."""
    copy = path.with_name(f"{path.name}.schema-{version}")
    part = copy.with_name(copy.name + ".part")
    try:
        part.unlink(missing_ok=True)
        os.close(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        connection.execute("VACUUM INTO ?", (str(part),)).fetchall()
        check = apsw.Connection(str(part), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            sound = quick_check(check) == "" and version_of(check) == version
        finally:
            check.close()
        if not sound:
            raise EventdError(
                "E-STORAGE", f"the copy {part} made before the migration is not sound.", "Check the disk; nothing was changed."
            )
        _fsync(part)
        os.replace(part, copy)
        _fsync(copy.parent)
    except OSError as error:
        raise storage_error(f"the copy {copy} before a migration could not be written", error, "Make room; nothing was changed.") from error
    return copy


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def quick_check(connection: apsw.Connection) -> str:
    """Empty when SQLite finds the file sound, else its first finding."""
    rows: list[tuple[Any, ...]] = connection.execute("PRAGMA quick_check(1)").fetchall()
    text = str(rows[0][0]) if rows else "no answer"
    return "" if text == "ok" else text
