"""What the numbers of the row are multiplied by before the products, and the sums of these after them.

Fields of 8 and 4 bits become f16 between the loads and the products. The numbers of the row need more range than f16
has: each column is multiplied by the power of two that brings its largest number into [2^14, 2^15), and its sums by
the inverse. Codes of 4 bits are multiplied as ``code + 8``: sums begin at what takes that off again, -8 times the sum
of the column. Sums of rows of a pool are multiplied by its scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vortex.codegen.cuda.pool_rows import PoolRows
from vortex.codegen.cuda.ptx import WARP, cta_sync, warp_extreme
from vortex.codegen.cuda.select.f16_pairs import Nibbles
from vortex.codegen.cuda.select.tensor_core.contractions import Contractions, Unit
from vortex.codegen.cuda.select.tensor_core.lane import Lane
from vortex.codegen.cuda.storage import Arena, StoredValues
from vortex.codegen.cuda.warp import Cta, warp_fold
from vortex.codegen.emitting import emitting
from vortex.codegen.scalar import convert
from vortex.codegen.tiles import extents, place_of
from vortex.codegen.tir import F32, U32, Buffer, Expr, T, equal, f32, i32, let, local, loop, put, unflat, when
from vortex.ir.dialects import flow
from vortex.ir.op_labels import read_through
from vortex.schedules.matrices import Matrix

LARGEST = 127 + 14
"""Biased exponent of the largest number of a column once it is multiplied by its power of two."""


@dataclass(frozen=True)
class Factors:
    """The powers of two of the columns of one sweep, the constants and the scales of pools."""

    lane: Lane
    arena: Arena
    cta: Cta
    pools: dict[str, PoolRows]
    """The rows of pools, by buffer."""
    undo: dict[flow.Dot, Buffer]
    """What undoes the powers of two of the lane's columns, times the constants of the results."""
    begin: dict[flow.Dot, Buffer]
    """What the sums of the lane's columns begin at, where codes are shifted."""

    @classmethod
    def open(cls, lane: Lane, arena: Arena, cta: Cta, pools: dict[str, PoolRows]) -> Factors:
        """Declare the registers."""
        matrices = lane.work.matrices
        undo = {m.op: local("undo", 2 * m.column_tiles) for m in matrices if m.raised}
        begin = {m.op: local("begin", 2 * m.column_tiles) for m in matrices if m.shifted and not m.row_tiles}
        return cls(lane, arena, cta, pools, undo, begin)

    @property
    def work(self) -> Contractions:
        return self.lane.work

    def find(self, values: StoredValues) -> None:
        """Find the power of two of each column that has one, by all threads of the CTA; ends with a barrier."""
        for m in self.work.matrices:
            if m.raised:
                with emitting(m.op, *read_through(m.row)):
                    self._find_of(m, values)
        if self.work.powers_at:
            cta_sync()

    def _find_of(self, m: Matrix, values: StoredValues) -> None:
        """Find the powers of two of the columns of one contraction."""
        inner = ((m.axis, m.extent), *m.row_tiles)
        many, at = math.prod(d for _, d in inner), self.work.powers_at[m.op]
        with loop("column_round", -(-m.count // self.cta.warps)) as turn:
            column = let("column", turn * self.cta.warps + self.cta.warp)
            with when(column < m.count):
                most = local("most", 1, U32)
                put(most, T.uint32(0), 0)
                with loop("k_round", -(-many // WARP)) as k:
                    place = place_of(inner, unflat(T.min(k * WARP + self.cta.lane, i32(many - 1)), extents(inner)))
                    place |= place_of(m.columns, unflat(column, extents(m.columns)))
                    x = convert(values.read(m.row, [place[ord(c)] for c in m.letters]), F32)
                    size = T.bitwise_and(T.reinterpret(U32, x), T.uint32(0x7FFFFFFF))
                    put(most, T.max(most[0], size), 0)
                exponent = let("exponent", T.shift_right(warp_extreme("max", most[0]), T.uint32(23)))
                # both the power and its inverse are normal numbers
                up = let("up", T.min(T.uint32(253), T.uint32(LARGEST + 127) - exponent))
                with when(equal(self.cta.lane, i32(0))):
                    put(self.arena.u32, T.shift_left(T.uint32(254) - up, T.uint32(23)), column + at)
                    put(self.arena.u32, T.shift_left(up, T.uint32(23)), column + (at + m.count))
                if m.shifted:
                    self._find_begin(m, values, column, T.reinterpret(F32, T.shift_left(up, T.uint32(23))))

    def _find_begin(self, m: Matrix, values: StoredValues, column: Expr, power: Expr) -> None:
        """Find what the sums of a column begin at, by the lanes of a warp."""
        at = self.work.powers_at[m.op] + 2 * m.count
        for tile in range(math.prod(d for _, d in m.row_tiles)):
            total = local("column_sum", 1)
            put(total, f32(0), 0)
            with loop("k_round", -(-m.extent // WARP)) as k:
                place = place_of(m.columns, unflat(column, extents(m.columns)))
                place |= place_of(m.row_tiles, unflat(i32(tile), extents(m.row_tiles)))
                element = let("element", k * WARP + self.cta.lane)
                place[m.axis] = T.min(element, i32(m.extent - 1))
                x = convert(values.read(m.row, [place[ord(c)] for c in m.letters]), F32)
                put(total, total[0] + T.Select(element < m.extent, x * power, f32(0)), 0)
            whole = warp_fold(total[0], lambda a, b: a + b, "column_sum")
            with when(equal(self.cta.lane, i32(0))):
                put(self.arena.f32, whole * f32(-Nibbles.OFFSET * Nibbles.UNIT), column + (at + tile * m.count))

    def take(self) -> None:
        """Read the inverse powers of two of this lane's columns, and multiply them by what all results are multiplied
        by; after :meth:`find`.
        """
        for m in self.work.matrices:
            with emitting(m.op):
                for n in range(2 * m.column_tiles if m.raised else 0):
                    column, first = self.lane.column(m, n)
                    at = column + self.work.powers_at[m.op]
                    inverse = self.arena.f32[at]
                    put(self.undo[m.op], self._times(m, inverse * f32(1 / Nibbles.UNIT) if m.shifted else inverse), n)
                    if m.op in self.begin:
                        put(self.begin[m.op], T.Select(first, self.arena.f32[at + 2 * m.count], f32(0)), n)

    def begin_of(self, unit: Unit, n: int) -> Expr:
        """What sum ``n`` begins at where codes are shifted."""
        m, mine = unit.matrix, n // 4 * 2 + n % 2
        if m.op in self.begin:
            return self.begin[m.op][mine]
        column, first = self.lane.column(m, mine)
        at = self.work.powers_at[m.op] + (2 + m.fragment_of(unit.place)) * m.count
        return T.Select(first, self.arena.f32[column + at], f32(0))

    def scaled(self, m: Matrix, x: Expr, column: int, by: Expr | None) -> Expr:
        """A sum without the power of two of its column, times what else it is multiplied by."""
        x = x * self.undo[m.op][column] if m.raised else self._times(m, x)
        if by is not None:
            x = x * by
        return let("scaled", x) if m.raised or m.scaled or self._scale_of(m) is not None else x

    def _times(self, m: Matrix, x: Expr) -> Expr:
        """A number times the constants that results of ``m`` are multiplied by, and the scale of the pool it reads."""
        x, scale = _by_constants(m, x), self._scale_of(m)
        return x if scale is None else x * scale

    def _scale_of(self, m: Matrix) -> Expr | None:
        pool = self.pools.get(m.load.load.buffer)
        return None if pool is None else pool.scale


def _by_constants(m: Matrix, x: Expr) -> Expr:
    """A number times the constants that results of ``m`` are multiplied by."""
    for s in m.scaled:
        if s.by is not None:
            assert isinstance(s.by.owner, flow.Constant)
            x = x * f32(s.by.owner.number)
    return x
