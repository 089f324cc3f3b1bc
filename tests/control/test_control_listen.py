"""Opening doors: modes, groups, stale sockets, lengths, and what must not be listened on."""

from __future__ import annotations

import grp
import os
import socket
import stat
from pathlib import Path

import pytest

from eventd.control.listen import open_listeners, open_tcp, open_unix
from eventd.errors import EventdError
from eventd.model import ControlSettings


def mode_of(path: Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


@pytest.mark.parametrize("mode", [0o660, 0o600, 0o666])
def test_the_socket_has_its_mode_whatever_the_umask(tmp_path: Path, mode: int) -> None:
    old = os.umask(0o077)
    try:
        listener = open_unix(str(tmp_path / "c.sock"), mode=mode, group="")
    finally:
        os.umask(old)
    assert mode_of(tmp_path / "c.sock") == mode
    listener.close()
    assert not (tmp_path / "c.sock").exists()


def test_the_socket_has_its_group(tmp_path: Path) -> None:
    group = grp.getgrgid(os.getgid())
    open_unix(str(tmp_path / "c.sock"), mode=0o660, group=group.gr_name).close()
    with pytest.raises(EventdError, match="no-such-group") as caught:
        open_unix(str(tmp_path / "c.sock"), mode=0o660, group="no-such-group")
    assert caught.value.code == "E-CONFIG"
    assert not (tmp_path / "c.sock").exists()


def test_a_socket_left_over_from_a_crash_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))
    listener = open_unix(str(path), mode=0o660, group="")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    listener.close()


def test_a_socket_that_answers_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    first = open_unix(str(path), mode=0o660, group="")
    with pytest.raises(EventdError, match="another process answers"):
        open_unix(str(path), mode=0o660, group="")
    assert path.exists()
    first.close()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    path.write_text("mine")
    with pytest.raises(EventdError, match="is no socket"):
        open_unix(str(path), mode=0o660, group="")
    assert path.read_text() == "mine"


def test_closing_leaves_a_successors_socket_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    first = open_unix(str(path), mode=0o660, group="")
    path.unlink()
    second = open_unix(str(path), mode=0o660, group="")
    first.close()
    assert path.exists()
    second.close()


def test_the_longest_path_works_and_one_more_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "d"
    folder.mkdir()
    room = 107 - len(os.fsencode(folder)) - 1
    if room < 1:
        monkeypatch.chdir("/")
        pytest.fail("the temporary folder's own path is too long for this test")
    open_unix(str(folder / ("s" * room)), mode=0o660, group="").close()
    with pytest.raises(EventdError, match="108 bytes") as caught:
        open_unix(str(folder / ("s" * (room + 1))), mode=0o660, group="")
    assert caught.value.code == "E-LISTEN"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(EventdError) as caught:
        open_unix(str(tmp_path / "no" / "c.sock"), mode=0o660, group="")
    assert str(tmp_path / "no") in caught.value.hint


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:80", "example.org:80"])
def test_the_network_is_not_let_in(address: str) -> None:
    with pytest.raises(EventdError) as caught:
        open_tcp(address)
    assert caught.value.code == "E-CONFIG"


@pytest.mark.parametrize("address", ["", "127.0.0.1", "127.0.0.1:http", ":80", "127.0.0.1:70000"])
def test_what_is_no_address_is_an_error(address: str) -> None:
    with pytest.raises(EventdError) as caught:
        open_tcp(address)
    assert caught.value.code == "E-CONFIG"


def test_loopback_by_name_and_number() -> None:
    for address in ("127.0.0.1:0", "localhost:0"):
        listener = open_tcp(address)
        assert int(listener.address.rpartition(":")[2]) > 0
        listener.close()


def test_passed_sockets_replace_the_listeners_and_the_socket_of_the_same_path(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    handed = socket.socket(socket.AF_UNIX)
    handed.bind(str(path))
    handed.listen(8)
    opened = open_listeners(ControlSettings(socket=str(path), listen=("127.0.0.1:0",)), [handed])
    assert [listener.address for listener in opened] == [f"unix:{path}"]
    for listener in opened:
        listener.close()
    assert path.exists(), "systemd's socket file is systemd's"


def test_a_failure_closes_what_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    with pytest.raises(EventdError):
        open_listeners(ControlSettings(socket=str(path), listen=("127.0.0.1:0", "0.0.0.0:0")))
    assert not path.exists()
