"""Finding a Python handler, and turning its results and failures into Lambda's JSON (lambda.md 1.5, 8.2; awslambdaric 4)."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

_HERE = os.path.dirname(os.path.abspath(__file__))


class Fault(Exception):
    """A failure with the type that Lambda gives it."""

    def __init__(self, kind: str, message: str, trace: list[str] | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.trace = trace or []


def find_handler(name: str | None, entry: str) -> Callable[..., Any]:
    """The handler `module.function`; without a name, the attribute `handler` of the entry file, else `lambda_handler`."""
    if name is None:
        module_name, attributes = entry, ("handler", "lambda_handler")
    else:
        try:
            module_name, attribute = name.rsplit(".", 1)
        except ValueError as error:
            raise Fault("Runtime.MalformedHandlerName", f"Bad handler '{name}': {error}") from None
        attributes = (attribute, attribute)
    module_name = module_name.replace("/", ".")
    if module_name.split(".")[0] in sys.builtin_module_names:
        raise Fault("Runtime.BuiltInModuleConflict", f"Cannot use built-in module {module_name} as a handler module")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise Fault("Runtime.ImportModuleError", f"Unable to import module '{module_name}': {error}", stack(error)) from None
    except SyntaxError as error:
        place = f'  File "{error.filename}" Line {error.lineno}\n    {(error.text or "").strip()}\n'
        raise Fault("Runtime.UserCodeSyntaxError", f"Syntax error in module '{module_name}': {error}", [place]) from None
    for attribute in attributes:
        found = getattr(module, attribute, None)
        if found is not None:
            if not callable(found):
                raise Fault("Runtime.HandlerNotFound", f"Handler '{attribute}' on module '{module_name}' is not a function")
            return found  # type: ignore[no-any-return]
    raise Fault("Runtime.HandlerNotFound", f"Handler '{attributes[0]}' missing on module '{module_name}'")


def stack(error: BaseException) -> list[str]:
    """The traceback as Lambda lists it, from the first line of the user's own code on."""
    frames = traceback.extract_tb(error.__traceback__)
    first = 0
    while first < len(frames) and _between(frames[first].filename):
        first += 1
    return traceback.format_list(frames[first:])


def _between(filename: str) -> bool:
    """Whether a file stands between our loop and the user's code."""
    return filename.startswith((_HERE, "<frozen importlib")) or "/importlib/" in filename or "/asyncio/" in filename


def error_of(error: BaseException, request_id: str) -> dict[str, Any]:
    if isinstance(error, Fault):
        return {"errorMessage": error.message, "errorType": error.kind, "requestId": request_id, "stackTrace": error.trace}
    try:
        text = str(error)
    except Exception as worse:  # a __str__ of the user's that raises itself
        text = f"<{type(error).__name__}, whose text cannot be made: {type(worse).__name__}>"
    return {"errorMessage": text, "errorType": type(error).__name__, "requestId": request_id, "stackTrace": stack(error)}


def print_error(error: dict[str, Any]) -> None:
    """One log record, as readable as it can be: Lambda's wording, with real line ends."""
    lines = [f"[ERROR] {error['errorType']}: {error['errorMessage']}"]
    if error["stackTrace"]:
        lines.append("Traceback (most recent call last):")
        lines += [line.rstrip("\n") for line in error["stackTrace"]]
    with contextlib.suppress(Exception):
        sys.stderr.write("\n".join(lines) + "\n")


def _plain(value: Any) -> Any:
    decimal = sys.modules.get("decimal")
    if decimal is not None and isinstance(value, decimal.Decimal):
        return float(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


_dump = json.JSONEncoder(ensure_ascii=False, default=_plain).encode
_dump_ascii = json.JSONEncoder(default=_plain).encode
decode = json.loads


def encode(value: Any) -> bytes:
    """A result as JSON: None is null, Decimal a number, NaN stays NaN. Raises Fault(Runtime.MarshalError)."""
    try:
        try:
            return _dump(value).encode()
        except UnicodeEncodeError:  # lone surrogates have no UTF-8, but they have an escape
            return _dump_ascii(value).encode()
    except Exception as error:
        raise Fault("Runtime.MarshalError", f"Unable to marshal response: {error}") from None
