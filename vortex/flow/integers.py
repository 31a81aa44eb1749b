"""What torch's integers are in a flow: the torch type of each traced integer, and between which numbers it lies.

The IR has one integer type, int32, which wraps as torch's int32 does. Every other integer type of torch is kept in it
where its numbers are known to fit: the bounds of constants, captured tensors and page numbers are carried through
integer ops, and an op whose result may leave int32 (or the narrower type torch would give it) is refused at its line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from vortex.ir.core import Op, Value
from vortex.ir.dialects import flow
from vortex.ir.types import Sym, TensorType, bool_

MOST_PAGES = 1 << 22
"""Pages that a row may have as far as bounds go: 2^26 tokens of pages of 16."""
MOST_LAYERS = 1 << 16
"""Layers, or KV heads, that a model may have as far as bounds go."""
LOW, HIGH = -(2**31), 2**31 - 1


@dataclass(frozen=True, slots=True)
class Whole:
    """An integer of the flow as torch sees it, and the least and largest number that its elements may be."""

    dtype: torch.dtype
    low: int
    high: int
    python: bool = False
    """A Python number, which takes the integer type of the tensor beside it."""

    @property
    def fits(self) -> bool:
        """Whether int32 and the own type hold every number within the bounds."""
        most = torch.iinfo(self.dtype) if self.dtype != torch.bool else None
        low, high = (LOW, HIGH) if most is None else (max(LOW, most.min), min(HIGH, most.max))
        return low <= self.low and self.high <= high


INT32 = Whole(torch.int32, LOW, HIGH)
BOOL = Whole(torch.bool, 0, 1)


class Integers:
    """The integers of one trace."""

    def __init__(self) -> None:
        self._known: dict[Value, Whole] = {}
        self.big: set[Value] = set()
        self.sums: torch.dtype = torch.int64
        """What sums and products of integers are; ``sum(dtype=torch.int32)`` says otherwise."""

    def of(self, v: Value) -> Whole | None:
        """What is known of an integer; None for a float."""
        if not isinstance(v.type, TensorType) or v.type.dtype.is_float:
            return None
        return self._known.get(v, BOOL if v.type.dtype == bool_ else INT32)

    def whole(self, v: Value) -> bool:
        """Whether torch has an integer or a bool there."""
        return v in self.big or self.of(v) is not None

    def too_big(self, v: Value) -> bool:
        """Whether it is a Python integer that int32 does not hold, kept as fp32 for floats to meet."""
        return v in self.big

    def know(self, v: Value, what: Whole) -> None:
        self._known[v] = what

    @contextmanager
    def summing(self, dtype: torch.dtype | None) -> Iterator[None]:
        """Sums made inside are of that type."""
        before, self.sums = self.sums, torch.int32 if dtype == torch.int32 else torch.int64
        try:
            yield
        finally:
            self.sums = before

    def infer(self, made: Op) -> Whole | None:
        """What a new op's result is, to be checked and then known; None where there is nothing to know."""
        if made.result is None or not isinstance(made.result.type, TensorType) or made.result.type.dtype.is_float:
            return None
        given = [self.of(v) for v in made.operands]
        if made.result.type.dtype == bool_:
            return None
        if isinstance(made, flow.ArgSort):
            return Whole(torch.int64, 0, max(_axis_size(made) - 1, 0))
        if isinstance(made, flow.Cast):
            return replace(given[0], dtype=torch.int32, python=False) if given[0] is not None else INT32
        if isinstance(made, flow.Where):
            given = given[1:]
        if isinstance(made, flow.Gather):
            given = given[:1]
        known = [w for w in given if w is not None]
        if len(known) != len(given) or not known:
            return None
        bounds = _bounds(made, known)
        if bounds is None:
            return None
        values = made.operands[-len(known) :]
        result = Whole(self._dtype(made, values, known), *bounds, _python(made, known))
        if result.dtype == torch.int32 and not result.fits:
            return INT32
        return result

    def _dtype(self, made: Op, values: Sequence[Value], known: Sequence[Whole]) -> torch.dtype:
        folds = made.kind if isinstance(made, flow.Scan) else made.folds
        if folds in ("sum", "prod"):
            return self.sums
        if len(known) == 1:
            return known[0].dtype
        found = _example(values[0], known[0])
        for v, w in zip(values[1:], known[1:], strict=True):
            found = torch.empty(_shape(made.value), dtype=torch.result_type(found, _example(v, w)), device="meta")
        return found.dtype


