"""What softmax over the pages of a row subtracts and divides by, in one sweep: each page tile has its own largest and
its own sum.

    page tile    0            1            ..
    leaves       top0, sum0   top1, sum1   ..       sum of exp(x - top) over the pages of the tile
    finish       top = max(top0, ..)                sum0 exp(top0 - top) + sum1 exp(top1 - top) + ..

The largest of all, which is a value of its own, is found on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vortex.codegen.cuda.exponentials import quick_power
from vortex.codegen.cuda.minmax import larger
from vortex.codegen.cuda.ptx import WARP, quotient, remainder, shuffle, shuffle_xor
from vortex.codegen.cuda.select.layout import RowMemory
from vortex.codegen.cuda.select.page_tile import PageTile
from vortex.codegen.cuda.storage import RowStorage
from vortex.codegen.cuda.warp import Cta, rounds_of, warp_fold
from vortex.codegen.scalar import convert
from vortex.codegen.tiles import Tiles
from vortex.codegen.tir import F32, Expr, T, equal, f32, i32, let, local, loop, put, unflat, when
from vortex.codegen.values import pages_on, type_of
from vortex.ir.dialects import flow
from vortex.ir.staging import axis_of
from vortex.schedules.page_tiles import tile_of

LOWEST = float("-inf")
TOGETHER = 4
"""Numbers of each page that are folded together."""
READ = 4
"""Page tiles of a lane whose sums are read together."""


def _add(a: Expr, b: Expr) -> Expr:
    return a + b


def _base(top: Expr) -> Expr:
    """What is subtracted: where nothing is above -inf, its powers are to be 0."""
    return let("base", T.Select(equal(top, f32(LOWEST)), f32(0), top))


@dataclass(frozen=True)
class SoftmaxSums:
    """Emits the sums of one row."""

    memory: RowMemory
    cta: Cta

    def fold(self, o: flow.SoftmaxSum, page_tile: PageTile, tiles: Tiles) -> None:
        """Leave the largest and the sum of a page tile, by one lane for each number of a page."""
        held, shape = self.memory.of_page_tile(o), type_of(o.x).tile
        at = let("slab", T.truncdiv(page_tile.start, i32(page_tile.pages)))
        numel = type_of(o.x).numel
        for first in range(0, numel, TOGETHER):
            # a power of two of them, the last ones again where there are fewer
            many = next(n for n in (1, 2, 4) if n >= min(TOGETHER, numel - first))
            elements = [unflat(i32(min(first + n, numel - 1)), shape) for n in range(many)]
            read = [convert(tiles.values.read(o.x, tiles.full(o.x, i)), F32) for i in elements]
            own = [let("own", T.Select(page_tile.is_page, x, f32(LOWEST))) for x in read]
            top, lanes = self._fold_together(own, larger), WARP // many
            tops = [shuffle(top, i32(n * lanes)) if many > 1 else top for n in range(many)]
            powers = [let("term", quick_power(x - _base(let("top", t)))) for x, t in zip(own, tops, strict=True)]
            total = self._fold_together(powers, _add)
            element = first + quotient(self.cta.lane, i32(lanes))
            with when(T.And(equal(remainder(self.cta.lane, i32(lanes)), i32(0)), element < numel)):
                held.write([top, total], at, element * 2)

    def _fold_together(self, xs: list[Expr], take: Callable[[Expr, Expr], Expr]) -> Expr:
        """Fold each of 1, 2 or 4 numbers over the 32 lanes; of four, lanes 0 to 7 have the result of the first.

        Lanes that are 16 apart give each other the halves of the numbers that the other is left with, and so on.
        """
        apart = WARP // 2
        while len(xs) > 1:
            upper = T.bitwise_and(self.cta.lane, i32(apart)) > 0
            half = len(xs) // 2
            mine = [T.Select(upper, b, a) for a, b in zip(xs[:half], xs[half:], strict=True)]
            given = [T.Select(upper, a, b) for a, b in zip(xs[:half], xs[half:], strict=True)]
            xs = [let("part", take(let("mine", a), shuffle_xor(b, apart))) for a, b in zip(mine, given, strict=True)]
            apart //= 2
        x = xs[0]
        while apart:
            x = let("part", take(x, let("across", shuffle_xor(x, apart))))
            apart //= 2
        return x

    def finish(self, o: flow.SoftmaxSum, storage: RowStorage, largest: RowStorage | None, candidates: Expr) -> None:
        """Add the sums of all page tiles, and keep the ``largest``: a warp for each number."""
        held, axis = self.memory.of_page_tile(o), axis_of(o)
        assert axis is not None
        numel = max(1, type_of(o.value).numel)
        page_tiles = let("slabs", rounds_of(pages_on(axis, candidates), tile_of(axis)))
        top, total = local("top", 1), local("total", 1)
        left = [local(f"left_{n}", 2) for n in range(READ)]
        with loop("result_round", -(-numel // self.cta.warps)) as turn:
            e = let("result", turn * self.cta.warps + self.cta.warp)
            with when(e < numel):
                put(top, f32(LOWEST), 0)
                put(total, f32(0), 0)
                with loop("slab_round", rounds_of(page_tiles, READ * WARP)) as some:
                    tiles = [let("slab", (some * READ + n) * WARP + self.cta.lane) for n in range(READ)]
                    held.read_all(
                        [
                            (held, there, T.min(page_tile, page_tiles - 1), 2 * e + k, k)
                            for page_tile, there in zip(tiles, left, strict=True)
                            for k in (0, 1)
                        ]
                    )
                    for page_tile, there in zip(tiles, left, strict=True):
                        with when(page_tile < page_tiles):
                            both = let("both", larger(top[0], there[0]))
                            base = _base(both)
                            mine = let("mine", total[0] * quick_power(top[0] - base))
                            put(total, mine + there[1] * quick_power(there[0] - base), 0)
                            put(top, both, 0)
                of_all = warp_fold(top[0], larger, "top")
                # where all are -inf, this is NaN as softmax is
                whole = warp_fold(total[0] * quick_power(top[0] - of_all), _add, "total")
                with when(equal(self.cta.lane, i32(0))):
                    storage.store(whole, i32(0), i32(0), e)
                    if largest is not None:
                        largest.store(of_all, i32(0), i32(0), e)
