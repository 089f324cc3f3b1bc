"""Noticing changes on disk: saves in steps, folders that are missing, vanish, come back or appear, and links."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from daemon_house import House, house

from eventd.daemon import watch
from eventd.daemon.watch import config_files, handler_files

pytestmark = pytest.mark.anyio

ONE = """
[triggers.in]
type = "probe"
function = "hello"
"""


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return ("asyncio", {})


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LOOK_S", 0.1)
    monkeypatch.setattr(watch, "SETTLE_MS", 50)


@asynccontextmanager
async def watched(root: Path, text: str = ONE) -> AsyncIterator[tuple[House, list[int]]]:
    """A house that is watched, and a list that grows with each reload."""
    async with house(root, text) as h:
        reloads: list[int] = []
        reload = h.reloader.reload

        async def counted() -> Any:
            try:
                return await reload()
            finally:
                reloads.append(len(reloads))

        h.reloader.reload = counted  # type: ignore[method-assign]
        h.folder.handler("_first.py")  # seen when watching begins, for nobody was there to notice it
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(h.reloader.watch)
            await h.until(lambda: reloads, "the reload with which watching begins")
            yield h, reloads
            h.reloader.stop_watching()


async def test_a_saved_configuration_is_in_force(tmp_path: Path) -> None:
    async with watched(tmp_path) as (h, _):
        h.folder.write(ONE + '[triggers.new]\ntype = "probe"\nfunction = "hello"\n')
        await h.until(lambda: "new" in h.probe.begun, "the new trigger")


async def test_what_changed_before_there_were_notices_is_found(tmp_path: Path) -> None:
    async with house(tmp_path, ONE) as h:
        h.folder.handler("late.py")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(h.reloader.watch)
            await h.until(lambda: "late" in h.pool.loads, "the function")
            h.reloader.stop_watching()


async def test_where_nothing_changed_nothing_is_loaded_again(tmp_path: Path) -> None:
    async with house(tmp_path, ONE) as h, anyio.create_task_group() as tasks:
        tasks.start_soon(h.reloader.watch)
        await asyncio.sleep(0.1)
        assert h.pool.loads == ["hello"]
        h.folder.handler("late.py")
        await h.until(lambda: "late" in h.pool.loads, "the function")
        h.reloader.stop_watching()


async def test_a_save_in_steps_is_one_reload(tmp_path: Path) -> None:
    async with watched(tmp_path) as (h, reloads):
        for n in range(8):
            h.folder.file.write_text(ONE[: len(ONE) * n // 8])
            await asyncio.sleep(0.01)
        h.folder.file.write_text(ONE + 'note = "x"\n')
        await h.until(lambda: len(h.probe.begun) == 2, "the trigger with its new settings")
        assert h.reloader.ok
        assert len(reloads) <= 4


async def test_a_new_handler_is_a_function(tmp_path: Path) -> None:
    async with watched(tmp_path) as (h, _):
        h.folder.handler("late.py")
        await h.until(lambda: "late" in h.pool.loads, "the function")
        h.folder.handler("_helper.py")
        before = len(h.pool.loads)
        await h.until(lambda: len(h.pool.loads) > before, "helpers to count too")


async def test_conf_d_may_appear_later(tmp_path: Path) -> None:
    async with watched(tmp_path) as (h, _):
        (tmp_path / "conf.d").mkdir()
        (tmp_path / "conf.d" / "10.toml").write_text('[triggers.more]\ntype = "probe"\nfunction = "hello"\n')
        await h.until(lambda: "more" in h.probe.begun, "the drop-in")
        (tmp_path / "conf.d" / "20.toml").write_text('[triggers.again]\ntype = "probe"\nfunction = "hello"\n')
        await h.until(lambda: "again" in h.probe.begun, "the second drop-in")
        shutil.rmtree(tmp_path / "conf.d")
        await h.until(lambda: set(h.sources.all) == {"in"}, "both to go")


async def test_the_handlers_folder_may_vanish_and_come_back(tmp_path: Path) -> None:
    async with watched(tmp_path) as (h, _):
        shutil.rmtree(h.folder.handlers)
        await h.until(lambda: not h.reloader.ok, "the rejection: a trigger has lost its function")
        assert "in" in h.sources.all, "what runs goes on"
        h.folder.handlers.mkdir()
        h.folder.handler("hello.py")
        await h.until(lambda: h.reloader.ok, "the folder to be seen again")
        h.folder.handler("later.py")
        await h.until(lambda: "later" in h.pool.loads, "notices from the new folder")


async def test_the_handlers_folder_may_be_missing_at_first(tmp_path: Path) -> None:
    async with house(tmp_path, "", functions=()) as h:
        h.folder.handlers.rmdir()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(h.reloader.watch)
            await asyncio.sleep(0.1)
            h.folder.handlers.mkdir()
            h.folder.handler("hello.py")
            await h.until(lambda: "hello" in h.pool.loads, "the function")
            h.folder.handler("later.py")
            await h.until(lambda: "later" in h.pool.loads, "notices from the folder")
            h.reloader.stop_watching()


async def test_the_handlers_folder_may_be_swapped_for_another(tmp_path: Path) -> None:
    """As deployments do it: a new tree beside, then two renames; or a link that is turned."""
    async with watched(tmp_path) as (h, _):
        other = tmp_path / "other"
        other.mkdir()
        shutil.copy(h.folder.handlers / "hello.py", other / "hello.py")
        (other / "deployed.py").write_text("def handler(event, context): return 1\n")
        h.folder.handlers.rename(tmp_path / "old")
        other.rename(h.folder.handlers)
        await h.until(lambda: "deployed" in h.pool.loads, "the new tree")


async def test_a_linked_configuration_is_followed(tmp_path: Path) -> None:
    async with watched(tmp_path) as (h, reloads):
        real = tmp_path / "elsewhere"
        real.mkdir()
        (real / "site.toml").write_text(ONE)
        h.folder.file.unlink()
        h.folder.file.symlink_to(real / "site.toml")
        before = len(reloads)
        await h.until(lambda: len(reloads) > before, "the link to be seen")
        (real / "site.toml").write_text(ONE + 'note = "through the link"\n')
        await h.until(lambda: len(h.probe.begun) == 2, "a change behind the link")


async def test_the_folder_of_the_configuration_may_vanish(tmp_path: Path) -> None:
    root = tmp_path / "site"
    root.mkdir()
    async with watched(root) as (h, _):
        root.rename(tmp_path / "away")
        await h.until(lambda: not h.reloader.ok, "the rejection")
        (tmp_path / "away").rename(root)
        await h.until(lambda: h.reloader.ok, "the configuration to be back")
        h.folder.write(ONE + 'note = "x"\n')
        await h.until(lambda: len(h.probe.begun) == 2, "notices from the folder that came back")


async def test_a_reload_that_fails_is_told_and_the_next_one_works(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with house(tmp_path, ONE) as h:
        reload, once = h.reloader.reload, [RuntimeError("a mistake of ours")]

        async def failing() -> Any:
            if once:
                raise once.pop()
            return await reload()

        h.reloader.reload = failing  # type: ignore[method-assign]
        h.folder.handler("_first.py")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(h.reloader.watch)
            await h.until(lambda: h.mistakes.count == 1, "the mistake in the reload with which watching begins")
            assert "E-INTERNAL" in caplog.text
            h.folder.handler("two.py")
            await h.until(lambda: "two" in h.pool.loads, "the next reload")
            h.reloader.stop_watching()


async def test_without_notices_the_folders_are_scanned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = watch.awatch
    scans: list[tuple[str, ...]] = []

    def no_notices(*paths: str, **more: Any) -> Any:
        if not more["force_polling"]:
            raise OSError(28, "OS file watch limit reached")
        scans.append(paths)
        return real(*paths, **more)

    monkeypatch.setattr(watch, "awatch", no_notices)
    monkeypatch.setattr(watch, "POLL_MS", 50)
    async with watched(tmp_path) as (h, _):
        await h.until(lambda: "W-WATCH" in caplog.text, "the warning")
        await h.until(lambda: scans, "the scan to begin")
        h.folder.handler("late.py")
        await h.until(lambda: "late" in h.pool.loads, "the function")
    assert caplog.text.count("W-WATCH") == 1


def test_which_changes_matter() -> None:
    from watchfiles import Change

    config = config_files("/site/eventd.toml")
    handlers = handler_files("/site/handlers", "/site/state")
    nested = handler_files("/.git/handlers", "/.git/handlers/state")
    beside = {
        "/site/eventd.toml": 1,
        "/site/conf.d": 1,
        "/site/conf.d/a.toml": 1,
        "/site/conf.d/.a.toml.swp": 0,
        "/site/state/journal.db": 0,
    }
    beside["/site/other.toml"] = 0
    below = {"/site/handlers/a.py": 1, "/site/handlers/a/b/c.txt": 1, "/site/handlers/requirements.txt": 1, "/site/handlers/a.py~": 0}
    below |= {"/site/handlers/.a.py.swp": 0, "/site/handlers/__pycache__/a.pyc": 0, "/site/handlers/a/node_modules/b/index.js": 0}
    assert {path: int(config(Change.modified, path)) for path in beside} == beside
    assert {path: int(handlers(Change.modified, path)) for path in below} == below
    assert nested(Change.modified, "/.git/handlers/a.py"), "where the site lies does not matter"
    assert not nested(Change.modified, "/.git/handlers/state/journal.db-wal"), "the daemon's own writing is no change"
