"""Function URLs: `url = true` serves a function at /url/NAME/... on every [http] listener, with Lambda's shapes and answers."""

from __future__ import annotations

from collections.abc import Callable

from eventd.daemon.engine import Engine, Pending
from eventd.http import Request, Route, gateway
from eventd.http.router import Router
from eventd.model import Settings
from eventd.sdk import Answer

PREFIX = "/url/"


class FunctionUrls:
    """Keeps the router in line with which functions have a URL."""

    def __init__(self, engine: Engine, router: Router) -> None:
        self._engine = engine
        self._router = router
        self._routes: dict[str, list[Callable[[], None]]] = {}

    def update(self, settings: Settings) -> None:
        """Add and remove routes for these settings."""
        wanted = {name for name, function in settings.functions.items() if function.url}
        for name in set(self._routes) - wanted:
            for remove in self._routes.pop(name):
                remove()
        for name in wanted - set(self._routes):
            paths = (f"{PREFIX}{name}", f"{PREFIX}{name}/{{rest+}}")
            self._routes[name] = [self._router.add(Route(path, self._handler(name), owner=f"url of {name}")) for path in paths]

    def _handler(self, name: str) -> Callable[[Request], None]:
        prefix = PREFIX + name

        def handle(request: Request) -> None:
            engine = self._engine
            clock, invocation = engine.clock, engine.dice.id()
            request.params = {}
            data = gateway.event_v2(request, request_id=invocation, route_key="$default", now=clock.now_ms() / 1000, prefix=prefix)

            def done(answer: Answer) -> None:
                kind = "application/json"
                request.respond(
                    gateway.answer(answer.outcome, answer.payload, invocation=invocation, refusal=answer.refusal, content_type=kind)
                )

            pending = Pending(name, data, invocation, done, clock.now_ms(), clock.monotonic())
            request.on_gone = engine.submit(pending)

        return handle
