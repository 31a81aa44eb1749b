"""Shapes come in buckets, and a bucket without measurements borrows from near ones: both rules are here alone.

Tuning databases are asked by bucket when a flow is compiled, the variants of an artifact's kernels when it runs and
when their times are predicted.

A bucket is three numbers, each rounded up to a power of two: ``rows`` (requests * KV heads, as padded for a CUDA
graph), ``columns`` (pages of the longest row that a page table has room for) and ``kept`` (pages selected a row).
A kernel kind looks at some of them, its :attr:`~vortex.kinds.kind.KernelKind.axes`; the others are 0 in its keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, NamedTuple, TypeVar

from vortex.kinds.kind import KINDS
from vortex.untrusted_json import Range

LIMIT = 1 << 24
"""No number of a bucket is larger."""

Bound = Annotated[int, Range(0, LIMIT)]

T = TypeVar("T")

FALLBACK_STEPS = 3
"""How far a fallback may be: doublings and halvings, added up over the axes."""


class Bucket(NamedTuple):
    """Upper bounds of the shapes in it; 0 on an axis that the kernel kind does not look at."""

    rows: Bound = 0
    columns: Bound = 0
    kept: Bound = 0

    def __str__(self) -> str:
        named = {"rows": self.rows, "columns": self.columns, "kept": self.kept}
        return " ".join(f"{name}<={n}" for name, n in named.items() if n)

    def steps(self, other: Bucket) -> int | None:
        """Doublings between two buckets, over all axes; None when they have not the same axes."""
        (a, b, c), (x, y, z) = self, other
        if (not a) != (not x) or (not b) != (not y) or (not c) != (not z):
            return None
        bits = int.bit_length
        return abs(bits(a) - bits(x)) + abs(bits(b) - bits(y)) + abs(bits(c) - bits(z))

    @property
    def reach(self) -> tuple[tuple[int, int], ...]:
        """The least and the largest number on each axis of buckets that may stand in for this one."""
        return tuple((n >> FALLBACK_STEPS, n << FALLBACK_STEPS) for n in self)


def bucket_of(kind: str, rows: int, columns: int, kept: int) -> Bucket:
    """The bucket of a shape, for kernels of one kind; numbers below 1 count as 1."""
    given = {"rows": rows, "columns": columns, "kept": min(kept, columns)}
    return Bucket(**{axis: min(LIMIT, 1 << (max(1, given[axis]) - 1).bit_length()) for axis in KINDS[kind].axes})


def buckets_of(schedule: Mapping[str, object]) -> tuple[Bucket, ...]:
    """The buckets that a schedule ``serves``; none where it is for all shapes."""
    found = schedule.get("serves", ())
    return tuple(Bucket(*numbers) for numbers in found) if isinstance(found, list | tuple) else ()


def fallbacks(wanted: Bucket, known: Iterable[Bucket]) -> list[tuple[int, Bucket]]:
    """Those of ``known`` that may stand in for ``wanted`` and how many steps off they are, the best first.

    The nearest comes first; of equals the one with more rows, then columns, then kept pages: too many workers cost
    less than too few. Beyond :data:`FALLBACK_STEPS` a measurement says too little.
    """
    near = [(steps, b) for b in known if (steps := wanted.steps(b)) is not None and steps <= FALLBACK_STEPS]
    return sorted(near, key=lambda found: (found[0], [-found[1].rows, -found[1].columns, -found[1].kept]))


def serving(wanted: Bucket, lines: Sequence[tuple[T, Iterable[Bucket]]]) -> T:
    """Of several, each with the buckets that it is for, the one for shapes most like ``wanted``; the first where none
    is near.
    """
    known = {b: one for one, buckets in reversed(lines) for b in buckets}
    near = fallbacks(wanted, known)
    return known[near[0][1]] if near else lines[0][0]
