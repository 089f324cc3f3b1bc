"""The dispatcher as transcripts: signals in, facts and effects out. `World` keeps what a journal would keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from eventd.core import signals as s
from eventd.core.dispatcher import decide, next_wake
from eventd.core.facts import Began, Discarded, Ended, Fact, InvocationRow, PauseSet
from eventd.core.state import Dispatch, Heap
from eventd.model import End, Lane, Outcome, Rate, Reason, Refusal, Retry, State

START = 1_000_000


class Dice:
    def __init__(self) -> None:
        self.count = 0

    def uniform(self) -> float:
        return 0.5

    def id(self) -> str:
        self.count += 1
        return f"run-{self.count}"


@dataclass
class World:
    """A dispatcher with a toy journal: rows by seq, pages answered at once."""

    heap: type[Heap] = Heap
    now: int = START
    rows: dict[int, InvocationRow] = field(default_factory=dict)
    started: list[s.Start] = field(default_factory=list)
    refused: list[s.Refuse] = field(default_factory=list)
    stops: list[s.StopRun] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    ends: dict[int, tuple[End | None, Reason | None]] = field(default_factory=dict)
    seq: int = 0
    pages: list[s.Page] | None = None
    """Given a list, pages wait in it for `answer`; else they are answered at once."""

    def __post_init__(self) -> None:
        self.state = Dispatch(self.heap)
        self.dice = Dice()

    @property
    def mono(self) -> float:
        return (self.now - START) / 1000

    def tell(self, signal: s.Signal) -> s.Decision:
        decision = decide(self.state, signal, self.now, self.mono, self.dice)
        for fact in decision.facts:
            self.facts.append(fact)
            self.keep(fact)
        for effect in (*decision.now, *decision.then):
            match effect:
                case s.Start():
                    self.started.append(effect)
                case s.Refuse():
                    self.refused.append(effect)
                case s.StopRun():
                    self.stops.append(effect)
                case s.Page() if self.pages is not None:
                    self.pages.append(effect)
                case s.Page():
                    self.page(effect)
        return decision

    def keep(self, fact: Fact) -> None:
        match fact:
            case Began(seqs=seqs):
                for seq in seqs:
                    row = self.rows[seq]
                    self.rows[seq] = replaced(row, state=State.RUNNING, attempts=row.attempts + 1)
            case Ended(moves=moves):
                for move in moves:
                    if move.state is State.SETTLED:
                        del self.rows[move.seq]
                        self.ends[move.seq] = (move.end, move.reason)
                    else:
                        row = self.rows[move.seq]
                        self.rows[move.seq] = replaced(
                            row, state=move.state, attempts=move.attempts, lost=move.lost, due_at=move.due_at, solo=move.solo
                        )
            case _:
                pass

    def page(self, page: s.Page) -> None:
        waiting = sorted(
            (row.due_at, row.seq)
            for row in self.rows.values()
            if row.binding == page.binding and row.function == page.function and row.state in (State.WAITING, State.RETRYING)
        )
        found = [key for key in waiting if key > page.after and key[0] <= page.upto_due][: page.limit]
        beyond = [key for key in waiting if key > (found[-1] if found else page.after)]
        rows = tuple(self.rows[seq] for _, seq in found)
        self.tell(s.Paged(page.binding, page.function, rows, beyond[0][0] if beyond else None))

    def answer(self) -> None:
        """The pages that wait."""
        assert self.pages is not None
        waiting, self.pages = self.pages, None
        for page in waiting:
            self.page(page)

    def boot(self, *rows: InvocationRow, paused: tuple[tuple[str, str], ...] = ()) -> None:
        """A restart over these rows: those that run are lost."""
        self.rows.update({row.seq: row for row in rows})
        queues: dict[tuple[str | None, str], list[InvocationRow]] = {}
        for row in rows:
            if row.state is not State.RUNNING:
                queues.setdefault((row.binding, row.function), []).append(row)
        views = tuple(s.QueueView(*queue, len(found), min(row.due_at for row in found)) for queue, found in queues.items())
        lost = tuple(s.LostRun(row, f"old{row.seq}") for row in rows if row.state is State.RUNNING)
        self.seq = max(self.seq, *(row.seq for row in rows))
        self.tell(s.Booted(views, lost, paused, {}))

    def configure(self, *functions: s.FunctionRule, concurrency: int = 64, bindings: tuple[s.BindingRule, ...] = (), **caps: int) -> None:
        names = {b.trigger: caps.get(b.trigger, 0) for b in bindings}
        self.tell(s.Configured(s.Rules(concurrency, {f.name: f for f in functions}, {b.name: b for b in bindings}, names)))

    def arrive(self, function: str, count: int = 1, binding: str | None = None, **changes: object) -> list[int]:
        rows = []
        for _ in range(count):
            self.seq += 1
            row = InvocationRow(self.seq, f"inv-{self.seq}", self.seq, binding, function, State.WAITING, self.now, self.now)
            row = replaced(row, **changes)
            self.rows[self.seq] = row
            rows.append(row)
        self.tell(s.Arrived(tuple(rows)))
        return [row.seq for row in rows]

    def end(self, start: s.Start, outcome: Outcome = Outcome.SUCCEEDED, failed: tuple[int, ...] = ()) -> None:
        self.started.remove(start)
        self.tell(s.RunEnded(start.run, outcome, failed=frozenset(failed)))

    def advance(self, ms: int) -> None:
        self.now += ms
        self.tell(s.Tick())

    def run_all(self, outcome: Callable[[s.Start], Outcome] = lambda start: Outcome.SUCCEEDED) -> None:
        while self.started:
            self.end(self.started[0], outcome(self.started[0]))

    def seqs(self) -> list[int]:
        return [member.seq for start in self.started for member in start.members]


def replaced(row: InvocationRow, **changes: object) -> InvocationRow:
    import msgspec

    return msgspec.structs.replace(row, **changes)


def rule(name: str, concurrency: int = 2, **more: object) -> s.FunctionRule:
    return s.FunctionRule(name, concurrency, **more)  # type: ignore[arg-type]


def test_a_cap_is_never_exceeded_and_a_free_slot_is_used_at_once() -> None:
    world = World()
    world.configure(rule("f", 2))
    world.arrive("f", 5)
    assert len(world.started) == 2
    world.end(world.started[0])
    assert world.seqs() == [2, 3]
    world.run_all()
    assert world.ends == dict.fromkeys(range(1, 6), (End.SUCCEEDED, None))
    assert world.state.running == 0
    assert not world.state.nodes


def test_began_is_stored_before_the_run_is_started() -> None:
    world = World()
    world.configure(rule("f"))
    world.rows[1] = InvocationRow(1, "i", 1, None, "f", State.WAITING, START, START)
    decision = world.tell(s.Arrived((world.rows[1],)))
    assert decision.facts == [Began("run-1", (1,), START)]
    assert decision.then == [s.Start("run-1", Lane.DURABLE, "f", None, None, (s.Member(1, "i", 1, 1, START, START),))]
    assert decision.now == []


def test_round_robin_over_functions() -> None:
    world = World()
    world.configure(rule("a", 10), rule("b", 10), rule("c", 10), concurrency=1)
    for name in "abc":
        world.arrive(name, 3)
    order = []
    while world.started:
        order.append(world.started[0].function)
        world.end(world.started[0])
    assert "".join(order) == "aabcabcbc"  # the first before anything else had come, then each in its turn


def test_every_fourth_slot_goes_to_durable_work_when_calls_wait_too() -> None:
    world = World()
    world.configure(rule("f", 1))
    world.tell(s.Called(1, "f"))
    world.arrive("f", 5)
    for call in range(2, 12):
        world.tell(s.Called(call, "f", wait_ms=60_000))
    lanes = []
    while world.started:
        lanes.append(world.started[0].lane)
        world.end(world.started[0])
    assert lanes[:9].count(Lane.DURABLE) == 2
    assert lanes.count(Lane.DURABLE) == 5


def test_retries_wait_one_and_two_minutes_and_then_the_event_is_dead() -> None:
    world = World()
    world.configure(rule("f"))
    world.arrive("f")
    for wait in (60_000, 120_000):
        world.end(world.started[0], Outcome.FAILED)
        assert not world.started
        world.advance(wait - 1)
        assert not world.started
        assert next_wake(world.state) == world.now + 1
        world.advance(1)
        assert len(world.started) == 1
    assert world.started[0].members[0].attempt == 3
    world.end(world.started[0], Outcome.FAILED)
    assert world.ends == {1: (End.DEAD, Reason.RETRIES_EXHAUSTED)}


def test_an_interrupted_run_starts_again_at_once_and_costs_no_attempt() -> None:
    world = World()
    world.configure(rule("f"))
    world.arrive("f")
    world.end(world.started[0], Outcome.INTERRUPTED)
    assert world.started[0].members[0].attempt == 1


def test_three_lost_in_a_row_are_quarantined_and_a_failure_between_starts_the_count_again() -> None:
    world = World()
    world.configure(rule("f", retry=Retry(attempts=10)))
    world.arrive("f")
    for outcome in (Outcome.LOST, Outcome.LOST, Outcome.FAILED, Outcome.LOST, Outcome.LOST):
        world.end(world.started[0], outcome)
        if not world.started:
            world.advance(120_000)
    world.end(world.started[0], Outcome.LOST)
    assert world.ends == {1: (End.DEAD, Reason.QUARANTINED)}


def test_lost_runs_are_settled_at_boot_before_anything_starts() -> None:
    world = World()
    world.configure(rule("f"))
    row = InvocationRow(7, "i", 7, None, "f", State.RUNNING, START, START, attempts=1)
    world.rows[7] = row
    world.tell(s.Booted((), (s.LostRun(row, "old"),), (), {}))
    assert isinstance(world.facts[0], Ended)
    assert world.facts[0].moves[0].lost == 1
    assert world.started[0].members[0].attempt == 2


def test_a_backlog_is_paged_and_each_row_runs_once() -> None:
    world = World()
    world.configure(rule("f", 3))
    seqs = world.arrive("f", 2_000)
    assert len(world.state.nodes) <= 2 * 256 + 3
    seen = []
    while world.started:
        seen.append(world.started[0].members[0].seq)
        world.end(world.started[0])
    assert sorted(seen) == seqs
    assert world.state.functions["f"].open == 0


def test_a_backlog_that_fails_is_bounded_in_memory_and_every_row_gets_its_attempts() -> None:
    world = World()
    world.configure(rule("f", 5))
    world.arrive("f", 1_500)
    for _ in range(200):
        world.run_all(lambda start: Outcome.FAILED)
        assert len(world.state.nodes) <= 4 * 256
        world.advance(30_000)
    assert len(world.ends) == 1_500
    assert set(world.ends.values()) == {(End.DEAD, Reason.RETRIES_EXHAUSTED)}


def test_a_direct_call_waits_for_a_slot_and_is_refused_when_its_wait_is_over() -> None:
    world = World()
    world.configure(rule("f", 1))
    world.tell(s.Called(1, "f"))
    world.tell(s.Called(2, "f"))
    world.tell(s.Called(3, "f", wait_ms=0))
    assert world.refused == [s.Refuse(3, "f", Refusal.CONCURRENCY)]
    world.advance(999)
    assert len(world.refused) == 1
    world.advance(2)
    assert world.refused[1:] == [s.Refuse(2, "f", Refusal.CONCURRENCY)]


def test_a_caller_that_went_away_takes_no_slot() -> None:
    world = World()
    world.configure(rule("f", 1))
    for call in (1, 2, 3):
        world.tell(s.Called(call, "f"))
    world.tell(s.CallerGone(2))
    world.end(world.started[0])
    assert world.started[0].call == 3


@pytest.mark.parametrize(
    ("pause", "refusal"),
    [(s.PauseAsked("function", "f", True), Refusal.PAUSED), (s.Available("f", False), Refusal.BUILDING)],
)
def test_paused_or_building_holds_durable_work_and_refuses_calls(pause: s.Signal, refusal: Refusal) -> None:
    world = World()
    world.configure(rule("f"))
    world.tell(pause)
    world.arrive("f")
    world.tell(s.Called(1, "f"))
    assert not world.started
    assert world.refused[0].refusal is refusal
    world.tell(s.PauseAsked("function", "f", False) if isinstance(pause, s.PauseAsked) else s.Available("f", True))
    assert world.seqs() == [1]


def test_a_pause_is_a_fact() -> None:
    world = World()
    world.configure(rule("f"))
    world.tell(s.PauseAsked("function", "f", True))
    world.tell(s.PauseAsked("function", "f", True))
    assert world.facts == [PauseSet("function", "f", True)]


def test_a_removed_function_holds_its_work_until_it_returns() -> None:
    world = World()
    world.configure(rule("f"), rule("g"), concurrency=1)
    world.arrive("g")
    world.arrive("f", 3)
    world.configure(rule("g"), concurrency=1)
    world.run_all()
    assert world.ends.keys() == {1}
    assert world.state.row_state(State.WAITING, None, "f") is State.HELD
    world.tell(s.Called(9, "f"))
    assert world.refused[0].refusal is Refusal.UNKNOWN
    world.configure(rule("f"), rule("g"), concurrency=1)
    world.run_all()
    assert len(world.ends) == 4


def test_a_rate_delays_durable_work_and_refuses_calls_with_its_own_reason() -> None:
    world = World()
    world.configure(rule("f", 10, rate=Rate(2, 1_000)))
    world.arrive("f", 5)
    assert len(world.started) == 2
    world.tell(s.Called(1, "f", wait_ms=0))
    assert world.refused[0].refusal is Refusal.RATE
    world.advance(999)
    assert len(world.started) == 2
    world.advance(1)
    assert len(world.started) == 4
    world.advance(1_000)
    assert len(world.started) == 5


def test_two_events_of_one_key_never_run_together_and_a_change_runs_after() -> None:
    world = World()
    world.configure(rule("f", 10))
    world.arrive("f", 2, key="a")
    world.arrive("f", 1, key="b")
    assert world.seqs() == [1, 3]
    world.end(world.started[0])
    assert world.seqs() == [3, 2]


def test_a_serial_key_is_held_until_the_invocation_is_settled() -> None:
    world = World()
    world.configure(rule("f", 10))
    world.arrive("f", 2, key="tick", serial=True)
    world.end(world.started[0], Outcome.FAILED)
    assert not world.started
    world.advance(60_000)
    assert world.seqs() == [1]
    world.end(world.started[0])
    assert world.seqs() == [2]


def test_a_batch_fails_as_a_whole_partly_or_falls_apart() -> None:
    binding = s.BindingRule("t/f", "t", "f", batch_size=3, batch_window_ms=500)
    world = World()
    world.configure(rule("f", 10), bindings=(binding,))
    world.arrive("f", 2, "t/f")
    assert not world.started
    world.advance(500)
    assert world.seqs() == [1, 2]
    world.end(world.started[0], Outcome.SUCCEEDED, failed=(2,))
    assert world.ends == {1: (End.SUCCEEDED, None)}
    world.arrive("f", 3, "t/f")
    world.end(world.started[0], Outcome.CRASHED)
    world.advance(60_000)
    world.advance(500)
    assert [len(start.members) for start in world.started] == [1, 1, 1, 1]


def test_a_triggers_own_cap_holds_over_its_bindings() -> None:
    bindings = (s.BindingRule("t/a", "t", "a"), s.BindingRule("t/b", "t", "b"))
    world = World()
    world.configure(rule("a", 5), rule("b", 5), bindings=bindings, t=2)
    world.arrive("a", 3, "t/a")
    world.arrive("b", 3, "t/b")
    running = []
    while world.started:
        running.append(len(world.started))
        world.end(world.started[0])
    assert max(running) == 2
    assert len(world.ends) == 6


def test_cancel_waiting_retrying_and_running() -> None:
    world = World()
    world.configure(rule("f", 1))
    world.arrive("f", 3)
    world.tell(s.CancelAsked((world.rows[2], world.rows[1])))
    assert world.ends == {2: (End.CANCELLED, None)}
    assert world.stops == [s.StopRun("run-1", Outcome.CANCELLED)]
    world.end(world.started[0], Outcome.CANCELLED)
    assert world.ends[1] == (End.CANCELLED, None)
    assert world.seqs() == [3]


def test_concurrency_zero_is_death_at_once() -> None:
    world = World()
    world.configure(rule("f", 1))
    world.arrive("f", 3)
    world.configure(rule("f", 0))
    assert world.ends == {2: (End.DEAD, Reason.ZERO_CONCURRENCY), 3: (End.DEAD, Reason.ZERO_CONCURRENCY)}
    world.tell(s.Called(1, "f"))
    assert world.refused[0].refusal is Refusal.CONCURRENCY


def test_draining_starts_nothing_and_goes_on_afterwards() -> None:
    world = World()
    world.configure(rule("f", 1))
    world.arrive("f", 2)
    world.tell(s.StartsAllowed(False, False))
    world.end(world.started[0])
    world.tell(s.Called(1, "f"))
    assert not world.started
    assert world.refused[0].refusal is Refusal.DRAINING
    world.tell(s.StartsAllowed(True, True))
    assert world.seqs() == [2]


def test_a_clock_set_back_a_year_delays_nothing_by_a_year() -> None:
    world = World()
    world.configure(rule("f"))
    world.arrive("f")
    world.end(world.started[0], Outcome.FAILED)
    world.now -= 365 * 86_400_000
    world.tell(s.ClockStepped(-365 * 86_400_000))
    world.advance(60_000)
    assert world.seqs() == [1]


def test_an_event_too_old_is_dead_at_its_turn_and_looked_ahead_at_its_retry() -> None:
    world = World()
    world.configure(rule("f", 1, max_event_age_ms=90_000))
    world.arrive("f", 2)
    world.end(world.started[0], Outcome.FAILED)
    world.now += 59_000
    world.end(world.started[0], Outcome.FAILED)
    assert world.ends == {2: (End.DEAD, Reason.EVENT_AGE_EXCEEDED)}


class CountingHeap(Heap):
    """Counts the comparisons a heap of its size needs for each operation."""

    __slots__ = ()
    operations = 0

    def push(self, time: int, number: int, item: object) -> None:
        CountingHeap.operations += max(1, len(self).bit_length())
        super().push(time, number, item)

    def pop(self) -> tuple[int, int, object]:
        CountingHeap.operations += 2 * max(1, len(self).bit_length())
        return super().pop()


def cost_of_one_event(backlog: int) -> float:
    """Heap operations per event with `backlog` open on disk, over 300 events that arrive, run and end."""
    world = World(CountingHeap)
    world.configure(rule("big", 1), rule("f", 4))
    world.tell(s.Booted((s.QueueView(None, "big", backlog, START), s.QueueView(None, "f", backlog, START)), (), (), {}))
    page = [InvocationRow(10_000_000 + n, f"b{n}", n, None, "big", State.WAITING, START, START) for n in range(256)]
    world.rows.update({row.seq: row for row in page})
    world.tell(s.Paged(None, "big", tuple(page), START))
    CountingHeap.operations = 0
    for _ in range(300):
        world.arrive("f")
        if world.started:
            world.end(world.started[0])
    return CountingHeap.operations / 300


def test_deciding_costs_the_same_with_a_million_open() -> None:
    assert cost_of_one_event(1_000_000) <= 3 * cost_of_one_event(1_000)


def test_a_suspect_runs_alone_among_suspects_so_that_only_the_guilty_is_condemned() -> None:
    world = World()
    world.configure(rule("f", 10, retry=Retry(attempts=10)))
    rows = [InvocationRow(n, f"i{n}", n, None, "f", State.RUNNING, START, START, attempts=2, lost=1) for n in (1, 2, 3)]
    world.rows.update({row.seq: row for row in rows})
    world.tell(s.Booted((), tuple(s.LostRun(row, f"old{row.seq}") for row in rows), (), {}))
    assert world.seqs() == [1]
    world.seq = 3
    world.arrive("f")
    assert world.seqs() == [1]  # its trial: whoever kills the daemon now is guilty
    world.advance(500)
    assert world.seqs() == [1, 4]
    world.end(world.started[0], Outcome.LOST)
    assert world.ends == {1: (End.DEAD, Reason.QUARANTINED)}
    assert world.seqs() == [4, 2]
    world.run_all()
    assert [world.ends[n][0] for n in (2, 3, 4)] == [End.SUCCEEDED] * 3


def waiting(seq: int, function: str = "f", **changes: object) -> InvocationRow:
    return replaced(InvocationRow(seq, f"inv-{seq}", seq, None, function, State.WAITING, START, START), **changes)


def test_a_second_poison_does_not_condemn_an_innocent_suspect() -> None:
    """Found by simulation: an innocent that shared two deaths died a third time beside a poison that nobody had tried yet."""
    world = World()
    world.configure(rule("f", 10, retry=Retry(attempts=10)))
    innocent = waiting(1, state=State.RUNNING, attempts=2, lost=1)
    world.boot(innocent, waiting(2, state=State.RUNNING, attempts=1), waiting(3))
    assert world.seqs() == [1]
    world.end(world.started[0])
    assert world.seqs() == [2, 3]
    assert world.ends == {1: (End.SUCCEEDED, None)}


def test_a_suspect_that_had_not_its_turn_before_the_next_death_is_found_on_the_first_page() -> None:
    world = World()
    world.configure(rule("f", 10, retry=Retry(attempts=10)))
    world.boot(waiting(1, state=State.RUNNING, attempts=3, lost=2), waiting(2, state=State.RETRYING, attempts=2, lost=2), waiting(3))
    assert world.ends == {1: (End.DEAD, Reason.QUARANTINED)}
    assert world.seqs() == [2]
    world.end(world.started[0])
    assert world.seqs() == [3]


def test_the_trial_of_suspects_holds_others_up_for_half_a_second_at_most() -> None:
    world = World(pages=[])
    world.configure(rule("f", 10))
    world.boot(waiting(1, state=State.RUNNING, attempts=1), waiting(2))
    assert not world.started  # who else is suspected is not known before the first page
    world.advance(499)
    assert not world.started
    world.advance(1)
    assert world.seqs() == [1]


def test_suspects_that_wait_while_the_daemon_drains_are_not_forgotten() -> None:
    world = World()
    world.configure(rule("f", 10, retry=Retry(attempts=10)))
    world.boot(*(waiting(n, state=State.RUNNING, attempts=2, lost=1) for n in (1, 2)))
    world.tell(s.StartsAllowed(False, False))
    world.end(world.started[0])
    assert not world.started
    world.tell(s.StartsAllowed(True, True))
    assert world.seqs() == [2]


def test_what_two_people_ask_at_once_happens_once() -> None:
    """Found by simulation: rows read before the first change was durable were believed."""
    world = World(pages=[])
    world.configure(rule("f", 1), rule("g"))
    world.arrive("f")
    world.arrive("f", 300)
    resting, held = world.rows[290], world.rows[20]
    world.tell(s.CancelAsked((resting, held)))
    twice = world.tell(s.CancelAsked((resting, held)))
    assert twice.facts == []
    dead = waiting(900, "g", state=State.SETTLED, end=End.DEAD, reason=Reason.RETRIES_EXHAUSTED)
    world.rows[900] = dead
    world.tell(s.Arrived((dead,)))
    first = world.tell(s.RedriveAsked((dead,)))
    again = world.tell(s.RedriveAsked((dead,)))
    discarded = world.tell(s.DiscardAsked((dead,)))
    assert len(first.facts) == 2  # it waits again, and begins
    assert again.facts == []
    assert discarded.facts == [Discarded((), START)]
    assert (world.state.functions["f"].open, world.state.functions["g"].open, world.state.functions["g"].dead) == (299, 1, 0)


def test_changes_without_a_run_are_doubted_until_they_are_confirmed() -> None:
    world = World()
    world.configure(rule("f", 1))
    world.arrive("f", 2)
    decision = world.tell(s.CancelAsked((world.rows[2],)))
    assert decision.then == [s.Confirm((2,))]
    assert world.state.unsure == {2: 1}
    world.tell(s.Confirmed((2,)))
    assert world.state.unsure == {}


def test_a_row_cancelled_while_its_page_is_on_its_way_does_not_run() -> None:
    """Found by simulation: it ran, its event was gone, and the daemon took that for damage."""
    world = World(pages=[])
    world.configure(rule("f", 5))
    row = waiting(1)
    world.boot(row)
    assert world.pages
    world.tell(s.CancelAsked((row,)))
    world.tell(s.Paged(None, "f", (row,), None))
    assert not world.started
    assert world.state.functions["f"].open == 0


def test_a_cancelled_holder_of_a_key_lets_the_next_one_start_at_once() -> None:
    world = World()
    world.configure(rule("f", 10))
    world.arrive("f", 2, key="tick", serial=True)
    world.end(world.started[0], Outcome.FAILED)
    world.tell(s.CancelAsked((world.rows[1],)))
    assert world.seqs() == [2]


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.TIMED_OUT, Outcome.CRASHED, Outcome.CANCELLED, Outcome.INTERRUPTED])
def test_a_cancelled_run_is_not_retried_however_it_ended(outcome: Outcome) -> None:
    world = World()
    world.configure(rule("f"))
    world.arrive("f")
    world.tell(s.CancelAsked((world.rows[1],)))
    world.end(world.started[0], outcome)
    assert world.ends == {1: (End.CANCELLED, None)}


def test_a_pause_holds_from_the_first_moment_after_a_restart() -> None:
    world = World()
    world.configure(rule("f"), rule("g"))
    world.boot(waiting(1, state=State.RUNNING, attempts=1), waiting(2), waiting(3, "g"), paused=(("function", "f"),))
    assert world.seqs() == [3]


def test_a_call_that_waits_is_refused_when_its_function_is_paused() -> None:
    world = World()
    world.configure(rule("f", 1))
    world.tell(s.Called(1, "f"))
    world.tell(s.Called(2, "f", wait_ms=60_000))
    world.tell(s.PauseAsked("function", "f", True))
    world.end(world.started[0])
    assert world.refused == [s.Refuse(2, "f", Refusal.PAUSED)]
    assert not world.started


def test_a_serial_key_is_held_between_two_attempts_through_a_restart() -> None:
    world = World()
    world.configure(rule("f", 10))
    holder = waiting(1, state=State.RETRYING, attempts=1, due_at=START + 60_000, key="tick", serial=True)
    world.boot(holder, waiting(2, key="tick", serial=True))
    assert not world.started
    world.advance(60_000)
    assert world.seqs() == [1]


def test_the_slot_of_a_trigger_is_given_back_when_a_reload_took_the_binding_away() -> None:
    """Found by simulation: the trigger stayed full for ever."""
    binding = s.BindingRule("t/a", "t", "a")
    world = World()
    world.configure(rule("a", 5), bindings=(binding,), t=1)
    world.arrive("a", 2, "t/a")
    world.tell(s.Configured(s.Rules(64, {}, {}, {"t": 1})))
    world.end(world.started[0])
    world.configure(rule("a", 5), bindings=(binding,), t=1)
    assert world.seqs() == [2]


def test_a_call_that_waits_for_its_triggers_cap_starts_when_another_binding_frees_it() -> None:
    bindings = (s.BindingRule("t/a", "t", "a"), s.BindingRule("t/b", "t", "b"))
    world = World()
    world.configure(rule("a", 5), rule("b", 5), bindings=bindings, t=1)
    world.arrive("b", 1, "t/b")
    world.tell(s.Called(1, "a", "t", "t/a"))
    world.end(world.started[0])
    assert world.started[0].call == 1


def test_a_lost_member_of_a_batch_does_not_wait_for_the_window_again() -> None:
    binding = s.BindingRule("t/f", "t", "f", batch_size=3, batch_window_ms=300_000)
    world = World()
    world.configure(rule("f", 10), bindings=(binding,))
    world.now += 400_000
    world.boot(waiting(1, binding="t/f", state=State.RUNNING, attempts=1))
    assert world.seqs() == [1]


YEAR = 365 * 86_400_000


def test_a_batch_that_waits_for_its_window_does_not_wait_a_year_when_the_clock_is_set_back() -> None:
    binding = s.BindingRule("t/f", "t", "f", batch_size=3, batch_window_ms=500)
    world = World()
    world.configure(rule("f", 10), bindings=(binding,))
    world.arrive("f", 1, "t/f")
    world.now -= YEAR
    world.tell(s.ClockStepped(-YEAR))
    world.advance(500)
    assert world.seqs() == [1]


def test_what_was_ready_before_the_clock_was_set_back_stays_before_what_comes_after() -> None:
    world = World()
    world.configure(rule("f", 1))
    world.arrive("f", 2)
    world.now -= YEAR
    world.tell(s.ClockStepped(-YEAR))
    world.now += 5
    world.arrive("f")
    world.end(world.started[0])
    assert world.seqs() == [2]


def test_rows_on_disk_from_before_the_clock_was_set_back_do_not_wait_a_year_after_a_restart_either() -> None:
    """Found by simulation: one younger row in the queue hid that the others were due in a year."""
    world = World()
    world.configure(rule("f", 10))
    world.boot(waiting(1, state=State.RETRYING, attempts=1, due_at=START + YEAR), waiting(2))
    assert world.seqs() == [2]
    world.advance(60_000)
    assert world.seqs() == [2, 1]


def test_a_function_that_is_gone_keeps_its_waits_when_the_clock_is_set_back() -> None:
    world = World()
    function = rule("f", 10, retry=Retry(3, (1_000,)))
    world.configure(function)
    world.arrive("f")
    world.end(world.started[0], Outcome.FAILED)
    world.configure()
    world.now -= YEAR
    world.tell(s.ClockStepped(-YEAR))
    world.configure(function)
    world.advance(1_000)
    assert world.seqs() == [1]


def test_far_off_work_in_memory_does_not_keep_ready_work_on_disk() -> None:
    world = World()
    world.configure(rule("f", 10))
    far = [waiting(n, due_at=START + 3_600_000) for n in range(1, 3_000)]
    world.boot(*far)
    assert len(world.state.nodes) <= 4 * 256
    world.arrive("f")
    assert world.seqs() == [3_000]
