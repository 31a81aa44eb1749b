"""Values that a whole CTA computes once: of a row in ``select``, of a page in ``append``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from vortex.codegen.cuda.minmax import fold_on_gpu
from vortex.codegen.cuda.ptx import WARP, cta_sync
from vortex.codegen.cuda.storage import StoredValues
from vortex.codegen.cuda.warp import Cta, warp_fold
from vortex.codegen.scalar import number_type
from vortex.codegen.tiles import Keep, Shape, Tiles, require_emittable
from vortex.codegen.tir import F32, I32, Expr, equal, i32, let, local, loop, nest, put, unflat, when
from vortex.codegen.values import Index, type_of
from vortex.ir.core import Op, Value
from vortex.ir.dialects import flow

PLAIN = Shape(lanes=1, unroll=1)
"""No vectors: the lanes of a warp are what is wide here."""


@dataclass
class BlockTiles(Tiles):
    """Elements over the threads of the CTA; a fold that leaves most threads idle takes a warp per result."""

    cta: Cta = field(kw_only=True)

    def each(self, dims: Sequence[int], body: Callable[[Index], None]) -> None:
        if 0 not in dims:
            with self.cta.share("element", math.prod(dims)) as at:
                body(unflat(at, dims))

    def by_thread(self, results: int, terms: int) -> bool:
        """Whether each result of a fold is one thread's work, the one that ``each`` gives it to."""
        return results * 4 > self.cta.threads or terms < WARP

    def owned(self, o: Op) -> bool:
        """Whether each element of the result is left by the thread that ``each`` gives it to."""
        if o.crosses_pages():
            return False
        if isinstance(o, flow.Reduce):
            results = max(1, type_of(o.value).numel)
            return self.by_thread(results, type_of(o.x).numel // results)
        return o.role != "nest"

    def compute(self, o: Op, keep: Keep | None = None) -> None:
        if isinstance(o, flow.Scan):
            with when(equal(self.cta.thread, i32(0))):
                super().compute(o, keep)
        else:
            super().compute(o, keep)

    def fold(
        self,
        o: Op,
        out: list[tuple[int, int]],
        red: list[tuple[int, int]],
        contiguous: int | None,
        element: Callable[[dict[int, Expr]], Expr],
        keep: Keep,
    ) -> None:
        kind = number_type(type_of(o.value).dtype)
        start, take = fold_on_gpu(o, kind)
        dims, extents = [d for _, d in out], [d for _, d in red]
        results, terms = math.prod(dims), math.prod(extents)
        if results == 0:
            return
        acc = local("acc", 1, kind if kind == F32 else I32)

        def place(i: Index, r: Index) -> dict[int, Expr]:
            return dict(zip([k for k, _ in out], i, strict=True)) | dict(zip([k for k, _ in red], r, strict=True))

        def add(i: Index, r: Index) -> None:
            put(acc, take(acc[0], element(place(i, r))), 0)

        if self.by_thread(results, terms):

            def one(i: Index) -> None:
                put(acc, start, 0)
                if terms:
                    nest(extents, lambda r: add(i, r), "r")
                keep(i, acc[0])

            self.each(dims, one)
            return
        with loop("result_round", -(-results // self.cta.warps)) as turn:
            result = let("result", turn * self.cta.warps + self.cta.warp)
            with when(result < results):
                i = unflat(result, dims)
                put(acc, start, 0)
                with loop("term_round", -(-terms // WARP)) as step:
                    term = let("term", step * WARP + self.cta.lane)
                    with when(term < terms):
                        add(i, unflat(term, extents))
                whole = warp_fold(acc[0], take)
                with when(equal(self.cta.lane, i32(0))):
                    keep(i, whole)


@dataclass
class Block:
    """Ops computed by the CTA one after another, with a barrier where one reads what another wrote."""

    values: StoredValues
    tiles: BlockTiles
    fresh: set[Value] = field(default_factory=set)
    """Written since the last barrier."""

    def compute(self, o: Op) -> None:
        """One op into its storage."""
        require_emittable(o)
        self.before(o.operands)
        self.tiles.compute(o)
        self.fresh.add(o.value)

    def before(self, read: Iterable[Value]) -> None:
        """A barrier if any of these, or what they are computed from, was just written."""
        if self.fresh & stored_values(read, self.values):
            self.sync()

    def before_copy(self, v: Value) -> None:
        """A barrier unless each thread copies what it has itself written."""
        if v not in self.fresh or v.owner is None or not self.tiles.owned(v.owner):
            self.before([v])

    def sync(self) -> None:
        """A barrier if anything was written since the last."""
        if self.fresh:
            cta_sync()
        self.fresh.clear()


def stored_values(values: Iterable[Value], held: StoredValues) -> set[Value]:
    """The storages that are looked at when these values are read."""
    found: set[Value] = set()
    for v in values:
        if v in held.storages:
            found.add(v)
        elif v.owner is not None:
            found |= stored_values(v.owner.operands, held)
    return found
