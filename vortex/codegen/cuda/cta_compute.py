"""How a whole CTA computes values together: those of a row in ``select``, those of a page in ``append``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from vortex.codegen.cuda.minmax import fold_on_gpu
from vortex.codegen.cuda.ptx import WARP, cta_sync
from vortex.codegen.cuda.storage import StoredValues
from vortex.codegen.cuda.warp import Cta, warp_fold
from vortex.codegen.tiles import Fold, Keep, Shape, Tiles, extents, require_emittable
from vortex.codegen.tir import equal, i32, let, local, loop, nest, put, unflat, when
from vortex.codegen.values import Index, type_of
from vortex.ir.core import Op, Value
from vortex.ir.dialects import flow

PLAIN = Shape(lanes=1, unroll=1)
"""There are no vectors: the lanes of a warp are what is wide here."""


@dataclass(frozen=True)
class GpuTiles(Tiles):
    """Tiles whose values lie in the storages of a GPU."""

    combine = staticmethod(fold_on_gpu)

    @property
    def stored(self) -> StoredValues:
        """The values, with their storages."""
        assert isinstance(self.values, StoredValues)
        return self.values


@dataclass(frozen=True)
class BlockTiles(GpuTiles):
    """Elements are dealt out to the threads of the CTA; a fold that would leave most of them idle takes a warp for each
    result.
    """

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

    def fold(self, fold: Fold) -> None:
        if fold.results == 0:
            return
        acc = local("acc", 1, fold.register)

        def add(i: Index, r: Index) -> None:
            put(acc, fold.take(acc[0], fold.at(self, i, r)), 0)

        if self.by_thread(fold.results, fold.terms):

            def one(i: Index) -> None:
                put(acc, fold.start, 0)
                if fold.terms:
                    nest(extents(fold.red), lambda r: add(i, r), "r")
                fold.into(self, i, acc[0])

            self.each(extents(fold.out), one)
            return
        with loop("result_round", -(-fold.results // self.cta.warps)) as turn:
            result = let("result", turn * self.cta.warps + self.cta.warp)
            with when(result < fold.results):
                i = unflat(result, extents(fold.out))
                put(acc, fold.start, 0)
                with loop("term_round", -(-fold.terms // WARP)) as step:
                    term = let("term", step * WARP + self.cta.lane)
                    with when(term < fold.terms):
                        add(i, unflat(term, extents(fold.red)))
                whole = warp_fold(acc[0], fold.take)
                with when(equal(self.cta.lane, i32(0))):
                    fold.into(self, i, whole)


@dataclass(frozen=True)
class Block:
    """Ops computed by the CTA one after another, with a barrier where one reads what another wrote."""

    values: StoredValues
    tiles: BlockTiles
    fresh: set[Value] = field(default_factory=set)
    """What was written since the last barrier."""

    def compute(self, o: Op) -> None:
        """Compute one op into its storage."""
        require_emittable(o)
        self.before(o.operands)
        self.tiles.compute(o)
        self.fresh.add(o.value)

    def before(self, read: Iterable[Value]) -> None:
        """Wait for all threads if any of these, or what they are computed from, was just written."""
        if self.fresh & stored_values(read, self.values):
            self.sync()

    def before_copy(self, v: Value) -> None:
        """Wait for all threads unless each thread copies what it has itself written."""
        if v not in self.fresh or v.owner is None or not self.tiles.owned(v.owner):
            self.before([v])

    def sync(self) -> None:
        """Wait for all threads if anything was written since the last barrier."""
        if self.fresh:
            cta_sync()
        self.fresh.clear()


def stored_values(values: Iterable[Value], held: StoredValues) -> set[Value]:
    """The values whose storages are read when these values are."""
    found: set[Value] = set()
    for v in values:
        if v in held.storages:
            found.add(v)
        elif v.owner is not None:
            found |= stored_values(v.owner.operands, held)
    return found
