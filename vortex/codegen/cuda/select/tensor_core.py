"""Contractions of summaries with numbers of the row on tensor cores: 16 pages on M, columns of the row on N.

A lane loads 16 bytes of a page at once and uses them as they lie: the sum over an axis has no order of its own, so
fragment A takes the elements as they come and fragment B, which is made once per row, is put in the same order.
Stored values of the row are multiplied as they are; computed ones are split into three pieces whose sum they are.

Which lane holds what. ``group = lane / 4`` tells the page, ``member = lane % 4`` the part of it. A page tile is 32
pages, two *halves* of 16; of a half, a lane has pages ``group`` (its ``low`` words) and ``group + 8`` (``high``):

    lane         0  1  2  3     4  5  6  7     ..   28 29 30 31
    low words    page 0         page 1              page 7          + 16 half
    high words   page 8         page 9              page 15         + 16 half
    member       0  1  2  3     0  1  2  3          0  1  2  3

A *chunk* is what the four lanes of a page load at once: here 32 elements of 16 bits, ``words = 4`` for each lane. Two
words of a lane are its part of fragment A for one product over 16 elements, so that a chunk takes ``words / 2``:

    element      0  1 | 2  3 | 4  5 | 6  7 |  8  9 | ..         | 30 31
    member       0                         |  1        2          3
    word         0      1      2      3       0       ..           3
    product      0      0      1      1       0                    1
    K index of   2 member     2 member        ..
    the product   + 0, 1       + 8, 9

``unit_chunks`` chunks of a half are one *unit*: what is loaded together into one set of registers. The accumulators
of a product, with a tile of 8 columns on N:

                     column 2 member    2 member + 1
    page group              d0               d1             page 16 half + group
    page group + 8          d2               d3             page 16 half + group + 8

Fields of 8 and 4 bits become f16 between the loads and the products: a word of them is two or four pairs of a
fragment (:mod:`vortex.codegen.cuda.select.f16_pairs`). The numbers of the row need more range than f16 has: each
column is multiplied by the power of two that brings its largest number into [2^14, 2^15), and its sums by the inverse.
Computed numbers are split into two pieces. Codes of 4 bits are multiplied as ``code + 8``: sums begin at what takes
that off again, -8 times the sum of the column.

Where a page has many rows (``Matrix.stacked``), for example one for each token, M is not 16 pages but 16 rows that
follow each other: of one page, or 8 of each of two. Loads are of whole pages then, and a loop goes over the page tile:

    page group       d0, d1      row 16 tile + 2 group
                     d2, d3      row 16 tile + 2 group + 1

Where a computed operand in bf16 has one or two columns, its three pieces stand ``side_by_side`` in columns of their
own, column ``2 piece + column``, and are added up over the members; with up to four columns in f16 the two pieces are
columns ``4 piece + column``, and each member is left with one of its two rows. Otherwise each piece is a fragment of
its own for the same columns: the sums of the first piece are kept apart from those of the others, which are much
smaller, but for fields that are never infinite and have two pieces.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vortex.codegen.cuda.pool_rows import PoolRows
from vortex.codegen.cuda.ptx import (
    TILE_TYPES,
    WARP,
    cta_sync,
    mma,
    pack_pair,
    quotient,
    remainder,
    shuffle,
    shuffle_xor,
    warp_extreme,
    wide,
)
from vortex.codegen.cuda.select.f16_pairs import Nibbles, first_of_pair, opposite, pair_step, to_f16
from vortex.codegen.cuda.select.lane_group import row_of
from vortex.codegen.cuda.select.page_tile import PageTile, rolled
from vortex.codegen.cuda.storage import Arena, StoredValues
from vortex.codegen.cuda.vector_load import unpack, vector
from vortex.codegen.cuda.warp import Cta, warp_fold
from vortex.codegen.emitting import emitting
from vortex.codegen.narrow import STORAGE
from vortex.codegen.scalar import convert
from vortex.codegen.tiles import Place, extents, place_of
from vortex.codegen.tir import (
    F32,
    I32,
    U32,
    Buffer,
    Expr,
    T,
    cast,
    differ,
    equal,
    f32,
    flat,
    i32,
    let,
    local,
    loop,
    put,
    unflat,
    when,
)
from vortex.codegen.values import Index, type_of
from vortex.ir.core import Value
from vortex.ir.dialects import flow
from vortex.ir.op_labels import read_through
from vortex.ir.types import DType, Sym, bf16, f16
from vortex.schedules.matrices import COLUMNS, PIECES, ROWS, Matrix

HIGH = {"bfloat16": 0xFFFF0000, "float16": 0xFFFFE000}
"""The bits of an fp32 number that are a number of the type, if its exponent is in range."""
LARGEST = 127 + 14
"""Biased exponent of the largest number of a column once it is multiplied by its power of two."""


def core_of(m: Matrix) -> str:
    """The TVM type that tensor cores multiply for ``m``."""
    return STORAGE[m.core.name]


@dataclass(frozen=True)
class _Unit:
    """What is loaded at once: ``unit_chunks`` chunks of 16 pages, at one place of the summary's tile, or of 16 rows."""

    matrix: Matrix
    at: tuple[int, ...]
    """The index along ``matrix.tiles``; of stacked rows none."""
    tile: int
    """Which 16 pages of the page tile, or which 16 rows, counted from those of the turn."""
    chunk: int
    """The first of its chunks."""

    @property
    def place(self) -> dict[int, int]:
        return place_of(self.matrix.tiles, self.at) if self.at else {}

    @property
    def ends(self) -> bool:
        """Whether its sums are complete once it is multiplied."""
        return self.chunk + self.matrix.unit_chunks == self.matrix.chunks


