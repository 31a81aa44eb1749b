"""What a warp computes for 32 candidate pages, a *page tile*: a lane per page, or a lane group of lanes per page.

The order of every sum depends on the shapes of the tile and on the page tile alone: not on the number of
threads, nor on which CTA has the page tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tvm.script.ir_builder import IRBuilder

from vortex.codegen.cuda.minmax import fold_on_gpu
from vortex.codegen.cuda.ptx import WARP, quotient, remainder, shuffle, shuffle_xor, wide
from vortex.codegen.cuda.select.lane_group import row_of, sees, unpack
from vortex.codegen.cuda.storage import StoredValues
from vortex.codegen.scalar import number_type
from vortex.codegen.tiles import Fold, Keep, Tiles
from vortex.codegen.tir import U32, Buffer, Expr, T, cast, differ, equal, i32, let, local, loop, nest, put, unflat, when
from vortex.codegen.values import Index, type_of
from vortex.ir.core import Op
from vortex.ir.dialects import page
from vortex.schedules.contractions import LOADABLE, LaneGroup

RESULTS = 4
"""Results for one page that a lane accumulates side by side."""


@dataclass
class PageTile:
    """The pages in hand: candidates ``[start, start + 32)``, of which ``count`` exist."""

    start: Expr
    count: Expr
    lane: Expr
    last: Expr
    """The last candidate of the work item; lanes beyond it repeat it, and their results go nowhere."""
    record: Expr | None = None
    """Of this lane's page: physical page * KV heads + head, where its summaries lie in every field."""

    def position(self, slot: Expr) -> Expr:
        return T.min(self.start + slot, self.last)


