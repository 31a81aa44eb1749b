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

Where a computed operand has one or two columns, its three pieces stand ``side_by_side`` in columns of their own,
column ``2 piece + column``, and are added up over the members. Otherwise each piece is a fragment of its own for the
same columns: the sums of the first piece are kept apart from those of the other two, which are much smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vortex.codegen.cuda.ptx import TILE_TYPES, WARP, mma, pack_pair, quotient, remainder, shuffle, shuffle_xor, wide
from vortex.codegen.cuda.select.lane_group import row_of
from vortex.codegen.cuda.select.page_tile import PageTile
from vortex.codegen.cuda.storage import Arena, StoredValues
from vortex.codegen.cuda.vector_load import vector
from vortex.codegen.cuda.warp import Cta
from vortex.codegen.narrow import STORAGE
from vortex.codegen.scalar import convert
from vortex.codegen.tiles import extents, place_of
from vortex.codegen.tir import F32, I32, U32, Buffer, Expr, T, differ, equal, f32, i32, let, local, put, unflat, when
from vortex.codegen.values import Index, type_of
from vortex.ir.core import Value
from vortex.ir.dialects import flow
from vortex.ir.types import Sym
from vortex.schedules.contractions import COLUMNS, PIECES, Matrix
from vortex.schedules.page_tiles import PAGE_TILE

ROWS = 16
"""Pages on M of one product."""
HIGH = 0xFFFF0000
"""The bits of an fp32 number that are a bf16 number."""


def storage_of(m: Matrix) -> str:
    """The TVM type of the summaries that ``m`` multiplies."""
    return STORAGE[m.load.dtype.name]


@dataclass(frozen=True)
class _Unit:
    """What is loaded at once: ``unit_chunks`` chunks of 16 pages, at one place of the summary's tile."""

    matrix: Matrix
    at: tuple[int, ...]
    """The index along ``matrix.tiles``."""
    half: int
    """Which 16 pages of the page tile."""
    chunk: int
    """The first of its chunks."""

    @property
    def place(self) -> dict[int, int]:
        return place_of(self.matrix.tiles, self.at)


def _places(m: Matrix) -> list[tuple[int, ...]]:
    """Every index along the axes that the result shares with the summary, beside its pages."""
    found: list[tuple[int, ...]] = [()]
    for _, d in m.tiles:
        found = [(*t, i) for t in found for i in range(d)]
    return found


