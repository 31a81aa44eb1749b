"""Loop nests that compute one tile on a CPU: elementwise, folds, contractions, scans, convolutions.

The innermost loop is a vector of ``lanes`` numbers along the axis that is contiguous in memory. A fold
along that axis keeps one partial result per lane and adds the lanes up in a fixed tree, so its order
does not depend on anything but the shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vortex.codegen.scalar import convert, fold_of, number_type
from vortex.codegen.tir import F32, I32, Expr, T, flat, i32, lanes, local, loop, nest, put, unflat
from vortex.codegen.values import Index, Values, type_of
from vortex.errors import NOT_EMITTABLE
from vortex.ir.core import Op, Value
from vortex.ir.dialects import flow
from vortex.ir.types import Sym

Keep = Callable[[Index, Expr], None]
Fold = Callable[[Expr, Expr], Expr]


@dataclass(frozen=True)
class Shape:
    """Vector width and unrolling of the nests, from the kernel's schedule."""

    lanes: int = 16
    unroll: int = 8

    def vector(self, extent: int) -> int:
        """The widest vector that divides an axis; 1 where none of at least four does."""
        width = math.gcd(extent, self.lanes) if extent else 1
        return width if width >= 4 else 1


@dataclass
class Tiles:
    """Computes values of one kernel into tiles, scratch or accumulators."""

    values: Values
    shape: Shape
    position: Expr = 0
    """Of the current page among the candidates, in kernels that walk pages."""

    # elementwise

    def full(self, v: Value, inner: Index) -> Index:
        """The logical index for an index into the tile of the current page."""
        rest = iter(inner)
        return [self.position if isinstance(d, Sym) else next(rest) for d in type_of(v).shape]

    def each(self, dims: Sequence[int], body: Callable[[Index], None]) -> None:
        """``body`` for every index of a tile, the last axis in vectors where it divides."""
        if 0 in dims:
            return
        width = self.shape.vector(dims[-1]) if dims else 1
        if width == 1:
            nest(dims, body)
            return

        def chunk(outer: Index) -> None:
            with lanes(width) as lane:
                body([*outer[:-1], outer[-1] * width + lane])

        nest([*dims[:-1], dims[-1] // width], chunk)

    def copy(self, v: Value, keep: Keep) -> None:
        """Every element of ``v``'s tile, as its expression says."""
        self.each(type_of(v).tile, lambda i: keep(i, self.values.read(v, self.full(v, i))))

    def compute(self, o: Op, keep: Keep | None = None) -> None:
        """One op's result for the current page (or row), element by element into its home or ``keep``."""
        v = o.value

        def home(i: Index, x: Expr) -> None:
            self.values.write(v, self.full(v, i), x)

        into = keep or home
        nest_of = next((n for kind, n in NESTS.items() if isinstance(o, kind)), None)
        if nest_of is not None:
            nest_of(self, o, into)
        else:
            self.each(type_of(v).tile, lambda i: into(i, self.values.expression(v, self.full(v, i))))

    # folds

    def _reduce(self, o: flow.Reduce, keep: Keep) -> None:
        t = type_of(o.x)
        out = [(a, int(d)) for a, d in enumerate(t.shape) if a not in o.axes and isinstance(d, int)]
        red = [(a, int(d)) for a, d in enumerate(t.shape) if a in o.axes and isinstance(d, int)]
        kind = number_type(type_of(o.value).dtype)
        count = math.prod(d for _, d in red)

        def element(at: dict[int, Expr]) -> Expr:
            index = [self.position if isinstance(d, Sym) else at[a] for a, d in enumerate(t.shape)]
            return convert(self.values.read(o.x, index), kind)

        def done(i: Index, x: Expr) -> None:
            mean = isinstance(o, flow.ReduceMean) and not o.crosses_pages()
            index = unflat(flat(i, [d for _, d in out]), type_of(o.value).tile) if o.keepdims else i
            keep(index, x / T.float32(count) if mean else x)

        last = len(t.shape) - 1
        self.fold(o, out, red, last if t.shape and not isinstance(t.shape[-1], Sym) else None, element, done)

    def _dot(self, o: flow.Dot, keep: Keep) -> None:
        la, lb, lo = o.letters()
        dims = dict(zip(la + lb, type_of(o.a).shape + type_of(o.b).shape, strict=True))
        out = [(ord(c), int(d)) for c in lo if isinstance(d := dims[c], int)]
        red = [(ord(c), int(d)) for c in dict.fromkeys(la + lb) if c not in lo and isinstance(d := dims[c], int)]

        def element(at: dict[int, Expr]) -> Expr:
            def pick(letters: str) -> Index:
                return [self.position if isinstance(dims[c], Sym) else at[ord(c)] for c in letters]

            a, b = self.values.read(o.a, pick(la)), self.values.read(o.b, pick(lb))
            return convert(a, F32) * convert(b, F32)

        ends = [c for c in (lb[-1:], la[-1:]) if c and isinstance(dims[c], int) and c not in lo]
        self.fold(o, out, red, ord(ends[0]) if ends else None, element, keep)

    def fold(
        self,
        o: Op,
        out: list[tuple[int, int]],
        red: list[tuple[int, int]],
        contiguous: int | None,
        element: Callable[[dict[int, Expr]], Expr],
        keep: Keep,
    ) -> None:
        """Fold ``element`` over the ``red`` axes for every index of ``out``; axes are (key, extent)."""
        kind = number_type(type_of(o.value).dtype)
        start, take = fold_of(o, kind)
        if any(d == 0 for _, d in out):
            return
        if any(d == 0 for _, d in red):
            self.each([d for _, d in out], lambda i: keep(i, start))
            return
        along = dict(red).get(contiguous) if contiguous is not None else None
        if along is not None and self.shape.vector(along) > 1:
            assert contiguous is not None
            self._fold_across_lanes(kind, out, red, contiguous, start, take, element, keep)
        else:
            self._fold_per_lane(kind, out, red, start, take, element, keep)

    def _fold_per_lane(
        self,
        kind: str,
        out: list[tuple[int, int]],
        red: list[tuple[int, int]],
        start: Expr,
        take: Fold,
        element: Callable[[dict[int, Expr]], Expr],
        keep: Keep,
    ) -> None:
        """Each lane folds its own output element."""
        dims = [d for _, d in out]
        width = self.shape.vector(dims[-1]) if dims else 1
        chunks = [*dims[:-1], dims[-1] // width] if dims else []
        acc = local("acc", width, kind if kind == F32 else I32)

        def at(outer: Index, lane: Expr) -> Index:
            return [*outer[:-1], outer[-1] * width + lane] if dims else []

        def one(outer: Index) -> None:
            with lanes(width) as lane:
                put(acc, start, lane)

            def step(inner: Index) -> None:
                with lanes(width) as lane:
                    place = dict(zip((k for k, _ in out), at(outer, lane), strict=True))
                    place |= dict(zip((k for k, _ in red), inner, strict=True))
                    put(acc, take(acc[lane], element(place)), lane)

            nest([d for _, d in red], step, "r")
            with lanes(width) as lane:
                keep(at(outer, lane), acc[lane])

        nest(chunks, one)

    def _fold_across_lanes(
        self,
        kind: str,
        out: list[tuple[int, int]],
        red: list[tuple[int, int]],
        contiguous: int,
        start: Expr,
        take: Fold,
        element: Callable[[dict[int, Expr]], Expr],
        keep: Keep,
    ) -> None:
        """Lanes share one output element; several outputs are computed side by side to share what is loaded."""
        extent = dict(red)[contiguous]
        width = self.shape.vector(extent)
        others = [(k, d) for k, d in red if k != contiguous]
        dims = [d for _, d in out]
        block = max(u for u in range(1, self.shape.unroll + 1) if (dims[-1] if dims else 1) % u == 0)
        blocks = [*dims[:-1], dims[-1] // block] if dims else []
        acc = local("acc", block * width, kind if kind == F32 else I32)

        def at(outer: Index, u: int) -> Index:
            return [*outer[:-1], outer[-1] * block + u] if dims else []

        def one(outer: Index) -> None:
            for u in range(block):
                with lanes(width) as lane:
                    put(acc, start, u * width + lane)

            def step(inner: Index) -> None:
                for u in range(block):
                    with lanes(width) as lane:
                        place = dict(zip((k for k, _ in out), at(outer, u), strict=True))
                        place |= dict(zip((k for k, _ in others), inner[:-1], strict=True))
                        place[contiguous] = inner[-1] * width + lane
                        put(acc, take(acc[u * width + lane], element(place)), u * width + lane)

            nest([*(d for _, d in others), extent // width], step, "r")
            for u in range(block):
                half = width // 2
                while half:
                    with lanes(half) as lane:
                        put(acc, take(acc[u * width + lane], acc[u * width + half + lane]), u * width + lane)
                    half //= 2
                keep(at(outer, u), acc[u * width])

        nest(blocks, one)

    # ordered ops

    def _scan(self, o: flow.Scan, keep: Keep) -> None:
        t = type_of(o.value)
        kind = number_type(t.dtype)
        start, take = fold_of(o, kind)
        inner = [i for i, d in enumerate(t.shape) if isinstance(d, int)]
        axis = inner.index(o.axis)
        rest = [d for i, d in enumerate(t.tile) if i != axis]
        running = local("running", 1, kind if kind == F32 else I32)

        def one(others: Index) -> None:
            put(running, start, 0)
            with loop("j", t.tile[axis]) as j:
                i = [*others[:axis], j, *others[axis:]]
                put(running, take(running[0], convert(self.values.read(o.x, self.full(o.x, i)), kind)), 0)
                keep(i, running[0])

        nest(rest, one)

    def _conv(self, o: flow.Conv, keep: Keep) -> None:
        outs, per_group, taps = type_of(o.w).tile
        pages = self.values.leaves["page_count"]
        acc = local("acc", 1)

        def one(i: Index) -> None:
            put(acc, T.float32(0), 0)

            def step(ck: Index) -> None:
                c, k = ck
                s = self.position + k - taps // 2
                channel = T.floordiv(i[0], i32(outs // o.groups)) * per_group + c
                near = convert(self.values.read(o.x, [s, channel]), F32)
                inside = T.And(s >= 0, s < pages)
                put(acc, acc[0] + convert(self.values.read(o.w, [i[0], c, k]), F32)
                    * T.if_then_else(inside, near, T.float32(0)), 0)  # fmt: skip

            nest([per_group, taps], step, "r")
            keep(i, acc[0])

        nest([outs], one)

    def _concat(self, o: flow.Concat, keep: Keep) -> None:
        t = type_of(o.value)
        axis = [i for i, d in enumerate(t.shape) if isinstance(d, int)].index(o.axis)
        done = 0
        for part in o.parts:
            first = done

            def place(i: Index, part: Value = part, first: int = first) -> None:
                x = self.values.read(part, self.full(part, i))
                keep([*i[:axis], i[axis] + first, *i[axis + 1 :]], x)

            self.each(type_of(part).tile, place)
            done += type_of(part).tile[axis]


NESTS: dict[type[Op], Callable[[Tiles, Any, Keep], None]] = {
    flow.Reduce: Tiles._reduce, flow.Dot: Tiles._dot, flow.Scan: Tiles._scan, flow.Conv: Tiles._conv,
    flow.Concat: Tiles._concat,
}  # fmt: skip
"""The loops of each op whose role is ``nest``."""


def require_emittable(o: Op) -> None:
    """VX4006 for ops that an earlier pass should have rewritten."""
    if o.rewritten_by:
        raise NOT_EMITTABLE.at(o.loc, why=f"{o.name} reached code generation", hint=f"run {o.rewritten_by} first")
    if isinstance(o, flow.Selection) and o.always_scores:
        why = f"{o.name} scores every row; 'plan' lets rows whose pages all fit go unscored"
        raise NOT_EMITTABLE.at(o.loc, why=why, hint="end the flow in vortex.topk")