@dataclass(frozen=True)
class _Row:
    """Where one of the rows of a product lies that this lane loads and has sums of."""

    slot: Expr
    """The page, by its place in the page tile."""
    place: Place
    """The index along ``matrix.tiles``."""


def _places(m: Matrix, half: int, pages: int) -> list[tuple[tuple[int, ...], int]]:
    """Every index along the axes that the result shares with the summary, beside its pages, for 16 pages; of stacked
    rows, every 16 rows of so many pages.
    """
    if m.stacked > 1:
        each = m.stacked * min(pages, ROWS) // ROWS
        return [((), half * each + i) for i in range(each)]
    found: list[tuple[int, ...]] = [()]
    for _, d in m.tiles:
        found = [(*t, i) for t in found for i in range(d)]
    return [(at, half) for at in found]


@dataclass(frozen=True)
class Contractions:
    """The contractions of one sweep over the pages of a row, as a pipeline of loads and products.

    Registers hold ``depth`` units on their way; the place of one that was multiplied is filled with a later one, of
    the next page tile at the end of a page tile. Where rows of one field are stacked, a page tile takes several turns
    of a loop, and a turn as few units as fill the registers.
    """

    units: tuple[_Unit, ...]
    """Of a turn, in the order in which they are multiplied."""
    turns: int
    """Of a page tile."""
    depth: int
    fragments_at: dict[flow.Dot, int]
    """Where the fragments B of each contraction begin in shared memory."""
    powers_at: dict[flow.Dot, int]
    """Where the powers of two of the columns are that have some: the inverse ones, and then they themselves; then, for
    each index along ``row_tiles``, what the sums of the columns begin at where codes are shifted.
    """

    @classmethod
    def reserve(cls, matrices: Sequence[Matrix], pages: int, arena: Arena, ahead: int) -> Contractions:
        """Take shared memory for the fragments; a page tile has ``pages``, and ``ahead`` registers of a lane are for
        summaries on their way, beside their scales.
        """
        units = tuple(
            _Unit(m, at, tile, c)
            for half in range(-(-pages // ROWS))
            for m in matrices
            for at, tile in _places(m, half, pages)
            for c in range(0, m.chunks, m.unit_chunks)
        )
        fit = max(1, ahead // max(2 * m.unit_chunks * m.words for m in matrices))
        depth, turns = max(d for d in range(1, min(fit, len(units)) + 1) if len(units) % d == 0), 1
        if len(matrices) == 1 and matrices[0].stacked > 1:
            # a turn ends with a product
            turns = len(units) // math.lcm(depth, matrices[0].chunks // matrices[0].unit_chunks)
        fragments_at = {m.op: arena.take(len(m.fragments()) * m.fragment_words) for m in matrices}
        powers_at = {m.op: arena.take(m.power_words) for m in matrices if m.raised}
        return cls(units[: len(units) // turns], turns, depth, fragments_at, powers_at)

    @property
    def matrices(self) -> list[Matrix]:
        return list(dict.fromkeys(u.matrix for u in self.units))

    @property
    def turn_tiles(self) -> int:
        """Products of stacked rows in a turn."""
        return sum(u.ends for u in self.units)


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
    group: Expr
    """Which page of 8 the lane has."""
    member: Expr
    """Which part of the page it has."""
    held: list[list[Buffer]]
    """Units on their way: by place in the pipeline, the vectors of the low pages and then those of the high ones."""
    scales: Buffer | None
    """By place in the pipeline, the pair of scales of what is there, where results have scales."""
    sums: Buffer
    b: Buffer
    """Fragment B of one chunk, or of the part of it that is read at once."""
    pairs: Buffer | None
    """Numbers of low rows and then of high ones, converted."""
    undo: dict[flow.Dot, Buffer]
    """What undoes the powers of two of the lane's columns, times the constants of the results."""
    begin: dict[flow.Dot, Buffer]
    """What the sums of the lane's columns begin at, where codes are shifted."""

    @classmethod
    def open(
        cls, work: Contractions, arena: Arena, cta: Cta, views: dict[str, Buffer], pools: dict[str, PoolRows]
    ) -> Pipeline:
        """Declare the registers: they outlive the page tiles."""
        group = let("page_of_lane", quotient(cta.lane, i32(4)))
        member = let("quarter_of_lane", remainder(cta.lane, i32(4)))
        vectors = max(2 * m.unit_chunks for m in work.matrices)
        words = max(m.words for m in work.matrices)
        held = [[local(f"held{d}_{v}", max(2, words), U32) for v in range(vectors)] for d in range(work.depth)]
        scales = local("scales", max(2, work.depth), U32) if any(m.scale for m in work.matrices) else None
        sums = local("sums", 4 * max(m.column_tiles * m.accumulators for m in work.matrices))
        b = local("b", 4, U32)
        pairs = local("pairs", 8, U32) if any(_narrow(m) for m in work.matrices) else None
        undo = {m.op: local("undo", 2 * m.column_tiles) for m in work.matrices if m.raised}
        begin = {m.op: local("begin", 2 * m.column_tiles) for m in work.matrices if m.shifted and not m.row_tiles}
        return cls(work, arena, cta, views, pools, group, member, held, scales, sums, b, pairs, undo, begin)

    # once per row

    def find_powers(self, values: StoredValues) -> None:
        """Find the power of two of each column that has one, by all threads of the CTA; ends with a barrier."""
        for m in self.work.matrices:
            if m.raised:
                with emitting(m.op, *read_through(m.row)):
                    self._find_powers_of(m, values)
        if self.work.powers_at:
            cta_sync()

    def _find_powers_of(self, m: Matrix, values: StoredValues) -> None:
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

    def take_powers(self) -> None:
        """Read the inverse powers of two of this lane's columns, and multiply them by what all results are multiplied
        by; after :meth:`find_powers`.
        """
        for m in self.work.matrices:
            with emitting(m.op):
                for n in range(2 * m.column_tiles if m.raised else 0):
                    column, first = self._column(m, n)
                    at = column + self.work.powers_at[m.op]
                    inverse = self.arena.f32[at]
                    put(self.undo[m.op], self._times(m, inverse * f32(1 / Nibbles.UNIT) if m.shifted else inverse), n)
                    if m.op in self.begin:
                        put(self.begin[m.op], T.Select(first, self.arena.f32[at + 2 * m.count], f32(0)), n)

    def _column(self, m: Matrix, n: int) -> tuple[Expr, Expr]:
        """Which column this lane's ``n``-th is, the last beyond the last, and whether it is of the first piece."""
        column = self.member * 2 + (n // 2 * COLUMNS + n % 2)
        head = remainder(column, i32(m.piece_step)) if m.side_by_side else column
        first = column < (m.piece_step if m.side_by_side else m.count)
        return _spread(m, T.min(head, i32(m.count - 1))), first

    def make_fragments(self, values: StoredValues) -> None:
        """Make fragments B, by all threads of the CTA; a barrier must follow.

        Lane ``l`` has numbers of column ``l / 4``, and of each chunk those elements that lanes ``l % 4`` of the pages
        load, a pair in a word. It reads ``fragment_vector`` of its words at once, beside those of the other lanes.
        """
        for m in self.work.matrices:
            with emitting(m.op, *read_through(m.row)):
                self._make_fragments_of(m, values)

    def _make_fragments_of(self, m: Matrix, values: StoredValues) -> None:
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
        head = _spread(m, T.min(head, i32(m.count - 1)))
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
        first = let("first", _truncated(x[0], core_of(m)))
        if m.core == f16:
            # what is left of an infinite number is none
            rest = T.Select(_finite(first), x[0] - first, f32(0))
            if m.side_by_side:
                return let("part", T.Select(equal(which, i32(0)), first, rest))
            return let("part", rest if piece else first)
        second = let("second", _truncated(x[0] - first, core_of(m)))
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

    # the pipeline

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
                    self._finish(unit, page_tile, turn, scale, keep)
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
                    self._finish(unit, page_tile, turn, scale, keep)

    def _step(self, advance: Callable[[], None], turn: Expr, last: Expr | None) -> Expr:
        """Go on to the records of the next turn, and of the next page tile behind the last one; the turn's number."""
        if last is None:
            advance()
            return 0
        with when(last):
            advance()
        return let("following", T.Select(last, i32(0), turn + 1))

    def _rows(self, unit: _Unit, turn: Expr, halves: Sequence[Expr] = (0, 1)) -> list[_Row]:
        """The rows of which this lane loads the low words and the high ones."""
        m = unit.matrix
        if m.stacked == 1:
            place: Place = {k: i32(x) for k, x in unit.place.items()}
            return [_Row(self.group + (unit.tile * ROWS + half * 8), place) for half in halves]
        tile = turn * self.work.turn_tiles + unit.tile
        if m.stacked < ROWS:
            slot = let("slot", quotient(self.group, i32(4)) + tile * 2)
            first = remainder(self.group, i32(4)) * 2
        else:
            each = m.stacked // ROWS
            slot = let("slot", i32(0) + quotient(tile, i32(each)) if each > 1 else i32(0) + tile)
            first = self.group * 2 + (remainder(tile, i32(each)) * ROWS if each > 1 else 0)
        first = let("row", first)
        return [_Row(slot, _place_along(m.tiles, first + half)) for half in halves]

    def _fetch(self, unit: _Unit, place: int, record: Expr, turn: Expr) -> None:
        """Load one unit: ``unit_chunks`` vectors of the low row, then as many of the high one."""
        m, held = unit.matrix, self.held[place]
        step, pool = m.chunk // m.packed, self.pools.get(m.load.load.buffer)
        of_page: Expr = None
        for half, row in enumerate(self._rows(unit, turn)):
            if half == 0 or m.stacked == 1:
                of_page = let("record", shuffle(record, row.slot))
            inside, tile_row = self.member * m.words + unit.chunk * step, row_of(m.load, row.place)
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

    def _scale_here(self, unit: _Unit, place: int) -> Expr | None:
        """The pair of scales of the rows that a unit completes, before those of a later one take their place."""
        if unit.matrix.scale is None or not unit.ends or self.scales is None:
            return None
        return let("scale_pair", self.scales[place])

    def _multiply(self, unit: _Unit, held: list[Buffer]) -> None:
        """Multiply one unit with all columns, on top of the sums of the units before it."""
        m = unit.matrix
        if unit.chunk == 0:
            for n in range(4 * m.column_tiles * m.accumulators):
                put(self.sums, self._begin(unit, n) if m.shifted else f32(0), n)
        first = m.fragment_of(unit.place) * m.column_tiles * m.fragments_b
        for c in range(m.unit_chunks):
            low, high = held[c], held[m.unit_chunks + c]
            for part in range(m.chunk // 8 // m.fragment_vector):
                if _narrow(m):
                    low, high = self._converted(m, held[c], held[m.unit_chunks + c], part)
                for n in range(m.column_tiles):
                    for s in range(m.fragments_b):
                        self._multiply_part(unit, c, part, first, n, s, low, high)

    def _begin(self, unit: _Unit, n: int) -> Expr:
        """What sum ``n`` begins at where codes are shifted."""
        m, mine = unit.matrix, n // 4 * 2 + n % 2
        if m.op in self.begin:
            return self.begin[m.op][mine]
        column, first = self._column(m, mine)
        at = self.work.powers_at[m.op] + (2 + m.fragment_of(unit.place)) * m.count
        return T.Select(first, self.arena.f32[column + at], f32(0))

    def _multiply_part(
        self, unit: _Unit, c: int, part: int, first: int, n: int, s: int, low: Row16, high: Row16
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

    def _finish(self, unit: _Unit, page_tile: PageTile, turn: Expr, scale: Expr | None, keep: Keep) -> None:
        """Hand the results of 16 rows over, each from the lane that has it."""
        m = unit.matrix
        parted = m.side_by_side and m.core == f16
        halves: list[Expr] = [let("half", quotient(self.member, i32(2)))] if parted else [0, 1]
        for half, row in zip(halves, self._rows(unit, turn, halves), strict=True):
            slot = let("slot", row.slot) if m.stacked == 1 else row.slot
            by = None if scale is None else let("scale", convert(_half_of(scale, half), F32))
            for n in range(m.column_tiles):
                for e in range(2):
                    x, column, mine = self._parted(m, half, e) if parted else self._result(m, n, half * 2 + e, e)
                    if mine is None and column is None:
                        continue
                    x = self._scaled(m, x, 2 * n + e, by)
                    # what is kept of a page tile has room for pages beyond the last
                    roomy = m.stacked > 1 and m.result.owner is not None and m.result.owner.notes.get("in") == "tile"
                    tests = [t for t in (mine, None if roomy else slot < page_tile.count) if t is not None]
                    at = place_of(m.columns, unflat(column, extents(m.columns)))
                    at |= row.place
                    _, _, lo = m.op.letters()
                    index = [
                        page_tile.start + slot if isinstance(d, Sym) else at[ord(c)]
                        for c, d in zip(lo, type_of(m.op.value).shape, strict=True)
                    ]
                    if not tests:
                        keep(m.result, index, slot, x)
                        continue
                    with when(tests[0] if len(tests) == 1 else T.And(*tests)):
                        keep(m.result, index, slot, x)

    def _parted(self, m: Matrix, half: Expr, odd: int) -> tuple[Expr, Expr, Expr | None]:
        """The same of two pieces in columns of their own: each member gives another what that is left with, the low row
        or the high one, and takes what the other has of its own row.
        """
        low = equal(half, i32(0))
        own = let("own", T.Select(low, self.sums[odd], self.sums[2 + odd]))
        other = let("other", shuffle_xor(T.Select(low, self.sums[2 + odd], self.sums[odd]), 2))
        if m.load.dtype.bits < 16:
            x = let("both", own + other)
        else:
            x = _joined(let("first", T.Select(low, own, other)), let("rest", T.Select(low, other, own)))
        column = let("column", remainder(self.member, i32(2)) * 2 + odd)
        return x, _spread(m, column), column < m.count if m.count < m.piece_step else None

    def _scaled(self, m: Matrix, x: Expr, column: int, by: Expr | None) -> Expr:
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

    def _result(self, m: Matrix, n: int, e: int, odd: int) -> tuple[Expr, Expr | None, Expr | None]:
        """Sum ``d[e]`` of this lane, its column, and whether the lane has one (None: all do)."""
        if m.side_by_side:
            if odd >= m.count:
                return None, None, None
            head = let("head_sum", self.sums[e])
            rest = let("rest_sum", shuffle_xor(head, 1) + shuffle_xor(head, 2))
            return _joined(head, rest), i32(odd), equal(self.member, i32(0))
        at = 4 * n * m.accumulators + e
        x = self.sums[at] if m.accumulators == 1 else _joined(self.sums[at], self.sums[at + 4])
        column = let("column", self.member * 2 + (n * COLUMNS + odd))
        mine = column < m.count if m.column_tiles * COLUMNS > m.count else None
        return x, _spread(m, column), mine


Keep = Callable[[Value, Index, Expr, Expr], None]
"""Takes a result: the value, its index with the page's position, the page's place in the page tile, the number."""
Row16 = Buffer | list[Expr]
"""Words of pairs of a row, as tensor cores take them."""


def _spread(m: Matrix, column: Expr) -> Expr:
    """Which column of the result one of the product is, of those that there are."""
    return quotient(column, i32(2)) + remainder(column, i32(2)) * (m.count // 2) if m.spread else column


def _half_of(word: Expr, half: Expr) -> Expr:
    """The f16 number in the lower or the upper half of a word."""
    if isinstance(half, int):
        return unpack(word, half, f16)
    bits = T.bitwise_and(T.shift_right(word, cast(U32, half * 16)), T.uint32(0xFFFF))
    return T.reinterpret("float16", T.Cast("uint16", bits))


def _narrow(m: Matrix) -> bool:
    """Whether the field must be converted."""
    return m.load.dtype.bits < 16


def _place_along(axes: Sequence[tuple[int, int]], row: Expr) -> Place:
    """The index along axes of which rows are counted; where they are one, it is the row."""
    if len(axes) == 1:
        return {axes[0][0]: row}
    return place_of(tuple(axes), unflat(row, [d for _, d in axes]))


def _row_index(m: Matrix, place: Place) -> Expr:
    """Which row of its page a place along ``m.tiles`` is."""
    return flat([place[k] for k, _ in m.tiles], [d for _, d in m.tiles])


def _by_constants(m: Matrix, x: Expr) -> Expr:
    """A number times the constants that results of ``m`` are multiplied by."""
    for s in m.scaled:
        if s.by is not None:
            assert isinstance(s.by.owner, flow.Constant)
            x = x * f32(s.by.owner.number)
    return x


def _truncated(x: Expr, core: str) -> Expr:
    """The upper bits of an fp32 number: a number of the type, and what is left of ``x`` is exact."""
    return T.reinterpret(F32, T.bitwise_and(T.reinterpret(U32, x), T.uint32(HIGH[core])))


def _finite(x: Expr) -> Expr:
    exponent = T.bitwise_and(T.reinterpret(U32, x), T.uint32(0x7F800000))
    return differ(exponent, T.uint32(0x7F800000))


def _joined(first: Expr, rest: Expr) -> Expr:
    """The sum of what the pieces gave; where that of the first is infinite or NaN, it is the result."""
    return let("joined", T.Select(_finite(first), first + rest, first))


assert set(TILE_TYPES) == set(HIGH) == {"bfloat16", "float16"}
