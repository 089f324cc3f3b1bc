"""Dependencies: what a function says it needs, and the environments made from it. No network: the package is a wheel made here."""

# ruff: noqa: ASYNC110, ASYNC221, ASYNC240  (tests may block and poll for a condition)

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from eventd.errors import EventdError
from eventd.runtime import deps
from eventd.runtime.code import Version
from eventd.runtime.deps import Environments
from eventd.runtime.deps_spec import Inline, Requirements, inline_of, python_allowed, read_requirements


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {}


# --- PEP 723 ---

BLOCK = b"""#!/usr/bin/env python3
'''doc'''
# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "pillow>=11",
#
#   "requests",
# ]
# ///
import os
"""


@pytest.mark.parametrize("source", [BLOCK, BLOCK.replace(b"\n", b"\r\n"), BLOCK + b"# /// other\n# x\n# ///\n"])
def test_a_block_is_read(source: bytes) -> None:
    assert inline_of(source, "f.py") == Inline(dependencies=("pillow>=11", "requests"), requires_python=">=3.11")


@pytest.mark.parametrize(
    "source",
    [
        b"",
        b"print(1)\n",
        b"# /// script\n# never closed\n",
        b"x = '# /// script'\n",
        b"# /// script\nimport os\n# ///\n",
        b"# /// tool\n# a = 1\n# ///\n",
    ],
)
def test_what_is_no_block_is_none(source: bytes) -> None:
    assert inline_of(source, "f.py") is None


@pytest.mark.parametrize(
    "source, words",
    [
        (b"import a\n\n# /// script\n# dependencies = [\n# ///\n", "f.py:3: the '# /// script' block is not valid TOML"),
        (b"# /// script\n# a = 1\n# ///\n\n# /// script\n# a = 1\n# ///\n", "f.py:5: a second"),
        (b"# /// script\n# dependencies = 'six'\n# ///\n", "f.py:1"),
        (b"# /// script\n# dependencies = ['--no-deps']\n# ///\n", "f.py:1"),
        (b'# /// script\n# dependencies = ["a\\nb"]\n# ///\n', "f.py:1"),
        (b"# /// script\n# requires-python = 3.11\n# ///\n", "f.py:1"),
        (b"# /// script\n# requires-python = 'new'\n# ///\n", "not a version specifier"),
    ],
)
def test_a_block_that_cannot_be_used_names_the_line(source: bytes, words: str) -> None:
    with pytest.raises(EventdError, match="E-HANDLER") as caught:
        inline_of(source, "f.py")
    assert words in caught.value.message


@pytest.mark.parametrize(
    "specifier, yes",
    [
        (">=3.11", True), (">3.11", True), (">3.11.7", False), ("<3.11", False), ("<=3.11.7", True), ("==3.11.*", True), ("==3.11", False),
        ("!=3.11.*", False), ("~=3.10", True), ("~=3.11.2", True), ("~=3.10.2", False), (">=3.9,<4", True), (">=3.9, <3.11", False),
        ("==3.11.7", True), (">=3.11.7.1", False),
    ],
)  # fmt: skip
def test_interpreter_versions_are_compared_as_numbers(specifier: str, yes: bool) -> None:
    assert python_allowed(specifier, (3, 11, 7), "f.py") is yes


# --- requirements files ---


def test_included_files_become_part_of_the_wishes(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "requirements.txt").write_text("\ufeffsix\n-r sub/more.txt # as well\n-c limits.txt\n", "utf-8")
    (tmp_path / "sub" / "more.txt").write_text("seven\n-r ../requirements.txt\n")
    (tmp_path / "limits.txt").write_text("six<2\n")
    wishes = read_requirements(str(tmp_path / "requirements.txt"))
    assert wishes == Requirements(lines=b"six\nseven\n", constraints=b"six<2", folder=str(tmp_path))
    (tmp_path / "limits.txt").write_text("six<3\n")
    assert read_requirements(str(tmp_path / "requirements.txt")).digest() != wishes.digest()


