"""Exact top-k of one long row by all CTAs of a cluster, which tell each other what they count in the workspace.

    CTA                 0            1             ..
    pages               0 .. 8191    8192 ..       keys in registers, or read again and again beyond those
    keys of each bin    added up in the workspace: all find the bin of the wanted key
    of each warp        how many keys lie above that bin, and how many in it
    keys in the bin     listed, where they are few: each warp ranks them
    selection           each warp places its own pages, behind those of the warps before it

The range in which bins are counted begins at the least of the greatest keys of all page tiles, where no more pages are
wanted than there are page tiles: as many keys reach it. Of a row of scores one count then leaves few, and CTAs wait
for each other twice. Counts know no order, so neither does the result; :mod:`.kth_key` has the same for a CTA alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vortex.codegen.cuda.cluster import Cluster
from vortex.codegen.cuda.ptx import WARP, shuffle, warp_sum, wide
from vortex.codegen.cuda.select.kth_key import FEW, KthKey, Search
from vortex.codegen.cuda.select.prefilter import Greatest
from vortex.codegen.cuda.select.row_keys import RowKeys
from vortex.codegen.cuda.storage import Held, Opened
from vortex.codegen.cuda.warp import InOrder, add_at, ballot, count_bits, fetch_add, rounds_of
from vortex.codegen.tir import I32, U32, Buffer, Expr, T, cast, equal, i32, let, local, loop, put, when
from vortex.schedules.page_tiles import PAGE_TILE

TURNS = 3
"""Sets of bins: while one is added up, the one after it is cleared, and the one before it may still be read."""
TOGETHER = 8
"""Page tiles of a thread that are read together."""

Place = Callable[[Expr, Expr], None]


@dataclass(frozen=True)
class Exchange:
    """Words of a row in the workspace that all its CTAs read and write, as integers.

    counts of bins, ``TURNS`` times | keys listed so far | their keys and pages | keys above and in the bin, by warp
    """

    cluster: Cluster
    bins: int
    words: Opened

    @staticmethod
    def size(bins: int, warps: int) -> int:
        """How many words that are, for so many bins and warps of all CTAs."""
        return TURNS * bins + 4 + 2 * FEW + 2 * warps

    @property
    def listed(self) -> int:
        """Where listed keys are counted."""
        return TURNS * self.bins

    @property
    def keys(self) -> int:
        """Where they are listed, each in front of its page."""
        return self.listed + 4

    @property
    def of_warps(self) -> int:
        """Where warps tell what they have."""
        return self.keys + 2 * FEW

    def get(self, at: Expr) -> Expr:
        """A word, as it was at the last barrier of the cluster."""
        return self.words.get(at)

    def set(self, x: Expr, at: Expr) -> None:
        """Write a word that no other thread writes."""
        self.words.set(x, at)

    def address(self, at: Expr) -> Expr:
        """Of a word to which several may add."""
        return self.words.view.ptr_to([self.words.begin[0] + wide(at)])


@dataclass(frozen=True)
class ClusterChoice:
    """The choice of a row's best by its cluster; ``kth`` holds the shared memory that takes."""

    cluster: Cluster
    kth: KthKey
    held: int
    """Keys that a thread keeps in registers."""
    exchange: Exchange

    @classmethod
    def open(cls, cluster: Cluster, kth: KthKey, held: int, words: Held) -> ClusterChoice:
        """With ``words`` of the row in the workspace."""
        return cls(cluster, kth, held, Exchange(cluster, kth.words, words.opened(I32)))

    def clear(self) -> None:
        """Make the first counts 0, in front of the barrier behind the first sweep."""
        cta = self.cluster.cta
        with self.cluster.one_for_all():
            with cta.share("bin", self.exchange.bins) as b:
                self.exchange.set(i32(0), b)
            with when(equal(cta.thread, i32(0))):
                self.exchange.set(i32(0), i32(self.exchange.listed))

    def take(self, keys: Held, greatest: Greatest, scored: Expr, best: Expr, place: Place) -> None:
        """Call ``place(page, n)`` for those of the ``best`` best of ``scored`` pages that are this CTA's, n counting
        the best as they ascend; ``greatest`` are the greatest keys of page tiles.
        """
        with when(best > 0):
            row = RowKeys.load(
                self.cluster.cta, keys, scored, self.held, ctas=self.cluster.ctas, rank=self.cluster.rank
            )
            search = Search.open(best)
            self._bound(search, greatest, scored, best)
            inside = self._find(row, search)
            self._place(row, search, inside, place)

    def _bound(self, search: Search, greatest: Greatest, scored: Expr, best: Expr) -> None:
        """Open the range between the greatest keys of page tiles, or from the least key on."""
        cta, batch = self.cluster.cta, local("greatest_of_tiles", TOGETHER, U32)
        first, tiles = local("first_tile", 1, I32), let("tiles", rounds_of(scored, PAGE_TILE))
        with loop("tile_round", rounds_of(tiles, TOGETHER * cta.threads), rolled=True) as turn:
            put(first, turn * (TOGETHER * cta.threads) + cta.thread, 0)
            # all loads are on their way before the first is looked at; the last page tile may count several times
            for i in range(TOGETHER):
                at = T.min(first[0] + i * cta.threads, tiles - 1)
                put(batch, T.reinterpret(U32, greatest.words.get(at)), i)
            for i in range(TOGETHER):
                put(search.low, T.min(search.low[0], batch[i]), 0)
                put(search.high, T.max(search.high[0], batch[i]), 0)
        self.kth.clear_bins()
        self.kth.range_of_all(search.low, search.high)
        put(search.low, T.Select(best <= tiles, search.low[0], T.uint32(0)), 0)

    def _find(self, row: RowKeys, search: Search) -> Expr:
        """Narrow the range until few keys are in it, or one key of many pages; says how many pages those are."""
        inside, turn = local("keys_of_bin", 1, I32), local("turn", 1, I32)
        put(turn, i32(0), 0)
        with T.While(search.more[0] > 0):
            width = self.kth.count(row, search)
            self._add_up(turn[0])
            put(inside, self.kth.enter_bin(search, width), 0)
            put(turn, self._after(turn[0]), 0)
            put(search.more, T.Select(T.Or(inside[0] <= FEW, search.is_one_key), i32(0), i32(1)), 0)
        return inside[0]

    def _add_up(self, turn: Expr) -> None:
        """Make the counts of the bins those of all CTAs."""
        exchange, kth, shared = self.exchange, self.kth, self.kth.arena.i32
        at, later = let("bins", turn * exchange.bins), let("bins_later", self._after(turn) * exchange.bins)
        for i in range(kth.each):
            b = kth.bin_of_thread(i)
            mine = let("of_bin", shared[b + kth.bins])
            with when(mine > 0):
                add_at(exchange.address(at + b), mine)
            with self.cluster.one_for_all():
                exchange.set(i32(0), later + b)
        self.cluster.sync()
        for i in range(kth.each):
            b = kth.bin_of_thread(i)
            put(shared, exchange.get(at + b), b + kth.bins)

    @staticmethod
    def _after(turn: Expr) -> Expr:
        return T.Select(turn < TURNS - 1, turn + 1, i32(0))

    def _place(self, row: RowKeys, search: Search, inside: Expr, place: Place) -> None:
        """Place this CTA's pages of those above the range, and of those in it as many as are wanted."""
        few, lane = let("are_few", inside <= FEW), self.cluster.cta.lane
        ahead, ties = self._tell(row, search, few)
        with when(few):
            self._rank(row, search, inside, ahead, ties)
        threshold, wanted = search.low[0], search.want[0]
        put(ahead, ahead[0] + T.min(ties[0], wanted), 0)
        places = InOrder.open(lane, ahead)

        def take(s: Expr, inside: Expr, key: Expr) -> None:
            higher = let("higher", ballot(T.And(inside, key > threshold)))
            tied = let("tied", ballot(T.And(inside, equal(key, threshold))))
            rank = ties[0] + count_bits(T.bitwise_and(tied, places.earlier))
            hit = T.bitwise_or(higher, T.Select(rank < wanted, tied, T.uint32(0)))
            chosen = let("chosen", ballot(T.bitwise_and(hit, places.bit) > T.uint32(0)))
            places.take(chosen, lambda n: place(s, n))
            put(ties, ties[0] + count_bits(tied), 0)

        row.each(take)

    def _tell(self, row: RowKeys, search: Search, few: Expr) -> tuple[Buffer, Buffer]:
        """Tell all warps what this one has, and the keys of the range where those are ``few``; how many keys the warps
        before it have above the range, and how many in it.
        """
        exchange, cluster, lane = self.exchange, self.cluster, self.cluster.cta.lane
        above, within = local("above_range", 1, I32), local("within_range", 1, I32)
        for count in (above, within):
            put(count, i32(0), 0)

        def tell(s: Expr, inside: Expr, key: Expr) -> None:
            put(above, above[0] + count_bits(ballot(T.And(inside, key > search.high[0]))), 0)
            mine = let("mine", T.And(inside, search.has(key)))
            put(within, within[0] + count_bits(ballot(mine)), 0)
            with when(T.And(few, mine)):
                at = let("listed", fetch_add(exchange.address(i32(exchange.listed)), i32(1)))
                exchange.set(T.reinterpret(I32, key), 2 * at + exchange.keys)
                exchange.set(s, 2 * at + (exchange.keys + 1))

        row.each(tell)
        with when(equal(lane, i32(0))):
            for i, count in enumerate((above, within)):
                exchange.set(count[0], 2 * cluster.in_order + (exchange.of_warps + i))
        cluster.sync()
        for count in (above, within):
            put(count, i32(0), 0)
        for first in range(0, cluster.warps, WARP):
            warp = let("other_warp", lane + first)
            with when(warp < cluster.in_order):
                for i, count in enumerate((above, within)):
                    put(count, count[0] + exchange.get(2 * warp + (exchange.of_warps + i)), 0)
        for count in (above, within):
            put(count, cast(I32, warp_sum(cast(U32, count[0]))), 0)
        return above, within

    def _rank(self, row: RowKeys, search: Search, inside: Expr, ahead: Buffer, ties: Buffer) -> None:
        """Find the wanted key among those that are listed, a lane for each: it becomes the range, its number is counted
        among its ties, and what the warps before have above it and of it is counted anew.
        """
        lane, exchange = self.cluster.cta.lane, self.exchange
        at = let("entry", T.min(lane, inside - 1))
        key = let("its_key", T.reinterpret(U32, exchange.get(2 * at + exchange.keys)))
        page = let("its_page", exchange.get(2 * at + (exchange.keys + 1)))
        greater, equals = local("greater", 1, I32), local("equals", 1, I32)
        for count in (greater, equals):
            put(count, i32(0), 0)
        with loop("other", inside, rolled=True) as j:
            other = let("other_key", shuffle(key, j))
            put(greater, greater[0] + T.Select(other > key, i32(1), i32(0)), 0)
            put(equals, equals[0] + T.Select(equal(other, key), i32(1), i32(0)), 0)
        wanted = search.want[0]
        is_listed = lane < inside
        hit = T.And(is_listed, T.And(greater[0] < wanted, greater[0] + equals[0] >= wanted))
        winner = let("winner", 31 - cast(I32, T.clz(ballot(hit))))
        threshold, higher = let("its_threshold", shuffle(key, winner)), let("its_higher", shuffle(greater[0], winner))
        before = let("is_before", T.And(is_listed, page < row.first - lane))
        put(ahead, ahead[0] + count_bits(ballot(T.And(before, key > threshold))), 0)
        put(ties, count_bits(ballot(T.And(before, equal(key, threshold)))), 0)
        put(search.low, threshold, 0)
        put(search.want, wanted - higher, 0)
