"""Collecting problems with their places, and validating one table at a time so that every mistake is found at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from eventd.model import Problem
from eventd.settings.files import Document
from eventd.settings.scanner import Path, dotted
from eventd.settings.sentences import explain, sentence, shown

Model = TypeVar("Model", bound=BaseModel)


@dataclass(slots=True)
class Report:
    document: Document
    problems: list[Problem] = field(default_factory=list)

    def error(self, path: Path, message: str, hint: str = "", *, code: str = "E-CONFIG") -> None:
        self.add(path, message, hint, code=code, severity="error")

    def warn(self, path: Path, message: str, hint: str = "", *, code: str = "W-CONFIG") -> None:
        self.add(path, message, hint, code=code, severity="warning")

    def add(self, path: Path, message: str, hint: str, *, code: str, severity: str) -> None:
        """Note a problem at `path`: in its file, on its line, or on that of the nearest table around it."""
        file, line = self.document.at(path)
        self.problems.append(Problem(code, severity, file, line, dotted(path), sentence(message), sentence(hint)))

    def subtable(self, path: Path) -> dict[str, Any]:
        """The table at `path`, empty when there is none or when it is something else (which is then noted)."""
        value: Any = self.document.data
        for part in path:
            if not isinstance(value, dict) or part not in value:
                return {}
            value = value[part]
        if isinstance(value, dict):
            return value
        self.error(path, f"must be a table, not {shown(value)}", f"Write [{dotted(path)}] and its keys below it.")
        return {}

    def validate(self, model: type[Model], data: Mapping[str, Any], path: Path, *, also_known: Collection[str] = ()) -> Model | None:
        """`data` as a `model`, every mistake noted. Keys with mistakes are then left out, so that the rest can be used for
        further checks; None when even that is not enough, or when a plugin's model failed in a way of its own."""
        try:
            return model.model_validate(dict(data), context=self.context(path, data))
        except ValidationError as error:
            wrong: set[Any] = set()
            for found in explain(error, model, data, also_known=also_known):
                self.error((*path, *found.path), found.message, found.hint)
                wrong.update(found.path[:1])
        except Exception as error:  # a plugin's validator is a stranger's code: its failure is named, and stops nothing else
            self.error(
                path,
                f"the check of this table failed: {type(error).__name__}: {error}",
                "This is a mistake in the plugin.",
                code="E-INTERNAL",
            )
            return None
        rest = {key: value for key, value in data.items() if key not in wrong}
        try:
            return model.model_validate(rest, context=self.context(path, rest))
        except Exception:  # required keys are missing or wrong: already noted above
            return None

    def context(self, path: Path, data: Mapping[str, Any]) -> dict[str, Any]:
        """Validation context: what relative paths in the table at `path` are relative to (see `fields`)."""
        base = self.document.base(path)
        bases = {key: folder for key in data if (folder := self.document.base((*path, key))) != base}
        return {"base": base, "bases": bases}
