"""Contractions of summaries with numbers of the row on tensor cores: 16 pages on M, columns of the row on N.

A lane loads 16 bytes of a page at once and uses them as they lie: the sum over an axis has no order of its own, so
fragment A takes the elements as they come and fragment B, which is made once per row, is put in the same order.
Stored values of the row are multiplied as they are; computed ones are split into three whose sum they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from vortex.codegen.cuda.ptx import TILE_TYPES, WARP, mma, pack_pair, quotient, remainder, shuffle, shuffle_xor, wide
from vortex.codegen.cuda.select.lane_group import row_of
from vortex.codegen.cuda.select.page_tile import PageTile, vector
from vortex.codegen.cuda.storage import Arena, StoredValues
from vortex.codegen.cuda.warp import Cta
from vortex.codegen.narrow import STORAGE
from vortex.codegen.scalar import convert
from vortex.codegen.tir import F32, I32, U32, Buffer, Expr, T, differ, equal, f32, i32, let, local, put, unflat, when
from vortex.codegen.values import Index, type_of
from vortex.ir.core import Value
from vortex.ir.dialects import flow
from vortex.ir.types import Sym
from vortex.schedules.contractions import COLUMNS, PIECES, Matrix
from vortex.schedules.cuda_select import PAGE_TILE

ROWS = 16
"""Pages of one tensor core tile."""
HIGH = 0xFFFF0000


def storage_of(m: Matrix) -> str:
    """The TVM type of the summaries that ``m`` multiplies."""
    return STORAGE[m.load.dtype.name]


@dataclass(frozen=True)
class _Unit:
    """What is loaded at once: some chunks of 16 pages, at one place of the tile."""

    matrix: Matrix
    at: tuple[int, ...]
    """Along ``matrix.tiles``."""
    half: int
    """Which 16 pages of the page tile."""
    chunk: int

    @property
    def place(self) -> dict[int, int]:
        return dict(zip([k for k, _ in self.matrix.tiles], self.at, strict=True))


def _places(m: Matrix) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = [()]
    for _, d in m.tiles:
        found = [(*t, i) for t in found for i in range(d)]
    return found


@dataclass
class MatrixPass:
    """The contractions of one pass over the pages of a row, as a pipeline of loads and products.

    Registers hold a few units on their way; the place of one that was multiplied is filled with a later one, of
    the next page tile at the end of a page tile.
    """

    matrices: list[Matrix]
    arena: Arena
    cta: Cta
    views: dict[str, Buffer]
    """Fields as rows of 32-bit words, by buffer."""
    ahead: int
    """Registers for summaries on their way."""
    fragments_at: dict[flow.Dot, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.units = [
            _Unit(m, at, half, c)
            for half in range(PAGE_TILE // ROWS)
            for m in self.matrices
            for at in _places(m)
            for c in range(0, m.chunks, m.step)
        ]
        widest = max(2 * m.step * m.words for m in self.matrices)
        fit = max(1, self.ahead // widest)
        self.depth = max(d for d in range(1, min(fit, len(self.units)) + 1) if len(self.units) % d == 0)

    def reserve(self) -> None:
        """Shared memory for the fragments, before the arena is opened."""
        for m in self.matrices:
            self.fragments_at[m.op] = self.arena.take(len(m.fragments()) * m.fragment_words)

    # once per row

    def make_fragments(self, values: StoredValues) -> None:
        """Fragments B by all threads; a barrier must follow."""
        for m in self.matrices:
            for n, (tile, columns, piece) in enumerate(m.fragments()):
                base = self.fragments_at[m.op] + n * m.fragment_words
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
        at = dict(zip([q for q, _ in m.columns], unflat(T.min(head, i32(m.count - 1)), [d for _, d in m.columns]),
                      strict=True))  # fmt: skip
        at |= dict(zip([q for q, _ in m.row_tiles], unflat(i32(tile), [d for _, d in m.row_tiles]), strict=True))
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

    def open(self) -> None:
        """Registers: they outlive the page tiles."""
        self.group = let("page_of_lane", quotient(self.cta.lane, i32(4)))
        self.member = let("quarter_of_lane", remainder(self.cta.lane, i32(4)))
        vectors = max(2 * m.step for m in self.matrices)
        words = max(m.words for m in self.matrices)
        self.held = [[local(f"held{d}_{v}", max(2, words), U32) for v in range(vectors)] for d in range(self.depth)]
        most = max(m.column_tiles * m.sums for m in self.matrices)
        self.sums = local("sums", 4 * most)
        self.b = local("b", 4, U32)

    def fill(self, record: Expr) -> None:
        """Start the first loads of a page tile; ``record`` is that of this lane's page."""
        for n in range(self.depth):
            self._fetch(self.units[n], self.held[n], record)

    def run(self, page_tile: PageTile, record: Buffer, advance: Callable[[], None], more: Expr, keep: Keep) -> None:
        """Multiply all of this page tile; start the first loads of the next if there is ``more``.

        ``advance`` makes ``record`` that of the next page tile's page.
        """
        for n, unit in enumerate(self.units):
            held = self.held[n % self.depth]
            self._multiply(unit, held)
            later = n + self.depth
            if later < len(self.units):
                self._fetch(self.units[later], held, record[0])
            else:
                if later == len(self.units):
                    advance()
                with when(more):
                    self._fetch(self.units[later - len(self.units)], held, record[0])
            if unit.chunk + unit.matrix.step == unit.matrix.chunks:
                self._finish(unit, page_tile, keep)

    def _fetch(self, unit: _Unit, held: list[Buffer], record: Expr) -> None:
        m = unit.matrix
        t = type_of(m.load.load.value)
        place: dict[int, Expr] = {k: i32(x) for k, x in unit.place.items()}
        along, whole = t.tile[-1] // 2, t.numel // 2
        for half in range(2):
            of_page = let("record", shuffle(record, self.group + (unit.half * ROWS + half * 8)))
            at = row_of(m.load, place) * along + self.member * m.words + unit.chunk * (m.chunk // 2)
            source = let("source", wide(of_page) * whole + wide(at))
            for c in range(m.step):
                with vector(m.words) as w:
                    put(held[half * m.step + c], self.views[m.load.load.buffer][source + c * (m.chunk // 2) + w], w)

    def _multiply(self, unit: _Unit, held: list[Buffer]) -> None:
        m = unit.matrix
        if unit.chunk == 0:
            for n in range(4 * m.column_tiles * m.sums):
                put(self.sums, f32(0), n)
        first = m.fragment_of(unit.place) * m.column_tiles * m.sets
        for c in range(m.step):
            for n in range(m.column_tiles):
                for s in range(m.sets):
                    which = first + n * m.sets + s
                    base = self.fragments_at[m.op] + which * m.fragment_words + (unit.chunk + c) * WARP * m.words
                    with vector(m.words) as w:
                        put(self.b, self.arena.u32[self.cta.lane * m.words + base + T.Cast(I32, w)], w)
                    at = 4 * (n * m.sums + min(s, m.sums - 1))
                    sums = [self.sums[at + e] for e in range(4)]
                    low, high = held[c], held[m.step + c]
                    for j in range(m.words // 2):
                        a = [low[2 * j], high[2 * j], low[2 * j + 1], high[2 * j + 1]]
                        mma(storage_of(m), sums, a, [self.b[2 * j], self.b[2 * j + 1]])

    def _finish(self, unit: _Unit, page_tile: PageTile, keep: Keep) -> None:
        """Hand the results of 16 pages over: each from the lane that has it."""
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
                    at = dict(zip([k for k, _ in m.columns], unflat(column, [d for _, d in m.columns]), strict=True))
                    at |= {k: i32(v) for k, v in unit.place.items()}
                    _, _, lo = m.op.letters()
                    index = [
                        page_tile.start + slot if isinstance(d, Sym) else at[ord(c)]
                        for c, d in zip(lo, type_of(m.op.value).shape, strict=True)
                    ]
                    with when(tests[0] if len(tests) == 1 else T.And(*tests)):
                        keep(m.op.value, index, slot, x)

    def _result(self, m: Matrix, n: int, e: int, odd: int) -> tuple[Expr, Expr | None, Expr | None]:
        """Number ``e`` of this lane, its column, and whether the lane has one (None: all do)."""
        if m.side_by_side:
            if odd >= m.count:
                return None, None, None
            head = let("head_sum", self.sums[e])
            rest = let("rest_sum", shuffle_xor(head, 1) + shuffle_xor(head, 2))
            return _joined(head, rest), i32(odd), equal(self.member, i32(0))
        at = 4 * n * m.sums + e
        x = self.sums[at] if m.sums == 1 else _joined(self.sums[at], self.sums[at + 4])
        column = let("column", self.member * 2 + (n * COLUMNS + odd))
        return x, column, column < m.count if m.column_tiles * COLUMNS > m.count else None


Keep = Callable[[Value, Index, Expr, Expr], None]
"""Takes a result: the value, its index with the page's position, the page's place in the page tile, the number."""


def _truncated(x: Expr) -> Expr:
    """The upper half of an fp32 number: a bf16 number, and what is left of ``x`` is exact."""
    return T.reinterpret(F32, T.bitwise_and(T.reinterpret(U32, x), T.uint32(HIGH)))


def _joined(first: Expr, rest: Expr) -> Expr:
    """The sum of what the pieces gave; where the first is infinite or NaN the others have nothing to say."""
    exponent = T.bitwise_and(T.reinterpret(U32, first), T.uint32(0x7F800000))
    return let("joined", T.Select(differ(exponent, T.uint32(0x7F800000)), first + rest, first))


assert set(TILE_TYPES) == {"bfloat16", "float16"}
