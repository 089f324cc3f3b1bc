"""The `events` listing: what is open or dead is in the journal, what has ended is in the history; people see one list."""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from eventd.core.state import Dispatch
from eventd.errors import EventdError
from eventd.model import State
from eventd.ports import History, Json, JournalReads, Page, Query

_OPEN = ("waiting", "running", "retrying", "held")
_ROUNDS = 20


async def merged_events(query: Query, reads: JournalReads, history: History, state: Dispatch) -> Page:
    """Newest first over both. An event whose invocations are partly ended is one row."""
    journal_cursor, history_cursor = _split(query.cursor)
    journal, beyond = await _from_journal(msgspec.structs.replace(query, cursor=journal_cursor), reads, state)
    if query.state in _OPEN:
        return Page(journal, _join(beyond, None) if beyond is not None else None)
    ended = await history.ended(msgspec.structs.replace(query, cursor=history_cursor, state=None))
    taken_journal, taken_history, rows = _merge(journal, list(ended.rows), query.limit)
    more = beyond is not None or ended.next is not None or taken_journal < len(journal) or taken_history < len(ended.rows)
    if not more:
        return Page(rows, None)
    if taken_journal < len(journal):
        beyond = await _cursor_after(taken_journal, journal_cursor, query, reads)
    history_next = ended.next
    if taken_history < len(ended.rows):
        shorter = msgspec.structs.replace(query, cursor=history_cursor, state=None, limit=max(1, taken_history))
        history_next = (await history.ended(shorter)).next if taken_history else history_cursor
    return Page(rows, _join(beyond if beyond is not None else "end", history_next if history_next is not None else "end"))


async def _from_journal(query: Query, reads: JournalReads, state: Dispatch) -> tuple[list[Json], str | None]:
    """Journal rows with `held` shown as such; a filter by a waiting state is applied after that view."""
    if query.cursor == "end":
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
    rows: dict[str, Json] = {}
    at_journal = at_ended = 0
    while at_journal < len(journal) or at_ended < len(ended):
        from_journal = at_ended >= len(ended) or (
            at_journal < len(journal) and journal[at_journal]["received_at"] >= ended[at_ended]["received_at"]
        )
        row = journal[at_journal] if from_journal else ended[at_ended]
        known = rows.get(row["event"])
        if known is None and len(rows) >= limit:
            break
        if known is None:
            rows[row["event"]] = row
        else:
            have = {invocation["invocation"] for invocation in known["invocations"]}
            known["invocations"] += [invocation for invocation in row["invocations"] if invocation["invocation"] not in have]
        at_journal, at_ended = at_journal + from_journal, at_ended + (not from_journal)
    return at_journal, at_ended, list(rows.values())


async def _cursor_after(taken: int, cursor: str | None, query: Query, reads: JournalReads) -> str | None:
    if not taken:
        return cursor
    return (await reads.events(msgspec.structs.replace(query, cursor=cursor, limit=taken))).next


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
