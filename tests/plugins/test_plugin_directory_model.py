"""Any sequence of changes, scans, stops and crashes: every ready version present at a scan runs, and none runs twice."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from test_plugin_directory_lab import Lab, path_of

from eventd.errors import Overloaded
from eventd_plugins.directory_event import version_etag
from eventd_plugins.directory_files import version_of_stat

FOLDERS = ("", "d", "d/e", "f")
folders = st.sampled_from(FOLDERS)
names = st.sampled_from(("a", "b.txt", "c\n", "x.tmp", os.fsdecode(b"\xff")))
Version = tuple[bytes, str]


class Folder(RuleBasedStateMachine):
    """The model is what the file system says at a scan, and the set of versions that must have run by then."""

    @initialize(ready=st.sampled_from(("settle", "rename")))
    def begin(self, ready: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="eventd-"))
        self.lab = Lab(self.folder)
        self.loop = asyncio.new_event_loop()
        self.ready = ready
        self.mtime = 1_000_000_000
        self.number = 0
        self.due: set[Version] = set()
        self.task: asyncio.Task[None] | None = None
        self.end: asyncio.Event | None = None

    def teardown(self) -> None:
        try:
            self.stop()
        finally:
            self.loop.close()
            shutil.rmtree(self.folder)

    def await_(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(coroutine)

    def bring(self, folder: str, name: str) -> Path:
        """A whole file, renamed in, with a time of its own."""
        self.mtime += 1
        path = self.lab.root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        made = self.lab.aside / "made"
        made.write_text("x" * (self.mtime % 5))
        os.utime(made, (self.mtime, self.mtime))
        os.replace(made, path)
        return path

    @rule(folder=folders, name=names)
    def create_or_replace(self, folder: str, name: str) -> None:
        self.bring(folder, name)

    @rule(pick=st.randoms(use_true_random=False))
    def rename(self, pick: Any) -> None:
        if files := self.files():
            self.number += 1
            source = pick.choice(files)
            source.rename(source.parent / f"renamed-{self.number}")

    @rule(pick=st.randoms(use_true_random=False))
    def delete(self, pick: Any) -> None:
        if files := self.files():
            pick.choice(files).unlink()

    @rule(folder=st.sampled_from(FOLDERS[1:]))
    def delete_tree(self, folder: str) -> None:
        shutil.rmtree(self.lab.root / folder, ignore_errors=True)

    @rule(folder=st.sampled_from(FOLDERS[1:]))
    def rename_tree(self, folder: str) -> None:
        self.number += 1
        if (self.lab.root / folder).is_dir():
            (self.lab.root / folder).rename(self.lab.root / f"tree-{self.number}")

    @rule(pick=st.randoms(use_true_random=False))
    def chmod(self, pick: Any) -> None:
        if files := self.files():
            pick.choice(files).chmod(pick.choice([0o600, 0o644]))

    @precondition(lambda self: self.ready == "settle")
    @rule(pick=st.randoms(use_true_random=False))
    def write_in_place(self, pick: Any) -> None:
        if files := self.files():
            self.mtime += 1
            path = pick.choice(files)
            path.write_text("y" * (self.mtime % 5))
            os.utime(path, (self.mtime, self.mtime))

    @rule()
    def refuse(self) -> None:
        self.lab.site.fail_next(Overloaded("full"), times=2)

    @precondition(lambda self: self.task is None)
    @rule()
    def start(self) -> None:
        async def play(end: asyncio.Event, opened: asyncio.Event) -> None:
            async with self.lab.playing(ready=self.ready):
                opened.set()
                await end.wait()

        async def begin() -> None:
            opened, self.end = asyncio.Event(), asyncio.Event()
            self.task = asyncio.get_running_loop().create_task(play(self.end, opened))
            await asyncio.wait_for(opened.wait(), 5)

        self.await_(begin())

    @rule()
    def stop(self) -> None:
        if self.task is not None and self.end is not None:
            self.end.set()
            self.await_(self.task)
            self.task = None

    @rule(stored=st.booleans())
    def crash(self, stored: bool) -> None:
        self.lab.crash(stored=stored)
        self.stop()

    @precondition(lambda self: self.task is not None)
    @rule()
    def a_moment(self) -> None:
        self.await_(self.lab.site.clock.advance(0.03))

    @rule()
    def scan(self) -> None:
        if self.task is None:
            self.start()
        present = self.present()
        self.await_(self.lab.site.wait_for(lambda: present <= self.ran(), 10, step=0.5))
        self.due |= present

    @invariant()
    def no_version_twice(self) -> None:
        if hasattr(self, "lab"):
            versions = [(path_of(one.data), one.data["Records"][0]["s3"]["object"]["eTag"]) for one in self.lab.site.emitted]
            assert len(versions) == len(set(versions))
            assert self.due <= set(versions)

    def files(self) -> list[Path]:
        return sorted(path for path in self.lab.root.rglob("*") if path.is_file())

    def present(self) -> set[Version]:
        wanted = [path for path in self.files() if not path.name.endswith(".tmp")]
        return {(os.fsencode(path.relative_to(self.lab.root)), version_etag(version_of_stat(path.stat()))) for path in wanted}

    def ran(self) -> set[Version]:
        return {(path_of(one.data), one.data["Records"][0]["s3"]["object"]["eTag"]) for one in self.lab.site.emitted}


TestFolder = Folder.TestCase
TestFolder.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
TestFolder.pytestmark = [pytest.mark.timeout(60)]
