"""Shrinking a module as far as it goes: of each kind of things first all, then halves, quarters and single ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from vortex.errors import VortexError
from vortex.ir.core import Module
from vortex.ir.printer import print_module
from vortex.ir.verify import verify
from vortex.reduce.attributes import Attributes, Places
from vortex.reduce.parts import DeadOps, Declarations, Fields, Functions, Operands, Ops
from vortex.reduce.remake import Candidate, Kind
from vortex.reduce.sizes import Sizes, total_size

KINDS: tuple[Kind[Any], ...] = (
    Functions(),
    DeadOps(),
    Ops(),
    Fields(),
    Operands(),
    Declarations(),
    Places(),
    Attributes(),
    Sizes(),
)
"""In the order in which they are tried, again and again until nothing more goes."""

Test = Callable[[str, float | None], bool]
"""Whether a text is still of interest; may take so many seconds, and raises TimeoutError beyond them."""


def op_count(m: Module) -> int:
    """Operations of all functions."""
    return sum(len(f.ops) for f in m.functions.values())


def _size(m: Module, text: str) -> tuple[int, int, int, int]:
    """What must become less with every step: ops, what is declared, sizes of axes, characters."""
    declared = len(m.decls) + len(m.functions) + sum(len(f.args) for f in m.functions.values())
    return op_count(m), declared, total_size(m), len(text)


@dataclass
class Reducer:
    """The smallest module so far of which ``test`` holds; it must hold of the first one."""

    module: Module
    test: Test
    seconds: float | None = None
    """Time for the whole of :meth:`reduce`."""
    on_smaller: Callable[[str], None] = lambda kind: None
    """Called with the name of a kind when less of it has become enough."""
    tested: int = 0
    """Candidates of which the test was asked."""
    invalid: int = 0
    """Candidates that did not verify, so that no test was needed."""
    out_of_time: bool = False
    text: str = field(init=False)
    _seen: set[str] = field(init=False, default_factory=set)
    _deadline: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.text = print_module(self.module)

    def reduce(self) -> None:
        """Shrink until no single thing can go any more, or time is up; an interrupt leaves the smallest so far."""
        if self.seconds is not None:
            self._deadline = time.monotonic() + self.seconds
        with self._in_time():
            before = ""
            while before != self.text:
                before = self.text
                for kind in KINDS:
                    self._sweep(kind)

    def _sweep(self, kind: Kind[Any]) -> None:
        """Try to do without parts of a kind, from the last to the first: users go before what they use."""
        size = len(kind.of(self.module))
        while size:
            end = len(kind.of(self.module))
            while end > 0:
                parts = kind.of(self.module)
                end = min(end, len(parts))
                start = max(0, end - size)
                if any(self._accept(candidate) for candidate in kind.without(self.module, parts[start:end])):
                    self.on_smaller(kind.name)
                end = start
            size //= 2

    def _accept(self, candidate: Candidate) -> bool:
        """Whether a candidate is a smaller module of which the test holds; then it is the smallest so far."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise TimeoutError
        try:
            made = candidate()
            verify(made)
        except (VortexError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError):
            self.invalid += 1  # ops of another type than they expect raise as in the parser
            return False
        text = print_module(made)
        if text in self._seen or _size(made, text) >= _size(self.module, self.text):
            return False
        self._seen.add(text)
        self.tested += 1
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        if not self.test(text, left):
            return False
        self.module, self.text = made, text
        return True

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            self.out_of_time = True
