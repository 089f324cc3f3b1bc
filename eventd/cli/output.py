"""Results for people and for programs. Text that came from handlers or events never reaches a terminal unescaped."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import Any, Final

_CONTROLS: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
_GREEN: Final = ("succeeded", "ready", "up")
_RED: Final = ("failed", "timed_out", "crashed", "out_of_memory", "broken", "missing", "dead")
_YELLOW: Final = ("lost", "interrupted", "cancelled", "degraded", "paused", "building", "held", "retrying", "draining", "starting")
_STYLES: Final = {word: style for style, words in (("green", _GREEN), ("red", _RED), ("yellow", _YELLOW)) for word in words}


def clean(text: object) -> str:
    """`text` on one line, control characters made visible."""
    return _CONTROLS.sub(lambda found: "\\n" if found[0] == "\n" else f"\\x{ord(found[0]):02x}", str(text))


def emit(value: Any) -> None:
    """One JSON value and a newline on stdout."""
    import msgspec

    write(msgspec.json.encode(value) + b"\n")


def compact(value: Any) -> str:
    """A JSON value inside a line of text."""
    import msgspec

    return msgspec.json.encode(value).decode()


def write(data: bytes) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def line(text: str = "") -> None:
    write(text.encode("utf-8", "backslashreplace") + b"\n")


def terminal() -> bool:
    """Whether colour and live redraw are wanted: stdout is a terminal and $NO_COLOR is not set (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns under headings; aligned text in a pipe, coloured and folded to the width on a terminal."""
    cells = [[clean("" if cell is None else cell) for cell in row] for row in rows]
    if terminal():
        _rich_table(headers, cells)
        return
    widths = [max(len(row[column]) for row in [list(headers), *cells]) for column in range(len(headers))]
    for row in [list(headers), *cells]:
        line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def fields(pairs: Sequence[tuple[str, object]]) -> None:
    """Names and values below each other."""
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        line(f"{name.ljust(width)}  {clean('' if value is None else value)}".rstrip())


def ms(value: float | None) -> str:
    """A duration for people; of nothing, a dash."""
    if value is None:
        return "-"
    if value < 1000:
        return f"{value:.1f} ms"
    return f"{value / 1000:.2f} s" if value < 120_000 else f"{value / 60_000:.1f} min"


def size(value: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _rich_table(headers: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for header in headers:
        made.add_column(header, overflow="fold")
    for row in cells:
        made.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    Console(highlight=False, soft_wrap=False).print(made)
