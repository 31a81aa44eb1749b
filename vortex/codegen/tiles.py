"""Loop nests that compute one tile: elementwise, folds, contractions, scans, convolutions.

As they stand here they are those of a CPU. The innermost loop is a vector of ``lanes`` numbers along the axis that is
contiguous in memory. A fold along that axis keeps one partial result per lane and adds the lanes up in a fixed tree,
so its order does not depend on anything but the shape. Templates of GPUs override how elements and folds are dealt out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vortex.codegen.emitting import computing, reading
from vortex.codegen.narrow import code, packed
from vortex.codegen.scalar import comes_before, convert, fold_of, number_type
from vortex.codegen.tir import F32, I32, Expr, T, f32, flat, i32, lanes, let, local, loop, nest, put, unflat
from vortex.codegen.values import Index, Values, pages_on, type_of
from vortex.errors import NOT_EMITTABLE
from vortex.ir.core import Op, Value
from vortex.ir.dialects import flow
from vortex.ir.dialects.flow.bits import WORD_BITS
from vortex.ir.types import DType, Sym

Keep = Callable[[Index, Expr], None]
"""Takes an element of a result: its index in the tile, and the number."""
Take = Callable[[Expr, Expr], Expr]
"""How a fold takes in an element."""
Axes = tuple[tuple[int, int], ...]
"""Axes of a fold as (key, extent): the key is the number of an axis, or the letter of a contraction."""
Place = dict[int, Expr]
"""Where an element of a fold is, by the keys of its axes."""


def place_of(axes: Axes, index: Sequence[Expr]) -> Place:
    """The index along ``axes`` by their keys."""
    return dict(zip([key for key, _ in axes], index, strict=True))


def extents(axes: Axes) -> list[int]:
    """The extents of ``axes`` in order."""
    return [extent for _, extent in axes]


@dataclass(frozen=True)
class Fold:
    """A reduction or contraction of one op within a page (or row): for each index along ``out``, ``term`` is folded
    over ``red``.
    """

    op: Op
    out: Axes
    red: Axes
    contiguous: int | None
    """Key of the axis along which neighbours are neighbours in memory, where there is one."""
    kind: str
    """The TVM type that is computed in."""
    start: Expr
    take: Take
    term: Callable[[Tiles, Place], Expr]
    """The element at a place, of the page that the tiles are on."""
    into: Into

    @property
    def results(self) -> int:
        return math.prod(extents(self.out))

    @property
    def terms(self) -> int:
        """Elements that one result is folded from."""
        return math.prod(extents(self.red))

    @property
    def register(self) -> str:
        """The type of an accumulator; a bool is kept as an integer."""
        return self.kind if self.kind == F32 else I32

    def at(self, tiles: Tiles, out: Index, red: Index) -> Expr:
        """The element at an index along ``out`` and one along ``red``."""
        return self.term(tiles, place_of(self.out, out) | place_of(self.red, red))


@dataclass(frozen=True)
class Shape:
    """Vector width and unrolling of the nests, from the kernel's schedule."""

    lanes: int = 16
    unroll: int = 8

    def vector(self, extent: int) -> int:
        """The widest vector that divides an axis; 1 where none of at least four does."""
        width = math.gcd(extent, self.lanes) if extent else 1
        return width if width >= 4 else 1


