"""The fake that plugin authors test with keeps the promises of `eventd.sdk.Site`."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import anyio
import msgspec
import pytest

from eventd.sdk import (
    Answer,
    Call,
    Conflict,
    Event,
    EventdError,
    Outcome,
    Overloaded,
    PluginSettings,
    Receipt,
    Request,
    Response,
    Route,
    Settlement,
    Site,
    TriggerPlugin,
)
from eventd.testing.site import FakeSite, Status


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {}


@pytest.fixture
async def site() -> FakeSite:
    return FakeSite("t", now=datetime(2026, 3, 1, tzinfo=UTC))


class TickSettings(PluginSettings):
    every: float = 10.0


async def run_ticks(site: Site, settings: TickSettings) -> None:
    site.ready()
    while True:
        await site.sleep(settings.every)
        await site.emit(Event(data={"at": site.now()}))


ticks = TriggerPlugin(kind="tick", settings=TickSettings, run=run_ticks)


@pytest.mark.anyio
async def test_time_passes_only_by_advance_and_wakes_each_sleeper_at_its_own_instant(site: FakeSite) -> None:
    woke: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await site.sleep(seconds)
        woke.append((name, site.monotonic()))

    async with anyio.create_task_group() as group:
        for name, seconds in (("c", 3.0), ("a", 0.1), ("b", 0.1), ("d", 3.5)):
            group.start_soon(sleeper, name, seconds)
        await site.clock.advance(0)
        assert (woke, site.clock.sleeping) == ([], 4)
        await site.clock.advance(3)
        assert woke == [("a", 0.1), ("b", 0.1), ("c", 3.0)]
        group.cancel_scope.cancel()
    assert site.clock.sleeping == 0
    assert site.now() == datetime(2026, 3, 1, 0, 0, 3, tzinfo=UTC).timestamp()


@pytest.mark.anyio
async def test_a_plugin_plays_on_virtual_time_and_a_clock_step_wakes_nobody(site: FakeSite) -> None:
    async with site.playing(ticks, TickSettings()):
        assert site.status == Status("up")
        await site.clock.advance(25)
        assert [one.data["at"] - 1772323200 for one in site.emitted] == [10, 20]
        site.clock.set_wall(datetime(2027, 1, 1, tzinfo=UTC))
        await site.clock.advance(5)
        assert site.emitted[-1].data["at"] == datetime(2027, 1, 1, 0, 0, 5, tzinfo=UTC).timestamp()
    assert len(site.emitted) == 3


@pytest.mark.anyio
async def test_a_plugin_that_raises_ends_the_block_with_its_error(site: FakeSite) -> None:
    async def broken(site: Site, settings: object) -> None:
        raise EventdError("E-TRIGGER", "no.")

    with pytest.raises(ExceptionGroup) as failed:
        async with site.playing(TriggerPlugin(kind="b", settings=TickSettings, run=broken), TickSettings()):
            await anyio.sleep_forever()
    assert isinstance(failed.value.exceptions[0], EventdError)


@pytest.mark.anyio
async def test_a_task_that_never_blocks_is_named_not_waited_for(site: FakeSite) -> None:
    async def spin() -> None:
        while True:
            await site.sleep(0)

    async with anyio.create_task_group() as group:
        group.start_soon(spin)
        with pytest.raises(RuntimeError, match="busy"):
            await site.clock.settle()
        group.cancel_scope.cancel()


@pytest.mark.anyio
async def test_emit_and_its_ledger_writes_are_one_step_and_a_duplicate_writes_only_the_ledger(site: FakeSite) -> None:
    first = await site.emit(Event(id="a", data={"x": 1}), state={b"k": b"1"})
    again = await site.emit(Event(id="a", data=msgspec.Raw(b'{"x":1}')), state={b"k": b"2", b"l": b"3"})
    assert (first, again) == (Receipt("a", False), Receipt("a", True))
    assert [(one.id, one.data, one.raw, dict(one.state)) for one in site.emitted] == [("a", {"x": 1}, b'{"x":1}', {b"k": b"1"})]
    with pytest.raises(Conflict):
        await site.emit(Event(id="a", data={"x": 2}), state={b"k": b"never"})
    assert site.ledger == {b"k": b"2", b"l": b"3"}
    fresh = [await site.emit(Event(data=1)), await site.emit(Event(data=1))]
    assert len({one.event for one in fresh}) == 2
    assert not any(one.duplicate for one in fresh)


@pytest.mark.anyio
async def test_a_fingerprint_decides_what_a_conflict_is_and_a_long_id_is_digested(site: FakeSite) -> None:
    await site.emit(Event(id="a", data=1, fingerprint=b"same"))
    assert (await site.emit(Event(id="a", data=2, fingerprint=b"same"))).duplicate
    with pytest.raises(Conflict):
        await site.emit(Event(id="a", data=1, fingerprint=b"other"))
    long = await site.emit(Event(id="é" * 200, data=1))
    assert len(long.event) == 64
    site.forget_duplicates()
    assert not (await site.emit(Event(id="a", data=2))).duplicate


@pytest.mark.anyio
async def test_a_refused_emit_stores_nothing_and_the_next_one_is_free(site: FakeSite) -> None:
    site.fail_next(Overloaded("full."))
    with pytest.raises(Overloaded):
        await site.emit(Event(id="a", data=1), state={b"k": b"1"})
    assert (site.emitted, site.ledger) == ([], {})
    assert not (await site.emit(Event(id="a", data=1))).duplicate


@pytest.mark.anyio
async def test_offer_is_told_once_later_and_in_order(site: FakeSite) -> None:
    told: list[object] = []
    site.fail_next(Overloaded("full."))
    site.offer(Event(id="a", data=1), told.append)
    site.offer(Event(id="b", data=1), told.append, state={b"k": b"1"})
    assert told == []
    await site.clock.settle()
    assert isinstance(told[0], Overloaded)
    assert told[1:] == [Receipt("b", False)]


@pytest.mark.anyio
@pytest.mark.parametrize("stored", [False, True])
async def test_a_crash_keeps_what_was_acknowledged_and_what_was_held_only_perhaps(site: FakeSite, stored: bool) -> None:
    await site.emit(Event(id="kept", data=1), state={b"k": b"1"})
    await site.state.put({b"p": b"1"})
    site.hold()
    returned: list[Receipt] = []

    async def late() -> None:
        returned.append(await site.emit(Event(id="held", data=1)))

    async with anyio.create_task_group() as group:
        group.start_soon(late)
        await site.clock.settle()
        assert len(site.emitted) == 1
        new = site.reborn(stored=stored)
        group.start_soon(late)
        await site.clock.settle()
        group.cancel_scope.cancel()
    assert [one.id for one in new.emitted] == (["kept", "held"] if stored else ["kept"])
    assert new.ledger == {b"k": b"1", b"p": b"1"}
    assert (await new.emit(Event(id="kept", data=1))).duplicate
    assert new.status == Status("starting")


@pytest.mark.anyio
async def test_what_was_offered_in_the_instant_of_the_crash_is_lost(site: FakeSite) -> None:
    told: list[object] = []
    site.offer(Event(id="a", data=1), told.append)
    new = site.reborn()
    site.offer(Event(id="b", data=1), told.append)
    await new.clock.settle()
    assert (new.emitted, told) == ([], [])


@pytest.mark.anyio
@pytest.mark.parametrize("stores", [False, True])
async def test_a_cancelled_emit_is_stored_or_not_as_told(site: FakeSite, stores: bool) -> None:
    site.cancel_stores = stores
    site.hold()
    async with anyio.create_task_group() as group:
        group.start_soon(site.emit, Event(id="a", data=1))
        await site.clock.settle()
        group.cancel_scope.cancel()
    site.release()
    assert len(site.emitted) == int(stores)


@pytest.mark.anyio
async def test_state_items_come_in_key_order_by_prefix(site: FakeSite) -> None:
    await site.state.put({b"f/%02d" % n: b"v" for n in range(40, 0, -1)} | {b"g": b"x", b"e": b"y"})
    assert [key async for key, _ in site.state.items(b"f/")] == [b"f/%02d" % n for n in range(1, 41)]
    await site.state.put({b"f/01": None})
    assert await site.state.get(b"f/01") is None
    assert len([1 async for _ in site.state.items()]) == 41
    with pytest.raises(TypeError):
        await site.state.put({b"a": "text"})  # type: ignore[dict-item]


@pytest.mark.anyio
async def test_direct_calls_follow_the_script_then_the_default_then_the_test(site: FakeSite) -> None:
    site.script(
        Answer("", Outcome.FAILED, b'{"errorType":"E"}'), lambda call: Answer("x", Outcome.SUCCEEDED, msgspec.json.encode(call.data))
    )
    assert (await site.call(Call(data=1, invocation="i"))).invocation == "i"
    assert await site.call(Call(data=[2])) == Answer("x", Outcome.SUCCEEDED, b"[2]")
    assert (await site.call(Call(data=3))).payload == b"null"
    site.default_answer = None
    told: list[Answer] = []
    gone = site.submit(Call(data=4), told.append)
    site.submit(Call(data=5), told.append)
    gone()
    await site.clock.settle()
    assert [one.gone for one in site.calls[3:]] == [True, False]
    site.calls[3].answer(Answer("", Outcome.SUCCEEDED))
    site.calls[4].answer(Answer("", Outcome.TIMED_OUT))
    assert [one.outcome for one in told] == [Outcome.TIMED_OUT]
    async with anyio.create_task_group() as group:
        group.start_soon(site.call, Call(data=6))
        await site.clock.settle()
        assert not site.calls[-1].gone
        group.cancel_scope.cancel()
    assert (site.calls[-1].call.data, site.calls[-1].gone) == (6, True)


@pytest.mark.anyio
async def test_routes_answer_like_the_front_door(site: FakeSite) -> None:
    def say(text: str) -> Route:
        return Route(f"/{text}", lambda request: request.respond(Response(200, repr((text, request.params)).encode())))

    for path in ("a/{id}", "a/b", "{rest+}", "c"):
        site.route(say(path))
    close = site.route(Route("/m", lambda request: request.respond(Response(204)), ("POST",), max_body=3))
    assert (await site.request("GET", "/a/b")).body == b"('a/b', {})"
    assert (await site.request("GET", "/a/x%20y?q=1")).body == b"('a/{id}', {'id': 'x y'})"
    assert (await site.request("GET", "/a/x/y")).body == b"('{rest+}', {'rest': 'a/x/y'})"
    assert [(await site.request(*what)).status for what in (("POST", "/m", b"123"), ("POST", "/m", b"1234"), ("PUT", "/m"))] == [
        204,
        413,
        200,
    ]
    close()
    assert "/m" not in site.routes
    with pytest.raises(EventdError, match="E-CONFIG"):
        site.route(say("c"))


@pytest.mark.anyio
async def test_a_handler_may_answer_later_hear_of_a_gone_client_and_raise(site: FakeSite) -> None:
    seen: list[Request] = []
    site.route(Route("/later", seen.append, ("GET",)))
    site.route(Route("/bad", lambda request: seen[99].respond(Response(200))))
    left: list[str] = []
    exchange = site.send("GET", "/later", headers=[("X-A", "1"), ("x-a", "2")])
    seen[0].on_gone = lambda: left.append("gone")
    assert exchange.response is None
    assert seen[0].headers == [("x-a", "1"), ("x-a", "2")]
    exchange.disconnect()
    asyncio.get_running_loop().call_soon(seen[0].respond, Response(202))
    assert ((await exchange.wait()).status, left) == (202, ["gone"])
    with pytest.raises(AssertionError, match="twice"):
        seen[0].respond(Response(200))
    bad = site.send("GET", "/bad")
    assert (bad.response.status if bad.response else 0, type(bad.error)) == (500, IndexError)
    assert [(await site.request("POST", path)).status for path in ("/later", "/none")] == [405, 404]


@pytest.mark.anyio
async def test_settlements_repeat_until_acknowledged(site: FakeSite) -> None:
    got: list[Settlement] = []

    async def listen(site: FakeSite) -> None:
        async for one in site.settlements():
            got.append(one)

    await site.emit(Event(id="a", data=1, key="k", notify=True))
    await site.emit(Event(id="b", data=1, notify=True))
    async with anyio.create_task_group() as group:
        group.start_soon(listen, site)
        await site.clock.settle()
        site.settle("a")
        await site.clock.settle()
        site.settle(site.emitted[1], ok=False)
        await site.clock.settle()
        assert got == [Settlement(1, "a", "k", True), Settlement(2, "b", None, False)]
        await site.acknowledge(got[0], state={b"done": b"a"})
        group.cancel_scope.cancel()
    new = site.reborn()
    got.clear()
    async with anyio.create_task_group() as group:
        group.start_soon(listen, new)
        await new.clock.settle()
        group.cancel_scope.cancel()
    assert [one.event for one in got] == ["b"]
    assert (new.ledger, [one.event for one in new.owed]) == ({b"done": b"a"}, ["b"])
    with pytest.raises(AssertionError):
        new.settle("nothing")


@pytest.mark.anyio
async def test_small_things(site: FakeSite, tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(b"key\n\n")
    assert site.secret(f"file:{tmp_path / 's'}") == b"key\n"
    for ref in (f"file:{tmp_path / 'none'}", "credential:x"):
        with pytest.raises(EventdError, match="E-CONFIG"):
            site.secret(ref)
    site.secrets["credential:x"] = b"y"
    assert site.secret("credential:x") == b"y"
    site.degraded("why")
    site.warn("W-LOOP", "text")
    assert (site.status, site.warnings) == (Status("degraded", "why"), [("W-LOOP", "text")])
    with pytest.raises(ValueError):
        site.warn("E-CONFIG", "no warning")
    ids = [site.new_id() for _ in range(300)]
    assert ids == sorted(set(ids))
    assert [len(part) for part in ids[0].split("-")] == [8, 4, 4, 4, 12]
    assert site.random() == FakeSite(seed=0).random() != FakeSite(seed=1).random()
    site.running_keys.append("k")
    assert site.running() == ("k",)
    with pytest.raises(TimeoutError):
        await site.wait_for(lambda: False, timeout=0.01)
    await site.wait_for(lambda: site.monotonic() >= 2.0, step=0.5)
    assert "FakeSite t degraded" in repr(site)
