"""Fragments B: numbers of the row in the order in which pages are loaded, made once per row in shared memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vortex.codegen.cuda.ptx import WARP, pack_pair, quotient, remainder
from vortex.codegen.cuda.select.f16_pairs import first_of_pair, opposite, pair_step
from vortex.codegen.cuda.select.tensor_core.contractions import Contractions, core_of
from vortex.codegen.cuda.select.tensor_core.lane import spread
from vortex.codegen.cuda.select.tensor_core.pieces import HIGH, finite, truncated
from vortex.codegen.cuda.storage import Arena, StoredValues
from vortex.codegen.cuda.warp import Cta
from vortex.codegen.emitting import emitting
from vortex.codegen.scalar import convert
from vortex.codegen.tiles import extents, place_of
from vortex.codegen.tir import F32, U32, Expr, T, equal, f32, i32, let, local, put, unflat, when
from vortex.ir.op_labels import read_through
from vortex.ir.types import DType, bf16, f16
from vortex.schedules.matrices import COLUMNS, PIECES, Matrix


@dataclass(frozen=True)
class Fragments:
    """The fragments B of one sweep."""

    work: Contractions
    arena: Arena
    cta: Cta

    def make(self, values: StoredValues) -> None:
        """Make fragments B, by all threads of the CTA; a barrier must follow.

        Lane ``l`` has numbers of column ``l / 4``, and of each chunk those elements that lanes ``l % 4`` of the pages
        load, a pair in a word. It reads ``fragment_vector`` of its words at once, beside those of the other lanes.
        """
        for m in self.work.matrices:
            with emitting(m.op, *read_through(m.row)):
                self._make_of(m, values)

    def _make_of(self, m: Matrix, values: StoredValues) -> None:
        """Make the fragments of one contraction."""
        v, each = m.fragment_vector, m.chunk // 8
        for n, (tile, columns, piece) in enumerate(m.fragments()):
            base = self.work.fragments_at[m.op] + n * m.fragment_words
            with self.cta.share("word", m.fragment_words) as at:
                lane = let("of_lane", remainder(quotient(at, i32(v)), i32(WARP)))
                chunk, word = quotient(at, i32(v * WARP)), remainder(at, i32(v))
                if each > v:
                    word = word + remainder(chunk, i32(each // v)) * v
                    chunk = quotient(chunk, i32(each // v))
                first = chunk * m.chunk + remainder(lane, i32(4)) * (m.chunk // 4)
                k = let("k", first + first_of_pair(m.load.dtype, word))
                column = let("column", quotient(lane, i32(4)) + columns * COLUMNS)
                dtype = m.load.dtype

                def meant(x: Expr, word: Expr = word, dtype: DType = dtype) -> Expr:
                    return opposite(dtype, word, x)

                pair = [self._piece(m, values, tile, column, piece, k + e, meant) for e in (0, pair_step(m.load.dtype))]
                self._put_pair(m, pair, at + base)

    def _piece(
        self,
        m: Matrix,
        values: StoredValues,
        tile: int,
        column: Expr,
        piece: int,
        k: Expr,
        meant: Callable[[Expr], Expr],
    ) -> Expr:
        """The number at ``column`` and ``k``: 0 beyond the columns, and of computed numbers a piece."""
        head = remainder(column, i32(m.piece_step)) if m.side_by_side else column
        inside = head < m.count
        which: Expr = i32(piece)
        if m.side_by_side:
            which = let("piece", quotient(column, i32(m.piece_step)))
            inside = T.And(inside, which < PIECES[m.core])
        head = spread(m, T.min(head, i32(m.count - 1)))
        at = place_of(m.columns, unflat(head, extents(m.columns)))
        at |= place_of(m.row_tiles, unflat(i32(tile), extents(m.row_tiles)))
        at[m.axis] = k
        x = local("x", 1)
        put(x, f32(0), 0)
        with when(inside):
            number = convert(values.read(m.row, [at[ord(c)] for c in m.letters]), F32)
            if m.raised:
                number = meant(number * self.arena.f32[head + (self.work.powers_at[m.op] + m.count)])
            put(x, number, 0)
        if m.exact:
            return x[0]
        first = let("first", truncated(x[0], core_of(m)))
        if m.core == f16:
            # what is left of an infinite number is none
            rest = T.Select(finite(first), x[0] - first, f32(0))
            if m.side_by_side:
                return let("part", T.Select(equal(which, i32(0)), first, rest))
            return let("part", rest if piece else first)
        second = let("second", truncated(x[0] - first, core_of(m)))
        third = x[0] - first - second
        return let("part", T.Select(equal(which, i32(0)), first, T.Select(equal(which, i32(1)), second, third)))

    def _put_pair(self, m: Matrix, pair: list[Expr], at: Expr) -> None:
        """Pack two numbers into one word of a fragment."""
        if m.core == bf16:
            # each is exact in bf16: its upper half is the number
            low, high = (T.reinterpret(U32, x) for x in pair)
            word = T.bitwise_or(T.bitwise_and(high, T.uint32(HIGH["bfloat16"])), T.shift_right(low, T.uint32(16)))
            put(self.arena.u32, word, at)
        else:
            packed = local("packed", 2, U32)
            pack_pair(core_of(m), packed[0], *pair)
            put(self.arena.u32, packed[0], at)
