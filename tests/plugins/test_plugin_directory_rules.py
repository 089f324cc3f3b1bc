"""The directory trigger's rules, without a folder."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote_plus, unquote_to_bytes

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from eventd.sdk import Batching, Finding
from eventd_plugins import directory_event as payload
from eventd_plugins.directory import plugin
from eventd_plugins.directory_rules import (
    MOST_NS,
    Hint,
    Look,
    Row,
    Status,
    Verdict,
    Version,
    Wanted,
    event_id,
    event_key,
    judge,
    object_key,
    pack,
    pack_version,
    packed_version,
    paths_of_event_key,
    problem_of_glob,
    sentinel_covers,
    sequencer_text,
    taken_name,
    unpack,
    version_of,
)
from eventd_plugins.directory_settings import DirectorySettings

names = st.binary(min_size=1, max_size=255).filter(lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b".."))
paths = st.lists(names, min_size=1, max_size=4).map(b"/".join)
versions = st.builds(Version, st.integers(0, 2**64 - 1), st.integers(0, 2**63 - 1), st.integers(-MOST_NS, MOST_NS))


def wanted(
    include: tuple[str, ...] = ("**",), exclude: tuple[str, ...] = (), *, recursive: bool = True, sentinel: str | None = None
) -> Wanted:
    return Wanted(include, exclude, recursive, sentinel)


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("**", "a/b/c", True),
        ("*.jpg", "a.jpg", True),
        ("*.jpg", "deep/down/a.jpg", True),
        ("*.jpg", "a.JPG", False),
        ("*.jpg", "a.jpg.txt", False),
        ("a*", "b/abc", True),
        ("in/*.jpg", "in/a.jpg", True),
        ("in/*.jpg", "in/sub/a.jpg", False),
        ("in/*.jpg", "other/in/a.jpg", False),
        ("in/**", "in/sub/a.jpg", True),
        ("in/**", "in", False),
        ("in/", "in/sub/a", True),
        ("/a.txt", "a.txt", True),
        ("/a.txt", "sub/a.txt", False),
        ("**/in/*.jpg", "in/a.jpg", True),
        ("**/in/*.jpg", "x/y/in/a.jpg", True),
        ("a/**/b", "a/b", True),
        ("a/**/b", "a/x/y/b", True),
        ("a/**/b", "ab", False),
        ("?.txt", "é.txt", True),
        ("?.txt", "ab.txt", False),
        ("[ab].txt", "a.txt", True),
        ("[!ab].txt", "a.txt", False),
        ("[!ab].txt", "c.txt", True),
        ("[a-c].txt", "b.txt", True),
        ("[]].txt", "].txt", True),
        ("[.txt", "[.txt", True),
        ("a.b", "aXb", False),
        ("*", "line\nbreak", True),
        ("(x|y)+", "(x|y)+", True),
    ],
)
def test_globs(pattern: str, path: str, matches: bool) -> None:
    assert problem_of_glob(pattern) == ""
    assert wanted((pattern,)).file(path.encode()) is matches
    assert wanted(exclude=(pattern,)).file(path.encode()) is not matches


@pytest.mark.parametrize("pattern", ["", "/", "a/../b", "./a", "a\0b", "[b-a]"])
def test_globs_that_cannot_be_are_named(pattern: str) -> None:
    assert problem_of_glob(pattern)


def test_the_always_ignored() -> None:
    everything = wanted()
    for name in (".hidden", "a~", "a.tmp", "a.part", "a.partial", "a.swp", "a.crdownload", "x/.hidden", ".git/config", "a/.b/c"):
        assert not everything.file(name.encode()), name
    for name in ("tmp", "a.tmp.txt", "part", "a.tmp/b"):
        assert everything.file(name.encode()), name


def test_a_sentinel_is_never_an_event_itself() -> None:
    assert not wanted(sentinel=".done").file(b"a/b.txt.done")
    assert wanted(sentinel=".done").file(b"a/b.txt")
    assert wanted().file(b"a/b.txt.done")


def test_folders_are_left_out_only_when_nothing_below_can_match() -> None:
    assert not wanted(exclude=("done/**",)).folder(b"done")
    assert not wanted(exclude=("done/**",)).folder(b"done/deep")
    assert wanted(exclude=("done/**",)).folder(b"x/done")
    assert not wanted(exclude=("**/done/**",)).folder(b"x/done")
    assert wanted(exclude=("done/*.txt",)).folder(b"done")
    assert wanted(exclude=("done",)).folder(b"done")
    assert not wanted(recursive=False).folder(b"x")
    assert not wanted(recursive=False).file(b"x/y")


@given(paths)
def test_globs_take_any_bytes(path: bytes) -> None:
    rules = wanted(("*", "a/**/b"), ("*.jpg", "[!x]y/**"))
    assert rules.file(path) in (True, False)
    assert wanted(("**",)).file(path) == wanted(("**/*",)).file(path)


@given(paths, versions, st.integers(-MOST_NS, MOST_NS))
def test_an_id_holds_the_version_and_fits_the_journal(path: bytes, version: Version, ctime: int) -> None:
    identity = event_id(path, version, ctime)
    assert version_of(identity) == version
    assert len(identity) <= 256
    assert identity != event_id(path + b"x", version, ctime)
    assert identity != event_id(path, version, ctime ^ 1)


def test_what_is_no_id_of_ours_has_no_version() -> None:
    for text in ("", "018f-7", "0" * 32 + "-removed-1", "z" * 32 + "-1-1-1-1"):
        assert version_of(text) is None


@given(versions, st.sampled_from(Status), st.integers(0, 2**63 - 1), st.integers(0, 1000))
def test_rows_survive_the_ledger(version: Version, status: Status, sequencer: int, depth: int) -> None:
    value = pack(Row(version, status, sequencer, depth))
    assert unpack(value) == Row(version, status, sequencer, min(depth, 255))
    assert packed_version(value) == pack_version(version)
    assert unpack(value[:-1]) is None
    assert unpack(b"\x02" + value[1:]) is None


@given(paths)
def test_keys_are_text_and_lead_back_to_the_bytes(path: bytes) -> None:
    assert path in paths_of_event_key(event_key(path))
    event_key(path).encode()
    assert unquote_to_bytes(object_key(path).replace("+", " ")) == path
    assert object_key(path).isascii()


def test_the_key_is_the_one_of_s3() -> None:
    assert object_key(b"in/red flower (1).jpg") == "in/red+flower+%281%29.jpg"
    assert unquote_plus(object_key("ü/1+1".encode())) == "ü/1+1"


@given(names, st.integers(0, 2**63 - 1))
def test_a_taken_name_stays_a_name(name: bytes, sequencer: int) -> None:
    new = taken_name(name, sequencer)
    assert len(new) <= 255
    assert new != name
    assert b"-" + sequencer_text(sequencer).encode() in new


def test_the_sequencer_stands_before_the_suffix() -> None:
    assert taken_name(b"a.tar.gz", 255) == b"a.tar-00000000000000FF.gz"
    assert taken_name(b"README", 1) == b"README-0000000000000001"
    assert taken_name(b".x", 1) == b".x-0000000000000001"
    assert sequencer_text(9) < sequencer_text(10)


S = 1_000_000_000


@pytest.mark.parametrize(
    ("ready", "look", "verdict"),
    [
        ("settle", Look(0, Hint.MOVED), Verdict.READY),
        ("settle", Look(0, Hint.NONE), Verdict.WAIT),
        ("settle", Look(S - 1, Hint.WRITTEN), Verdict.WAIT),
        ("settle", Look(S, Hint.WRITTEN), Verdict.IF_CLOSED),
        ("settle", Look(99 * S, Hint.NONE), Verdict.IF_CLOSED),
        ("rename", Look(0, Hint.MOVED), Verdict.READY),
        ("rename", Look(0, Hint.MOVED, known_in_place=True), Verdict.READY),
        ("rename", Look(99 * S, Hint.WRITTEN), Verdict.IN_PLACE),
        ("rename", Look(99 * S, Hint.NONE, known_in_place=True), Verdict.IN_PLACE),
        ("rename", Look(0, Hint.NONE), Verdict.WAIT),
        ("rename", Look(S, Hint.NONE), Verdict.IF_CLOSED),
    ],
)
def test_the_ready_rule(ready: str, look: Look, verdict: Verdict) -> None:
    assert judge(ready, S, look) is verdict


def test_a_sentinel_covers_what_was_written_before_it() -> None:
    assert sentinel_covers(10, 5, 5)
    assert sentinel_covers(10, 10, 10)
    assert not sentinel_covers(10, 11, 11), "written after the sentinel"
    assert sentinel_covers(10, 5, 11), "a chmod after the sentinel"
    assert sentinel_covers(10, 99, 5), "an mtime in the future"


def test_the_payload_is_an_s3_notification() -> None:
    source = payload.Source("inbox", "eu-west-1", "/srv/in")
    data = msgspec.json.decode(
        bytes(payload.created(source, b"a b/c.jpg", identity="i", size=3, etag="e", sequencer=255, at=1_795_169_472.345))
    )
    (record,) = data["Records"]
    assert list(record) == [
        "eventVersion", "eventSource", "awsRegion", "eventTime", "eventName", "userIdentity", "requestParameters",
        "responseElements", "s3", "eventd",
    ]  # fmt: skip
    assert record["eventTime"] == "2026-11-20T10:11:12.345Z"
    assert record["awsRegion"] == "eu-west-1"
    assert record["eventVersion"] == "2.1"
    assert record["eventSource"] == "aws:s3"
    assert record["eventName"] == "ObjectCreated:Put"
    assert record["s3"]["object"] == {"key": "a+b/c.jpg", "size": 3, "eTag": "e", "sequencer": "00000000000000FF"}
    assert record["s3"]["bucket"] == {"name": "inbox", "ownerIdentity": {"principalId": "eventd"}, "arn": "arn:aws:s3:::inbox"}
    assert record["eventd"] == {"path": "/srv/in/a b/c.jpg", "root": "/srv/in"}
    gone = msgspec.json.decode(bytes(payload.removed(source, b"x", identity="i", sequencer=1, at=0.0)))["Records"][0]
    assert gone["eventName"] == "ObjectRemoved:Delete"
    assert set(gone["s3"]["object"]) == {"key", "sequencer"}


# --- settings ---


def settings(root: Path, **keys: object) -> DirectorySettings:
    return DirectorySettings.model_validate({"path": str(root), **keys}, context={"base": str(root)})


def findings(root: Path, **keys: object) -> list[Finding]:
    chosen = settings(root, **keys)
    return list(plugin.check("uploads", chosen, {"uploads": chosen}))


def test_the_defaults_are_those_of_the_surface(tmp_path: Path) -> None:
    chosen = settings(tmp_path)
    assert chosen.model_dump(exclude={"path"}) == {
        "recursive": True, "include": ("**",), "exclude": (), "events": ("created", "modified"), "existing": "run", "ready": "settle",
        "settle": 1_000, "sentinel": ".done", "debounce": 0, "batch_size": 1, "batch_window": 0, "scan_interval": 60_000,
        "after": "keep", "move_to": None, "after_failure": "keep", "failed_to": None, "etag": "version",
    }  # fmt: skip
    assert plugin.batching(settings(tmp_path, batch_size=5, batch_window="2s")) == Batching(5, 2_000)
    assert findings(tmp_path) == []


@pytest.mark.parametrize(
    "keys",
    [
        {"include": ["["], "exclude": ["[b-a]"]}, {"ready": "sometimes"}, {"events": []}, {"sentinel": "a/b"}, {"sentinel": ""},
        {"scan_interval": "1ms"}, {"batch_size": 0}, {"batch_size": 10_001}, {"settle": 1}, {"etag": "sha1"}, {"unknown": 1},
    ],
)  # fmt: skip
def test_wrong_values_are_refused(tmp_path: Path, keys: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        settings(tmp_path, **keys)


def test_a_missing_folder_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (found,) = findings(tmp_path / "uplods")
    assert (found.path, found.severity) == ("path", "error")
    assert found.message == f"{str(tmp_path / 'uplods')!r} is not a directory."
    assert found.hint == "Create it, or fix the path."
    (tmp_path / "file").touch()
    assert findings(tmp_path / "file")


def test_moving_needs_a_place_outside(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    done = str(root / "done")
    assert [one.path for one in findings(root, after="move")] == ["move_to"]
    assert [one.path for one in findings(root, after_failure="move")] == ["failed_to"]
    assert findings(root, after="move", move_to=str(tmp_path / "out")) == []
    (inside,) = findings(root, after="move", move_to=done)
    assert inside.path == "move_to"
    assert inside.severity == "error"
    assert 'exclude = ["done/**"]' in inside.hint
    assert findings(root, after="move", move_to=str(root))
    assert findings(root, after="move", move_to=done, include=["*.jpg"])
    assert findings(root, after="move", move_to=done, exclude=["done/*"]), "a file in a sub-folder would be fed back"
    assert findings(root, after="move", move_to=done, exclude=["done/**"]) == []
    assert findings(root, after="move", move_to=done, recursive=False) == []
    assert findings(root, after="move", move_to=done, include=["new/*.jpg"]) == []
    assert findings(root, after="move", move_to=str(root / ".done")) == []
    os.symlink(root, tmp_path / "link")
    assert findings(root, after="move", move_to=str(tmp_path / "link" / "done"))
    assert [one.severity for one in findings(root, move_to=done)] == ["warning"]
