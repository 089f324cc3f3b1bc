"""EventBridge patterns: the cases of event-ruler's README, every operator and refusal, and a naive evaluator as oracle."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventd.core.patterns import compile_pattern

EC2 = {
    "version": "0",
    "detail-type": "EC2 Instance State-change Notification",
    "source": "aws.ec2",
    "account": "012345679012",
    "time": "2017-10-02T16:24:49Z",
    "resources": ["arn:aws:ec2:us-east-1:123456789012:instance/i-000000aaaaaa00000"],
    "detail": {
        "c-count": 5,
        "d-count": 3,
        "x-limit": 301.8,
        "source-ip": "10.0.0.33",
        "instance-id": "i-000000aaaaaa00000",
        "state": "running",
    },
}
EMPLOYEES = {
    "employees": [
        {"firstName": "John", "lastName": "Doe"},
        {"firstName": "Anna", "lastName": "Smith"},
        {"firstName": "Peter", "lastName": "Jones"},
    ]
}
NESTED = {"employees": [EMPLOYEES["employees"][:2], EMPLOYEES["employees"][2:]]}


def matches(pattern: dict[str, Any], event: Any) -> bool:
    return compile_pattern(pattern).matches(event)


@pytest.mark.parametrize(
    "pattern",
    [
        {"detail-type": [EC2["detail-type"]], "resources": EC2["resources"], "detail": {"state": ["initializing", "running"]}},
        {"time": [{"prefix": "2017-10-02"}]},
        {"source": [{"suffix": "ec2"}]},
        {"source": [{"equals-ignore-case": "AWS.EC2"}]},
        {"source": [{"wildcard": "a*.e*2"}]},
        {"detail": {"state": [{"anything-but": "initializing"}]}},
        {"detail": {"x-limit": [{"anything-but": 123}]}},
        {"detail": {"state": [{"anything-but": ["stopped", "overloaded"]}]}},
        {"detail": {"x-limit": [{"anything-but": [100, 200, 300]}]}},
        {"detail": {"state": [{"anything-but": {"prefix": "init"}}]}},
        {
            "detail": {
                "c-count": [{"numeric": [">", 0, "<=", 5]}],
                "d-count": [{"numeric": ["<", 10]}],
                "x-limit": [{"numeric": ["=", 3.018e2]}],
            }
        },
        {"detail": {"source-ip": [{"cidr": "10.0.0.0/24"}]}},
        {"detail": {"c-count": [{"exists": True}]}},
        {"detail": {"e-count": [{"exists": False}]}},
        {
            "time": [{"prefix": "2017-10-02"}],
            "detail": {
                "state": [{"anything-but": "initializing"}],
                "c-count": [{"numeric": [">", 0, "<=", 5]}],
                "d-count": [{"numeric": ["<", 10]}],
                "x-limit": [{"anything-but": [100, 200, 300]}],
                "source-ip": [{"cidr": "10.0.0.0/8"}],
            },
        },
    ],
)
def test_what_the_readme_of_event_ruler_says_matches_does(pattern: dict[str, Any]) -> None:
    assert matches(pattern, EC2)
    assert not matches({**pattern, "region": ["eu-west-1"]}, EC2)


@pytest.mark.parametrize(
    "pattern, event, expected",
    [
        ({"employees": {"firstName": ["Anna"]}}, EMPLOYEES, True),
        ({"employees": {"firstName": ["Anna"]}}, NESTED, True),
        ({"employees": {"firstName": ["Anna"], "lastName": ["Smith"]}}, NESTED, True),
        ({"employees": {"firstName": ["Anna"], "lastName": ["Jones"]}}, EMPLOYEES, False),
        ({"employees": {"firstName": ["Anna"], "lastName": ["Jones"]}}, NESTED, False),
        ({"employees": {"firstName": ["Anna"]}, "$or": [{"employees": {"lastName": ["Jones"]}}, {"x": [1]}]}, EMPLOYEES, False),
        ({"employees": {"firstName": ["Anna"]}, "$or": [{"employees": {"lastName": ["Smith"]}}, {"x": [1]}]}, EMPLOYEES, True),
        ({"employees": {"firstName": ["Anna"], "boss": [{"exists": False}]}}, EMPLOYEES, True),
        ({"a": {"x": [1], "y": [{"exists": False}]}}, {"a": [{"x": 1}, {"y": 2}]}, True),
        ({"a": {"x": [1], "y": [{"exists": False}]}}, {"a": [{"x": 1, "y": 1}, {"z": 2}]}, False),
        ({"a": {"y": [{"exists": False}]}}, {"a": [{"x": 1}, {"y": 2}]}, False),
        ({"a": {"y": [{"exists": False}]}}, {"a": [{"x": 1}, {"x": 2}]}, True),
        ({"a": ["x"]}, {"a": ["z", ["y", ["x"]]]}, True),
        ({"a": [{"anything-but": "x"}]}, {"a": ["x", "y"]}, True),
        ({"a": [{"anything-but": "x"}]}, {"a": ["x", "x"]}, False),
    ],
)
def test_arrays_match_by_any_element_and_consistently(pattern: dict[str, Any], event: Any, expected: bool) -> None:
    assert matches(pattern, event) is expected


OR = {
    "source": ["aws.cloudwatch"],
    "$or": [
        {"metricName": ["CPUUtilization", "ReadLatency"]},
        {"metricType": ["MetricType"], "namespace": ["AWS/EC2", "AWS/ES"], "$or": [{"metricId": [1234]}, {"spaceId": [1000]}]},
        {"scope": ["Service"]},
    ],
}
PARALLEL = {
    "$or": [{"metricName": ["CPUUtilization"]}, {"namespace": ["AWS/EC2"]}],
    "detail": {"$or": [{"source": ["aws.cloudwatch"]}, {"detail-type": ["CloudWatch Alarm State Change"]}]},
}


@pytest.mark.parametrize(
    "pattern, event, expected",
    [
        (OR, {"source": "aws.cloudwatch", "metricName": "ReadLatency"}, True),
        (OR, {"source": "aws.cloudwatch", "scope": "Service"}, True),
        (OR, {"source": "aws.cloudwatch", "metricType": "MetricType", "namespace": "AWS/ES", "spaceId": 1000}, True),
        (OR, {"source": "aws.cloudwatch", "metricType": "MetricType", "namespace": "AWS/ES"}, False),
        (OR, {"source": "aws.cloudwatch"}, False),
        (OR, {"scope": "Service"}, False),
        (PARALLEL, {"namespace": "AWS/EC2", "detail": {"source": "aws.cloudwatch"}}, True),
        (PARALLEL, {"namespace": "AWS/EC2", "detail": {"source": "other"}}, False),
        (PARALLEL, {"detail": {"source": "aws.cloudwatch"}}, False),
    ],
)
def test_or(pattern: dict[str, Any], event: Any, expected: bool) -> None:
    assert matches(pattern, event) is expected


@pytest.mark.parametrize(
    "value, yes, no",
    [
        ("a", ["a"], ["A", "", 1, None, {}, []]),
        ("1", ["1"], [1, 1.0, True]),
        (1, [1, 1.0], ["1", True, 1.5]),
        (300.0, [300, 3e2], ["300"]),
        (0, [0, -0.0], [False, "", None]),
        (True, [True], [1, "true"]),
        (False, [False], [0, None]),
        (None, [None], ["", 0, False, "null"]),
        ("", [""], [None, " "]),
        ("é", ["é"], ["e\u0301"]),
        ({"exact": "a"}, ["a"], ["b", 1]),
        ({"prefix": "in/"}, ["in/", "in/x"], ["IN/x", "xin/", 1, None, "i"]),
        ({"prefix": ""}, ["", "x"], [1]),
        ({"prefix": {"equals-ignore-case": "IN/Ä"}}, ["in/ä", "iN/Äx"], ["in", "xin/ä", 1]),
        ({"suffix": ".png"}, [".png", "a.png"], [".PNG", "png", 1]),
        ({"suffix": {"equals-ignore-case": ".Png"}}, [".pNG", "a.png"], ["png", ".png ", 1]),
        ({"equals-ignore-case": "Straße"}, ["STRAßE", "straße"], ["strasse", "straß", 1]),
        ({"equals-ignore-case": "σ"}, ["Σ", "ς"], ["s"]),
        ({"wildcard": "in/*/x*.csv"}, ["in/a/x.csv", "in/a/b/x1.csv", "in//x.csv"], ["in/x.csv", "in/a/x.csv.gz", 1]),
        ({"wildcard": "*"}, ["", "x"], [1, None]),
        ({"wildcard": "a*a"}, ["aa", "aba"], ["a", "ab"]),
        ({"wildcard": "plain"}, ["plain"], ["plain "]),
        ({"wildcard": r"a\*b\\*"}, ["a*b\\", "a*b\\x"], ["axb\\", "a*b"]),
        ({"wildcard": "*ab*ba*"}, ["abba", "xabyba"], ["aba", "ba ab"]),
        ({"anything-but": "x"}, ["y", "", 1, None, True], ["x"]),
        ({"anything-but": ["x", "y"]}, ["z", "X", 0], ["x", "y"]),
        ({"anything-but": 1}, ["1", 2, True, None], [1, 1.0]),
        ({"anything-but": [1, 2.5]}, [2], [1, 2.5]),
        ({"anything-but": {"prefix": "in"}}, ["out", 5], ["in", "inx"]),
        ({"anything-but": {"prefix": ["a", "b"]}}, ["c"], ["ax", "bx"]),
        ({"anything-but": {"suffix": ".tmp"}}, ["a", None], ["a.tmp"]),
        ({"anything-but": {"suffix": [".tmp", "~"]}}, ["a"], ["a.tmp", "a~"]),
        ({"anything-but": {"equals-ignore-case": "Init"}}, ["inits"], ["INIT"]),
        ({"anything-but": {"equals-ignore-case": ["a", "B"]}}, ["c"], ["A", "b"]),
        ({"anything-but": {"wildcard": "*/lib/*"}}, ["a/b"], ["a/lib/b"]),
        ({"anything-but": {"wildcard": ["a*", "*z"]}}, ["b"], ["ab", "bz"]),
        ({"numeric": ["=", 5]}, [5, 5.0], ["5", 4, True]),
        ({"numeric": [">=", 1]}, [1, 2], [0.999, True, None]),
        ({"numeric": [">", 0, "<", 1]}, [0.5], [0, 1]),
        ({"numeric": [">=", 2, "<=", 2]}, [2], [2.1]),
        ({"numeric": [">", 5_368_709_120]}, [6e9], [5e9]),
        ({"cidr": "10.0.0.0/24"}, ["10.0.0.255"], ["10.0.1.0", "10.0.0.256", "::1", 1, "x"]),
        ({"cidr": "10.0.0.7/24"}, ["10.0.0.1"], ["10.0.1.1"]),
        ({"cidr": "2001:db8::/32"}, ["2001:db8::1", "2001:0DB8:0::1"], ["2001:db9::1", "10.0.0.1"]),
        ({"exists": True}, [0, "", None, False], [{}, {"x": 1}, []]),
        ({"exists": False}, [{}, {"x": 1}, [], [[]]], [0, None, ["x"]]),
    ],
)
def test_operators(value: Any, yes: list[Any], no: list[Any]) -> None:
    pattern = compile_pattern({"a": [value]})
    assert [one for one in yes if not pattern.matches({"a": one})] == []
    assert [one for one in no if pattern.matches({"a": one})] == []
    assert pattern.matches({}) is (value == {"exists": False})
    assert pattern.matches({"a": [*no, yes[0]]}) is (value != {"exists": False})


def test_keys_are_literal_and_only_objects_match() -> None:
    assert matches({"a.b": [1]}, {"a.b": 1})
    assert not matches({"a.b": [1]}, {"a": {"b": 1}})
    assert not matches({"a": {"b": [1]}}, {"a.b": 1})
    for event in (None, 1, "x", [], [{"a.b": 1}]):
        assert not matches({"a.b": [{"exists": False}, 1]}, event)


@pytest.mark.parametrize(
    "pattern, where",
    [
        ({}, "the pattern: "),
        ({"a": {}}, "a: "),
        ({"a": []}, "a: "),
        ({"a": "x"}, "a: "),
        ({"a": 1}, "a: "),
        ({"a": {"b": True}}, "a.b: "),
        ({"a": [["x"]]}, r"a\[0\]: "),
        ({"a": ["x", {}]}, r"a\[1\]: "),
        ({"a": [{"prefix": "a", "suffix": "b"}]}, r"a\[0\]: "),
        ({"a": [{"prefx": "a"}]}, r"a\[0\]\.prefx: there is no operator"),
        ({"a": [{"prefix": 1}]}, r"a\[0\]\.prefix: "),
        ({"a": [{"prefix": {"suffix": "x"}}]}, r"a\[0\]\.prefix\.suffix: "),
        ({"a": [{"wildcard": "a**b"}]}, r"a\[0\]\.wildcard: "),
        ({"a": [{"wildcard": r"a\b"}]}, r"a\[0\]\.wildcard: "),
        ({"a": [{"wildcard": "a\\"}]}, r"a\[0\]\.wildcard: "),
        ({"a": [{"anything-but": []}]}, r"a\[0\]\.anything-but: "),
        ({"a": [{"anything-but": ["x", 1]}]}, r"a\[0\]\.anything-but: "),
        ({"a": [{"anything-but": None}]}, r"a\[0\]\.anything-but: "),
        ({"a": [{"anything-but": [True]}]}, r"a\[0\]\.anything-but: "),
        ({"a": [{"anything-but": {"numeric": ["<", 1]}}]}, r"a\[0\]\.anything-but\.numeric: "),
        ({"a": [{"anything-but": {"prefix": ""}}]}, r"a\[0\]\.anything-but\.prefix: "),
        ({"a": [{"anything-but": {"suffix": []}}]}, r"a\[0\]\.anything-but\.suffix: "),
        ({"a": [{"numeric": []}]}, r"a\[0\]\.numeric: "),
        ({"a": [{"numeric": ["<", "1"]}]}, r"a\[0\]\.numeric: "),
        ({"a": [{"numeric": ["<", 1, ">", 0]}]}, r"a\[0\]\.numeric: "),
        ({"a": [{"numeric": [">", 1, "<", 1]}]}, r"a\[0\]\.numeric: "),
        ({"a": [{"numeric": ["==", 1]}]}, r"a\[0\]\.numeric: "),
        ({"a": [{"cidr": "10.0.0.0"}]}, r"a\[0\]\.cidr: "),
        ({"a": [{"cidr": "10.0.0.0/33"}]}, r"a\[0\]\.cidr: "),
        ({"a": [{"exists": 1}]}, r"a\[0\]\.exists: "),
        ({"$or": [{"a": [1]}]}, r"\$or: "),
        ({"$or": {"a": [1]}}, r"\$or: "),
        ({"d": {"$or": [{"a": [1]}, "x"]}}, r"d\.\$or: "),
        ({"$or": [{"prefix": ["x"]}, {"a": [1]}]}, r"\$or\[0\]\.prefix: "),
        ({"$or": [{"a": [1]}, {}]}, r"\$or\[1\]: "),
    ],
)
def test_a_wrong_pattern_is_refused_with_its_place(pattern: dict[str, Any], where: str) -> None:
    with pytest.raises(ValueError, match=rf"^{where}"):
        compile_pattern(pattern)


def test_branches_and_depth_are_bounded() -> None:
    ten = [{"a": [n]} for n in range(10)]
    fields = {f"f{n}": {"$or": ten} for n in range(3)}
    assert matches(fields, {name: {"a": 3} for name in fields})
    with pytest.raises(ValueError, match="1000 combinations"):
        compile_pattern({**fields, "g": {"$or": ten}})
    deep: dict[str, Any] = {"a": [1]}
    for _ in range(200):
        deep = {"a": deep}
    with pytest.raises(ValueError, match="nested"):
        compile_pattern(deep)
    event: Any = 1
    for _ in range(100_000):
        event = [event]
    assert matches({"a": [1]}, {"a": event})


class Counting(str):
    """Counts the characters that a search may look at."""

    __slots__ = ("looked",)
    looked: int

    def find(self, sub: str, start: Any = 0, end: Any = None) -> int:
        found = super().find(sub, start, end)
        self.looked += (end if found < 0 else found + len(sub)) - start
        return found


@pytest.mark.parametrize("text", ["a" * 20_000, "ab" * 10_000, "a" * 19_999 + "b"])
def test_a_wildcard_reads_the_text_once(text: str) -> None:
    pattern = compile_pattern({"a": [{"wildcard": "*" + "a*b*" * 50 + "c"}, {"wildcard": "*" + "aaa*aab*" * 50 + "a"}]})
    value = Counting(text)
    value.looked = 0
    pattern.matches({"a": value})
    assert value.looked <= 2 * len(text)


# --- the naive evaluator: the event as a list of fields with their places in arrays, as event-ruler describes it ---

Place = dict[tuple[Any, ...], int]


def flatten(value: Any, path: tuple[str, ...], at: tuple[Any, ...], place: Place) -> list[tuple[tuple[str, ...], Any, Place]]:
    if isinstance(value, dict):
        return [one for name, below in value.items() for one in flatten(below, (*path, name), (*at, name), place)]
    if isinstance(value, list):
        return [one for n, below in enumerate(value) for one in flatten(below, path, (*at, n), {**place, at: n})]
    return [(path, value, place)]


def expand(pattern: dict[str, Any], path: tuple[str, ...] = ()) -> list[list[tuple[tuple[str, ...], list[Any]]]]:
    branches: list[list[tuple[tuple[str, ...], list[Any]]]] = [[]]
    for name, value in pattern.items():
        if name == "$or":
            choices = [one for branch in value for one in expand(branch, path)]
        elif isinstance(value, dict):
            choices = expand(value, (*path, name))
        else:
            choices = [[((*path, name), value)]]
        branches = [left + right for left in branches for right in choices]
    return branches


def agree(left: Place, right: Place) -> bool:
    return all(right.get(array, n) == n for array, n in left.items())


def naive_value(want: Any, got: Any) -> bool:
    if isinstance(want, dict):
        if "exists" in want:
            return bool(want["exists"])
        if "prefix" in want:
            return isinstance(got, str) and got[: len(want["prefix"])] == want["prefix"]
        return got not in [want["anything-but"]] or type(got) is not type(want["anything-but"])
    return type(got) is type(want) and bool(got == want)


def naive(pattern: dict[str, Any], event: dict[str, Any]) -> bool:
    fields = flatten(event, (), (), {})
    for branch in expand(pattern):
        wanted: dict[tuple[str, ...], list[list[Any]]] = {}
        for path, values in branch:
            wanted.setdefault(path, []).append(values)
        options = []
        for path, groups in wanted.items():
            hits: list[Place | None] = [
                place for at, got, place in fields if at == path and all(any(naive_value(want, got) for want in group) for group in groups)
            ]
            options.append(hits + ([None] if all({"exists": False} in group for group in groups) else []))
        for chosen in itertools.product(*options):
            places = [place for place in chosen if place is not None]
            if not all(agree(left, right) for left, right in itertools.combinations(places, 2)):
                continue
            missing = [path for path, place in zip(wanted, chosen, strict=True) if place is None]
            if not any(at in missing and all(agree(place, other) for other in places) for at, _, place in fields):
                return True
    return False


scalars = st.sampled_from(["x", "xy", "", 1, 2, True, None])
names = st.sampled_from(["a", "b", "c"])
wants = st.one_of(
    scalars, st.sampled_from([{"exists": True}, {"exists": False}, {"exists": False}, {"prefix": "x"}, {"anything-but": "x"}])
)
leaves = st.lists(wants, min_size=1, max_size=2)
events = st.recursive(
    scalars, lambda below: st.one_of(st.lists(below, max_size=3), st.dictionaries(names, below, max_size=3)), max_leaves=12
).filter(lambda event: isinstance(event, dict))


def objects(below: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    plain = st.dictionaries(names, st.one_of(leaves, below), min_size=1, max_size=3)
    either = st.lists(plain, min_size=2, max_size=2)
    return st.one_of(
        plain, plain, st.tuples(plain, either).map(lambda pair: {**pair[0], "$or": pair[1]}), either.map(lambda two: {"$or": two})
    )


patterns = st.recursive(st.dictionaries(names, leaves, min_size=1, max_size=2), objects, max_leaves=3)


@settings(max_examples=500, deadline=None)
@given(patterns, events)
def test_it_agrees_with_the_naive_evaluator(pattern: dict[str, Any], event: dict[str, Any]) -> None:
    assert matches(pattern, event) is naive(pattern, event)