@dataclass
class LaneGroupTiles(Tiles):
    """One fold of 32 pages by lane groups; results go to their storage from the lane that ends up with them."""

    page_tile: PageTile = field(kw_only=True)
    lane_group: LaneGroup = field(kw_only=True)
    views: dict[str, Buffer] = field(kw_only=True)
    """Fields as rows of 32-bit words, by buffer."""
    in_flight: int = field(kw_only=True)
    """Pages whose loads a lane has under way at once; 0 for as many as ``unpacked`` registers allow."""
    unpacked: int = field(kw_only=True)
    vectors: dict[tuple[page.Load, int], Buffer] = field(default_factory=dict)
    along: list[Expr] = field(default_factory=list)
    """The index expressions of a vector's elements."""
    row: dict[int, Expr] = field(default_factory=dict)
    """Where the vectors in hand are, by axis."""
    turn: int = 0

    def fold(
        self,
        o: Op,
        out: list[tuple[int, int]],
        red: list[tuple[int, int]],
        contiguous: int | None,
        element: Callable[[dict[int, Expr]], Expr],
        keep: Keep,
    ) -> None:
        lane_group = self.lane_group
        kind = number_type(type_of(o.value).dtype)
        start, take = fold_on_gpu(o, kind)
        pages = self._pages_in_flight()
        tiled = [(k, d) for k, d in out if k in lane_group.tiled]
        free = [(k, d) for k, d in out if k not in lane_group.tiled]
        serial = [(k, d) for k, d in red if k != lane_group.axis]
        size = math.prod(d for _, d in free)
        block = max(d for d in range(1, min(size, RESULTS) + 1) if size % d == 0)
        member = let("member", remainder(self.page_tile.lane, i32(lane_group.lanes)))
        first = let("team", quotient(self.page_tile.lane, i32(lane_group.lanes)))
        once = lane_group.chunks == 1 and not any(k in lane_group.tiled for k, _ in serial)
        acc = local("acc", pages * block, kind)

        def group(step: Expr) -> None:
            slots = [let("slot", (step * pages + u) * lane_group.pages + first) for u in range(pages)]
            records = [let("record", shuffle(self.page_tile.record, s)) for s in slots]

            def results(at: dict[int, Expr], b: Expr) -> None:
                for n in range(pages * block):
                    put(acc, start, n)

                def term(r: Index) -> None:
                    here = at | _named(serial, r)

                    def chunk(c: Index) -> None:
                        if not once:
                            self._fetch(records, here, c[0], member)
                        base = let("base", (c[0] * lane_group.lanes + member) * lane_group.vector)
                        self.along = [base + e for e in range(lane_group.vector)]
                        for j in range(block):
                            place = here | _named(free, _result(free, b, block, j))
                            for u in range(pages):
                                self._on_page(u, slots[u])
                                for x in self.along:
                                    n = u * block + j
                                    put(acc, take(acc[n], element(place | {lane_group.axis: x})), n)
                        self.along = []

                    rolled([lane_group.chunks], chunk, "c")

                rolled([d for _, d in serial], term, "r")

                def done(u: Expr, j: Expr, x: Expr) -> None:
                    slot = let("result_slot", (step * pages + u) * lane_group.pages + first)
                    place = at | _named(free, unflat(b * block + j, [d for _, d in free]))
                    self._on_page(0, slot)
                    with when(slot < self.page_tile.count):
                        keep([place[k] for k, _ in out], x)

                self._reduce_lanes(acc, pages, block, member, take, done)

            def tile(ti: Index) -> None:
                at = _named(tiled, ti)
                if once:
                    self._fetch(records, at, i32(0), member)
                rolled([size // block], lambda b: results(at, b[0]), "block")

            rolled([d for _, d in tiled], tile, "t")

        rolled([lane_group.lanes // pages], lambda i: group(i[0]), "step")

    def _pages_in_flight(self) -> int:
        elements = len(self.lane_group.loads) * self.lane_group.vector
        wanted = self.in_flight or max(1, self.unpacked // elements)
        return min(self.lane_group.lanes, 1 << (wanted.bit_length() - 1))

    def _on_page(self, u: int, slot: Expr) -> None:
        """What is read from here on is about this page, number ``u`` of those in flight."""
        assert isinstance(self.values, StoredValues)
        self.turn, self.position, self.values.slot = u, self.page_tile.position(slot), slot

    def _fetch(self, records: list[Expr], at: dict[int, Expr], chunk: Expr, member: Expr) -> None:
        """Load one vector of each page in flight: nothing is used before all are on their way."""
        self.row = at
        for x in self.lane_group.loads:
            size = self.lane_group.vector * LOADABLE[x.dtype] // 4
            t = type_of(x.load.value)
            along, whole = (n * LOADABLE[x.dtype] // 4 for n in (t.tile[-1], t.numel))
            word = let("word", row_of(x, at) * along + (chunk * self.lane_group.lanes + member) * size)
            for u, record in enumerate(records):
                if (x.load, u) not in self.vectors:
                    self.vectors[x.load, u] = local(f"{x.load.buffer}_{u}", max(size, 2), U32)
                source = wide(record) * whole + wide(word)
                with vector(size) as w:
                    put(self.vectors[x.load, u], self.views[x.load.buffer][source + w], w)

    def vector_element(self, load: page.Load, index: Index) -> Expr | None:
        """The element at ``index`` (page axis first) from the registers, if it is there."""
        k = next((e for e, x in enumerate(self.along) if len(index) > 1 and index[-1] is x), None)
        known = next((x for x in self.lane_group.loads if x.load is load), None)
        if k is None or known is None or not sees(known, index, self.row):
            return None
        each = 4 // LOADABLE[known.dtype]
        return unpack(self.vectors[load, self.turn][k // each], k % each, known.dtype)

    def _across(self, x: Expr, mask: int) -> Expr:
        return let("given", shuffle_xor(let("gives", x), mask))

    def _reduce_lanes(
        self, acc: Buffer, pages: int, block: int, member: Expr, take: Fold, done: Callable[[Expr, Expr, Expr], None]
    ) -> None:
        """Fold each of the ``pages * block`` accumulators over the lane group's lanes, in one fixed tree.

        While there are several, a lane hands half of its values to the lane at distance ``mask`` and
        keeps folding the other half: n values cost n - 1 exchanges instead of n log n.
        """
        lane_group = self.lane_group.lanes
        count = 1 << (pages * block - 1).bit_length()
        held: list[Expr] = [acc[n] for n in range(pages * block)]
        held += [acc[0]] * (count - pages * block)  # padding, folded and dropped
        mask = lane_group // 2
        while mask:
            upper = let("upper", differ(T.bitwise_and(member, i32(mask)), i32(0))) if len(held) > 1 else None
            if upper is None:
                held = [let("sum", take(held[0], let("given", shuffle_xor(held[0], mask))))]
            else:
                half = len(held) // 2
                held = [
                    let(
                        "sum",
                        take(let("mine", T.Select(upper, high, low)), self._across(T.Select(upper, low, high), mask)),
                    )
                    for low, high in zip(held[:half], held[half:], strict=True)
                ]
            mask //= 2
        spread = count // len(held)  # lanes that hold different values
        origin = let("origin", quotient(member, i32(lane_group // spread)) * len(held))
        writes = equal(remainder(member, i32(lane_group // spread)), i32(0)) if lane_group > spread else None
        for n, x in enumerate(held):
            which = let("which", origin + n)
            tests = [] if writes is None else [writes]
            tests += [which < pages * block] if count > pages * block else []
            u, j = quotient(which, i32(block)), remainder(which, i32(block))
            if not tests:
                done(u, j, x)
                continue
            with when(tests[0] if len(tests) == 1 else T.And(*tests)):
                done(u, j, x)


def rolled(extents: list[int], body: Callable[[Index], None], prefix: str) -> None:
    """Loops over ``extents`` that stay loops: unrolled, what they load ahead would not fit the registers."""

    def level(done: Index) -> None:
        if len(done) == len(extents):
            body(done)
        elif extents[len(done)] == 1:
            level([*done, i32(0)])
        else:
            with T.serial(0, extents[len(done)], unroll=False) as v:
                IRBuilder.name(f"{prefix}{len(done)}", v)
                level([*done, v])

    level([])


@contextmanager
def vector(words: int) -> Iterator[Expr]:
    """The words of one load."""
    if words == 1:
        yield T.int64(0)
        return
    with T.vectorized(0, words) as w:
        yield cast("int64", w)


def _named(axes: list[tuple[int, int]], index: Index) -> dict[int, Expr]:
    """The index by the keys of its axes."""
    return dict(zip([k for k, _ in axes], index, strict=True))


def _result(free: list[tuple[int, int]], b: Expr, block: int, j: int) -> Index:
    """Result ``j`` of block ``b`` along the axes that no vector is indexed by: numbers where there is one block."""
    dims = [d for _, d in free]
    if math.prod(dims) > block:
        return unflat(b * block + j, dims)
    return [i32(j // math.prod(dims[n + 1 :]) % d) for n, d in enumerate(dims)]


@dataclass
class LaneTiles(Tiles):
    """Each lane has one page: plain loops."""

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
        acc = local("acc", 1, kind)

        def one(i: Index) -> None:
            put(acc, start, 0)
            at = _named(out, i)
            if all(d for _, d in red):
                loops = rolled if math.prod(d for _, d in red) > RESULTS else nest
                loops([d for _, d in red], lambda r: put(acc, take(acc[0], element(at | _named(red, r))), 0), "r")
            keep(i, acc[0])

        if all(d for _, d in out):
            nest([d for _, d in out], one)


@dataclass
class WideTiles(Tiles):
    """A fold over the pages of a page tile with many results: a lane takes results, and walks the pages."""

    page_tile: PageTile = field(kw_only=True)

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
        results = math.prod(d for _, d in out)
        if any(d == 0 for _, d in red):
            return  # nothing is folded: the identity was put there
        acc = local("acc", 1, kind)
        with loop("result_round", -(-results // WARP)) as turn:
            result = let("result", turn * WARP + self.page_tile.lane)
            with when(result < results):
                at = _named(out, unflat(result, [d for _, d in out]))
                put(acc, start, 0)
                with loop("slot", self.page_tile.count) as slot:
                    assert isinstance(self.values, StoredValues)
                    self.position, self.values.slot = self.page_tile.start + slot, slot

                    def term(r: Index) -> None:
                        put(acc, take(acc[0], element(at | _named(red, r))), 0)

                    nest([d for _, d in red], term, "r")
                keep([at[k] for k, _ in out], acc[0])
