"""What a warp of ``select`` computes for a page tile where a lane group, several lanes, shares a page.

A page's summary is read in vectors of up to 16 bytes, neighbouring lanes next to each other in memory, along the axis
that is folded. With 8 lanes in a group, vectors of 8 elements and an axis of 128 elements there are 2 chunks:

    element     0..7    8..15   ..   56..63  | 64..71  ..  120..127
    member      0       1       ..   7       | 0       ..  7             of each group
    chunk       0                            | 1

    lane        0 .. 7      8 .. 15      16 .. 23     24 .. 31
    first       0           1            2            3                  group of the lane
    step 0      page 0      page 1       page 2       page 3             (one page in flight)
    step 1      page 4      ..

Each lane folds what it loads; then the members of a group fold their partial results in one fixed tree. Which folds
have a lane group is decided in :mod:`vortex.schedules.contractions`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from vortex.codegen.cuda.cta_compute import GpuTiles
from vortex.codegen.cuda.ptx import quotient, remainder, shuffle, shuffle_xor, wide
from vortex.codegen.cuda.select.page_tile import RESULTS, PageTile, rolled
from vortex.codegen.cuda.storage import StoredValues
from vortex.codegen.cuda.vector_load import unpack, vector
from vortex.codegen.tiles import Axes, Fold, Place, Take, extents, place_of
from vortex.codegen.tir import U32, Buffer, Expr, T, differ, equal, flat, i32, let, local, put, tirx, unflat, when
from vortex.codegen.values import Index, type_of
from vortex.ir.dialects import page
from vortex.schedules.contractions import LaneGroup, LaneGroupLoad


@dataclass(frozen=True)
class _Nest:
    """How a fold's loops are dealt out, known before any code is emitted."""

    tiled: Axes
    """Axes of the result by which the vectors are indexed: one vector for each index."""
    free: Axes
    """The other axes of the result: all of their results are folded from the same vectors."""
    serial: Axes
    """Axes of the fold beside that of the vectors."""
    pages: int
    """Pages that a lane has in flight at once."""
    block: int
    """Results along ``free`` that are accumulated side by side."""
    blocks: int
    once: bool
    """Whether one vector of each page is all there is to load for an index along ``tiled``."""

    @classmethod
    def of(cls, fold: Fold, group: LaneGroup, pages: int) -> _Nest:
        tiled = tuple(a for a in fold.out if a[0] in group.tiled)
        free = tuple(a for a in fold.out if a[0] not in group.tiled)
        serial = tuple(a for a in fold.red if a[0] != group.axis)
        size = 1
        for extent in extents(free):
            size *= extent
        block = max(d for d in range(1, min(size, RESULTS) + 1) if size % d == 0)
        once = group.chunks == 1 and not any(k in group.tiled for k, _ in serial)
        return cls(tiled, free, serial, pages, block, size // block, once)

    @property
    def accumulators(self) -> int:
        """Of a lane: by page in flight, then by result of the block."""
        return self.pages * self.block

    def result(self, b: Expr, j: int) -> Index:
        """The index along ``free`` of result ``j`` of block ``b``: plain numbers where there is one block."""
        dims = extents(self.free)
        if self.blocks > 1:
            return unflat(b * self.block + j, dims)
        index: Index = []
        for extent in reversed(dims):
            index.append(i32(j % extent))
            j //= extent
        return index[::-1]


@dataclass(frozen=True)
class _InFlight:
    """The pages that a lane has in flight: page ``u`` is page ``slots[u]`` of the page tile."""

    slots: list[Expr]
    records: list[Expr]


@dataclass(frozen=True)
class _Vectors:
    """The vectors of the pages in flight, in registers."""

    group: LaneGroup
    registers: dict[tuple[page.Load, int], Buffer]
    """By load and page in flight; declared by the first load into them."""

    def element(self, load: page.Load, index: Index, u: int, row: Place, along: Sequence[Expr]) -> Expr | None:
        """The element at ``index`` (page axis first) of page ``u``, if it is in the registers.

        ``row`` is the place that the vectors were loaded for, ``along`` the index expressions of their elements.
        """
        k = next((e for e, x in enumerate(along) if len(index) > 1 and index[-1] is x), None)
        known = next((x for x in self.group.loads if x.load is load), None)
        if k is None or known is None or not _sees(known, index, row):
            return None
        each = 32 // known.dtype.bits
        return unpack(self.registers[load, u][k // each], k % each, known.dtype)


def _sees(x: LaneGroupLoad, index: Index, at: Place) -> bool:
    """Whether a load at ``index`` (page axis first) asks for the row that ``x.rows`` means at ``at``."""
    return all(
        i is at.get(r) if r >= 0 else isinstance(i, tirx.IntImm) and int(i) == ~r
        for i, r in zip(index[1:-1], x.rows, strict=True)
    )


def row_of(x: LaneGroupLoad, at: Place) -> Expr:
    """Which row of the summary's tile a vector at ``at`` lies in."""
    return flat([at[r] if r >= 0 else i32(~r) for r in x.rows], type_of(x.load.value).tile[:-1])


@dataclass(frozen=True)
class LaneGroupTiles(GpuTiles):
    """One fold of 32 pages by lane groups; results go to their storage from the lane that ends up with them."""

    page_tile: PageTile = field(kw_only=True)
    group: LaneGroup = field(kw_only=True)
    views: dict[str, Buffer] = field(kw_only=True)
    """Fields as rows of 32-bit words, by buffer."""
    in_flight: int = field(kw_only=True)
    """Pages whose loads a lane has under way at once; 0 for as many as ``unpacked`` registers allow."""
    unpacked: int = field(kw_only=True)

    def fold(self, fold: Fold) -> None:
        member = let("member", remainder(self.page_tile.lane, i32(self.group.lanes)))
        first = let("team", quotient(self.page_tile.lane, i32(self.group.lanes)))
        loops = _Nest.of(fold, self.group, self._pages_in_flight())
        acc = local("acc", loops.accumulators, fold.kind)
        emitted = _LaneGroupFold(self, fold, loops, member, first, acc, _Vectors(self.group, {}))
        rolled([max(1, self._pages_of_group // loops.pages)], lambda i: emitted.step(i[0]), "step")

    @property
    def _pages_of_group(self) -> int:
        """Pages of the page tile that each lane group folds."""
        return max(1, self.page_tile.pages // self.group.pages)

    def _pages_in_flight(self) -> int:
        elements = len(self.group.loads) * self.group.vector
        wanted = self.in_flight or max(1, self.unpacked // elements)
        return min(self._pages_of_group, 1 << (wanted.bit_length() - 1))

    def on(self, slot: Expr, values: StoredValues | None = None) -> LaneGroupTiles:
        """The tiles of page ``slot`` of the page tile, read from ``values``."""
        held = (values or self.stored).at_slot(slot)
        return replace(self, position=self.page_tile.position_of(slot), values=held)


@dataclass(frozen=True)
class _LaneGroupFold:
    """The loops of one fold: over steps of pages, indices along ``tiled``, blocks of results, ``serial`` and chunks."""

    tiles: LaneGroupTiles
    fold: Fold
    nest: _Nest
    member: Expr
    """The lane's place in its lane group."""
    first: Expr
    """Which of the warp's lane groups the lane is in."""
    acc: Buffer
    vectors: _Vectors

    def slot(self, step: Expr, u: Expr | int) -> Expr:
        """The page of the page tile that this lane has in flight as number ``u`` of a step."""
        return (step * self.nest.pages + u) * self.tiles.group.pages + self.first

    def _read_slot(self, step: Expr, u: int) -> Expr:
        """The same; where a page tile has fewer pages than there are lane groups, the last for those without one."""
        pages, slot = self.tiles.page_tile.pages, self.slot(step, u)
        return slot if pages >= self.tiles.group.pages else T.min(slot, i32(pages - 1))

    def step(self, step: Expr) -> None:
        """Fold one step's pages."""
        slots = [let("slot", self._read_slot(step, u)) for u in range(self.nest.pages)]
        record = self.tiles.page_tile.record
        flight = _InFlight(slots, [let("record", shuffle(record, s)) for s in slots])

        def tile(index: Index) -> None:
            at = place_of(self.nest.tiled, index)
            if self.nest.once:
                self._fetch(flight, at, i32(0))
            rolled([self.nest.blocks], lambda b: self._block(step, flight, at, b[0]), "block")

        rolled(extents(self.nest.tiled), tile, "t")

    def _block(self, step: Expr, flight: _InFlight, at: Place, b: Expr) -> None:
        """Fold one block of results of the pages in flight, and hand them over."""
        for n in range(self.nest.accumulators):
            put(self.acc, self.fold.start, n)

        def term(index: Index) -> None:
            here = at | place_of(self.nest.serial, index)
            rolled([self.tiles.group.chunks], lambda c: self._chunk(flight, at, here, b, c[0]), "c")

        rolled(extents(self.nest.serial), term, "r")
        self._reduce_lanes(lambda u, j, x: self._done(step, at, b, u, j, x))

    def _chunk(self, flight: _InFlight, at: Place, here: Place, b: Expr, chunk: Expr) -> None:
        """Fold one vector of each page in flight into the accumulators of a block."""
        group, fold = self.tiles.group, self.fold
        row = at
        if not self.nest.once:
            self._fetch(flight, here, chunk)
            row = here
        base = let("base", (chunk * group.lanes + self.member) * group.vector)
        along = [base + e for e in range(group.vector)]
        for j in range(self.nest.block):
            place = here | place_of(self.nest.free, self.nest.result(b, j))
            for u in range(self.nest.pages):
                tiles = self._on_page(flight, u, row, along)
                for x in along:
                    n = u * self.nest.block + j
                    put(self.acc, fold.take(self.acc[n], fold.term(tiles, place | {group.axis: x})), n)

    def _on_page(self, flight: _InFlight, u: int, row: Place, along: Sequence[Expr]) -> LaneGroupTiles:
        """The tiles of page ``u`` of those in flight, whose vectors are read from the registers."""
        stored = self.tiles.stored

        def load(o: page.Load, index: Index) -> Expr:
            found = self.vectors.element(o, index, u, row, along)
            return stored.read_load(o, index) if found is None else found

        return self.tiles.on(flight.slots[u], replace(stored, read_load=load))

    def _fetch(self, flight: _InFlight, at: Place, chunk: Expr) -> None:
        """Load one vector of each page in flight: nothing is used before all are on their way."""
        group, held = self.tiles.group, self.vectors.registers
        for x in group.loads:
            size = group.vector * x.dtype.bits // 32
            t = type_of(x.load.value)
            along, whole = (n * x.dtype.bits // 32 for n in (t.tile[-1], t.numel))
            word = let("word", row_of(x, at) * along + (chunk * group.lanes + self.member) * size)
            for u, record in enumerate(flight.records):
                if (x.load, u) not in held:
                    held[x.load, u] = local(f"{x.load.buffer}_{u}", max(size, 2), U32)
                source = wide(record) * whole + wide(word)
                with vector(size) as w:
                    put(held[x.load, u], self.tiles.views[x.load.buffer][source + w], w)

    def _done(self, step: Expr, at: Place, b: Expr, u: Expr, j: Expr, x: Expr) -> None:
        """Hand result ``j`` of a block and page ``u`` of those in flight over."""
        slot = let("result_slot", self.slot(step, u))
        place = at | place_of(self.nest.free, unflat(b * self.nest.block + j, extents(self.nest.free)))
        with when(slot < self.tiles.page_tile.count):
            self.fold.into(self.tiles.on(slot), [place[k] for k, _ in self.fold.out], x)

    def _reduce_lanes(self, done: Callable[[Expr, Expr, Expr], None]) -> None:
        """Fold each accumulator over the lanes of its group, in one fixed tree.

        While there are several, a lane hands half of its values to the lane at distance ``mask`` and keeps folding
        the other half: n values cost n - 1 exchanges instead of n log n. Four values in a group of 8 lanes:

            mask    lanes 0..3 of a group hold      lanes 4..7 hold
            4       values 0, 1                     values 2, 3
            2       0 (lanes 0, 1)   1 (2, 3)       2 (4, 5)   3 (6, 7)
            1       the lanes of each pair hold the same value, and the first of them hands it over
        """
        lanes, take, member = self.tiles.group.lanes, self.fold.take, self.member
        values = self.nest.accumulators
        count = 1 << (values - 1).bit_length()
        held: list[Expr] = [self.acc[n] for n in range(values)]
        held += [self.acc[0]] * (count - values)  # padding, folded and dropped
        mask = lanes // 2
        while mask:
            held = _halved(held, member, mask, take)
            mask //= 2
        spread = count // len(held)  # lanes that hold different values
        origin = let("origin", quotient(member, i32(lanes // spread)) * len(held))
        writes = equal(remainder(member, i32(lanes // spread)), i32(0)) if lanes > spread else None
        for n, x in enumerate(held):
            which = let("which", origin + n)
            tests = [] if writes is None else [writes]
            tests += [which < values] if count > values else []
            u, j = quotient(which, i32(self.nest.block)), remainder(which, i32(self.nest.block))
            if not tests:
                done(u, j, x)
                continue
            with when(tests[0] if len(tests) == 1 else T.And(*tests)):
                done(u, j, x)


def _halved(held: list[Expr], member: Expr, mask: int, take: Take) -> list[Expr]:
    """One exchange of :meth:`_LaneGroupFold._reduce_lanes` with the lane at distance ``mask``."""
    if len(held) == 1:
        return [let("sum", take(held[0], let("given", shuffle_xor(held[0], mask))))]
    upper = let("upper", differ(T.bitwise_and(member, i32(mask)), i32(0)))
    half, made = len(held) // 2, []
    for low, high in zip(held[:half], held[half:], strict=True):
        mine = let("mine", T.Select(upper, high, low))
        given = let("given", shuffle_xor(let("gives", T.Select(upper, low, high)), mask))
        made.append(let("sum", take(mine, given)))
    return made