def test_a_missing_include_names_both_files(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("-r gone.txt\n")
    with pytest.raises(EventdError) as caught:
        read_requirements(str(tmp_path / "requirements.txt"))
    assert "gone.txt" in caught.value.message
    assert "included by" in caught.value.message


# --- environments ---


def wheel(folder: Path, name: str, body: str = "VALUE = 42\n") -> Path:
    """A wheel by hand, as the binary distribution format asks for it."""
    info = f"{name}-1.0.dist-info"
    members = {
        f"{name}.py": body,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name}-tool = {name}:main\n",
    }
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},{len(text)}\n"
        for path, text in members.items()
    )
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in {**members, f"{info}/RECORD": record + f"{info}/RECORD,,\n"}.items():
            archive.writestr(member, text)
    return path


def version(tmp_path: Path, *lines: str, inline: bool = False, requires: str = "") -> Version:
    return Version(
        name="f",
        digest="0" * 12,
        root=str(tmp_path),
        entry="f.py",
        handler=None,
        runtime="python",
        source=str(tmp_path / "f.py"),
        requirements=None if inline else Requirements("".join(f"{line}\n" for line in lines).encode(), b"", str(tmp_path)),
        inline=Inline(lines, requires) if inline else None,
    )


def environments(tmp_path: Path) -> Environments:
    return Environments(str(tmp_path / "state"), sys.executable, ("--no-index", "--find-links", str(tmp_path)))


def alive(marker: str) -> list[str]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path("/proc", pid, "cmdline").read_bytes()
        except OSError:
            continue
        if marker.encode() in words:
            found.append(pid)
    return found


@pytest.mark.anyio
async def test_no_wishes_mean_the_base_interpreter(tmp_path: Path) -> None:
    rooms = environments(tmp_path)
    assert await rooms.ensure(version(tmp_path, "", "# nothing")) == sys.executable
    assert await rooms.ensure(version(tmp_path, inline=True, requires=">=3.11")) == sys.executable
    assert not (tmp_path / "state" / "venvs").exists()


@pytest.mark.anyio
async def test_an_interpreter_that_is_too_old_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EventdError, match="E-HANDLER") as caught:
        await environments(tmp_path).ensure(version(tmp_path, inline=True, requires=">=3.99"))
    assert "wants Python >=3.99" in caught.value.message
    assert sys.executable in caught.value.message


