"""What the event loop asks of the writer thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from eventd.core.facts import Accepted, Fact
from eventd.journal.reads import Reads


class AcceptOp(Struct, gc=False):
    fact: Accepted
    done: Callable[[Any], None]
    size: int


class AppendOp(Struct, gc=False):
    facts: Sequence[Fact]
    done: Callable[[], None]
    size: int


class ReadOp(Struct, gc=False):
    """`call` runs in the writer thread, `done` gets its result on the loop."""

    call: Callable[[Reads], Any]
    done: Callable[[Any], None]
    size: int = 0


class CloseOp(Struct, gc=False):
    size: int = 0


Op = AcceptOp | AppendOp | ReadOp | CloseOp
Answer = tuple[Callable[..., None], tuple[Any, ...]]
