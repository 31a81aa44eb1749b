"""The k-th key of a row by histograms.

The bins of a histogram divide the range in which the k-th key is known to lie, so keys that agree in their leading
bits, as scores do, still spread over the bins:

    low                                              high        the range of all keys, then of one bin
    |  bin 0  |  bin 1  |  bin 2  | ..  | bin 255  |
              ^ the k-th key lies here: this bin is the next range

Once few keys are left, they are ranked by comparing all with all. Counts know no order, so neither does the result.
"""

from __future__ import annotations

from dataclasses import dataclass

from vortex.codegen.cuda.ptx import WARP, cta_sync, shuffle, warp_extreme
from vortex.codegen.cuda.select.key_list import KeyList, is_better
from vortex.codegen.cuda.select.row_keys import RowKeys
from vortex.codegen.cuda.select.shortlist import NONE
from vortex.codegen.cuda.storage import Arena
from vortex.codegen.cuda.warp import Cta, add_at, ballot, below, count_bits, warp_prefix
from vortex.codegen.tir import I32, U32, Buffer, Expr, T, cast, choose, equal, i32, let, local, loop, put, when

BITS = 8
"""Of a histogram: of a few thousand scores, one of its 256 bins holds few."""
FEW = WARP
"""Keys that are ranked directly."""
FOUND, ABOVE, INSIDE, LISTED, TIE = range(5)
"""The words of ``answer``: the bin found, the keys above it, those in it, the keys listed, the last of the ties."""


@dataclass(frozen=True)
class Search:
    """What every thread knows of the wanted key, in registers."""

    low: Buffer
    high: Buffer
    """The range in which it lies."""
    want: Buffer
    """Its number among the keys of the range, counted from 1 at the largest."""
    more: Buffer
    """Whether there is more to do."""

    @classmethod
    def open(cls, best: Expr) -> Search:
        """For the last of the ``best`` best, in a range without keys."""
        low, high, want = local("low", 1, U32), local("high", 1, U32), local("want", 1, I32)
        search = cls(low, high, want, local("more_to_do", 1, I32))
        put(low, T.uint32(NONE), 0)
        put(high, T.uint32(0), 0)
        put(want, best, 0)
        put(search.more, T.Select(best > 0, i32(1), i32(0)), 0)
        return search

    def has(self, key: Expr) -> Expr:
        """Whether a key lies in the range."""
        return T.And(key >= self.low[0], key <= self.high[0])

    @property
    def is_one_key(self) -> Expr:
        """Whether there is but one key in the range, which many pages may have."""
        return equal(self.low[0], self.high[0])


