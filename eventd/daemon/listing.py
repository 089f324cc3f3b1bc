"""The `events` listing: what is open or dead is in the journal, what has ended is in the history; people see one list."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import msgspec

from eventd.core.state import Dispatch
from eventd.errors import EventdError
from eventd.model import State
from eventd.ports import History, JournalReads, Json, Page, Query

_OPEN = ("waiting", "running", "retrying", "held")
_ROUNDS = 20
_END = "end"
"""In place of a cursor: there is nothing more on this side. None is the beginning."""


async def merged_events(query: Query, reads: JournalReads, history: History, state: Dispatch) -> Page:
    """Newest first over both. An event whose invocations are partly ended is one row."""
    journal_cursor, history_cursor = _split(query.cursor)
    journal, beyond = await _from_journal(msgspec.structs.replace(query, cursor=journal_cursor), reads, state)
    if query.state in _OPEN:
        await _complete(journal, history)
        return Page(journal, _join(beyond, None) if beyond is not None else None)
    ended = await _from_history(msgspec.structs.replace(query, cursor=history_cursor), history)
    taken_journal, taken_history, rows = _merge(journal, list(ended.rows), query.limit)
    journal_next: str | None = beyond if beyond is not None else _END
    if taken_journal < len(journal):
        journal_next = await _journal_after(taken_journal, journal_cursor, query, reads)
    history_next: str | None = ended.next if ended.next is not None else _END
    if taken_history < len(ended.rows):
        history_next = await _history_after(taken_history, history_cursor, query, history)
    return Page(rows, None if journal_next == history_next == _END else _join(journal_next, history_next))


async def _from_history(query: Query, history: History) -> Page:
    return Page((), None) if query.cursor == _END else await history.ended(msgspec.structs.replace(query, state=None))


async def _journal_after(taken: int, cursor: str | None, query: Query, reads: JournalReads) -> str | None:
    """The cursor after so many rows of a page that has more. None: the beginning."""
    return (await reads.events(msgspec.structs.replace(query, cursor=cursor, limit=taken))).next or _END if taken else cursor


async def _history_after(taken: int, cursor: str | None, query: Query, history: History) -> str | None:
    return (await history.ended(msgspec.structs.replace(query, cursor=cursor, state=None, limit=taken))).next or _END if taken else cursor


async def _complete(rows: Sequence[Json], history: History) -> None:
    """Add to events that are open what of them has ended."""
    shown = {(row["source"], row["event"]): row for row in rows}
    if shown:
        for row in (await history.ended(Query(ids=tuple(event for _, event in shown), limit=len(shown)))).rows:
            if (known := shown.get((row["source"], row["event"]))) is not None:
                _join_halves(known, row)


async def _from_journal(query: Query, reads: JournalReads, state: Dispatch) -> tuple[list[Json], str | None]:
    """Journal rows with `held` shown as such; a filter by a waiting state is applied after that view."""
    if query.cursor == _END:
        return [], None
    if query.state not in ("waiting", "retrying", "held"):
        page = await reads.events(query)
        return [_viewed(row, state) for row in page.rows], page.next
    wanted, cursor = query.state, query.cursor
    found: list[Json] = []
    for _ in range(_ROUNDS):
        asked = msgspec.structs.replace(query, state=None, cursor=cursor, limit=query.limit - len(found))
        page = await reads.events(asked)
        for row in page.rows:
            shown = _viewed(row, state)
            if any(invocation["state"] == wanted for invocation in shown["invocations"]):
                found.append(shown)
        cursor = page.next
        if cursor is None or len(found) >= query.limit:
            break
    return found, cursor


def _viewed(row: Json, state: Dispatch) -> Json:
    for invocation in row["invocations"]:
        shown = state.row_state(State(invocation["state"]), invocation["binding"], invocation["function"])
        invocation["state"] = str(shown)
    return row


def _merge(journal: list[Json], ended: list[Json], limit: int) -> tuple[int, int, list[Json]]:
    rows: dict[tuple[str, str], Json] = {}
    at_journal = at_ended = 0
    while at_journal < len(journal) or at_ended < len(ended):
        from_journal = at_ended >= len(ended) or (
            at_journal < len(journal) and journal[at_journal]["received_at"] >= ended[at_ended]["received_at"]
        )
        row = journal[at_journal] if from_journal else ended[at_ended]
        key = (row["source"], row["event"])
        known = rows.get(key)
        if known is None and len(rows) >= limit:
            break
        if known is None:
            rows[key] = row
        else:
            _join_halves(known, row)
        at_journal, at_ended = at_journal + from_journal, at_ended + (not from_journal)
    return at_journal, at_ended, list(rows.values())


def _join_halves(known: Json, other: Json) -> None:
    have = {invocation["invocation"] for invocation in known["invocations"]}
    known["invocations"] += [invocation for invocation in other["invocations"] if invocation["invocation"] not in have]


def _split(cursor: str | None) -> tuple[str | None, str | None]:
    if cursor is None:
        return None, None
    try:
        pair: Any = msgspec.json.decode(base64.urlsafe_b64decode(cursor.encode()), type=list[str | None])
        first, second = pair
    except (ValueError, msgspec.MsgspecError) as error:
        raise EventdError("E-USAGE", "that cursor is not one of ours.", "Take it from the 'next' of the page before.") from error
    return first, second


def _join(journal: str | None, history: str | None) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode([journal, history])).decode()
