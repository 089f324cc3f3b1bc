"""The code store: what is copied, when, what is refused, and what is kept."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from eventd.errors import EventdError
from eventd.model import FunctionSettings
from eventd.runtime import code_tree
from eventd.runtime.code import CodeStore, Version


@pytest.fixture(autouse=True)
def quick_settling(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "real_settling" not in request.fixturenames:
        monkeypatch.setattr(code_tree, "SETTLE_S", 0.01)


@pytest.fixture
def real_settling() -> float:
    """How long a file must rest, as it is."""
    return code_tree.SETTLE_S


@pytest.fixture
def handlers(tmp_path: Path) -> Path:
    folder = tmp_path / "handlers"
    folder.mkdir(mode=0o755)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> CodeStore:
    return CodeStore(str(tmp_path / "state"))


def write(path: Path, text: str | bytes, mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)
    return path


def function(source: Path, runtime: str = "python", **more: object) -> FunctionSettings:
    return FunctionSettings(name=source.stem, runtime=runtime, source=str(source), **more)  # type: ignore[arg-type]


def files(version: Version) -> list[str]:
    root = Path(version.root)
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def refusal(take: Callable[[], object]) -> EventdError:
    with pytest.raises(EventdError) as caught:
        take()
    assert caught.value.code == "E-HANDLER"
    assert caught.value.hint
    return caught.value


def test_a_single_file_is_copied_with_its_helpers_and_nothing_else(handlers: Path, store: CodeStore) -> None:
    main = write(handlers / "shop.py", "import _prices\n")
    write(handlers / "_prices.py", "X = 1\n")
    write(handlers / "_lib" / "__init__.py", "")
    write(handlers / "_notes.js", "")
    write(handlers / "other.py", "")
    write(handlers / "__pycache__" / "shop.pyc", "")
    version = store.take(function(main))
    assert files(version) == ["_lib/__init__.py", "_prices.py", "shop.py"]
    assert version.entry == "shop.py"
    assert Path(version.root).parts[-3:] == ("code", "shop", version.digest)
    assert len(version.digest) == 12
    assert not stat.S_IMODE(os.stat(os.path.join(version.root, "shop.py")).st_mode) & 0o222


def test_node_files_take_their_own_helpers_and_find_shared_packages(handlers: Path, store: CodeStore) -> None:
    main = write(handlers / "web.mjs", "")
    write(handlers / "_a.js", "")
    write(handlers / "_b.py", "")
    write(handlers / "package.json", "{}")
    write(handlers / "node_modules" / "left" / "index.js", "")
    version = store.take(function(main, "node"))
    assert files(version) == ["_a.js", "package.json", "web.mjs"]
    home = Path(version.root).parent
    assert (home / "node_modules" / "left" / "index.js").is_file()
    assert (home / "package.json").read_text() == "{}\n"


def test_a_folder_is_copied_whole_without_what_tools_leave(handlers: Path, store: CodeStore) -> None:
    folder = handlers / "thumb"
    write(folder / "index.py", "")
    write(folder / "data" / "palette.txt", "")
    write(folder / ".git" / "HEAD", "")
    write(folder / "__pycache__" / "x.pyc", "")
    write(folder / "index.py~", "")
    version = store.take(function(folder))
    assert files(version) == ["data/palette.txt", "index.py"]
    assert version.entry == "index.py"


def test_the_entry_of_a_folder_follows_its_name_then_the_usual_ones(handlers: Path, store: CodeStore) -> None:
    folder = handlers / "mail"
    write(folder / "index.py", "")
    write(folder / "lambda_function.py", "")
    assert store.take(function(folder)).entry == "lambda_function.py"
    write(folder / "mail.py", "")
    assert store.take(function(folder)).entry == "mail.py"
    assert store.take(function(folder, handler="index.main")).entry == ""
    write(handlers / "empty" / "readme", "")
    assert "lambda_function.py" in str(refusal(lambda: store.take(function(handlers / "empty"))))


def test_links_are_followed_and_copied(handlers: Path, tmp_path: Path, store: CodeStore) -> None:
    write(tmp_path / "repo" / "f.py", "A = 1\n")
    (handlers / "f.py").symlink_to(tmp_path / "repo" / "f.py")
    version = store.take(function(handlers / "f.py"))
    copy = Path(version.root) / "f.py"
    assert copy.read_text() == "A = 1\n"
    assert not copy.is_symlink()
    write(handlers / "g" / "index.py", "")
    (handlers / "g" / "up").symlink_to(handlers / "g")
    assert "leads back into itself" in str(refusal(lambda: store.take(function(handlers / "g"))))


def test_unchanged_code_is_the_same_version_and_is_not_read_again(
    handlers: Path, store: CodeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = write(handlers / "f.py", "A = 1\n")
    first = store.take(function(main))
    monkeypatch.setattr(code_tree, "_read", None)  # reading anything now fails
    assert store.take(function(main)) == first


def test_the_same_code_is_the_same_version_after_a_restart_and_a_touch(handlers: Path, tmp_path: Path, store: CodeStore) -> None:
    main = write(handlers / "f.py", "A = 1\n")
    first = store.take(function(main))
    inode = os.stat(os.path.join(first.root, "f.py")).st_ino
    main.touch()
    assert store.take(function(main)).digest == first.digest
    again = CodeStore(str(tmp_path / "state")).take(function(main))
    assert again.digest == first.digest
    assert os.stat(os.path.join(again.root, "f.py")).st_ino == inode


def test_content_names_and_the_execute_bit_make_a_version(handlers: Path, store: CodeStore) -> None:
    main = write(handlers / "run.sh", "#!/bin/sh\n", 0o755)
    write(handlers / "tool" / "bootstrap", "#!/bin/sh\n", 0o755)
    digests = {store.take(function(main, "exec")).digest}
    write(main, "#!/bin/sh\ntrue\n", 0o755)
    digests.add(store.take(function(main, "exec")).digest)
    folder = function(handlers / "tool", "provided")
    digests.add(store.take(folder).digest)
    write(handlers / "tool" / "data", "")
    digests.add(store.take(folder).digest)
    (handlers / "tool" / "data").chmod(0o755)
    digests.add(store.take(folder).digest)
    (handlers / "tool" / "data").rename(handlers / "tool" / "datb")
    digests.add(store.take(folder).digest)
    (handlers / "tool" / "datb").chmod(0o750)
    digests.add(store.take(folder).digest)
    assert len(digests) == 6


def test_a_copy_that_a_handler_spoiled_is_made_again_after_a_restart(handlers: Path, tmp_path: Path, store: CodeStore) -> None:
    main = write(handlers / "f.py", "A = 1\n")
    first = store.take(function(main))
    copy = Path(first.root) / "f.py"
    copy.unlink()
    copy.write_text("A = 2\n")
    again = CodeStore(str(tmp_path / "state")).take(function(main))
    assert again.digest == first.digest
    assert copy.read_text() == "A = 1\n"


def test_requirements_outside_the_tree_are_part_of_the_version(handlers: Path, store: CodeStore) -> None:
    main = write(handlers / "f.py", "")
    wishes = write(handlers / "requirements.txt", "six\n")
    settings = function(main, requirements=str(wishes))
    first = store.take(settings)
    assert first.requirements is not None
    assert first.requirements.lines == b"six\n"
    wishes.write_text("seven\n")
    assert store.take(settings).digest != first.digest
    main.write_text("# /// script\n# dependencies = ['eight']\n# ///\n")
    inline = store.take(settings)
    assert inline.requirements is None
    assert inline.inline is not None
    assert inline.inline.dependencies == ("eight",)


def test_what_others_could_change_is_refused(handlers: Path, store: CodeStore) -> None:
    main = write(handlers / "f.py", "", 0o666)
    error = refusal(lambda: store.take(function(main)))
    assert str(main) in error.message
    assert f"chmod o-w {main}" in error.hint
    main.chmod(0o644)
    handlers.chmod(0o777)
    assert "writable by others" in str(refusal(lambda: store.take(function(main))))
    handlers.chmod(0o755)
    write(handlers / "g" / "index.py", "")
    (handlers / "g" / "sub").mkdir()
    (handlers / "g" / "sub").chmod(0o777)
    assert "g/sub" in str(refusal(lambda: store.take(function(handlers / "g"))))


def test_sockets_pipes_missing_files_and_dead_links_are_refused(handlers: Path, store: CodeStore) -> None:
    write(handlers / "g" / "index.py", "")
    os.mkfifo(handlers / "g" / "queue")
    assert "g/queue is not a file" in str(refusal(lambda: store.take(function(handlers / "g"))))
    os.unlink(handlers / "g" / "queue")
    with socket.socket(socket.AF_UNIX) as door:
        cwd = os.getcwd()
        os.chdir(handlers / "g")
        try:
            door.bind("s")
        finally:
            os.chdir(cwd)
        assert "g/s is not a file" in str(refusal(lambda: store.take(function(handlers / "g"))))
    (handlers / "dead.py").symlink_to(handlers / "nothing")
    assert "dead.py does not exist" in str(refusal(lambda: store.take(function(handlers / "dead.py"))))


def test_too_much_code_is_refused_before_it_is_read(handlers: Path, store: CodeStore) -> None:
    main = write(handlers / "big" / "index.py", "")
    with open(main.parent / "model.bin", "wb") as file:
        file.truncate(251 * 1024**2)  # a hole: no disk is used
    started = time.monotonic()
    assert "larger than 250 MiB" in str(refusal(lambda: store.take(function(main.parent))))
    assert time.monotonic() - started < 2


def test_scripts_that_the_kernel_cannot_start_are_refused_with_the_cure(handlers: Path, store: CodeStore) -> None:
    main = write(handlers / "run.sh", "#!/bin/sh\r\necho\r\n", 0o755)
    error = refusal(lambda: store.take(function(main, "exec")))
    assert "carriage return" in error.message
    assert "sed -i" in error.hint
    assert str(main) in error.hint
    write(main, "#!/no/such/shell\n", 0o755)
    assert "/no/such/shell" in refusal(lambda: store.take(function(main, "exec"))).message
    write(main, "#!/bin/sh\n", 0o644)
    assert "chmod +x" in refusal(lambda: store.take(function(main, "exec"))).hint
    write(main, b"", 0o755)
    assert "empty" in refusal(lambda: store.take(function(main, "exec"))).message
    write(main, b"#!/bin/sh\n", 0o755)
    assert store.take(function(main, "exec")).entry == "run.sh"


def test_the_last_two_versions_stay_and_every_one_that_is_held(handlers: Path, store: CodeStore) -> None:
    main = handlers / "f.py"
    taken = []
    for number in range(5):
        write(main, f"A = {number}\n")
        taken.append(store.take(function(main)))
    assert all(os.path.isdir(version.root) for version in taken)
    for version in taken:
        store.release(version)
    assert [os.path.isdir(version.root) for version in taken] == [False, False, False, True, True]
    store.take(function(main))
    store.forget_all_but(frozenset())
    assert os.path.isdir(taken[4].root)
    store.release(taken[4])
    store.forget_all_but(frozenset())
    assert not os.path.exists(taken[4].root)


@pytest.mark.usefixtures("real_settling")
def test_a_tree_that_is_being_written_is_taken_when_it_is_whole(handlers: Path, store: CodeStore) -> None:
    """A writer changes two files in turn, never leaving them different for 200 ms; what is taken always agrees with itself."""
    folder = handlers / "pair"
    write(folder / "index.py", "0")
    write(folder / "other.py", "0")
    stop = threading.Event()
    written = 0

    def writer() -> None:
        nonlocal written
        for number in range(1, 15):
            (folder / "index.py").write_text(str(number))
            stop.wait(0.03)
            (folder / "other.py").write_text(str(number))
            written = number
            stop.wait(0.02)

    thread = threading.Thread(target=writer)
    thread.start()
    try:
        version = store.take(function(folder))
        root = Path(version.root)
        assert (root / "index.py").read_text() == (root / "other.py").read_text() == "14"
        assert written == 14
    finally:
        stop.set()
        thread.join()


@pytest.mark.usefixtures("real_settling")
def test_a_file_that_never_rests_is_an_error_and_not_a_hang(handlers: Path, store: CodeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_tree, "PATIENCE_S", 0.5)
    main = write(handlers / "log" / "index.py", "")
    stop = threading.Event()

    def writer() -> None:
        while not stop.wait(0.02):
            main.write_text(str(time.monotonic_ns()))

    thread = threading.Thread(target=writer)
    thread.start()
    try:
        assert "never still" in str(refusal(lambda: store.take(function(main.parent))))
    finally:
        stop.set()
        thread.join()


def test_leftovers_of_an_interrupted_copy_are_removed(handlers: Path, tmp_path: Path, store: CodeStore) -> None:
    leftover = write(tmp_path / "state" / "code" / "f" / ".tmp-1-abcd" / "f.py", "half")
    store.take(function(write(handlers / "f.py", "whole")))
    assert not leftover.exists()


def test_a_command_needs_no_code(store: CodeStore) -> None:
    version = store.take(FunctionSettings(name="tool", runtime="exec", command=("/bin/echo", "1")))
    assert files(version) == []
    assert version.entry == ""
