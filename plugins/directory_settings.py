"""The settings of a directory trigger, and what can be found wrong with them before the trigger opens."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from eventd.sdk import Batching, Duration, Finding, Folder, PluginSettings
from eventd_plugins.directory_rules import Wanted, problem_of_glob

After = Literal["keep", "delete", "move"]


def _glob(pattern: str) -> str:
    if problem := problem_of_glob(pattern):
        raise ValueError(problem)
    return pattern


def _suffix(text: str) -> str:
    if not text or "/" in text or "\0" in text:
        raise ValueError('a sentinel is an ending such as ".done": not empty, without "/" or NUL')
    return text


def _interval(milliseconds: int) -> int:
    if milliseconds < 100:
        raise ValueError('a scan interval is at least "100ms"')
    return milliseconds


def _some(events: tuple[str, ...]) -> tuple[str, ...]:
    if not events:
        raise ValueError('name at least one of "created", "modified" and "removed"')
    return events


Glob = Annotated[str, AfterValidator(_glob)]


class DirectorySettings(PluginSettings):
    """surface.md section 5, `directory`. Durations are milliseconds, paths are absolute."""

    path: Folder = Field(description="The folder to watch; it must be there")
    recursive: bool = Field(default=True, description="Watch the folders in it too")
    include: tuple[Glob, ...] = Field(
        default=("**",),
        description="Files to take: a pattern without a slash is matched on the name at any depth, with one on the whole relative path",
    )
    exclude: tuple[Glob, ...] = Field(default=(), description="Files to leave alone, written as include")
    events: Annotated[tuple[Literal["created", "modified", "removed"], ...], AfterValidator(_some)] = Field(
        default=("created", "modified"), description="What counts: created, modified, removed"
    )
    existing: Literal["run", "ignore"] = Field(default="run", description="Files that are there at the very first start: run or ignore")
    ready: Literal["settle", "rename", "sentinel"] = Field(
        default="settle",
        description="When a file is complete: settle (unchanged for a while), rename (only renamed in) or sentinel (a second file says so)",
    )
    settle: Duration = Field(default=1_000, description="How long a file must be unchanged")
    sentinel: Annotated[str, AfterValidator(_suffix)] = Field(default=".done", description="The ending of the second file")
    debounce: Duration = Field(default=0, description="Run only the last version of a file inside this window")
    batch_size: int = Field(default=1, ge=1, le=10_000, description="Files in one run, at most")
    batch_window: Duration = Field(default=0, description="How long to wait for more of them")
    scan_interval: Annotated[Duration, AfterValidator(_interval)] = Field(
        default=60_000, description="How often the folder is read in full"
    )
    after: After = Field(default="keep", description="What becomes of a file when all of its runs succeeded")
    move_to: Folder | None = Field(default=None, description="Where it is moved to")
    after_failure: After = Field(default="keep", description="What becomes of a file when one of its runs is dead")
    failed_to: Folder | None = Field(default=None, description="Where that one is moved to")
    etag: Literal["version", "md5"] = Field(default="version", description="The eTag in the event: version, or md5, which reads the file")

    @property
    def notify(self) -> bool:
        """Whether something is to be done with a file when its event is settled."""
        return self.after != "keep" or self.after_failure != "keep"

    def wanted(self) -> Wanted:
        return Wanted(self.include, self.exclude, self.recursive, self.sentinel if self.ready == "sentinel" else None)


def batching(settings: DirectorySettings) -> Batching:
    return Batching(settings.batch_size, settings.batch_window)


def check(name: str, settings: DirectorySettings, triggers: Mapping[str, Any]) -> Iterable[Finding]:
    """Findings that need the file system or more than one key. Reads only the metadata of the folders named."""
    if not os.path.isdir(settings.path):
        yield Finding("path", f"{settings.path!r} is not a directory.", "Create it, or fix the path.", transient=True)
    elif not os.access(settings.path, os.R_OK | os.X_OK):
        yield Finding(
            "path",
            f"{settings.path!r} cannot be read by this user.",
            "Give the daemon's user read and search rights on it.",
            transient=True,
        )
    elif settings.notify and not os.access(settings.path, os.W_OK):
        yield Finding(
            "path",
            f"{settings.path!r} cannot be changed by this user, so files cannot be deleted or moved.",
            "Give the daemon's user write rights on the folder.",
            "warning",
        )
    for action, target, key, action_key in (
        (settings.after, settings.move_to, "move_to", "after"),
        (settings.after_failure, settings.failed_to, "failed_to", "after_failure"),
    ):
        if action == "move" and target is None:
            yield Finding(key, f'{action_key} = "move" needs a folder to move to.', f'Set {key} = "/some/folder".')
        elif action != "move" and target is not None:
            yield Finding(key, f'{key} is set but {action_key} is "{action}".', f'Set {action_key} = "move", or remove {key}.', "warning")
        if action == "move" and target is not None and (sample := _fed_back(settings, target)):
            yield Finding(
                key,
                f"{target!r} is inside the watched folder, so a moved file (for example {sample!r}) would run again.",
                _cure(settings, target),
            )
    if not settings.recursive and all("/" in pattern.strip("/") for pattern in settings.include):
        yield Finding(
            "include", "no file can match: every pattern names a folder, but recursive is false.", "Set recursive = true.", "warning"
        )


def _fed_back(settings: DirectorySettings, target: str) -> str | None:
    """The relative path of a moved file that this trigger would take for a new one; None when there can be none.

    A file that is moved keeps its relative path, so the names tried are made from the include patterns.
    """
    root, target = os.path.realpath(settings.path), os.path.realpath(target)
    if target != root and not target.startswith(root.rstrip("/") + "/"):
        return None
    below = "" if target == root else os.path.relpath(target, root) + "/"
    wanted = settings.wanted()
    for pattern in settings.include:
        plain = pattern.strip("/").replace("**/", "").replace("**", "x").replace("*", "x").replace("?", "x")
        for sample in (plain, "x/" + plain):
            if wanted.file(os.fsencode(below + sample)):
                return below + sample
    return None


def _cure(settings: DirectorySettings, target: str) -> str:
    relative = os.path.relpath(os.path.realpath(target), os.path.realpath(settings.path))
    return "Choose a folder outside of it." if relative == "." else f'Choose a folder outside of it, or add exclude = ["{relative}/**"].'