@pytest.mark.anyio
async def test_an_environment_is_built_once_and_shared_and_survives_a_restart(tmp_path: Path) -> None:
    wheel(tmp_path, "evpkg")
    rooms = environments(tmp_path)
    pythons: list[str] = []

    async def ensure() -> None:
        pythons.append(await rooms.ensure(version(tmp_path, "evpkg")))

    async with anyio.create_task_group() as group:
        group.start_soon(ensure)
        group.start_soon(ensure)
    assert len(set(pythons)) == 1
    python = pythons[0]
    told = subprocess.run(
        [python, "-I", "-c", "import evpkg, sys; print(evpkg.VALUE, sys.prefix)"], capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == ["42", str(Path(python).parents[1])]
    assert (Path(python).parent / "evpkg-tool").read_text().startswith(f"#!{python}")
    log = Path(python).parents[1].with_suffix(".log").read_text()
    assert "Successfully installed evpkg-1.0" in log
    assert log.count("$ ") == 2
    # Without the folder of wheels a second build would fail; and the block says the same as the file.
    (tmp_path / "evpkg-1.0-py3-none-any.whl").unlink()
    again = environments(tmp_path)
    assert await again.ensure(version(tmp_path, "evpkg", inline=True)) == python
    # What lacks the marker is never used: with nothing to install from, trying to build it again fails.
    (Path(python).parents[1] / deps.MARKER).unlink()
    with pytest.raises(EventdError, match="E-BUILD") as caught:
        await again.ensure(version(tmp_path, "evpkg"))
    assert "No matching distribution found for evpkg" in caught.value.message
    assert caught.value.hint.endswith(".log.")
    assert "No matching distribution" in Path(caught.value.hint.split()[-1].rstrip(".")).read_text()
    assert not Path(python).parents[1].exists()
    assert not list((tmp_path / "state" / "venvs").glob(".list-*"))


@pytest.fixture
def slow_python(tmp_path: Path) -> Iterator[str]:
    """An interpreter whose `venv` starts a helper and then takes for ever."""
    path = tmp_path / "slowpython"
    path.write_text(f'#!/bin/sh\ncase "$*" in *venv*) sleep 977 & echo begun; sleep 977;; *) exec {sys.executable} "$@";; esac\n')
    path.chmod(0o755)
    yield str(path)
    assert not alive("slowpython"), "the build outlived its cancellation"


async def until(true: object) -> None:
    with anyio.fail_after(10):
        while not true():  # type: ignore[operator]
            await anyio.sleep(0.01)


@pytest.mark.anyio
async def test_a_cancelled_build_leaves_no_process_and_no_folder(tmp_path: Path, slow_python: str) -> None:
    rooms = Environments(str(tmp_path / "state"), slow_python)
    async with anyio.create_task_group() as group:
        group.start_soon(rooms.ensure, version(tmp_path, "evpkg"))
        await until(lambda: alive("slowpython\0-I\0-m\0venv"))
        group.cancel_scope.cancel()
    assert not alive("slowpython")
    assert [path.name for path in (tmp_path / "state" / "venvs").iterdir() if path.is_dir()] == []


@pytest.mark.anyio
async def test_a_build_has_a_limit(tmp_path: Path, slow_python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deps, "LIMIT_S", 0.3)
    with pytest.raises(EventdError, match="E-BUILD") as caught:
        await Environments(str(tmp_path / "state"), slow_python).ensure(version(tmp_path, "evpkg"))
    assert "not done after" in caught.value.message
    assert "begun" in caught.value.message


@pytest.mark.anyio
async def test_an_interpreter_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(EventdError, match="/no/such/python") as caught:
        await Environments(str(tmp_path), "/no/such/python").ensure(version(tmp_path, "evpkg"))
    assert "[runtimes.python] path" in caught.value.hint


@pytest.mark.anyio
async def test_environments_that_nobody_holds_are_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an interpreter that makes an empty environment at once, so that many are cheap."""
    fake = tmp_path / "fakepython"
    make = 'mkdir -p "$4/bin" && printf "#!/bin/sh\\n" > "$4/bin/python" && chmod +x "$4/bin/python"'
    fake.write_text(f'#!/bin/sh\ncase "$3" in venv) {make};; *) exec {sys.executable} "$@";; esac\n')
    fake.chmod(0o755)
    monkeypatch.setattr(deps, "KEEP", 1)
    rooms = Environments(str(tmp_path / "state"), str(fake))
    made = [version(tmp_path, f"p{number}") for number in range(4)]
    paths = [Path(await rooms.ensure(each)) for each in made]
    assert all(path.exists() for path in paths)
    for number, each in enumerate(made[:3]):
        os.utime(paths[number].parents[1] / deps.MARKER, (number + 1, number + 1))
        await rooms.release(each)
    assert [path.exists() for path in paths] == [False, False, True, True]


@pytest.mark.anyio
async def test_the_installer_sees_its_own_settings_and_nothing_of_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "NOTIFY_SOCKET", "PIP_TARGET", "PYTHONPATH", "LD_PRELOAD"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("PIP_CERT", "/some/ca.pem")
    fake = tmp_path / "fakepython"
    fake.write_text(f'#!/bin/sh\ncase "$3" in venv) env >&2; exit 3;; *) exec {sys.executable} "$@";; esac\n')
    fake.chmod(0o755)
    with pytest.raises(EventdError, match="exit status 3") as caught:
        await Environments(str(tmp_path / "state"), str(fake)).ensure(version(tmp_path, "evpkg"))
    log = Path(caught.value.hint.split()[-1].rstrip(".")).read_text()
    names = {line.split("=", 1)[0] for line in log.splitlines()[1:]}
    assert "PIP_CERT" in names
    assert "HOME" in names
    assert not names & {"AWS_SECRET_ACCESS_KEY", "NOTIFY_SOCKET", "PIP_TARGET", "PYTHONPATH", "LD_PRELOAD"}
