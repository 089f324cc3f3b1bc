"""What the tests of the directory trigger share: a real folder, a fake site, and the trigger running on it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec
import pytest

from eventd.sdk import Event, EventdError, Receipt
from eventd.testing.site import Emitted, FakeSite
from eventd_plugins.directory import plugin
from eventd_plugins.directory_settings import DirectorySettings


class Site(FakeSite):
    """A FakeSite that also takes payloads with lone surrogates, which msgspec cannot decode (legal JSON, from `json.dumps`).

    They are stored with a private-use character in place of each surrogate; `bodies` has the payloads as they were offered.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.bodies: list[bytes] = []

    def offer(
        self, event: Event, done: Callable[[Receipt | EventdError], None], *, state: Mapping[bytes, bytes | None] | None = None
    ) -> None:
        self.bodies.append(bytes(event.data))
        plain = re.sub(rb"\\udc([89a-f][0-9a-f])", rb"\\uf7\1", bytes(event.data))
        super().offer(msgspec.structs.replace(event, data=msgspec.Raw(plain)), done, state=state)


class Lab:
    """`root` is watched, `aside` is a folder beside it on the same file system."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "in"
        self.aside = folder / "aside"
        self.root.mkdir()
        self.aside.mkdir()
        self._markers = 0
        self.site: FakeSite = Site("uploads", now=time.time())

    def settings(self, **keys: Any) -> DirectorySettings:
        context = {"base": str(self.root.parent)}
        return DirectorySettings.model_validate({"path": str(self.root), "settle": "50ms", **keys}, context=context)

    @asynccontextmanager
    async def playing(self, **keys: Any) -> AsyncIterator[FakeSite]:
        """Run the trigger; inside the block it has opened (or is degraded)."""
        seen = len(self.site.history)
        async with self.site.playing(plugin, self.settings(**keys)):
            await self.site.wait_for(lambda: len(self.site.history) > seen)
            yield self.site

    def put(self, name: str | bytes, text: str = "x", *, age: float = 10.0) -> Path:
        """A finished file, last changed `age` seconds ago."""
        path = self.root / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        then = time.time_ns() - round(age * 1e9)
        os.utime(path, ns=(then, then))
        return path

    def bring(self, name: str | bytes, text: str = "x") -> Path:
        """A file written beside the folder and renamed into it."""
        path = self.root / os.fsdecode(name)
        made = self.aside / "made"
        made.write_text(text)
        os.replace(made, path)
        return path

    @property
    def events(self) -> list[Emitted]:
        """What is stored, without the markers of `calm`."""
        return [one for one in self.site.emitted if b"marker-" not in path_of(one.data)]

    def paths(self, name: str = "ObjectCreated:Put") -> list[bytes]:
        """The paths of the stored events of one kind, in order."""
        return [path_of(one.data) for one in self.events if "Records" in one.data and one.data["Records"][0]["eventName"] == name]

    async def emitted(self, count: int, *, step: float = 0.02, timeout: float = 10.0) -> None:
        """Wait for that many events in all; virtual time passes by `step`, and with it, maybe, a scan of everything."""
        await self.site.wait_for(lambda: len(self.events) >= count, timeout, step=step)

    async def noticed(self, count: int) -> None:
        """Wait for that many events in all, and assert that no scan of everything was needed (the first is after 48 s)."""
        began = self.site.monotonic()
        await self.emitted(count, step=0.002)
        assert self.site.monotonic() - began < 40

    async def calm(self, seconds: float = 3.0, *, step: float = 0.05) -> None:
        """Let virtual time pass, and return when everything that was due in it has been looked at.

        Proof by a marker: a file renamed in last, whose event comes only after what was due before it.
        """
        for _ in range(3):
            await self.site.clock.advance(seconds / 3)
            self._markers += 1
            name = f"marker-{self._markers}.jpg"
            self.bring(name)
            (self.root / f"{name}.done").touch()
            await self.site.wait_for(lambda: any(path_of(one.data) == name.encode() for one in self.site.emitted), step=step)  # noqa: B023

    def crash(self, *, stored: bool = False) -> None:
        site = self.site.reborn(stored=stored)
        site.__class__ = Site  # the fake is born again as a plain FakeSite
        site.bodies = []  # type: ignore[attr-defined]
        self.site = site


def path_of(data: Any) -> bytes:
    return unquote_to_bytes(data["Records"][0]["s3"]["object"]["key"].replace("+", " "))


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)
