"""What is wrong with a directory trigger at the moment, told once per change: `degraded` with every reason, or `up`."""

from __future__ import annotations

from typing import Final

from eventd.sdk import Site

_LONGEST: Final = 500


class Health:
    """Problems by kind. Nothing is `up` before `opened`; problems are told at once."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._problems: dict[str, str] = {}
        self._until: dict[str, float] = {}
        self._opened = False
        self._told: str | None = None

    def opened(self) -> None:
        """The folder is being read."""
        if not self._opened:
            self._opened = True
            self._tell()

    def set(self, kind: str, text: str, *, for_s: float | None = None) -> None:
        """Note a problem; with `for_s` it is forgotten at the first `review` after that time."""
        self._problems[kind] = text
        if for_s is not None:
            self._until[kind] = self._site.monotonic() + for_s
        self._tell()

    def clear(self, kind: str) -> None:
        if self._problems.pop(kind, None) is not None:
            self._until.pop(kind, None)
            self._tell()

    def review(self) -> float:
        """Forget what has lasted its time. Returns when to review again (monotonic; infinity: no need)."""
        now = self._site.monotonic()
        for kind in [one for one, until in self._until.items() if until <= now]:
            self.clear(kind)
        return min(self._until.values(), default=float("inf"))

    def _tell(self) -> None:
        text = "; ".join(self._problems.values())[:_LONGEST]
        if text == self._told or not (text or self._opened):
            return
        self._told = text
        if text:
            self._site.degraded(text)
        else:
            self._site.ready()
