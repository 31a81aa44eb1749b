"""Exact, deterministic top-k of one row by one CTA: the k-th key by histograms, then one ascending sweep.

The bins of a histogram divide the range in which the k-th key is known to lie, so keys that agree in their
leading bits, as scores do, still spread over the bins. Counts know no order, so neither does the result.
"""

from __future__ import annotations

from dataclasses import dataclass

from vortex.codegen.cuda.homes import Arena, Held
from vortex.codegen.cuda.lanes import Cta, add_at, ballot, below, count_bits, rounds_of, warp_fold, warp_prefix
from vortex.codegen.cuda.ptx import WARP, cta_sync
from vortex.codegen.tir import I32, U32, Buffer, Expr, T, cast, equal, i32, let, local, loop, put, when

BITS = 11
BINS = 1 << BITS
NONE = 0xFFFFFFFF
"""Above the key of +inf: no page has it."""


def add(a: Expr, b: Expr) -> Expr:
    return a + b


@dataclass
class TopK:
    """The keys of a row, and where its pages go."""

    cta: Cta
    arena: Arena
    keys: Held | None = None

    def __post_init__(self) -> None:
        self.bins = self.arena.take(BINS)
        self.shared = self.arena.take(2 * self.cta.warps + 4)

    def _key(self, s: Expr) -> Expr:
        assert self.keys is not None
        return T.reinterpret(U32, self.keys.get(s))

    # the k-th key

    def threshold(self, best: Expr, scored: Expr) -> tuple[Expr, Expr]:
        """The key such that all above it and the first ``room`` equal to it are the ``best`` best."""
        low, high, want = local("low", 1, U32), local("high", 1, U32), local("want", 1, I32)
        room = local("room", 1, I32)
        put(low, T.uint32(NONE), 0)
        put(high, T.uint32(0), 0)
        put(want, best, 0)
        with loop("key_round", rounds_of(scored, self.cta.threads)) as turn:
            s = let("s", turn * self.cta.threads + self.cta.thread)
            with when(s < scored):
                key = let("key", self._key(s))
                put(low, T.min(low[0], key), 0)
                put(high, T.max(high[0], key), 0)
        self._range(low, high)
        with self.cta.share("bin", BINS) as b:
            put(self.arena.i32, i32(0), b + self.bins)
        cta_sync()
        with T.While(low[0] < high[0]):
            self._narrow(low, high, want, scored)
        put(room, want[0], 0)
        # all of the last bin were wanted: they are what lies above its lower end
        with when(low[0] > high[0]):
            put(room, i32(0), 0)
            put(low, high[0], 0)
        with when(best <= 0):
            put(low, T.uint32(NONE), 0)
        return let("threshold", low[0]), let("ties", room[0])

    def _range(self, low: Buffer, high: Buffer) -> None:
        """The least and the greatest of all threads."""
        least = warp_fold(low[0], lambda a, b: T.min(a, b), "least")
        most = warp_fold(high[0], lambda a, b: T.max(a, b), "most")
        shared = self.arena.u32
        with when(equal(self.cta.lane, i32(0))):
            put(shared, least, self.cta.warp + self.shared)
            put(shared, most, self.cta.warp + (self.shared + self.cta.warps))
        cta_sync()
        put(low, shared[self.shared], 0)
        put(high, shared[self.shared + self.cta.warps], 0)
        for w in range(1, self.cta.warps):
            put(low, T.min(low[0], shared[self.shared + w]), 0)
            put(high, T.max(high[0], shared[self.shared + self.cta.warps + w]), 0)

    def _narrow(self, low: Buffer, high: Buffer, want: Buffer, scored: Expr) -> None:
        """From the range [low, high] to that of the bin that holds the wanted key; the bins are left at zero."""
        shift = let("shift", T.max(i32(0), 32 - BITS - cast(I32, T.clz(high[0] - low[0]))))
        width = let("width", cast(U32, shift))
        with loop("key_round", rounds_of(scored, self.cta.threads)) as turn:
            s = let("s", turn * self.cta.threads + self.cta.thread)
            with when(s < scored):
                key = let("key", self._key(s))
                with when(T.And(key >= low[0], key <= high[0])):
                    b = let("bin", cast(I32, T.shift_right(key - low[0], width)))
                    add_at(self.arena.i32.ptr_to([b + self.bins]), i32(1))
        cta_sync()
        self._find(want)
        found, above, inside = (
            let(n, self.arena.i32[self._answer + i]) for i, n in enumerate(("found", "above", "inside"))
        )
        put(want, want[0] - above, 0)
        first = let("first_key", low[0] + T.shift_left(cast(U32, found), width))
        end = let("last_key", first + (T.shift_left(T.uint32(1), width) - T.uint32(1)))
        whole = let("whole", T.And(equal(inside, want[0]), first > T.uint32(0)))
        put(high, T.Select(whole, first - T.uint32(1), T.min(end, high[0])), 0)
        put(low, first, 0)

    @property
    def _answer(self) -> int:
        return self.shared + self.cta.warps

    def _find(self, want: Buffer) -> None:
        """The bin that holds the wanted key, how many keys lie above it and in it; the bins are cleared."""
        each = BINS // self.cta.threads
        top = let("top", BINS - 1 - self.cta.thread * each + self.bins)
        mine = local("mine", 1, I32)
        put(mine, i32(0), 0)
        for b in range(each):
            put(mine, mine[0] + self.arena.i32[top - b], 0)
        before = warp_prefix(mine[0], add, self.cta.lane)
        with when(equal(self.cta.lane, i32(WARP - 1))):
            put(self.arena.i32, before, self.cta.warp + self.shared)
        cta_sync()
        above = local("above", 1, I32)
        put(above, before - mine[0], 0)
        with loop("w", self.cta.warp) as w:
            put(above, above[0] + self.arena.i32[w + self.shared], 0)
        for b in range(each):
            inside = let("inside", self.arena.i32[top - b])
            with when(T.And(above[0] < want[0], above[0] + inside >= want[0])):
                put(self.arena.i32, top - b - self.bins, self._answer)
                put(self.arena.i32, above[0], self._answer + 1)
                put(self.arena.i32, inside, self._answer + 2)
            put(above, above[0] + inside, 0)
            put(self.arena.i32, i32(0), top - b)
        cta_sync()

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
        threshold, ties = self.threshold(best, scored)
        warp, lane = self.cta.warp, self.cta.lane

        def place(page: Expr, at: Expr) -> None:
            with when(at < room):
                put(pages, page, r, h, at)

        with self.cta.share("sink", first) as p:
            place(p, p)
        with self.cta.share("recent", n - first - scored) as p:
            place(first + scored + p, first + best + p)
        with when(equal(self.cta.thread, i32(0))):
            put(counts, T.min(n - scored + best, room), r, h)
        # each warp has a range of its own, so that one barrier tells all where to write
        share = let("share", rounds_of(rounds_of(scored, WARP), self.cta.warps) * WARP)
        begin = let("begin", T.min(warp * share, scored))
        end = let("end", T.min(begin + share, scored))
        more, same = local("more", 1, I32), local("same", 1, I32)
        put(more, i32(0), 0)
        put(same, i32(0), 0)
        with loop("key_round", rounds_of(end - begin, WARP)) as turn:
            s = let("s", begin + turn * WARP + lane)
            with when(s < end):
                key = let("key", self._key(s))
                put(more, more[0] + T.Select(key > threshold, i32(1), i32(0)), 0)
                put(same, same[0] + T.Select(equal(key, threshold), i32(1), i32(0)), 0)
        shared = self.arena.i32
        totals = [warp_fold(x[0], add, n) for x, n in ((more, "more_all"), (same, "same_all"))]
        # the last reads of what lies here were before the barrier that ended the search
        with when(equal(lane, i32(0))):
            put(shared, totals[0], warp + self.bins)
            put(shared, totals[1], warp + (self.bins + self.cta.warps))
        cta_sync()
        put(more, i32(0), 0)
        put(same, i32(0), 0)
        with loop("w", warp) as w:
            put(more, more[0] + shared[w + self.bins], 0)
            put(same, same[0] + shared[w + (self.bins + self.cta.warps)], 0)
        taken = local("taken", 1, I32)
        put(taken, first + more[0] + T.min(same[0], ties), 0)
        earlier = let("earlier", below(lane))
        with loop("key_round", rounds_of(end - begin, WARP)) as turn:
            s = let("s", begin + turn * WARP + lane)
            key = local("mine", 1, U32)
            put(key, T.uint32(0), 0)
            inside = let("inside", s < end)
            with when(inside):
                put(key, self._key(s), 0)
            equals = let("equals", ballot(T.And(inside, equal(key[0], threshold))))
            rank = same[0] + count_bits(T.bitwise_and(equals, earlier))
            takes = T.Or(key[0] > threshold, T.And(equal(key[0], threshold), rank < ties))
            chosen = let("chosen", T.And(inside, takes))
            all_chosen = let("all_chosen", ballot(chosen))
            with when(chosen):
                place(first + s, taken[0] + count_bits(T.bitwise_and(all_chosen, earlier)))
            put(same, same[0] + count_bits(equals), 0)
            put(taken, taken[0] + count_bits(all_chosen), 0)


def keep_all(cta: Cta, pages: Buffer, counts: Buffer, r: Expr, h: Expr, n: Expr, room: Expr) -> None:
    """Every page of a row that fits its budget."""
    count = let("count", T.min(n, room))
    with cta.share("p", count) as p:
        put(pages, p, r, h, p)
    with when(equal(cta.thread, i32(0))):
        put(counts, count, r, h)