@dataclass(frozen=True)
class Contractions:
    """The contractions of one sweep over the pages of a row, as a pipeline of loads and products.

    Registers hold ``depth`` units on their way; the place of one that was multiplied is filled with a later one, of
    the next page tile at the end of a page tile.
    """

    units: tuple[_Unit, ...]
    """Of a page tile, in the order in which they are multiplied."""
    depth: int
    fragments_at: dict[flow.Dot, int]
    """Where the fragments B of each contraction begin in shared memory."""

    @classmethod
    def reserve(cls, matrices: Sequence[Matrix], arena: Arena, ahead: int) -> Contractions:
        """Take shared memory for the fragments; ``ahead`` registers of a lane are for summaries on their way."""
        units = tuple(
            _Unit(m, at, half, c)
            for half in range(PAGE_TILE // ROWS)
            for m in matrices
            for at in _places(m)
            for c in range(0, m.chunks, m.unit_chunks)
        )
        fit = max(1, ahead // max(2 * m.unit_chunks * m.words for m in matrices))
        depth = max(d for d in range(1, min(fit, len(units)) + 1) if len(units) % d == 0)
        return cls(units, depth, {m.op: arena.take(len(m.fragments()) * m.fragment_words) for m in matrices})

    @property
    def matrices(self) -> list[Matrix]:
        return list(dict.fromkeys(u.matrix for u in self.units))


@dataclass(frozen=True)
class Pipeline:
    """The registers of the contractions of one sweep, and what is emitted into the sweep's loop."""

    work: Contractions
    arena: Arena
    cta: Cta
    views: dict[str, Buffer]
    """Fields as rows of 32-bit words, by buffer."""
    group: Expr
    """Which page of 8 the lane has."""
    member: Expr
    """Which part of the page it has."""
    held: list[list[Buffer]]
    """Units on their way: by place in the pipeline, the vectors of the low pages and then those of the high ones."""
    sums: Buffer
    b: Buffer
    """Fragment B of one chunk."""

    @classmethod
    def open(cls, work: Contractions, arena: Arena, cta: Cta, views: dict[str, Buffer]) -> Pipeline:
        """Declare the registers: they outlive the page tiles."""
        group = let("page_of_lane", quotient(cta.lane, i32(4)))
        member = let("quarter_of_lane", remainder(cta.lane, i32(4)))
        vectors = max(2 * m.unit_chunks for m in work.matrices)
        words = max(m.words for m in work.matrices)
        held = [[local(f"held{d}_{v}", max(2, words), U32) for v in range(vectors)] for d in range(work.depth)]
        sums = local("sums", 4 * max(m.column_tiles * m.accumulators for m in work.matrices))
        return cls(work, arena, cta, views, group, member, held, sums, local("b", 4, U32))

    # once per row

    def make_fragments(self, values: StoredValues) -> None:
        """Make fragments B, by all threads of the CTA; a barrier must follow.

        Word ``w`` of lane ``l`` of a chunk is two numbers of column ``l / 4``, those for the elements
        ``2 words (l % 4) + 2 w`` and the next: the order in which the lanes of a page have them.
        """
        for m in self.work.matrices:
            for n, (tile, columns, piece) in enumerate(m.fragments()):
                base = self.work.fragments_at[m.op] + n * m.fragment_words
                with self.cta.share("word", m.fragment_words) as at:
                    lane = let("of_lane", remainder(quotient(at, i32(m.words)), i32(WARP)))
                    start = quotient(at, i32(m.words * WARP)) * m.chunk + remainder(lane, i32(4)) * (2 * m.words)
                    k = let("k", start + remainder(at, i32(m.words)) * 2)
                    column = let("column", quotient(lane, i32(4)) + columns * COLUMNS)
                    pair = [self._piece(m, values, tile, column, piece, k + e) for e in range(2)]
                    self._put_pair(m, pair, at + base)

    def _piece(self, m: Matrix, values: StoredValues, tile: int, column: Expr, piece: int, k: Expr) -> Expr:
        """The number at ``column`` and ``k``: 0 beyond the columns, and of computed numbers a piece."""
        head = remainder(column, i32(2)) if m.side_by_side else column
        inside = head < m.count
        which: Expr = i32(piece)
        if m.side_by_side:
            which = let("piece", quotient(column, i32(2)))
            inside = T.And(inside, which < PIECES)
        at = place_of(m.columns, unflat(T.min(head, i32(m.count - 1)), extents(m.columns)))
        at |= place_of(m.row_tiles, unflat(i32(tile), extents(m.row_tiles)))
        at[m.axis] = k
        x = local("x", 1)
        put(x, f32(0), 0)
        with when(inside):
            put(x, convert(values.read(m.row, [at[ord(c)] for c in m.letters]), F32), 0)
        if m.exact:
            return x[0]
        first = let("first", _truncated(x[0]))
        second = let("second", _truncated(x[0] - first))
        third = x[0] - first - second
        return let("part", T.Select(equal(which, i32(0)), first, T.Select(equal(which, i32(1)), second, third)))

    def _put_pair(self, m: Matrix, pair: list[Expr], at: Expr) -> None:
        """Pack two numbers into one word of a fragment."""
        if storage_of(m) == "bfloat16":
            # each is exact in bf16: its upper half is the number
            low, high = (T.reinterpret(U32, x) for x in pair)
            word = T.bitwise_or(T.bitwise_and(high, T.uint32(HIGH)), T.shift_right(low, T.uint32(16)))
            put(self.arena.u32, word, at)
        else:
            packed = local("packed", 2, U32)
            pack_pair(storage_of(m), packed[0], *pair)
            put(self.arena.u32, packed[0], at)

    # the pipeline

    def fill(self, record: Expr) -> None:
        """Start the first loads of a page tile; ``record`` is that of this lane's page."""
        for n in range(self.work.depth):
            self._fetch(self.work.units[n], self.held[n], record)

    def run(self, page_tile: PageTile, record: Buffer, advance: Callable[[], None], more: Expr, keep: Keep) -> None:
        """Multiply all of this page tile, and start the first loads of the next one if there is ``more``.

        ``advance`` makes ``record`` that of the next page tile's page.
        """
        units, depth = self.work.units, self.work.depth
        for n, unit in enumerate(units):
            held = self.held[n % depth]
            self._multiply(unit, held)
            later = n + depth
            if later < len(units):
                self._fetch(units[later], held, record[0])
            else:
                if later == len(units):
                    advance()
                with when(more):
                    self._fetch(units[later - len(units)], held, record[0])
            if unit.chunk + unit.matrix.unit_chunks == unit.matrix.chunks:
                self._finish(unit, page_tile, keep)

    def _fetch(self, unit: _Unit, held: list[Buffer], record: Expr) -> None:
        """Load one unit: ``unit_chunks`` vectors of the low page, then as many of the high one."""
        m = unit.matrix
        t = type_of(m.load.load.value)
        place: dict[int, Expr] = {k: i32(x) for k, x in unit.place.items()}
        along, whole = t.tile[-1] // 2, t.numel // 2
        for half in range(2):
            of_page = let("record", shuffle(record, self.group + (unit.half * ROWS + half * 8)))
            at = row_of(m.load, place) * along + self.member * m.words + unit.chunk * (m.chunk // 2)
            source = let("source", wide(of_page) * whole + wide(at))
            for c in range(m.unit_chunks):
                with vector(m.words) as w:
                    put(
                        held[half * m.unit_chunks + c],
                        self.views[m.load.load.buffer][source + c * (m.chunk // 2) + w],
                        w,
                    )

    def _multiply(self, unit: _Unit, held: list[Buffer]) -> None:
        """Multiply one unit with all columns, on top of the sums of the units before it."""
        m = unit.matrix
        if unit.chunk == 0:
            for n in range(4 * m.column_tiles * m.accumulators):
                put(self.sums, f32(0), n)
        first = m.fragment_of(unit.place) * m.column_tiles * m.fragments_b
        for c in range(m.unit_chunks):
            for n in range(m.column_tiles):
                for s in range(m.fragments_b):
                    which = first + n * m.fragments_b + s
                    base = self.work.fragments_at[m.op] + which * m.fragment_words + (unit.chunk + c) * WARP * m.words
                    with vector(m.words) as w:
                        put(self.b, self.arena.u32[self.cta.lane * m.words + base + T.Cast(I32, w)], w)
                    at = 4 * (n * m.accumulators + min(s, m.accumulators - 1))
                    sums = [self.sums[at + e] for e in range(4)]
                    low, high = held[c], held[m.unit_chunks + c]
                    for j in range(m.words // 2):
                        a = [low[2 * j], high[2 * j], low[2 * j + 1], high[2 * j + 1]]
                        mma(storage_of(m), sums, a, [self.b[2 * j], self.b[2 * j + 1]])

    def _finish(self, unit: _Unit, page_tile: PageTile, keep: Keep) -> None:
        """Hand the results of 16 pages over, each from the lane that has it."""
        m = unit.matrix
        for half in range(2):
            slot = let("slot", self.group + (unit.half * ROWS + half * 8))
            for n in range(m.column_tiles):
                for e in range(2):
                    x, column, mine = self._result(m, n, half * 2 + e, e)
                    if mine is None and column is None:
                        continue
                    inside = slot < page_tile.count
                    tests = [t for t in (mine, inside) if t is not None]
                    at = place_of(m.columns, unflat(column, extents(m.columns)))
                    at |= {k: i32(v) for k, v in unit.place.items()}
                    _, _, lo = m.op.letters()
                    index = [
                        page_tile.start + slot if isinstance(d, Sym) else at[ord(c)]
                        for c, d in zip(lo, type_of(m.op.value).shape, strict=True)
                    ]
                    with when(tests[0] if len(tests) == 1 else T.And(*tests)):
                        keep(m.op.value, index, slot, x)

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
        return x, column, column < m.count if m.column_tiles * COLUMNS > m.count else None


Keep = Callable[[Value, Index, Expr, Expr], None]
"""Takes a result: the value, its index with the page's position, the page's place in the page tile, the number."""


def _truncated(x: Expr) -> Expr:
    """The upper half of an fp32 number: a bf16 number, and what is left of ``x`` is exact."""
    return T.reinterpret(F32, T.bitwise_and(T.reinterpret(U32, x), T.uint32(HIGH)))


def _joined(first: Expr, rest: Expr) -> Expr:
    """The sum of what the pieces gave; where that of the first is infinite or NaN, it is the result."""
    exponent = T.bitwise_and(T.reinterpret(U32, first), T.uint32(0x7F800000))
    return let("joined", T.Select(differ(exponent, T.uint32(0x7F800000)), first + rest, first))


assert set(TILE_TYPES) == {"bfloat16", "float16"}
