"""The pipeline of loads and products: registers hold units on their way while those before them are multiplied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vortex.codegen.cuda.pool_rows import PoolRows
from vortex.codegen.cuda.ptx import WARP, mma, quotient, shuffle, wide
from vortex.codegen.cuda.select.f16_pairs import to_f16
from vortex.codegen.cuda.select.lane_group import row_of
from vortex.codegen.cuda.select.page_tile import PageTile, rolled
from vortex.codegen.cuda.select.tensor_core.contractions import Contractions, Unit, core_of
from vortex.codegen.cuda.select.tensor_core.factors import Factors
from vortex.codegen.cuda.select.tensor_core.fragments import Fragments
from vortex.codegen.cuda.select.tensor_core.lane import Lane
from vortex.codegen.cuda.select.tensor_core.results import Keep, Results
from vortex.codegen.cuda.storage import Arena
from vortex.codegen.cuda.vector_load import vector
from vortex.codegen.cuda.warp import Cta
from vortex.codegen.emitting import emitting
from vortex.codegen.tiles import Place
from vortex.codegen.tir import I32, U32, Buffer, Expr, T, equal, f32, flat, i32, let, local, put, when
from vortex.codegen.values import Index, type_of
from vortex.schedules.matrices import Matrix

Row16 = Buffer | list[Expr]
"""Words of pairs of a row, as tensor cores take them."""


@dataclass(frozen=True)
class Pipeline:
    """The registers of the contractions of one sweep, and what is emitted into the sweep's loop."""

    work: Contractions
    arena: Arena
    cta: Cta
    views: dict[str, Buffer]
    """Fields as rows of 32-bit words, by buffer."""
    pools: dict[str, PoolRows]
    """The rows of pools, by buffer."""
    lane: Lane
    held: list[list[Buffer]]
    """Units on their way: by place in the pipeline, the vectors of the low pages and then those of the high ones."""
    scales: Buffer | None
    """By place in the pipeline, the pair of scales of what is there, where results have scales."""
    sums: Buffer
    b: Buffer
    """Fragment B of one chunk, or of the part of it that is read at once."""
    pairs: Buffer | None
    """Numbers of low rows and then of high ones, converted."""
    factors: Factors
    fragments: Fragments
    results: Results

    @classmethod
    def open(
        cls, work: Contractions, arena: Arena, cta: Cta, views: dict[str, Buffer], pools: dict[str, PoolRows]
    ) -> Pipeline:
        """Declare the registers: they outlive the page tiles."""
        lane = Lane.of(work, cta)
        vectors = max(2 * m.unit_chunks for m in work.matrices)
        words = max(m.words for m in work.matrices)
        held = [[local(f"held{d}_{v}", max(2, words), U32) for v in range(vectors)] for d in range(work.depth)]
        scales = local("scales", max(2, work.depth), U32) if any(m.scale for m in work.matrices) else None
        sums = local("sums", 4 * max(m.column_tiles * m.accumulators for m in work.matrices))
        b = local("b", 4, U32)
        pairs = local("pairs", 8, U32) if any(_narrow(m) for m in work.matrices) else None
        factors = Factors.open(lane, arena, cta, pools)
        fragments, results = Fragments(work, arena, cta), Results(lane, sums, factors)
        return cls(work, arena, cta, views, pools, lane, held, scales, sums, b, pairs, factors, fragments, results)

    def fill(self, record: Expr) -> None:
        """Start the first loads of a page tile; ``record`` is that of this lane's page."""
        for n in range(self.work.depth):
            with emitting(self.work.units[n].matrix.op):
                self._fetch(self.work.units[n], n, record, 0)

    def run(self, page_tile: PageTile, record: Buffer, advance: Callable[[], None], more: Expr, keep: Keep) -> None:
        """Multiply all of this page tile, and start the first loads of the next one if there is ``more``.

        ``advance`` makes ``record`` that of the next page tile's page.
        """
        if self.work.turns == 1:
            self._turn(page_tile, record, advance, more, keep, 0, None)
            return

        def turn(index: Index) -> None:
            last = let("last_turn", equal(index[0], i32(self.work.turns - 1)))
            self._turn(page_tile, record, advance, more, keep, index[0], last)

        rolled([self.work.turns], turn, "turn")

    def _turn(
        self,
        page_tile: PageTile,
        record: Buffer,
        advance: Callable[[], None],
        more: Expr,
        keep: Keep,
        turn: Expr,
        last: Expr | None,
    ) -> None:
        """Multiply the units of a turn; ``last`` tells whether it is the page tile's last, None where there is one."""
        units, depth = self.work.units, self.work.depth
        following: Expr = 0
        for n, unit in enumerate(units):
            with emitting(unit.matrix.op):
                self._multiply(unit, self.held[n % depth])
            with emitting(*unit.matrix.ops):
                scale = self._scale_here(unit, n % depth)
                if unit.ends and scale is not None:
                    # while the next scale is loaded, its register has no other number
                    self.results.finish(unit, page_tile, turn, scale, keep)
            later = n + depth
            if later < len(units):
                with emitting(units[later].matrix.op):
                    self._fetch(units[later], n % depth, record[0], turn)
            else:
                if later == len(units):
                    following = self._step(advance, turn, last)
                another = units[later - len(units)]
                with emitting(another.matrix.op), when(more if last is None else T.Or(T.Not(last), more)):
                    self._fetch(another, n % depth, record[0], following)
            with emitting(*unit.matrix.ops):
                if unit.ends and scale is None:
                    self.results.finish(unit, page_tile, turn, scale, keep)

    def _step(self, advance: Callable[[], None], turn: Expr, last: Expr | None) -> Expr:
        """Go on to the records of the next turn, and of the next page tile behind the last one; the turn's number."""
        if last is None:
            advance()
            return 0
        with when(last):
            advance()
        return let("following", T.Select(last, i32(0), turn + 1))

    def _fetch(self, unit: Unit, place: int, record: Expr, turn: Expr) -> None:
        """Load one unit: ``unit_chunks`` vectors of the low row, then as many of the high one."""
        m, held = unit.matrix, self.held[place]
        step, pool = m.chunk // m.packed, self.pools.get(m.load.load.buffer)
        of_page: Expr = None
        for half, row in enumerate(self.lane.rows(unit, turn)):
            if half == 0 or m.stacked == 1:
                of_page = let("record", shuffle(record, row.slot))
            inside, tile_row = self.lane.member * m.words + unit.chunk * step, row_of(m.load, row.place)
            if pool is None:
                t = type_of(m.load.load.value)
                along, whole = t.tile[-1] // m.packed, t.numel // m.packed
                view, begin = self.views[m.load.load.buffer], wide(of_page) * whole + wide(tile_row * along + inside)
            else:
                view, begin = pool.words, pool.row_of_record(of_page, tile_row, m.words) + wide(inside)
            source = let("source", begin)
            for c in range(m.unit_chunks):
                with vector(m.words) as w:
                    put(held[half * m.unit_chunks + c], view[source + c * step + w], w)
            if half == 0 and m.scale is not None and unit.ends and self.scales is not None:
                first = quotient(_row_index(m, row.place), i32(2))
                word = self.views[m.scale.buffer][wide(of_page) * (m.stacked // 2) + wide(first)]
                put(self.scales, word, place)

    def _scale_here(self, unit: Unit, place: int) -> Expr | None:
        """The pair of scales of the rows that a unit completes, before those of a later one take their place."""
        if unit.matrix.scale is None or not unit.ends or self.scales is None:
            return None
        return let("scale_pair", self.scales[place])

    def _multiply(self, unit: Unit, held: list[Buffer]) -> None:
        """Multiply one unit with all columns, on top of the sums of the units before it."""
        m = unit.matrix
        if unit.chunk == 0:
            for n in range(4 * m.column_tiles * m.accumulators):
                put(self.sums, self.factors.begin_of(unit, n) if m.shifted else f32(0), n)
        first = m.fragment_of(unit.place) * m.column_tiles * m.fragments_b
        for c in range(m.unit_chunks):
            low, high = held[c], held[m.unit_chunks + c]
            for part in range(m.chunk // 8 // m.fragment_vector):
                if _narrow(m):
                    low, high = self._converted(m, held[c], held[m.unit_chunks + c], part)
                for n in range(m.column_tiles):
                    for s in range(m.fragments_b):
                        self._multiply_part(unit, c, part, first, n, s, low, high)

    def _multiply_part(
        self, unit: Unit, c: int, part: int, first: int, n: int, s: int, low: Row16, high: Row16
    ) -> None:
        """Multiply what one load of fragment B is for."""
        m, v = unit.matrix, unit.matrix.fragment_vector
        parts = m.chunk // 8 // v
        which = first + n * m.fragments_b + s
        base = self.work.fragments_at[m.op] + which * m.fragment_words + ((unit.chunk + c) * parts + part) * WARP * v
        with vector(v) as w:
            put(self.b, self.arena.u32[self.cta.lane * v + base + T.Cast(I32, w)], w)
        at = 4 * (n * m.accumulators + min(s, m.accumulators - 1))
        sums = [self.sums[at + e] for e in range(4)]
        for j in range(v // 2):
            a = [low[2 * j], high[2 * j], low[2 * j + 1], high[2 * j + 1]]
            mma(core_of(m), sums, a, [self.b[2 * j], self.b[2 * j + 1]])

    def _converted(self, m: Matrix, low: Buffer, high: Buffer, part: int) -> tuple[Row16, Row16]:
        """The pairs of low rows and of high ones that one load of fragment B is for."""
        assert self.pairs is not None
        each, v = m.packed // 2, m.fragment_vector
        for half, words in enumerate((low, high)):
            for w in range(v // each):
                out = [self.pairs[4 * half + w * each + e] for e in range(each)]
                to_f16(out, words[part * (v // each) + w], m.load.dtype)
        return [self.pairs[e] for e in range(v)], [self.pairs[4 + e] for e in range(v)]


def _narrow(m: Matrix) -> bool:
    """Whether the field must be converted."""
    return m.load.dtype.bits < 16


def _row_index(m: Matrix, place: Place) -> Expr:
    """Which row of its page a place along ``m.tiles`` is."""
    return flat([place[k] for k, _ in m.tiles], [d for _, d in m.tiles])
