"""Plugins under the entry-point group: validated when they are registered; a broken one stops no other."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

from eventd.registry import accept, find_triggers
from eventd.sdk import PluginSettings, Site, TriggerPlugin


class Tick(PluginSettings):
    every: int = Field(default=1, description="how often")


async def run(site: Site, settings: Tick) -> None: ...


GOOD = TriggerPlugin(kind="tick", settings=Tick, run=run)


class Lax(BaseModel):
    pass


class Clash(PluginSettings):
    paused: bool = False


def plain(site: Site, settings: Tick) -> None: ...


class Callable_:
    async def __call__(self, site: Site, settings: Tick) -> None: ...


def test_a_good_plugin_is_taken_as_it_is() -> None:
    assert accept(GOOD) is GOOD
    assert accept(dataclasses.replace(GOOD, run=Callable_()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "Tick Tock"}, "its kind 'Tick Tock'"),
        ({"kind": 3}, "its kind 3"),
        ({"settings": dict}, "not a pydantic model"),
        ({"settings": Lax}, "let unknown keys through"),
        ({"settings": Clash}, "the keys paused, which every trigger has"),
        ({"run": plain}, "not an async function"),
        ({"check": 1}, "its check is not a function"),
        ({"direct": None}, "its direct is not a function"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_wrong_with_a_plugin_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        accept(dataclasses.replace(GOOD, **change))


def test_something_else_is_no_plugin() -> None:
    with pytest.raises(ValueError, match="not a TriggerPlugin but int"):
        accept(3)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, dict[str, str]], None]:
    """Put a distribution with entry points and modules on the path."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name: str, modules: dict[str, str]) -> None:
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        points = [f"{module} = {module}:plugin" if "module:" not in text else f"{module} = {module}" for module, text in modules.items()]
        (info / "entry_points.txt").write_text("[eventd.triggers]\n" + "\n".join(points) + "\n")
        for module, text in modules.items():
            (tmp_path / f"{module}.py").write_text(text)
            monkeypatch.delitem(sys.modules, module, raising=False)

    return install


HEADER = "from test_settings_registry import GOOD\nimport dataclasses\n"


def test_a_broken_plugin_stops_no_other(installed: Callable[[str, dict[str, str]], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "test_settings_registry", sys.modules[__name__])
    installed(
        "stranger",
        {
            "stranger_good": HEADER + "plugin = GOOD\n",
            "stranger_module": HEADER + "# module: the entry point names the module\nplugin = dataclasses.replace(GOOD, kind='tock')\n",
            "stranger_syntax": "def\n",
            "stranger_exit": "raise SystemExit(3)\n",
            "stranger_missing": "x = 1\n",
            "stranger_wrong": "plugin = 3\n",
            "stranger_twin": HEADER + "plugin = dataclasses.replace(GOOD)\n",
        },
    )
    kinds, problems = find_triggers()
    assert {"tick", "tock"} <= set(kinds)
    ours = {problem.file.split(" ")[0]: problem for problem in problems if problem.file.startswith("stranger")}
    assert set(ours) == {"stranger_exit", "stranger_missing", "stranger_syntax", "stranger_twin", "stranger_wrong"}
    assert {problem.severity for problem in ours.values()} == {"warning"}
    assert "SyntaxError" in ours["stranger_syntax"].message
    assert "SystemExit" in ours["stranger_exit"].message
    assert "not a TriggerPlugin but int" in ours["stranger_wrong"].message
    assert "two plugins are of the kind 'tick'" in ours["stranger_twin"].message
    assert ours["stranger_wrong"].hint == "Repair or uninstall the package stranger."
