"""The directory trigger: every file that is in a folder and ready becomes one event, whatever the kernel forgets to tell.

A scan is the truth; change notices only say where to look first. Scans of everything happen at start, on a timer, and
whenever there is doubt (dropped notices, another folder under the path). What has had its event stands in the ledger,
written with the event, so that stopping or crashing anywhere repeats nothing and loses nothing.

    notices -> agenda -> scan (worker thread) -> claims -> journal;   settlements -> departures

What it cannot promise: an appender that keeps pausing for longer than `settle` may be seen half-way (use `rename` or
`sentinel`); where inodes are not stable (some network file systems) a file can run again; where no notices are to be had,
`ready = "rename"` falls back to the settle rule. See `directory_rules.judge`.
"""

from __future__ import annotations

import threading
from typing import Final

import anyio
import anyio.abc
from anyio import CapacityLimiter, to_thread

from eventd.sdk import EventdError, Site, TriggerPlugin
from eventd_plugins.directory_agenda import Agenda
from eventd_plugins.directory_claims import Claims
from eventd_plugins.directory_departures import Departures
from eventd_plugins.directory_files import remote_kind
from eventd_plugins.directory_found import NEVER_S, Found, Kind, Rules, Work
from eventd_plugins.directory_health import Health
from eventd_plugins.directory_ledger import Ledger, Meta, meta_write
from eventd_plugins.directory_notify import Notices
from eventd_plugins.directory_rules import Hint, Row, Status, pack
from eventd_plugins.directory_scan import RootChanged, Scan
from eventd_plugins.directory_settings import DirectorySettings, batching, check

_ROOT_RETRY_S: Final = 1.0
_LOOP_SHOWN_S: Final = 60.0
_MOST_READS: Final = 16
_SHORTEST_S: Final = 0.001


async def run(site: Site, settings: DirectorySettings) -> None:
    """Watch the folder until cancelled. Cancelling loses nothing at any point: what was not stored is found again."""
    await _Directory(site, settings, await Ledger.load(site.state)).serve()


