"""While a trigger is replaced by a reload its routes are gone for a moment. Requests that come in that moment wait for the new
ones instead of meeting a 404 (promise 11)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from eventd.http import Request, Response, Route
from eventd.http.router import Router

MOST = 1_024
"""Requests that may wait for one trigger; more are answered 503."""


class Parking:
    """Use it on the event loop. A request that waits and whose client goes away is forgotten."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._lots: dict[str, _Lot] = {}

    def park(self, trigger: str, routes: Sequence[Route]) -> None:
        """Take requests for these routes, which nobody serves any more, until `leave`."""
        if routes:
            lot = self._lots.setdefault(trigger, _Lot(self._hand_over))
            lot.removers += [self._router.add(replace(route, handle=lot.take)) for route in routes]

    def lot(self, trigger: str) -> object:
        """Which lot requests for a trigger wait in now, for `leave`."""
        return self._lots.get(trigger)

    def leave(self, trigger: str, lot: object = None) -> None:
        """Serve the routes no longer; what waits is handed to whoever serves it at the end of this turn of the event loop.

        With `lot`: only if requests still wait in that one.
        """
        found = self._lots.get(trigger)
        if found is None or (lot is not None and found is not lot):
            return
        del self._lots[trigger]
        for remove in found.removers:
            remove()
        found.left = True
        asyncio.get_running_loop().call_soon(self._deliver, list(found.waiting))

    def _deliver(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self._hand_over(request)

    def _hand_over(self, request: Request) -> None:
        request.on_gone = None
        found = self._router.find(request.method, request.path)
        if found.route is None:
            headers = (("allow", ", ".join(found.allowed)),) if found.allowed else ()
            request.respond(_say(405, "Method Not Allowed", *headers) if found.allowed else _say(404, "Not Found"))
            return
        if found.route.max_body and len(request.body) > found.route.max_body:
            request.respond(_say(413, "Content Too Large"))
            return
        request.route, request.params = found.route.path, found.params
        try:
            found.route.handle(request)
        except Exception as error:
            what = f"the handler of the route {found.route.path} raised."
            asyncio.get_running_loop().call_exception_handler({"message": what, "exception": error})
            request.respond(_say(500, "Internal Server Error"))


class _Lot:
    def __init__(self, hand_over: Callable[[Request], None]) -> None:
        self.removers: list[Callable[[], None]] = []
        self.waiting: dict[Request, None] = {}
        self.left = False
        self._hand_over = hand_over

    def take(self, request: Request) -> None:
        if self.left:  # its body came after the new routes
            self._hand_over(request)
            return
        if len(self.waiting) >= MOST:
            request.respond(_say(503, "Service Unavailable", ("retry-after", "1")))
            return
        self.waiting[request] = None
        request.on_gone = lambda: self.waiting.pop(request, None)


def _say(status: int, message: str, *headers: tuple[str, str]) -> Response:
    return Response(status, b'{"message":"%s"}' % message.encode(), (("content-type", "application/json"), *headers))
