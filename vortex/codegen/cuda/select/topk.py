"""Exact, deterministic top-k of one row by one CTA: from a shortlist, or the k-th key by histograms and a sweep.

Each warp has a range of pages of its own and each thread the keys of some of them in registers; what goes beyond is
read where it lies. The bins of a histogram divide the range in which the k-th key is known to lie, so keys that agree
in their leading bits, as scores do, still spread over the bins; once few are left, they are ranked by comparing all
with all. Counts know no order, so neither does the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vortex.codegen.cuda.ptx import WARP, cta_sync, shuffle, warp_extreme
from vortex.codegen.cuda.select.shortlist import NONE, Shortlist
from vortex.codegen.cuda.storage import Arena, Held
from vortex.codegen.cuda.warp import (
    Cta,
    add_at,
    ballot,
    below,
    count_bits,
    fetch_add,
    rounds_of,
    warp_prefix,
)
from vortex.codegen.tir import I32, U32, Buffer, Expr, T, cast, choose, equal, i32, let, local, loop, put, when

BITS = 8
"""Of a histogram: of a few thousand scores, one of its 256 bins holds few."""
FAR = 4
"""Keys beyond those in registers that are read together."""
FEW = WARP
"""Keys that are ranked directly."""


def add(a: Expr, b: Expr) -> Expr:
    return a + b


@dataclass
class TopK:
    """The keys of a row, and where its pages go."""

    cta: Cta
    arena: Arena
    held: int
    """Keys that a thread keeps in registers."""
    keys: Held | None = None

    def __post_init__(self) -> None:
        # at least one bin a thread
        self.bits = max(BITS, (self.cta.threads - 1).bit_length())
        self.bins = self.arena.take(1 << self.bits)
        self.sums = self.arena.take(3 * self.cta.warps)
        self.answer = self.arena.take(8)
        """The bin found, the keys above it, the keys in it, the keys listed; the last of the ties."""
        self.list = self.arena.take(2 * FEW)
        self.shortlist = Shortlist(self.cta, self.arena)

    # the keys

    def _load(self, scored: Expr) -> None:
        assert self.keys is not None
        self.scored = scored
        self.share = let("share", rounds_of(rounds_of(scored, WARP), self.cta.warps))
        """Rounds of 32 pages that a warp has."""
        self.begin = let("begin", self.cta.warp * self.share * WARP)
        self.near = local("keys", self.held, U32)
        for i in range(self.held):
            put(self.near, T.uint32(0), i)

        def read(get: Callable[[Expr], Expr]) -> None:
            # all loads are on their way before the first is looked at
            for i in range(self.held):
                with when(i32(i) < self.share):
                    put(self.near, T.reinterpret(U32, get(T.min(self._page(i), scored - 1))), i)
            for i in range(self.held):
                put(self.near, T.Select(self._page(i) < scored, self.near[i], T.uint32(0)), i)

        if not self.keys.pitch:
            read(self.keys.far)
            return
        with choose(self.keys.on_chip) as (then, other):
            with then():
                read(self.keys.near)
            with other():
                read(self.keys.far)

    def _page(self, i: Expr) -> Expr:
        return self.begin + i * WARP + self.cta.lane

    def _each(self, body: Callable[[Expr, Expr, Expr], None]) -> None:
        """``body(page, whether there is one, key)`` for this thread's pages, ascending; all lanes take part."""
        assert self.keys is not None
        for i in range(self.held):
            with when(i32(i) < self.share):
                s = let("s", self._page(i))
                body(s, let("inside", s < self.scored), self.near[i])
        batch = local("far_keys", FAR, U32)
        with loop("far_round", rounds_of(T.max(i32(0), self.share - self.held), FAR)) as turn:
            first = let("first_far", turn * FAR + self.held)
            # loads on their way together: one at a time, each would be waited for
            for i in range(FAR):
                put(batch, T.reinterpret(U32, self.keys.get(T.min(self._page(first + i), self.scored - 1))), i)
            for i in range(FAR):
                with when(first + i < self.share):
                    s = let("s", self._page(first + i))
                    inside = let("inside", s < self.scored)
                    body(s, inside, T.Select(inside, batch[i], T.uint32(0)))

    # the k-th key

    def threshold(self, best: Expr) -> tuple[Expr, Expr]:
        """The key and the page such that the ``best`` best are those of a larger key, and of the same key those up to
        that page.
        """
        low, high, want = local("low", 1, U32), local("high", 1, U32), local("want", 1, I32)
        last, more = local("last_page", 1, I32), local("more_to_do", 1, I32)
        put(low, T.uint32(NONE), 0)
        put(high, T.uint32(0), 0)
        put(want, best, 0)
        put(last, i32(-1), 0)
        put(more, T.Select(best > 0, i32(1), i32(0)), 0)

        def widen(s: Expr, inside: Expr, key: Expr) -> None:
            put(low, T.Select(inside, T.min(low[0], key), low[0]), 0)
            put(high, T.max(high[0], key), 0)

        self._each(widen)
        with self.cta.share("bin", 1 << self.bits) as b:
            put(self.arena.i32, i32(0), b + self.bins)
        with when(equal(self.cta.thread, i32(0))):
            put(self.arena.i32, i32(0), self.answer + 3)
        self._range(low, high)
        with T.While(more[0] > 0):
            self._narrow(low, high, want, last, more)
        with when(best <= 0):
            put(low, T.uint32(NONE), 0)
        return let("threshold", low[0]), let("last", last[0])

    def _range(self, low: Buffer, high: Buffer) -> None:
        """The least and the greatest of all threads."""
        least, most = warp_extreme("min", low[0]), warp_extreme("max", high[0])
        shared = self.arena.u32
        with when(equal(self.cta.lane, i32(0))):
            put(shared, least, self.cta.warp + self.sums)
            put(shared, most, self.cta.warp + (self.sums + self.cta.warps))
        cta_sync()
        put(low, shared[self.sums], 0)
        put(high, shared[self.sums + self.cta.warps], 0)
        for w in range(1, self.cta.warps):
            put(low, T.min(low[0], shared[self.sums + w]), 0)
            put(high, T.max(high[0], shared[self.sums + self.cta.warps + w]), 0)

    def _narrow(self, low: Buffer, high: Buffer, want: Buffer, last: Buffer, more: Buffer) -> None:
        """From the range [low, high] to that of the bin that holds the wanted key; the bins are left at zero."""
        shift = let("shift", T.max(i32(0), 32 - self.bits - cast(I32, T.clz(high[0] - low[0]))))
        width = let("width", cast(U32, shift))

        def count(s: Expr, inside: Expr, key: Expr) -> None:
            with when(T.And(inside, T.And(key >= low[0], key <= high[0]))):
                b = let("bin", cast(I32, T.shift_right(key - low[0], width)))
                add_at(self.arena.i32.ptr_to([b + self.bins]), i32(1))

        self._each(count)
        cta_sync()
        self._find(want)
        answer = enumerate(("found", "above", "inside"))
        found, above, inside = (let(n, self.arena.i32[self.answer + i]) for i, n in answer)
        put(want, want[0] - above, 0)
        first = let("first_key", low[0] + T.shift_left(cast(U32, found), width))
        span = let("span", T.shift_left(T.uint32(1), width) - T.uint32(1))
        # first + span may lie beyond 2^32 where the row goes from -inf to +inf
        end = let("last_key", T.Select(high[0] - first <= span, high[0], first + span))
        put(low, first, 0)
        put(high, end, 0)
        with choose(inside <= FEW) as (few, many):
            with few():
                self._rank(low, high, want, last, inside)
                put(more, i32(0), 0)
            with many(), when(equal(first, end)):
                self._last_of_ties(first, want, last)
                put(more, i32(0), 0)

    def _find(self, want: Buffer) -> None:
        """The bin that holds the wanted key, how many keys lie above it and in it; the bins are cleared."""
        each = (1 << self.bits) // self.cta.threads
        top = let("top", (1 << self.bits) - 1 - self.cta.thread * each + self.bins)
        counts = local("counts", each, I32)
        mine = local("mine", 1, I32)
        put(mine, i32(0), 0)
        for b in range(each):
            put(counts, self.arena.i32[top - b], b)
            put(mine, mine[0] + counts[b], 0)
        before = warp_prefix(mine[0], add, self.cta.lane)
        with when(equal(self.cta.lane, i32(WARP - 1))):
            put(self.arena.i32, before, self.cta.warp + self.sums)
        cta_sync()
        above = local("above", 1, I32)
        put(above, before - mine[0], 0)
        for w in range(self.cta.warps - 1):
            put(above, above[0] + T.Select(self.cta.warp > w, self.arena.i32[self.sums + w], i32(0)), 0)
        for b in range(each):
            with when(T.And(above[0] < want[0], above[0] + counts[b] >= want[0])):
                put(self.arena.i32, top - b - self.bins, self.answer)
                put(self.arena.i32, above[0], self.answer + 1)
                put(self.arena.i32, counts[b], self.answer + 2)
            put(above, above[0] + counts[b], 0)
            put(self.arena.i32, i32(0), top - b)
        cta_sync()

    def _rank(self, low: Buffer, high: Buffer, want: Buffer, last: Buffer, count: Expr) -> None:
        """The wanted one among the ``count`` keys in [low, high]: its key into ``low``, its page into ``last``."""

        def enlist(s: Expr, inside: Expr, key: Expr) -> None:
            with when(T.And(inside, T.And(key >= low[0], key <= high[0]))):
                listed = let("listed", fetch_add(self.arena.i32.ptr_to([self.answer + 3]), i32(1)))
                put(self.arena.u32, key, listed + self.list)
                put(self.arena.i32, s, listed + (self.list + FEW))

        self._each(enlist)
        cta_sync()
        at = let("candidate", T.min(self.cta.lane, count - 1))
        key, page = (
            let("its_key", self.arena.u32[at + self.list]),
            let("its_page", self.arena.i32[at + self.list + FEW]),
        )
        better = local("better", 1, I32)
        put(better, i32(0), 0)
        with loop("other", count) as j:
            other = let("other_key", self.arena.u32[j + self.list])
            earlier = T.And(equal(other, key), self.arena.i32[j + self.list + FEW] < page)
            put(better, better[0] + T.Select(T.Or(other > key, earlier), i32(1), i32(0)), 0)
        hit = T.And(self.cta.lane < count, equal(better[0], want[0] - 1))
        winner = let("winner", 31 - cast(I32, T.clz(ballot(hit))))
        put(low, shuffle(key, winner), 0)
        put(last, shuffle(page, winner), 0)

    def _last_of_ties(self, threshold: Expr, want: Buffer, last: Buffer) -> None:
        """The page of the ``want``-th of many equal keys, counted from the first page on."""
        mine = local("ties", 1, I32)
        put(mine, i32(0), 0)

        def tied(inside: Expr, key: Expr) -> Expr:
            return let("tied", ballot(T.And(inside, equal(key, threshold))))

        self._each(lambda s, inside, key: put(mine, mine[0] + count_bits(tied(inside, key)), 0))
        before = self._before(mine[0])
        earlier = let("earlier", below(self.cta.lane))

        def look(s: Expr, inside: Expr, key: Expr) -> None:
            ties = tied(inside, key)
            rank = before[0] + count_bits(T.bitwise_and(ties, earlier))
            with when(T.And(T.And(inside, equal(key, threshold)), equal(rank, want[0] - 1))):
                put(self.arena.i32, s, self.answer + 4)
            put(before, before[0] + count_bits(ties), 0)

        self._each(look)
        cta_sync()
        put(last, self.arena.i32[self.answer + 4], 0)

    def _before(self, mine: Expr) -> Buffer:
        """The sum over the warps before this one; the last reads of what lies there were before a barrier."""
        shared, at = self.arena.i32, self.sums + 2 * self.cta.warps
        with when(equal(self.cta.lane, i32(0))):
            put(shared, mine, self.cta.warp + at)
        cta_sync()
        total = local("before", 1, I32)
        put(total, i32(0), 0)
        for w in range(self.cta.warps - 1):
            put(total, total[0] + T.Select(self.cta.warp > w, shared[at + w], i32(0)), 0)
        return total

    # the pages

    def write(
        self,
        pages: Buffer,
        counts: Buffer,
        r: Expr,
        h: Expr,
        best: Expr,
        first: Expr,
        scored: Expr,
        n: Expr,
        room: Expr,
    ) -> None:
        """The ``best`` best candidates and all reserved pages of ``n``, ascending; at most ``room`` of them."""
        self._load(scored)

        def place(page: Expr, at: Expr) -> None:
            with when(at < room):
                put(pages, page, r, h, at)

        with self.cta.share("sink", first) as p:
            place(p, p)
        with self.cta.share("recent", n - first - scored) as p:
            place(first + scored + p, first + best + p)
        with when(equal(self.cta.thread, i32(0))):
            put(counts, T.min(n - scored + best, room), r, h)

        def put_chosen(s: Expr, at: Expr) -> None:
            place(first + s, first + at)

        few, count = self._list(best)
        with choose(few) as (then, other):
            with then():
                self.shortlist.take(count, best, put_chosen)
            with other():
                self._sweep(best, put_chosen)

    def _list(self, best: Expr) -> tuple[Expr, Expr]:
        """Whether all that may be among the best fit on the shortlist, and how many that are."""
        greatest, count = local("greatest", 1, U32), local("count_listed", 1, I32)
        put(greatest, T.uint32(0), 0)
        put(count, i32(self.shortlist.room + 1), 0)
        self._each(lambda s, inside, key: put(greatest, T.max(greatest[0], key), 0))
        with when(T.Or(self.shortlist.answers(best), self.scored <= self.shortlist.room)):
            least = self.shortlist.least(greatest[0], best)
            put(count, self.shortlist.gather(self._each, least), 0)
        count_listed = let("listed_in_all", count[0])
        return count_listed <= self.shortlist.room, count_listed

    def _sweep(self, best: Expr, put_chosen: Callable[[Expr, Expr], None]) -> None:
        """The best by the k-th key and one ascending sweep over all."""
        threshold, last = self.threshold(best)
        mine = local("chosen_here", 1, I32)
        put(mine, i32(0), 0)

        def chosen(s: Expr, inside: Expr, key: Expr) -> Expr:
            takes = T.Or(key > threshold, T.And(equal(key, threshold), s <= last))
            return let("chosen", ballot(T.And(inside, takes)))

        self._each(lambda s, inside, key: put(mine, mine[0] + count_bits(chosen(s, inside, key)), 0))
        taken = self._before(mine[0])
        earlier = let("earlier", below(self.cta.lane))
        bit = let("bit", T.shift_left(T.uint32(1), cast(U32, self.cta.lane)))

        def take(s: Expr, inside: Expr, key: Expr) -> None:
            here = chosen(s, inside, key)
            with when(T.bitwise_and(here, bit) > T.uint32(0)):
                put_chosen(s, taken[0] + count_bits(T.bitwise_and(here, earlier)))
            put(taken, taken[0] + count_bits(here), 0)

        self._each(take)


def keep_all(cta: Cta, pages: Buffer, counts: Buffer, r: Expr, h: Expr, n: Expr, room: Expr) -> None:
    """Every page of a row that fits its budget."""
    count = let("count", T.min(n, room))
    with cta.share("p", count) as p:
        put(pages, p, r, h, p)
    with when(equal(cta.thread, i32(0))):
        put(counts, count, r, h)