class _Directory:
    def __init__(self, site: Site, settings: DirectorySettings, ledger: Ledger) -> None:
        self._site = site
        self._settings = settings
        self._ledger = ledger
        self._interval_s = settings.scan_interval / 1000
        self._debounce_ns = settings.debounce * 1_000_000
        wanted = settings.wanted()
        self._rules = Rules(
            root=settings.path,
            wanted=wanted,
            ready=settings.ready,
            settle_ns=settings.settle * 1_000_000,
            hold_ns=settings.scan_interval * 1_000_000,
            md5=settings.etag == "md5",
        )
        self._agenda = Agenda(wanted, settings.settle / 1000, waits=settings.ready != "sentinel", ledger=ledger)
        self._health = Health(site)
        self._claims = Claims(
            site, ledger, root=settings.path, notify=settings.notify, stored=self._stored, refused=self._refused, looping=self._looping
        )
        self._departures = Departures(site, settings, ledger, self._claims, self._health, self._released)
        self._again: set[bytes] = set()
        self._meta = Meta(b"")
        self._other_root = False
        self._identity: tuple[int, int] | None = None
        self._notices: Notices | None = None
        self._reader: anyio.CancelScope | None = None
        self._reader_gone = anyio.Event()
        self._blind = ""
        self._remote = ""
        self._floor = 0.0
        self._wake = anyio.Event()
        self._stop = threading.Event()
        self._limiter = CapacityLimiter(1)

    async def serve(self) -> None:
        await self._first_sight()
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._stop_scans)
                group.start_soon(self._departures.serve)
                await self._reconcile(group)
        finally:
            if self._notices is not None:
                self._notices.close()

    async def _stop_scans(self) -> None:
        """Ends a long step of a scanning thread (a big file's digest) when the trigger is cancelled."""
        try:
            await anyio.sleep_forever()
        finally:
            self._stop.set()

    async def _first_sight(self) -> None:
        """The durable mark that this folder has been seen, and when, so that `existing` means the very first start only."""
        root = self._settings.path.encode(errors="surrogateescape")
        if self._ledger.meta is not None and self._ledger.meta.root == root:
            self._meta = self._ledger.meta
            return
        self._other_root = self._ledger.meta is not None
        ignore = self._settings.existing == "ignore"
        await self._remember(Meta(root, ignore_before=round(self._site.now() * 1e9) if ignore else 0, ignored=not ignore))

    async def _remember(self, meta: Meta) -> None:
        await self._site.state.put(meta_write(meta))
        self._meta = meta

    # --- the loop ---

    async def _reconcile(self, group: anyio.abc.TaskGroup) -> None:
        while True:
            await self._claims.room()
            now = self._site.monotonic()
            review = self._health.review()
            full = max(self._agenda.full_due, self._floor)
            if full <= now:
                await self._watch(group)
                await self._scan_all()
            elif (work := self._agenda.take(now)) is not None:
                await self._scan(work)
            else:
                await self._rest(min(self._agenda.next_due(), full, review) - now)

    async def _rest(self, seconds: float) -> None:
        """Return after this time, or when there is news."""
        self._wake = wake = anyio.Event()

        async def expire() -> None:
            await self._site.sleep(max(seconds, _SHORTEST_S))
            wake.set()

        async with anyio.create_task_group() as group:
            group.start_soon(expire)
            await wake.wait()
            group.cancel_scope.cancel()

    async def _scan_all(self) -> None:
        began = self._site.monotonic()
        first = self._identity is None
        known = (self._meta.device, self._meta.inode) if self._meta.inode else None
        scan = await self._scan(self._agenda.take_all(known))
        if scan is None:
            return
        now = self._site.monotonic()
        if first:
            kind = await to_thread.run_sync(remote_kind, scan.identity[0], limiter=self._limiter)
            self._remote = f"it is on {kind}, where other machines' changes give no notice" if kind else ""
        self._other_root = False
        if self._meta.ignored is False or (not scan.empty and scan.identity != known):
            device, inode = (0, 0) if scan.empty else scan.identity
            await self._remember(Meta(self._meta.root, device, inode, self._meta.ignore_before, True))
        if scan.problems:
            more = f" (and {len(scan.problems) - 3} more)" if len(scan.problems) > 3 else ""
            self._health.set("read", "; ".join(scan.problems[:3]) + more)
        else:
            self._health.clear("read")
        self._tell_blindness()
        self._health.opened()
        took = now - began
        self._floor = now + min(self._interval_s, max(0.1, 2 * took))
        pause = self._interval_s if not (self._blind or self._remote) else min(self._interval_s, max(1.0, 10 * took))
        self._agenda.rescan(now + pause * (0.8 + 0.2 * self._site.random()))

    def _tell_blindness(self) -> None:
        if reason := self._blind or self._remote:
            text = f"{self._settings.path!r} is scanned instead of watched: {reason}"
            self._site.warn("W-WATCH", text + ".")
            self._health.set("watch", text)
        else:
            self._health.clear("watch")

    async def _scan(self, work: Work) -> Scan | None:
        """One pass, everything found taken care of. None when the root cannot be opened or is another one than before."""
        scan = Scan(
            self._rules,
            work,
            ledger=self._ledger,
            tracks=self._agenda.tracks,
            notices=self._notices,
            expected=self._identity,
            stop=self._stop,
        )
        more = True
        try:
            while more:
                await self._claims.room()
                now_ns, monotonic = round(self._site.now() * 1e9), self._site.monotonic()
                found, more = await to_thread.run_sync(scan.chunk, now_ns, monotonic, limiter=self._limiter)
                self._identity = scan.identity
                self._health.clear("root")
                if self._meta.ignored:
                    self._health.opened()
                # Every write that a file found ready has seen is known before it is judged for good.
                self._drain()
                await self._take(found)
        except RootChanged:
            await self._lose_root(0.0)
            return None
        except OSError as error:
            self._health.set("root", f"{self._settings.path!r} cannot be read: {error.strerror}; create it, or fix the path")
            await self._lose_root(_ROOT_RETRY_S)
            return None
        finally:
            scan.close()
        if scan.unwatched is not None:
            self._blind = f"{scan.unwatched.strerror} (raise fs.inotify.max_user_watches)"
            self._tell_blindness()
        elif work.whole and self._notices is not None:
            self._blind = ""
        if self._blind and not work.whole:
            self._agenda.rescan(self._site.monotonic() + 1.0)
        return scan

    async def _lose_root(self, retry_s: float) -> None:
        """Start over with whatever the path leads to; the ledger stays."""
        await self._unwatch()
        self._identity = None
        self._floor = 0.0
        self._agenda.rescan(self._site.monotonic() + retry_s)

    # --- notices ---

    async def _watch(self, group: anyio.abc.TaskGroup) -> None:
        if self._notices is not None:
            return
        try:
            self._notices = Notices(writes=self._settings.ready == "rename")
        except OSError as error:
            self._blind = f"{error.strerror} (raise fs.inotify.max_user_instances)"
            return
        self._reader, self._reader_gone = anyio.CancelScope(), anyio.Event()
        group.start_soon(self._read, self._notices, self._reader, self._reader_gone)

    async def _unwatch(self) -> None:
        if self._notices is not None and self._reader is not None:
            self._reader.cancel()
            await self._reader_gone.wait()
            self._notices.close()
            self._notices = self._reader = None

    async def _read(self, notices: Notices, scope: anyio.CancelScope, gone: anyio.Event) -> None:
        try:
            with scope:
                while True:
                    await anyio.wait_readable(notices.fd)
                    self._drain()
                    self._wake.set()
        finally:
            gone.set()

    def _drain(self) -> None:
        """Take in the notices that wait, up to 1 MiB of them."""
        notices = self._notices
        for _ in range(_MOST_READS if notices is not None else 0):
            if notices is None or not (batch := notices.read()):
                return
            depth, now = self._claims.depth_now(), self._site.monotonic()
            for notice in batch:
                if (stale := self._agenda.note(notice, depth, now)) is not None:
                    notices.forget(stale)

    # --- what was found ---

    async def _take(self, found: list[Found]) -> None:
        writes: dict[bytes, bytes | None] = {}
        for at, one in enumerate(found):
            if one.kind in (Kind.READY, Kind.GONE) and not await self._claims.room():
                # The journal refused for a while, so this is old news: look again before anything is claimed.
                for rest in found[at:]:
                    self._agenda.mark(rest.path)
                break
            if one.path in self._claims.waiting or one.path in self._departures.leaving:
                self._again.add(one.path)
                continue
            match one.kind:
                case Kind.SAME:
                    self._agenda.settled(one.path, one.stamp)
                case Kind.GONE:
                    self._take_gone(one, writes)
                case Kind.READY | Kind.WAIT | Kind.IN_PLACE if self._existed(one):
                    self._record(one, Status.KNOWN, writes)
                case Kind.READY:
                    self._take_ready(one, writes)
                case Kind.WAIT:
                    self._take_waiting(one)
                case Kind.IN_PLACE:
                    self._record(one, Status.IN_PLACE, writes)
        if writes:
            await self._site.state.put(writes)
            for path, value in writes.items():
                if value is None:
                    self._ledger.drop(path)
                else:
                    self._ledger.put(path, value)

    def _existed(self, found: Found) -> bool:
        """`existing = "ignore"`: whether the file was there when the folder was first seen. A time to come counts as old."""
        if self._meta.ignored:
            return False
        return found.ctime_ns <= self._meta.ignore_before or found.ctime_ns > round(self._site.now() * 1e9)

    def _record(self, found: Found, status: Status, writes: dict[bytes, bytes | None]) -> None:
        """Put a version into the ledger without an event."""
        row = self._ledger.row(found.path)
        if row is None or row.version != found.version or row.status is not status:
            sequencer = self._ledger.next_sequencer(round(self._site.now() * 1e9))
            writes[found.path] = pack(Row(found.version, status, sequencer))
        self._agenda.settled(found.path, found.stamp)

    def _take_gone(self, found: Found, writes: dict[bytes, bytes | None]) -> None:
        self._agenda.settled(found.path, found.stamp)
        row = self._ledger.row(found.path)
        if row is None or row.status is Status.LEAVING:
            return
        if "removed" in self._settings.events and row.status is not Status.IN_PLACE and not self._other_root:
            self._claims.removed(found.path, row)
        else:
            writes[found.path] = None

    def _take_ready(self, found: Found, writes: dict[bytes, bytes | None]) -> None:
        if self._is_stale(found):
            return
        row = self._ledger.row(found.path)
        known = row is not None and row.status in (Status.RUN, Status.KNOWN)
        if ("modified" if known else "created") not in self._settings.events:
            self._record(found, Status.KNOWN, writes)
            return
        track = self._agenda.tracks.get(found.path)
        if self._debounce_ns and (left := self._left_of_window(found)) > 0:
            self._agenda.later(found.path, self._site.monotonic() + left)
            return
        self._claims.created(found, track.depth if track is not None else self._claims.depth_now())

    def _is_stale(self, found: Found) -> bool:
        """Whether a notice has come since the look. It asked for another look; but what was renamed in is whole anyway."""
        track = self._agenda.tracks.get(found.path)
        if track is None:
            return found.stamp != 0
        return track.stamp != found.stamp and track.hint is not Hint.MOVED

    def _left_of_window(self, found: Found) -> float:
        """Seconds for which a ready version must wait for a later one. The window begins with the first ready version."""
        age = round(self._site.now() * 1e9) - found.ctime_ns
        if age >= self._debounce_ns:
            return 0.0
        now, track = self._site.monotonic(), self._agenda.track(found.path)
        if track is None:
            return self._debounce_ns / 1e9
        if track.held is None:
            track.held = now
        held = self._debounce_ns / 1e9 - (now - track.held)
        return min(held, (self._debounce_ns - age) / 1e9) if age >= 0 else held

    def _take_waiting(self, found: Found) -> None:
        if found.delay_s == NEVER_S:
            return
        now, known = self._site.monotonic(), found.path in self._agenda.tracks
        track = self._agenda.track(found.path)
        if track is not None:
            if not known:
                track.depth = self._claims.depth_now()
            if track.version != found.version:
                track.version, track.since = found.version, now
        self._agenda.later(found.path, now + found.delay_s)

    # --- what became of it ---

    def _stored(self, path: bytes, found: Found) -> None:
        self._agenda.settled(path, found.stamp)
        self._health.clear("journal")
        self._released(path)

    def _refused(self, path: bytes, error: EventdError) -> None:
        self._health.set("journal", f"files wait in the folder: {error.message}")
        self._again.discard(path)
        self._agenda.mark(path)
        self._wake.set()

    def _released(self, path: bytes) -> None:
        if path in self._again:
            self._again.discard(path)
            self._agenda.mark(path)
            self._wake.set()

    def _looping(self, path: bytes, depth: int) -> None:
        shown = ascii(path.decode(errors="surrogateescape"))
        text = f"{shown} was made while this trigger's function ran, {depth} deep: the function seems to feed its own folder"
        self._site.warn("W-LOOP", text + ". Write results elsewhere, or exclude them.")
        self._health.set("loop", text, for_s=_LOOP_SHOWN_S)


plugin = TriggerPlugin(kind="directory", settings=DirectorySettings, run=run, check=check, batching=batching)