@dataclass(frozen=True)
class Tiles:
    """Computes values of one row or page into tiles, scratch or accumulators."""

    values: Values
    shape: Shape
    position: Expr = 0
    """The place of the page among the candidates, in kernels that walk pages."""

    combine = staticmethod(fold_of)
    """What a fold starts from, and how it takes in an element."""

    # elementwise

    def full(self, v: Value, inner: Index) -> Index:
        """The logical index for an index into the tile of the current page."""
        rest = iter(inner)
        return [self.position if isinstance(d, Sym) else next(rest) for d in type_of(v).shape]

    def each(self, dims: Sequence[int], body: Callable[[Index], None]) -> None:
        """Run ``body`` for every index of a tile, with the last axis in vectors where it divides."""
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
        """Hand every element of ``v``'s tile to ``keep``, computed as its expression says."""
        with reading(v):
            self.each(type_of(v).tile, lambda i: keep(i, self.values.read(v, self.full(v, i))))

    def copy_packed(self, v: Value, dtype: DType, keep: Keep) -> None:
        """Hand every byte of ``v``'s tile, packed as ``dtype``, to ``keep``: one thread or lane makes all of a byte."""
        tile, per = type_of(v).tile, dtype.per_byte

        def one(i: Index) -> None:
            each = [self.full(v, [*i[:-1], i[-1] * per + k]) for k in range(per)]
            keep(i, packed([code(self.values.read(v, at), dtype) for at in each], dtype))

        with reading(v):
            self.each([*tile[:-1], tile[-1] // per], one)

    def compute(self, o: Op, keep: Keep | None = None) -> None:
        """Compute one op's result for the page (or row), element by element, into its storage or ``keep``."""
        v = o.value

        def home(here: Tiles, i: Index, x: Expr) -> None:
            here.values.write(v, here.full(v, i), x)

        into = home if keep is None else lambda here, i, x: keep(i, x)
        nest_of = next((n for kind, n in NESTS.items() if isinstance(o, kind)), None)
        with computing(o):
            if nest_of is not None:
                nest_of(self, o, into)
            else:
                self.each(type_of(v).tile, lambda i: into(self, i, self.values.expression(v, self.full(v, i))))

    # folds

    def _reduce(self, o: flow.Reduce, into: Into) -> None:
        t = type_of(o.x)
        out = tuple((a, int(d)) for a, d in enumerate(t.shape) if a not in o.axes and isinstance(d, int))
        red = tuple((a, int(d)) for a, d in enumerate(t.shape) if a in o.axes and isinstance(d, int))
        kind = number_type(type_of(o.value).dtype)
        count = math.prod(extents(red))

        def term(here: Tiles, at: Place) -> Expr:
            index = [here.position if isinstance(d, Sym) else at[a] for a, d in enumerate(t.shape)]
            return convert(here.values.read(o.x, index), kind)

        def done(here: Tiles, i: Index, x: Expr) -> None:
            mean = isinstance(o, flow.ReduceMean) and not o.crosses_pages()
            index = unflat(flat(i, extents(out)), type_of(o.value).tile) if o.keepdims else i
            into(here, index, x if not mean else x / T.float32(count) if count else f32(math.nan))

        last = len(t.shape) - 1 if t.shape and not isinstance(t.shape[-1], Sym) else None
        self.fold(Fold(o, out, red, last, kind, *self.combine(o, kind), term, done))

    def _dot(self, o: flow.Dot, into: Into) -> None:
        la, lb, lo = o.letters()
        dims = dict(zip(la + lb, type_of(o.a).shape + type_of(o.b).shape, strict=True))
        out = tuple((ord(c), int(d)) for c in lo if isinstance(d := dims[c], int))
        summed = [c for c in dict.fromkeys(la + lb) if c not in lo]
        red = tuple((ord(c), int(d)) for c in summed if isinstance(d := dims[c], int))

        def term(here: Tiles, at: Place) -> Expr:
            def pick(letters: str) -> Index:
                return [here.position if isinstance(dims[c], Sym) else at[ord(c)] for c in letters]

            a, b = here.values.read(o.a, pick(la)), here.values.read(o.b, pick(lb))
            return convert(a, F32) * convert(b, F32)

        kind = number_type(type_of(o.value).dtype)
        ends = [c for c in (lb[-1:], la[-1:]) if c and isinstance(dims[c], int) and c not in lo]
        last = ord(ends[0]) if ends else None
        self.fold(Fold(o, out, red, last, kind, *self.combine(o, kind), term, into))

    def fold(self, fold: Fold) -> None:
        """Emit the loops of a fold: ``fold.into`` is called once for each result."""
        if fold.results == 0:
            return
        if fold.terms == 0:
            self.each(extents(fold.out), lambda i: fold.into(self, i, fold.start))
            return
        along = dict(fold.red).get(fold.contiguous) if fold.contiguous is not None else None
        if along is not None and self.shape.vector(along) > 1:
            self._fold_across_lanes(fold)
        else:
            self._fold_per_lane(fold)

    def _fold_per_lane(self, fold: Fold) -> None:
        """Each lane folds its own output element."""
        dims = extents(fold.out)
        width = self.shape.vector(dims[-1]) if dims else 1
        chunks = [*dims[:-1], dims[-1] // width] if dims else []
        acc = local("acc", width, fold.register)

        def at(outer: Index, lane: Expr) -> Index:
            return [*outer[:-1], outer[-1] * width + lane] if dims else []

        def one(outer: Index) -> None:
            with lanes(width) as lane:
                put(acc, fold.start, lane)

            def step(inner: Index) -> None:
                with lanes(width) as lane:
                    put(acc, fold.take(acc[lane], fold.at(self, at(outer, lane), inner)), lane)

            nest(extents(fold.red), step, "r")
            with lanes(width) as lane:
                fold.into(self, at(outer, lane), acc[lane])

        nest(chunks, one)

    def _fold_across_lanes(self, fold: Fold) -> None:
        """Lanes share one output element; several outputs are computed side by side to share what is loaded.

        acc  | output 0: lane 0 .. width - 1 | output 1 | ..   the lanes of each are added up in a tree at the end
        """
        key = fold.contiguous
        assert key is not None
        extent = dict(fold.red)[key]
        width = self.shape.vector(extent)
        others = tuple(axis for axis in fold.red if axis[0] != key)
        dims = extents(fold.out)
        block = max(u for u in range(1, self.shape.unroll + 1) if (dims[-1] if dims else 1) % u == 0)
        blocks = [*dims[:-1], dims[-1] // block] if dims else []
        acc = local("acc", block * width, fold.register)

        def at(outer: Index, u: int) -> Index:
            return [*outer[:-1], outer[-1] * block + u] if dims else []

        def one(outer: Index) -> None:
            for u in range(block):
                with lanes(width) as lane:
                    put(acc, fold.start, u * width + lane)

            def step(inner: Index) -> None:
                for u in range(block):
                    with lanes(width) as lane:
                        place = place_of(fold.out, at(outer, u)) | place_of(others, inner[:-1])
                        place[key] = inner[-1] * width + lane
                        put(acc, fold.take(acc[u * width + lane], fold.term(self, place)), u * width + lane)

            nest([*extents(others), extent // width], step, "r")
            for u in range(block):
                half = width // 2
                while half:
                    with lanes(half) as lane:
                        put(acc, fold.take(acc[u * width + lane], acc[u * width + half + lane]), u * width + lane)
                    half //= 2
                fold.into(self, at(outer, u), acc[u * width])

        nest(blocks, one)

    # ordered ops

    def _scan(self, o: flow.Scan, into: Into) -> None:
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
                into(self, i, running[0])

        nest(rest, one)

    def _conv(self, o: flow.Conv, into: Into) -> None:
        outs, per_group, taps = type_of(o.w).tile
        axis = type_of(o.x).shape[0]
        assert isinstance(axis, Sym)
        pages = pages_on(axis, self.values.leaves["page_count"])
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
            into(self, i, acc[0])

        nest([outs], one)

    def _pack_bits(self, o: flow.PackBits, into: Into) -> None:
        bits = int(type_of(o.x).tile[-1])
        word = local("word", 1, I32)

        def one(i: Index) -> None:
            put(word, i32(0), 0)
            with loop("bit", WORD_BITS) as bit:
                at = i[-1] * WORD_BITS + bit
                x = convert(convert(self.values.read(o.x, self.full(o.x, [*i[:-1], at])), "bool"), I32)
                if bits % WORD_BITS:
                    x = T.if_then_else(at < bits, x, i32(0))
                put(word, T.bitwise_or(word[0], T.shift_left(x, bit)), 0)
            into(self, i, word[0])

        self._plain().each(type_of(o.value).tile, one)

    def _argsort(self, o: flow.ArgSort, into: Into) -> None:
        """An element goes to the place that is the number of elements that come before it."""
        t = type_of(o.value)
        axes = tuple((a, int(d)) for a, d in enumerate(t.shape) if isinstance(d, int))
        kind, other = F32 if type_of(o.x).dtype.is_float else I32, len(t.shape)

        def term(here: Tiles, at: Place) -> Expr:
            def element(j: Expr) -> Expr:
                place = at | {o.axis: j}
                index = [here.position if isinstance(d, Sym) else place[a] for a, d in enumerate(t.shape)]
                return convert(here.values.read(o.x, index), kind)

            x, i, j = element(at[o.axis]), at[o.axis], at[other]
            return convert(comes_before(element(j), x, j < i, descending=o.descending), I32)

        def done(here: Tiles, i: Index, rank: Expr) -> None:
            axis = [a for a, _ in axes].index(o.axis)
            into(here, [*i[:axis], let("rank", rank), *i[axis + 1 :]], i[axis])

        red = ((other, dict(axes)[o.axis]),)
        self._plain().fold(Fold(o, axes, red, None, I32, *self.combine(o, I32), term, done))

    def _gather(self, o: flow.Gather, into: Into) -> None:
        x, index = type_of(o.x).shape, type_of(o.index).shape
        last = max(x[o.axis] - 1, 0)  # type: ignore[operator]

        def one(i: Index) -> None:
            full = self.full(o.value, i)
            beside: Index = [i32(0) if d == 1 else f for d, f in zip(index, full, strict=True)]
            there: Index = [i32(0) if d == 1 else f for d, f in zip(x, full, strict=True)]
            there[o.axis] = T.max(T.min(self.values.read(o.index, beside), i32(last)), i32(0))
            into(self, i, self.values.read(o.x, there))

        self._plain().each(type_of(o.value).tile, one)

    def _shift(self, o: flow.Shift, into: Into) -> None:
        t = type_of(o.value)
        assert t.pages is not None
        pages, kind = pages_on(t.pages, self.values.leaves["page_count"]), number_type(t.dtype)
        s = self.position - o.by
        near = T.floormod(s, pages) if o.outside == "wrap" else T.max(T.min(s, pages - 1), i32(0))
        fill = convert(f32(o.fill) if kind == F32 else i32(int(o.fill)), kind)

        def one(i: Index) -> None:
            inner = iter(i)
            x = convert(self.values.read(o.x, [near if isinstance(d, Sym) else next(inner) for d in t.shape]), kind)
            # TVM drops from the branches of a Select what its condition implies, and may still read both of them
            into(self, i, T.if_then_else(T.And(s >= 0, s < pages), x, fill) if o.outside == "fill" else x)

        self._plain().each(t.tile, one)

    def _plain(self) -> Tiles:
        """The same without vectors, for nests whose lanes would not be neighbours in memory."""
        return replace(self, shape=Shape(1, 1))

    def _concat(self, o: flow.Concat, into: Into) -> None:
        t = type_of(o.value)
        axis = [i for i, d in enumerate(t.shape) if isinstance(d, int)].index(o.axis)
        done = 0
        for part in o.parts:
            first = done

            def place(i: Index, part: Value = part, first: int = first) -> None:
                x = self.values.read(part, self.full(part, i))
                into(self, [*i[:axis], i[axis] + first, *i[axis + 1 :]], x)

            self.each(type_of(part).tile, place)
            done += type_of(part).tile[axis]


Into = Callable[[Tiles, Index, Expr], None]
"""Takes an element of a result, as :data:`Keep` does, and the tiles on whose page it is."""


NESTS: dict[type[Op], Callable[[Tiles, Any, Into], None]] = {
    flow.Reduce: Tiles._reduce, flow.Dot: Tiles._dot, flow.Scan: Tiles._scan, flow.Conv: Tiles._conv,
    flow.Concat: Tiles._concat, flow.ArgSort: Tiles._argsort, flow.Gather: Tiles._gather, flow.Shift: Tiles._shift,
    flow.PackBits: Tiles._pack_bits,
}  # fmt: skip
"""The loops of each op whose role is ``nest``."""


def require_emittable(o: Op) -> None:
    """VX4006 for ops that an earlier pass should have rewritten."""
    if o.rewritten_by:
        raise NOT_EMITTABLE.at(o.loc, why=f"{o.name} reached code generation", hint=f"run {o.rewritten_by} first")
