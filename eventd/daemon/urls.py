"""Which functions have a URL: `url = true` serves a function at /url/NAME/... on every [http] listener (`eventd.http.urls`)."""

from __future__ import annotations

import logging
from collections.abc import Callable

from eventd.daemon.engine import Engine, Pending
from eventd.http import Route
from eventd.http.router import Router
from eventd.http.urls import Ended, routes
from eventd.model import Settings

log = logging.getLogger("eventd.url")


class FunctionUrls:
    """Keeps the router in line with the settings."""

    def __init__(self, engine: Engine, router: Router) -> None:
        self._engine = engine
        self._router = router
        self._removers: dict[str, list[Callable[[], None]]] = {}

    def update(self, settings: Settings) -> None:
        """Add and remove routes for these settings."""
        wanted = {name for name, function in settings.functions.items() if function.url}
        for name in self._removers.keys() - wanted:
            for remove in self._removers.pop(name):
                remove()
        for name in wanted - self._removers.keys():
            self._removers[name] = [self._router.add(route) for route in self._routes(name)]

    def _routes(self, name: str) -> tuple[Route, ...]:
        engine, clock = self._engine, self._engine.clock

        def submit(event: bytes, invocation: str, done: Callable[[Ended], None]) -> Callable[[], None]:
            return engine.submit(Pending(name, event, invocation, done, clock.now_ms(), clock.monotonic()))

        def bad(why: str) -> None:
            log.warning("function '%s' gave a result that is no HTTP answer: %s", name, why)

        return routes(name, submit, new_id=engine.dice.id, now=lambda: clock.now_ms() / 1000, bad=bad)
