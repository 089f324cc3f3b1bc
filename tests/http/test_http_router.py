"""Which route a path gets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventd.errors import EventdError
from eventd.http import Request, Route
from eventd.http.router import Router, parse_path


def nothing(request: Request) -> None: ...


def table(*paths: str) -> Router:
    router = Router()
    for path in paths:
        method, _, where = path.rpartition(" ")
        router.add(Route(where, nothing, tuple(method.split("|")) if method else ()))
    return router


@pytest.mark.parametrize(
    ("path", "expected", "params"),
    [
        ("/", "/", {}),
        ("/a", "/a", {}),
        ("/a/", "/a/", {}),
        ("/a/b", "/a/b", {}),
        ("/a/c", "/a/{id}", {"id": "c"}),
        ("/a/b/x", "/a/b/{y}", {"y": "x"}),
        ("/a/c/x", "/a/{id}/x", {"id": "c"}),
        ("/a/c/z", "/a/{rest+}", {"rest": "c/z"}),
        ("/a/b/x/z", "/a/{rest+}", {"rest": "b/x/z"}),
        ("/a//x", "/a/{rest+}", {"rest": "/x"}),
        ("/a/x%2Fy", "/a/{id}", {"id": "x/y"}),
        ("/a/%e2%82%ac", "/a/{id}", {"id": "€"}),
        ("/a/..", "/a/{id}", {"id": ".."}),
        ("/a/b%2Fx", "/a/{id}", {"id": "b/x"}),
        ("/b/1/c/2", "/b/{x}/c/{y}", {"x": "1", "y": "2"}),
        ("/b/1/d", None, {}),
        ("/b", None, {}),
        ("/b/", None, {}),
        ("/aa", None, {}),
        ("/%61", None, {}),
        ("*", None, {}),
        ("", None, {}),
    ],
)
def test_literal_beats_parameter_beats_greedy(path: str, expected: str | None, params: dict[str, str]) -> None:
    router = table("/", "/a", "/a/", "/a/b", "/a/{id}", "/a/b/{y}", "/a/{id}/x", "/a/{rest+}", "/b/{x}/c/{y}")
    found = router.find("GET", path)
    assert (found.route.path if found.route else None, found.params, found.allowed) == (expected, params, ())


def test_methods() -> None:
    router = table("POST|PUT /a", "/b", "GET /b", "GET /c/d", "POST /c/{x}")
    assert router.find("GET", "/a") == (None, {}, ("POST", "PUT"))
    assert router.find("GET", "/b").route is not router.find("POST", "/b").route
    assert router.find("POST", "/c/d").params == {"x": "d"}, "a better path without the method does not hide a lesser one with it"
    assert router.find("PATCH", "/c/d").allowed == ("GET", "POST")
    assert router.find("HEAD", "/c/d").route is None


def test_a_route_is_added_once_and_goes_when_told() -> None:
    router = Router()
    remove = router.add(Route("/a/{id}", nothing, ("GET",), owner="trigger one"))
    with pytest.raises(EventdError, match=r"E-CONFIG GET on /a/\{other\} is served already by trigger one"):
        router.add(Route("/a/{other}", nothing, ("POST", "GET")))
    assert router.find("POST", "/a/1").allowed == ("GET",), "nothing of a refused route stays"
    router.add(Route("/a/{id}", nothing))
    router.add(Route("/a/{id+}", nothing))
    router.add(Route("/a/b", nothing))
    assert len(router.routes) == 4
    remove()
    remove()
    assert len(router.routes) == 3
    router.add(Route("/a/{id}", nothing, ("GET",)))


def test_a_table_that_changes_for_years_does_not_grow() -> None:
    router = Router()
    for number in range(50):
        for path in (f"/x/{number}", f"/x/{{a}}/{number}/{{b+}}", f"/{number}"):
            router.add(Route(path, nothing))()
    assert (router._exact, router._root.literal, router._root.parameter, router.routes) == ({}, {}, None, ())


@pytest.mark.parametrize(
    "path",
    ["", "a", "/a b", "/{", "/{}", "/{a}b", "/{a+}/b", "/{a}/{a}", "/{1a}", "/a?b", "/a#b", "/é", "/%zz", "/a\n", "/{a+}{b}", "/{a +}"],
)
def test_bad_paths_are_refused(path: str) -> None:
    with pytest.raises(EventdError) as raised:
        parse_path(path)
    assert raised.value.code == "E-CONFIG"
    assert raised.value.hint
    with pytest.raises(EventdError):
        Router().add(Route(path, nothing))


@given(st.lists(st.sampled_from(["", "a", "b", "{x}", "{y}", "%41"]), min_size=1, max_size=5), st.text("ab/%4", max_size=12))
def test_finding_never_raises_and_literal_routes_find_themselves(parts: list[str], path: str) -> None:
    router = Router()
    router.add(Route("/{all+}", nothing))
    pattern = "/" + "/".join(parts)
    if len({part for part in parts if part.startswith("{")}) == sum(part.startswith("{") for part in parts):
        router.add(Route(pattern, nothing))
        filled = pattern.replace("{x}", "1").replace("{y}", "2")
        found = router.find("GET", filled).route
        assert found is not None
        assert found.path == pattern
    router.find("GET", "/" + path)
    router.find("GET", path)
