"""One worker's place in the pool: its state, its present run, and how each end of either becomes a `Ran`.

    STARTING --ready--> IDLE <--answer-- BUSY          any state --exited--> GONE
        |                 \\--run--> BUSY                BUSY, STARTING --stop, timeout, memory--> LEAVING
        \\--ready, with a run waiting--> BUSY            IDLE --retired, idle too long--> LEAVING

A run's `done` is called once: with its answer, or, when the run is ended by anything else, after the process and all it left are
gone, so that a slot is never free while something still runs in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum, auto
from typing import TYPE_CHECKING

from eventd.model import Outcome
from eventd.ports import Ran, Task
from eventd.runtime import ends
from eventd.runtime.sweep import MemoryWatch
from eventd.runtime.worker import Answer, Call, Exit, Init, Worker, WorkerSpec

if TYPE_CHECKING:
    from eventd.runtime.crew import Generation

_AGAIN_S = 1.0
_NEVER = float("inf")
_monotonic = time.monotonic
Done = Callable[[Ran], None]


class Place(Enum):
    STARTING = auto()
    IDLE = auto()
    BUSY = auto()
    LEAVING = auto()
    GONE = auto()


class Seat:
    """Implements worker.WorkerEvents. All times are monotonic seconds."""

    __slots__ = (
        "_answer", "_begun", "_cold", "_cpu_ms", "_done", "_ending", "_handed", "_init_error", "_init_ms", "_kill_at",
        "_limit_at", "_lived", "_n", "_printed", "_started", "_task", "_told_early", "_watch", "generation", "idle_since", "init_ms",
        "place", "settled", "spec", "worker",
    )  # fmt: skip

    def __init__(self, generation: Generation, spec: WorkerSpec, settled: Callable[[Seat, Ran | None], None] | None = None) -> None:
        self.generation = generation
        self.spec = spec
        self.settled = settled
        """Called once, with None when init ends well, else with what a run would have met."""
        self.worker: Worker | None = None
        self.place = Place.STARTING
        self.idle_since = 0.0
        self.init_ms = 0.0
        self._task: Task | None = None
        self._done: Done | None = None
        self._n = 0
        self._started = self._begun = _monotonic()
        self._handed = False
        self._lived = False
        self._told_early = False
        self._cold = False
        self._init_ms: float | None = None
        self._cpu_ms = 0.0
        self._init_error: bytes | None = None
        self._ending: ends.Ending | None = None
        self._answer: Answer | None = None
        self._limit_at = self._started + generation.function.init_timeout_ms / 1000
        self._kill_at = _NEVER
        self._watch: MemoryWatch | None = None
        self._printed = generation.captured("")

    # --- what the pool asks ---

    def start(self) -> None:
        """Start the worker; the pool has put this seat where it belongs."""
        runtime = self.generation.runtime
        if self._task is not None:
            self._printed = self.generation.captured(self._task.run)  # what init prints belongs to the run that waits for it
        worker = self.worker = runtime.start_worker(self.spec, self)
        if not runtime.resident:
            self._lived = True
            self._hand_over()
        elif self.generation.eager and self._task is not None:
            self._told_early = True
            worker.invoke(self._call(self._task, 0))

    def take(self, task: Task, done: Done) -> None:
        """Carry out a run: now when idle, else as soon as ready."""
        self._task = task
        self._done = done
        self._n += 1
        self._handed = False
        if self.place is Place.IDLE:
            self._cold = False
            self._init_ms = None
            self._hand_over()
        else:
            self._cold = True

    @property
    def run(self) -> str:
        return self._task.run if self._task is not None else ""

    def _hand_over(self) -> None:
        task = self._task
        worker = self.worker
        if task is None or worker is None:
            return
        generation = self.generation
        self.place = Place.BUSY
        self._handed = True
        now = self._begun = _monotonic()
        timeout_ms = generation.function.timeout_ms
        self._limit_at = now + timeout_ms / 1000
        printed = self._printed
        if printed.run != task.run:
            if printed.bytes:
                printed.end()
                self._printed = generation.captured(task.run)
            else:
                printed.run = task.run  # nothing was printed since the last run: the same object will do
        if self._told_early:
            self._told_early = False
        else:
            worker.invoke(self._call(task, int(time.time() * 1000) + timeout_ms))

    def _call(self, task: Task, deadline: int) -> Call:
        generation = self.generation
        return Call(
            n=self._n,
            run=task.run,
            request_id=task.invocation,
            event=task.event,
            deadline=deadline,
            arn=generation.arn if not task.qualifier else f"{generation.arn}:{task.qualifier}",
            trace=task.trace,
            client_context=task.client_context,
            timeout_ms=generation.function.timeout_ms,
        )

    def stop(self, outcome: Outcome) -> None:
        """End the present run as cancelled or interrupted."""
        self._end(ends.stopped(outcome))

    def retire(self) -> None:
        """End an idle worker, or one that starts for nobody. A busy one ends by itself when its run does (`generation.retired`)."""
        if self._task is not None or self.place in (Place.LEAVING, Place.GONE):
            return
        self.place = Place.LEAVING
        self._kill_at = _monotonic() + self.generation.function.grace_ms / 1000
        self.generation.leaving(self)
        if self.worker is not None:
            self.worker.quit()
            self.worker.terminate()

    def kill(self) -> None:
        """At once, whatever it does; a run in it is interrupted."""
        if self.place is Place.GONE:
            return
        if self._ending is None and self._task is not None:
            self._ending = ends.stopped(Outcome.INTERRUPTED)
        self.place = Place.LEAVING
        self._kill_at = _monotonic() + _AGAIN_S
        if self.worker is not None:
            self.worker.kill()

    def check(self, now: float) -> None:
        """Deadlines, every 20 ms while starting, busy or leaving."""
        if now >= self._kill_at:
            self._kill_at = now + _AGAIN_S
            if self.worker is not None:
                self.worker.kill()
        elif now >= self._limit_at and self.place in (Place.STARTING, Place.BUSY):
            function = self.generation.function
            if self.place is Place.BUSY:
                self._end(ends.timed_out(self._request_id(), function.timeout_ms))
            else:
                self._end(ends.init_timed_out(self._request_id(), function.init_timeout_ms))

    def check_memory(self, now: float) -> bool:
        """Look at what the tree takes (D31). False when it was not worth a look: the run has only begun."""
        if self.place is not Place.BUSY or now - self._begun < 0.015 or self.worker is None:
            return False
        if self._watch is None:
            if not self.worker.pid:
                return False
            self._watch = MemoryWatch(self.worker.pid)
        limit = self.generation.function.memory_mib * 1024 * 1024
        if self._watch.quick() > limit and self._watch.exact() > limit:
            self._end(ends.out_of_memory(self._request_id(), self.generation.function.memory_mib), at_once=True)
        return True

    def _request_id(self) -> str:
        return self._task.invocation if self._task is not None else ""

    def _end(self, ending: ends.Ending, *, at_once: bool = False) -> None:
        if self._ending is not None or self.place is Place.GONE:
            return
        self._ending = ending
        self.place = Place.LEAVING
        if self.worker is None:
            return
        if at_once:
            self._kill_at = _monotonic() + _AGAIN_S
            self.worker.kill()
        else:
            self._kill_at = _monotonic() + self.generation.function.grace_ms / 1000
            self.worker.terminate()

    # --- what the worker tells (worker.WorkerEvents) ---

    def ready(self, init: Init) -> None:
        if self.place is not Place.STARTING:
            return
        self._lived = True
        self.init_ms = init.init_ms
        self._init_ms = (_monotonic() - self._started) * 1000
        self._cpu_ms = init.cpu_ms
        if self._task is not None:
            self._settle(None)
            self._hand_over()
        else:
            self._rest()
            self._settle(None)

    def failed(self, payload: bytes) -> None:
        if self._init_error is None:
            self._init_error = payload

    def answered(self, answer: Answer) -> None:
        if self.place is Place.BUSY and answer.n == self._n and self._handed:
            if self.generation.runtime.resident:
                self._answered(answer)
            else:
                self._answer = answer  # the process of an exec run is still there: its exit ends the run
        elif self.place is Place.LEAVING:
            self._answer = answer
        else:
            self.broke("the worker answered what it was not asked")

    def _answered(self, answer: Answer) -> None:
        ran = self._ran(answer)
        done = self._done
        self._task = self._done = None
        if ran.outcome is Outcome.OUT_OF_MEMORY:
            self._limit_at = _NEVER
            self.place = Place.LEAVING
            self._kill_at = _monotonic() + _AGAIN_S
            if self.worker is not None:
                self.worker.kill()
        else:
            self._rest()
        if done is not None:
            self.generation.report(done, ran)

    def _rest(self) -> None:
        """Nothing to do: wait among the idle ones, or go, when this version is no longer wanted."""
        self.place = Place.IDLE
        self.idle_since = _monotonic()
        self._limit_at = _NEVER
        self.generation.rested(self)

    def _ran(self, answer: Answer) -> Ran:
        printed = self._printed
        if printed.bytes:
            printed.end()
        ran = Ran(
            outcome=Outcome.SUCCEEDED,
            payload=answer.payload,
            cold=self._cold,
            init_ms=self._init_ms,
            duration_ms=(_monotonic() - self._begun) * 1000,
            cpu_ms=answer.cpu_ms + self._cpu_ms,
            max_memory_mb=answer.max_mb,
            output_bytes=printed.bytes,
            output_truncated=printed.truncated,
            exit_status=answer.exit_status,
            version=self.generation.version.digest,
            worker=self.spec.id,
            tail=printed.tail,
        )
        self._cpu_ms = 0.0
        if not answer.ok:
            ran.outcome = Outcome.FAILED
            ran.error_type, ran.error_message = ends.read_error(answer.payload)
            if ran.error_type == "MemoryError" and self.generation.runtime.resident:
                # RLIMIT_DATA spoke before the watch did: the same end, told the same way
                self._told(ran, ends.out_of_memory(self._request_id(), self.generation.function.memory_mib))
        return ran

    @staticmethod
    def _told(ran: Ran, ending: ends.Ending) -> None:
        ran.outcome = ending.outcome
        ran.payload = ending.payload()
        ran.error_type = ending.error_type
        ran.error_message = ending.error_message

    def too_large(self) -> None:
        if self.place is not Place.BUSY or not self._handed:
            self.broke("the worker answered what it was not asked")
            return
        self.answered(Answer(n=self._n, ok=False, payload=ends.too_large().payload(), ms=0.0, cpu_ms=0.0, max_mb=0))

    def broke(self, why: str) -> None:
        self._end(ends.broke(self._request_id(), why), at_once=True)

    def printed(self, stream: str, data: bytes) -> None:
        self._printed.add(stream, data)

    def exited(self, exit: Exit) -> None:
        if self.place is Place.GONE:
            return
        was_ready = self._lived
        self.place = Place.GONE
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        self._printed.end()
        done, task = self._done, self._task
        ran: Ran | None = None
        if done is not None or not was_ready:
            ran = self._last(exit)
        self._task = self._done = None
        self.generation.gone(self, was_ready)
        if not was_ready and ran is not None:
            self._settle(ran)
        if done is not None and task is not None and ran is not None:
            self.generation.report(done, ran)

    def _last(self, exit: Exit) -> Ran:
        """What a run comes to when its worker is gone."""
        answer, ending, handed = self._answer, self._ending, self._handed
        if answer is not None and answer.n == self._n and (ending is None or ending.outcome is Outcome.INTERRUPTED):
            ran = self._ran(answer)  # it was done after all, and we know how
        else:
            ran = Ran(
                outcome=Outcome.FAILED,
                cold=self._cold,
                init_ms=self._init_ms,
                duration_ms=(_monotonic() - self._begun) * 1000 if handed else 0.0,
                cpu_ms=exit.cpu_ms,
                output_bytes=self._printed.bytes,
                output_truncated=self._printed.truncated,
                version=self.generation.version.digest,
                worker=self.spec.id,
                tail=self._printed.tail,
            )
            if not handed:
                ran.init_ms = (_monotonic() - self._started) * 1000
            if ending is None and not handed and self._init_error is not None:
                ran.payload = self._init_error
                ran.error_type, ran.error_message = ends.read_error(self._init_error)
            else:
                ending = ending or ends.exited(self._request_id(), exit)
                self._told(ran, ending)
                if ending.outcome is Outcome.TIMED_OUT and handed:
                    ran.duration_ms = float(self.generation.function.timeout_ms)
        ran.max_memory_mb = max(ran.max_memory_mb, exit.max_mb)
        if ran.exit_status is None:
            ran.exit_status = exit.status
        ran.signal = exit.signal
        return ran

    def _settle(self, ran: Ran | None) -> None:
        settled, self.settled = self.settled, None
        if settled is not None:
            settled(self, ran)
