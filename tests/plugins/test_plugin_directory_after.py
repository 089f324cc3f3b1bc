"""What becomes of a file when its event is settled, with every step broken once."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from test_plugin_directory_lab import Lab
from test_plugin_directory_lab import lab as lab

from eventd.sdk import Event, Settlement
from eventd.testing.site import Status
from eventd_plugins import directory_after, directory_departures
from eventd_plugins.directory_after import Leave, Left, leave
from eventd_plugins.directory_files import rename_noreplace, version_of_stat
from eventd_plugins.directory_rules import event_id, sequencer_text

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {}


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder on another file system."""
    folder = Path("/dev/shm") / f"eventd-test-{os.getpid()}"
    folder.mkdir()
    yield folder
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def left_in(folder: Path) -> list[str]:
    """All files below a folder, scratch names included, without the markers."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and "marker-" not in path.name)


async def settled(lab: Lab, index: int = 0, *, ok: bool = True) -> Settlement:
    settlement = lab.site.settle(lab.events[index], ok=ok)
    await lab.site.wait_for(lambda: settlement not in lab.site.owed, step=0.02)
    return settlement


ALL = ["created", "modified", "removed"]


async def test_nothing_is_asked_for_and_nothing_done_by_default(lab: Lab) -> None:
    lab.put("a")
    async with lab.playing():
        await lab.emitted(1)
    assert not lab.events[0].event.notify
    assert left_in(lab.root) == ["a"]


async def test_delete_when_all_succeeded_keep_when_not(lab: Lab) -> None:
    lab.put("good")
    lab.put("sub/bad")
    async with lab.playing(after="delete", events=ALL):
        await lab.emitted(2)
        index = {one.event.key: at for at, one in enumerate(lab.events)}
        await settled(lab, index["good"])
        await settled(lab, index["sub/bad"], ok=False)
        await lab.calm(130)
    assert left_in(lab.root) == ["sub/bad"]
    assert b"good" not in lab.site.ledger
    assert len(lab.events) == 2, "our own delete is no event"


async def test_move_keeps_the_relative_path_and_makes_the_folders(lab: Lab) -> None:
    lab.put(b"sub/a\xff.txt", "1")
    lab.put("bad", "2")
    done, failed = lab.aside / "done", lab.aside / "failed/here"
    async with lab.playing(after="move", move_to=str(done), after_failure="move", failed_to=str(failed), events=ALL):
        await lab.emitted(2)
        bad = next(at for at, one in enumerate(lab.events) if one.event.key == "bad")
        await settled(lab, bad, ok=False)
        await settled(lab, 1 - bad)
        await lab.calm(130)
        assert len(lab.events) == 2
        assert left_in(lab.root) == []
        assert (done / os.fsdecode(b"sub/a\xff.txt")).read_text() == "1"
        assert (failed / "bad").read_text() == "2"
        os.rename(failed / "bad", lab.root / "bad")  # a person moves it back to try again
        await lab.emitted(3)
    assert lab.events[2].event.key == "bad"


async def test_a_taken_name_is_never_overwritten(lab: Lab) -> None:
    lab.put("a.txt", "new")
    (lab.aside / "a.txt").write_text("old")
    async with lab.playing(after="move", move_to=str(lab.aside)):
        await lab.emitted(1)
        await settled(lab)
    sequencer = lab.events[0].data["Records"][0]["s3"]["object"]["sequencer"]
    assert (lab.aside / "a.txt").read_text() == "old"
    assert (lab.aside / f"a-{sequencer}.txt").read_text() == "new"


async def test_a_changed_file_is_not_touched(lab: Lab) -> None:
    path = lab.put("a", "1")
    async with lab.playing(after="delete", events=ALL):
        await lab.emitted(1)
        path.write_text("22")
        await settled(lab)
        assert path.read_text() == "22"
        await lab.emitted(2)
        await settled(lab, 1)
        await lab.calm(70)
    assert left_in(lab.root) == []
    assert len(lab.events) == 2


async def test_a_file_that_somebody_took_is_no_error(lab: Lab) -> None:
    path = lab.put("d/a")
    async with lab.playing(after="delete", events=ALL):
        await lab.emitted(1)
        lab.site.hold()
        path.unlink()
        path.parent.rmdir()
        settlement = lab.site.settle(lab.events[0])
        lab.site.release()
        await lab.site.wait_for(lambda: settlement not in lab.site.owed, step=0.02)
        await lab.emitted(2)
        await lab.calm(70)
    assert lab.paths("ObjectRemoved:Delete") == [b"d/a"]
    assert b"d/a" not in lab.site.ledger


async def test_another_file_system_gets_a_copy_then_the_original_goes(lab: Lab, elsewhere: Path) -> None:
    path = lab.put("sub/a", "content" * 1000)
    path.chmod(0o640)
    before = path.stat()
    async with lab.playing(after="move", move_to=str(elsewhere), events=ALL):
        await lab.emitted(1)
        await settled(lab)
        await lab.calm(70)
    assert left_in(lab.root) == []
    assert left_in(elsewhere) == ["sub/a"]
    after = (elsewhere / "sub/a").stat()
    assert (after.st_size, after.st_mtime_ns, after.st_mode) == (before.st_size, before.st_mtime_ns, before.st_mode)
    assert len(lab.events) == 1


async def test_what_cannot_be_done_now_is_told_and_done_later(lab: Lab) -> None:
    lab.put("a")
    blocked = lab.aside / "file"
    blocked.write_text("not a folder")
    async with lab.playing(after="move", move_to=str(blocked), events=ALL) as site:
        await lab.emitted(1)
        settlement = site.settle(lab.events[0])
        await site.wait_for(lambda: site.status.state == "degraded", step=0.02)
        assert "cannot be deleted or moved" in site.status.why
        assert left_in(lab.root) == ["a"], "it waits at its place"
        await lab.calm(70)
        blocked.unlink()
        await site.wait_for(lambda: settlement not in site.owed and site.status == Status("up"), step=1)
        assert (blocked / "a").exists()
        await lab.calm(70)
    assert len(lab.events) == 1


CRASHES = [
    ("before", "rename"),
    ("after", "rename"),
    ("before", "rename_noreplace"),
    ("after", "rename_noreplace"),
    ("before", "unlink"),
    ("after", "unlink"),
    ("before", "fsync"),
]


class Crash(BaseException):
    """The daemon dies here: nothing after it is carried out, not even what is in `except OSError`."""


@pytest.mark.parametrize("other_disk", [False, True])
@pytest.mark.parametrize("action", ["delete", "move"])
@pytest.mark.parametrize(("when", "step"), CRASHES)
async def test_a_crash_at_every_step(
    lab: Lab, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, when: str, step: str, action: str, other_disk: bool
) -> None:
    path = lab.put("d/a.txt", "content")
    target = elsewhere if other_disk else lab.aside / "done"
    version, event = version_of_stat(path.stat()), event_id(b"d/a.txt", version_of_stat(path.stat()), 1)
    order = Leave(str(lab.root), b"d/a.txt", event, version, action, str(target), 7)
    crashed = False

    def breaking(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal crashed
            if crashed:
                return real(*args, **kwargs)
            crashed = True
            if when == "after":
                real(*args, **kwargs)
            raise Crash

        return call

    with monkeypatch.context() as patch:
        if step == "rename_noreplace":
            patch.setattr(directory_after, step, breaking(rename_noreplace))
        else:
            patch.setattr(directory_after.os, step, breaking(getattr(os, step)))
        try:
            result = leave(order)
        except (Crash, OSError):
            result = None
    if result is None:
        result = leave(order)
    assert result in (Left.DONE, Left.ABSENT)
    assert leave(order) is Left.ABSENT
    assert left_in(lab.root) == []
    if action == "move":
        assert left_in(target) == ["d/a.txt"]
        assert (target / "d/a.txt").read_text() == "content"


@pytest.mark.parametrize("done", [False, True])
async def test_a_crash_between_the_action_and_its_acknowledgement(lab: Lab, monkeypatch: pytest.MonkeyPatch, done: bool) -> None:
    path = lab.put("a")
    acted = []

    def act(order: Leave) -> Left:
        result = leave(order) if done else Left.CHANGED
        acted.append(result)
        lab.site.hold()
        return result

    async with lab.playing(after="delete", events=ALL):
        await lab.emitted(1)
        monkeypatch.setattr(directory_departures, "leave", act)
        settlement = lab.site.settle(lab.events[0])
        await lab.site.wait_for(lambda: acted)
        lab.crash()
    monkeypatch.undo()
    assert settlement in lab.site.owed
    assert path.exists() is not done
    async with lab.playing(after="delete", events=ALL):
        await lab.site.wait_for(lambda: not lab.site.owed, step=0.02)
        await lab.calm(130)
    assert not path.exists()
    assert len(lab.events) == 1, "neither a second run nor a removal"
    assert b"a" not in lab.site.ledger


async def test_a_crash_with_the_file_under_its_scratch_name_and_then_keep(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.put("a", "content")

    def taken(order: Leave) -> Left:
        os.rename(lab.root / "a", lab.root / (".eventd-" + scratch_of(order)))
        lab.site.hold()
        return Left.DONE

    async with lab.playing(after="delete", events=ALL):
        await lab.emitted(1)
        monkeypatch.setattr(directory_departures, "leave", taken)
        lab.site.settle(lab.events[0])
        await lab.site.wait_for(lambda: not (lab.root / "a").exists())
        lab.crash()
    monkeypatch.undo()
    async with lab.playing(events=ALL):  # the settings say keep now
        await lab.site.wait_for(lambda: not lab.site.owed, step=0.02)
        await lab.calm(130)
    assert (lab.root / "a").read_text() == "content"
    assert left_in(lab.root) == ["a"]
    assert len(lab.events) == 1


def scratch_of(order: Leave) -> str:
    return blake2b(order.event.encode(), digest_size=12).hexdigest()


async def test_a_newer_file_that_takes_the_name_at_the_last_moment_is_given_back(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lab.put("a", "1")
    version = version_of_stat(path.stat())
    order = Leave(str(lab.root), b"a", event_id(b"a", version, 1), version, "delete", None, 7)
    real = os.rename

    def race(*args: Any, **kwargs: Any) -> None:
        monkeypatch.undo()
        lab.bring("a", "22")
        real(*args, **kwargs)

    monkeypatch.setattr(directory_after.os, "rename", race)
    assert leave(order) is Left.CHANGED
    assert path.read_text() == "22"
    assert left_in(lab.root) == ["a"]


async def test_a_file_put_back_beside_a_newer_one(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lab.put("a.txt", "1")
    version = version_of_stat(path.stat())
    order = Leave(str(lab.root), b"a.txt", event_id(b"a.txt", version, 1), version, "move", str(lab.aside / "x"), 7)

    def full(*_: object, **__: object) -> None:
        lab.bring("a.txt", "22")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(directory_after, "_move", full)
    with pytest.raises(OSError, match="No space left"):
        leave(order)
    assert path.read_text() == "22"
    assert left_in(lab.root) == [f"a-{sequencer_text(7)}.txt", "a.txt"]


async def test_links_are_neither_followed_nor_removed(lab: Lab) -> None:
    victim = lab.aside / "victim"
    victim.write_text("x")
    os.utime(victim, (1, 1))
    version = version_of_stat(victim.stat())
    (lab.root / "d").symlink_to(lab.aside)
    (lab.root / "a").symlink_to(victim)
    for name in (b"a", b"d/victim"):
        assert leave(Leave(str(lab.root), name, event_id(name, version, 1), version, "delete", None, 1)) in (Left.CHANGED, Left.ABSENT)
    assert victim.exists()
    assert (lab.root / "a").is_symlink()


async def test_many_settlements_and_files_of_one_name(lab: Lab) -> None:
    for number in range(150):
        lab.put(f"{number % 10}/{number}")
    async with lab.playing(after="delete", events=ALL) as site:
        await lab.emitted(150)
        for one in list(lab.events):
            site.settle(one)
        await site.wait_for(lambda: not site.owed, 15, step=0.02)
        lab.put("1/1", "again", age=5)
        await lab.emitted(151)
        await lab.calm(70)
    assert left_in(lab.root) == ["1/1"]
    assert len(lab.events) == 151


async def test_a_settlement_of_no_event_of_ours_is_acknowledged(lab: Lab) -> None:
    await lab.site.emit(Event(data={}, id="not-of-ours", key="a", notify=True))
    path = lab.put("a")
    async with lab.playing(after="delete") as site:
        site.settle("not-of-ours")
        await site.wait_for(lambda: not site.owed, step=0.02)
    assert path.exists()