@dataclass(frozen=True)
class KthKey:
    """Finds the k-th key of a row; holds the shared memory that takes."""

    cta: Cta
    arena: Arena
    bins: int
    sums: int
    """Three words for each warp: two for the extremes, one for what :meth:`before_warp` sums."""
    answer: int
    listed: KeyList

    @classmethod
    def reserve(cls, cta: Cta, arena: Arena) -> KthKey:
        """Take the shared memory."""
        bins, sums, answer = arena.take(bins_of(cta.threads)), arena.take(3 * cta.warps), arena.take(8)
        at = arena.take(2 * FEW)
        return cls(cta, arena, bins, sums, answer, KeyList(arena, at, at + FEW, 1, answer + LISTED))

    @property
    def bits(self) -> int:
        """Leading bits of a range that tell the bin."""
        return bits_of(self.cta.threads)

    @property
    def words(self) -> int:
        """Words of the bins."""
        return bins_of(self.cta.threads)

    @property
    def each(self) -> int:
        """Bins that a thread looks at; the last ones stay empty where threads are no power of two."""
        return self.words // self.cta.threads

    def find(self, keys: RowKeys, best: Expr, bounds: tuple[Expr, Expr] | None = None) -> tuple[Expr, Expr]:
        """The key and the page such that the ``best`` best are those of a larger key, and of the same key those up to
        that page.

        ``bounds`` are a key such that ``best`` keys are no smaller, if it is not 0, and the largest of this thread.
        """
        search, last = Search.open(best), local("last_page", 1, I32)
        low, high = search.low, search.high
        put(last, i32(-1), 0)

        def widen(s: Expr, inside: Expr, key: Expr) -> None:
            put(low, T.Select(inside, T.min(low[0], key), low[0]), 0)
            put(high, T.max(high[0], key), 0)

        if bounds is None:
            keys.each(widen)
        else:
            with choose(bounds[0] > T.uint32(0)) as (known, unknown):
                with known():
                    put(low, bounds[0], 0)
                    put(high, bounds[1], 0)
                with unknown():
                    keys.each(widen)
        self.clear_bins()
        with when(equal(self.cta.thread, i32(0))):
            put(self.arena.i32, i32(0), self.answer + LISTED)
        self.range_of_all(low, high)
        with T.While(search.more[0] > 0):
            inside = self.enter_bin(search, self.count(keys, search))
            with choose(inside <= FEW) as (few, many):
                with few():
                    self._rank(keys, search, last, inside)
                    put(search.more, i32(0), 0)
                with many(), when(search.is_one_key):
                    self._last_of_ties(keys, search, last)
                    put(search.more, i32(0), 0)
        with when(best <= 0):
            put(low, T.uint32(NONE), 0)
        return let("threshold", low[0]), let("last", last[0])

    def clear_bins(self) -> None:
        """Begin without keys in any bin; a barrier must follow."""
        with self.cta.share("bin", self.words) as b:
            put(self.arena.i32, i32(0), b + self.bins)

    def range_of_all(self, low: Buffer, high: Buffer) -> None:
        """Make the extremes of this thread those of all threads."""
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

    def count(self, keys: RowKeys, search: Search) -> Expr:
        """Count the keys of each bin of the range; says how many bits wide a bin is."""
        low, high = search.low, search.high
        shift = let("shift", T.max(i32(0), 32 - self.bits - cast(I32, T.clz(high[0] - low[0]))))
        width = let("width", cast(U32, shift))

        def add(s: Expr, inside: Expr, key: Expr) -> None:
            with when(T.And(inside, search.has(key))):
                b = let("bin", cast(I32, T.shift_right(key - low[0], width)))
                add_at(self.arena.i32.ptr_to([b + self.bins]), i32(1))

        keys.each(add)
        cta_sync()
        return width

    def enter_bin(self, search: Search, width: Expr) -> Expr:
        """Narrow the range to that of the bin that holds the wanted key, and say how many keys are in it; the bins are
        left at zero.
        """
        low, high, want = search.low, search.high, search.want
        self._find(want)
        answer = ((FOUND, "found"), (ABOVE, "above"), (INSIDE, "inside"))
        found, above, inside = (let(name, self.arena.i32[self.answer + word]) for word, name in answer)
        put(want, want[0] - above, 0)
        first = let("first_key", low[0] + T.shift_left(cast(U32, found), width))
        span = let("span", T.shift_left(T.uint32(1), width) - T.uint32(1))
        # first + span may lie beyond 2^32 where the row goes from -inf to +inf
        end = let("last_key", T.Select(high[0] - first <= span, high[0], first + span))
        put(low, first, 0)
        put(high, end, 0)
        return inside

    def bin_of_thread(self, i: int) -> Expr:
        """The word of number ``i`` of the bins that this thread looks at, the first of which are the highest."""
        return self.words - 1 - self.cta.thread * self.each - i

    def _find(self, want: Buffer) -> None:
        """Leave in ``answer`` the bin of the wanted key, and how many keys lie above it and in it; clear the bins."""
        each, top = self.each, let("top", self.bin_of_thread(0) + self.bins)
        counts = local("counts", each, I32)
        mine = local("mine", 1, I32)
        put(mine, i32(0), 0)
        for b in range(each):
            put(counts, self.arena.i32[top - b], b)
            put(mine, mine[0] + counts[b], 0)
        before = warp_prefix(mine[0], lambda a, b: a + b, self.cta.lane)
        with when(equal(self.cta.lane, i32(WARP - 1))):
            put(self.arena.i32, before, self.cta.warp + self.sums)
        cta_sync()
        above = local("above", 1, I32)
        put(above, before - mine[0], 0)
        for w in range(self.cta.warps - 1):
            put(above, above[0] + T.Select(self.cta.warp > w, self.arena.i32[self.sums + w], i32(0)), 0)
        for b in range(each):
            with when(T.And(above[0] < want[0], above[0] + counts[b] >= want[0])):
                put(self.arena.i32, top - b - self.bins, self.answer + FOUND)
                put(self.arena.i32, above[0], self.answer + ABOVE)
                put(self.arena.i32, counts[b], self.answer + INSIDE)
            put(above, above[0] + counts[b], 0)
            put(self.arena.i32, i32(0), top - b)
        cta_sync()

    def _rank(self, keys: RowKeys, search: Search, last: Buffer, count: Expr) -> None:
        """Find the wanted one among the ``count`` keys of the range: its key becomes ``low``, its page ``last``."""
        listed = self.listed

        def enlist(s: Expr, inside: Expr, key: Expr) -> None:
            with when(T.And(inside, search.has(key))):
                listed.append(key, s)

        keys.each(enlist)
        cta_sync()
        at = let("candidate", T.min(self.cta.lane, count - 1))
        key, page = let("its_key", listed.key(at)), let("its_page", self._page(at))
        better = local("better", 1, I32)
        put(better, i32(0), 0)
        with loop("other", count) as j:
            other = let("other_key", listed.key(j))
            put(better, better[0] + T.Select(is_better(other, self._page(j), key, page), i32(1), i32(0)), 0)
        hit = T.And(self.cta.lane < count, equal(better[0], search.want[0] - 1))
        winner = let("winner", 31 - cast(I32, T.clz(ballot(hit))))
        put(search.low, shuffle(key, winner), 0)
        put(last, shuffle(page, winner), 0)

    def _page(self, at: Expr) -> Expr:
        """The page of a listed key, which stands ``FEW`` words behind it."""
        return self.arena.i32[self.listed.word(at) + FEW]

    def _last_of_ties(self, keys: RowKeys, search: Search, last: Buffer) -> None:
        """Find the page of the wanted one of many equal keys, counted from the first page on."""
        mine, threshold = local("ties", 1, I32), search.low[0]
        put(mine, i32(0), 0)

        def tied(inside: Expr, key: Expr) -> Expr:
            return let("tied", ballot(T.And(inside, equal(key, threshold))))

        keys.each(lambda s, inside, key: put(mine, mine[0] + count_bits(tied(inside, key)), 0))
        before = self.before_warp(mine[0])
        earlier = let("earlier", below(self.cta.lane))

        def look(s: Expr, inside: Expr, key: Expr) -> None:
            ties = tied(inside, key)
            rank = before[0] + count_bits(T.bitwise_and(ties, earlier))
            with when(T.And(T.And(inside, equal(key, threshold)), equal(rank, search.want[0] - 1))):
                put(self.arena.i32, s, self.answer + TIE)
            put(before, before[0] + count_bits(ties), 0)

        keys.each(look)
        cta_sync()
        put(last, self.arena.i32[self.answer + TIE], 0)

    def of_all_warps(self) -> Expr:
        """The sum over all warps of what :meth:`before_warp` was just given."""
        total: Expr = i32(0)
        for w in range(self.cta.warps):
            total = total + self.arena.i32[self.sums + 2 * self.cta.warps + w]
        return let("of_all_warps", total)

    def before_warp(self, mine: Expr) -> Buffer:
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


def bits_of(threads: int) -> int:
    """Bits that tell the bin in a histogram of so many threads: at least one bin a thread."""
    return max(BITS, (threads - 1).bit_length())


def bins_of(threads: int) -> int:
    """Words of that histogram, as many for each thread."""
    return -(-(1 << bits_of(threads)) // threads) * threads