def _shape(v: Value) -> tuple[int, ...]:
    assert isinstance(v.type, TensorType)
    return (1,) * len(v.type.shape)


def _example(v: Value, w: Whole) -> Any:
    if w.python:
        return True if w.dtype == torch.bool else 1
    return torch.empty(_shape(v), dtype=w.dtype, device="meta")


def _python(made: Op, known: Sequence[Whole]) -> bool:
    """Whether Python computes the result: arithmetic of the page count with numbers."""
    return isinstance(made, flow.Unary | flow.Binary) and all(w.python for w in known)


Bounds = tuple[int, int]


def _bounds(made: Op, known: Sequence[Whole]) -> Bounds | None:
    rule = next((r for kind, r in RULES.items() if isinstance(made, kind)), None)
    if rule is not None:
        return rule(*((w.low, w.high) for w in known))
    if isinstance(made, flow.View | flow.Gather):
        return known[0].low, known[0].high
    if isinstance(made, flow.Shift):
        extra = [int(made.fill)] if made.outside == "fill" else []
        return min(known[0].low, *extra, known[0].high), max(known[0].high, *extra, known[0].low)
    if isinstance(made, flow.Where | flow.Concat):
        return min(w.low for w in known), max(w.high for w in known)
    if isinstance(made, flow.Reduce | flow.Scan):
        return _folded(made, known[0])
    return None


def _axis_size(made: flow.ArgSort) -> int:
    assert isinstance(made.value.type, TensorType)
    return int(made.value.type.shape[made.axis])  # type: ignore[arg-type]


def _folded(made: flow.Reduce | flow.Scan, x: Whole) -> Bounds:
    assert isinstance(made.x.type, TensorType)
    axes = (made.axis,) if isinstance(made, flow.Scan) else made.axes
    most = math.prod(MOST_PAGES if isinstance(d := made.x.type.shape[a], Sym) else d for a in axes)
    folds = made.kind if isinstance(made, flow.Scan) else made.folds
    if folds == "sum":
        return min(x.low * most, x.low, 0), max(x.high * most, x.high, 0)
    if folds == "prod":
        size = max(abs(x.low), abs(x.high))
        top = size if size <= 1 else size ** min(most, 64)
        return (0 if x.low >= 0 else -top), max(top, 1)
    return x.low, x.high


def _ends(compute: Callable[[int, int], int]) -> Callable[[Bounds, Bounds], Bounds]:
    """Bounds of what is monotone in each operand."""

    def bounds(a: Bounds, b: Bounds) -> Bounds:
        found = [compute(x, y) for x in a for y in b]
        return min(found), max(found)

    return bounds


def _remainder(a: Bounds, b: Bounds) -> Bounds:
    low = 0 if b[0] >= 0 else b[0] + 1
    high = 0 if b[1] <= 0 else b[1] - 1
    return low, min(high, a[1]) if a[0] >= 0 and b[0] >= 0 else high


def _fmod(a: Bounds, b: Bounds) -> Bounds:
    most = max(abs(b[0]), abs(b[1]), 1) - 1
    return (0 if a[0] >= 0 else max(-most, a[0])), (0 if a[1] <= 0 else min(most, a[1]))


def _quotient(a: Bounds, b: Bounds) -> Bounds:
    divisors = {d for d in (*b, 1, -1) if d and b[0] <= d <= b[1]}
    found = [x // d for x in a for d in divisors] + ([0] if b[0] <= 0 <= b[1] else [])
    return min(found), max(found)


def _size(x: Bounds) -> Bounds:
    return 0 if x[0] <= 0 <= x[1] else min(map(abs, x)), max(map(abs, x))


RULES: dict[type[Op], Callable[..., Bounds]] = {
    flow.Abs: _size,
    flow.Neg: lambda x: (-x[1], -x[0]),
    flow.Add: lambda a, b: (a[0] + b[0], a[1] + b[1]),
    flow.Sub: lambda a, b: (a[0] - b[1], a[1] - b[0]),
    flow.Mul: _ends(lambda x, y: x * y),
    flow.Maximum: lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
    flow.Minimum: lambda a, b: (min(a[0], b[0]), min(a[1], b[1])),
    flow.Remainder: _remainder,
    flow.Fmod: _fmod,
    flow.FloorDivide: _quotient,
    flow.DifferingBits: lambda a, b: (0, 32),
}
"""Bounds of an integer op's result from those of its operands, whatever wraps; ``Abs`` is a ``Neg``, so it is first."""
