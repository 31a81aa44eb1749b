"""Exact, deterministic top-k of one row by one CTA: from a shortlist, or by the k-th key and a sweep.

candidates   keys -> shortlist holds all that may be among the best?
yes: ranks among the list, then places among those taken      (shortlist)
no:  the k-th key, then one ascending sweep that counts       (kth_key)

pages        | sink: 0 .. first - 1 | the best candidates, ascending | recent, up to the last page |
written at   0                      first                            first + best
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vortex.codegen.cuda.ptx import WARP, cta_sync, quotient, wide
from vortex.codegen.cuda.select.few_keys import FewKeys
from vortex.codegen.cuda.select.kth_key import KthKey
from vortex.codegen.cuda.select.prefilter import Greatest, Prefilter
from vortex.codegen.cuda.select.row_keys import RowKeys, each_of
from vortex.codegen.cuda.select.share import Share
from vortex.codegen.cuda.select.shortlist import Shortlist
from vortex.codegen.cuda.storage import Arena, Held
from vortex.codegen.cuda.warp import Cta, InOrder, ballot, count_bits
from vortex.codegen.sweep import Row
from vortex.codegen.tir import I32, U32, Buffer, Expr, T, choose, equal, i32, let, local, put, when
from vortex.ir.dialects import flow


@dataclass(frozen=True)
class Selection:
    """Where the selection of one row is written."""

    cta: Cta
    pages: Buffer
    counts: Buffer
    request: Expr
    head: Expr
    room: Expr
    """Pages there is room for."""

    def keep_all(self, pages: Expr) -> None:
        """Write every page of a row of ``pages`` that fits its budget."""
        count = let("count", T.min(pages, self.room))
        with self.cta.share("p", count) as p:
            put(self.pages, p, wide(self.request), self.head, p)
        self.count(count)

    def keep_reserved(self, row: Row, pages: Expr, best: Expr) -> None:
        """Write the reserved ones of the row's ``pages``, around ``best`` candidates, and how many all are."""
        with self.cta.share("sink", row.first) as p:
            self.place(p, p)
        with self.cta.share("recent", pages - row.first - row.scored) as p:
            self.place(row.first + row.scored + p, row.first + best + p)
        self.count(T.min(pages - row.scored + best, self.room))

    def place(self, page: Expr, at: Expr) -> None:
        """Write one page, if there is room."""
        with when(at < self.room):
            put(self.pages, page, wide(self.request), self.head, at)

    def count(self, pages: Expr) -> None:
        """Write how many pages are selected."""
        with when(equal(self.cta.thread, i32(0))):
            put(self.counts, pages, self.request, self.head)


@dataclass(frozen=True)
class Choice:
    """The ``best`` best candidates of a row by its keys."""

    keys: RowKeys | FewKeys
    best: Expr
    candidate: Callable[[Expr], Expr] = lambda position: position
    """Which candidate has the key at a position; candidates ascend with it."""


@dataclass(frozen=True)
class TopK:
    """The choice of a row's pages; holds the shared memory it takes."""

    cta: Cta
    held: int
    """Keys that a thread keeps in registers."""
    kth: KthKey
    shortlist: Shortlist
    prefilter: Prefilter | None
    """None where no long row is chosen from."""
    share: Share | None

    @classmethod
    def reserve(cls, cta: Cta, arena: Arena, held: int, parts: Sequence[flow.Part], *, short: bool) -> TopK:
        """Take the shared memory that it takes to choose pages for shortlists, and the ``parts`` of a selection; of
        ``short`` rows where others are for a cluster.
        """
        kth, shortlist = KthKey.reserve(cta, arena), Shortlist.reserve(cta, arena)
        shares = any(o.share for o in parts)
        prefilter = None if short else Prefilter(cta, held, kth, shortlist)
        return cls(cta, held, kth, shortlist, prefilter, Share.reserve(cta, arena) if shares else None)

    def load(self, keys: Held, scored: Expr) -> RowKeys:
        """The keys of a row's ``scored`` candidates."""
        return RowKeys.load(self.cta, keys, scored, self.held)

    def load_few(self, keys: Held, count: Expr, limit: int) -> FewKeys | None:
        """The first ``count`` keys, which are ``limit`` at most; None where that is more than threads."""
        if limit > self.cta.threads:
            return None
        return FewKeys(self.cta, self.shortlist.arena, self.shortlist.listed.keys_at, keys, count, limit)

    def load_best(self, keys: Held, greatest: Greatest | None, scored: Expr, best: Expr, limit: int | None) -> RowKeys:
        """Those that may be among the ``best`` best, of which there are ``limit`` at most where that is known;
        ``greatest`` are the greatest of its page tiles.
        """
        if self.prefilter is None:
            return self.load(keys, scored)
        return self.prefilter.load(keys, greatest, scored, best, limit)

    def reaching(self, keys: RowKeys, share: int, *, again: bool) -> Expr:
        """How many of the best candidates have ``share`` (in 2^-24) of the mass of all; ``again`` after another such
        count.
        """
        assert self.share is not None
        return self.share.reaching(keys, share, again=again)

    def write(self, choices: Sequence[Choice], row: Row, pages: Expr, to: Selection) -> None:
        """Write the candidates of all choices and all reserved pages of the row's ``pages``, ascending."""
        if len(choices) > 1:
            self._write_union(choices, row, pages, to)
            return
        mine, best, first = choices[0].keys, choices[0].best, row.first
        to.keep_reserved(row, pages, best)

        def put_chosen(s: Expr, at: Expr) -> None:
            to.place(first + choices[0].candidate(s), first + at)

        self.take(mine, best, put_chosen)

    def take(self, keys: RowKeys | FewKeys, best: Expr, place: Callable[[Expr, Expr], None]) -> None:
        """Call ``place(page, n)`` for the ``best`` best pages by their keys, n counting pages as they ascend."""
        if isinstance(keys, FewKeys):
            keys.take(best, self.kth.before_warp, place)
            return
        greatest, least, listed = local("greatest", 1, U32), local("bound_of_best", 1, U32), local("listed", 1, I32)
        put(greatest, T.uint32(0), 0)
        put(least, T.uint32(0), 0)
        put(listed, i32(self.shortlist.room + 1), 0)
        keys.each(lambda s, inside, key: put(greatest, T.max(greatest[0], key), 0))
        with when(self.shortlist.answers(best)):
            put(least, self.shortlist.least(greatest[0], best, keys.warps), 0)
            with when(self.shortlist.is_short(best, keys.scored)):
                put(listed, self.shortlist.gather(keys, least[0]), 0)
        count = let("count_listed", listed[0])

        def put_chosen(s: Expr, n: Expr) -> None:
            place(keys.candidate(s), n)

        with choose(count <= self.shortlist.room) as (few, many):
            with few():
                self.shortlist.take(count, best, self.kth.before_warp, put_chosen)
            with many():
                self._sweep(keys, best, (least[0], greatest[0]), put_chosen)

    def _write_union(self, choices: Sequence[Choice], row: Row, pages: Expr, to: Selection) -> None:
        """The same for several: the last key of each, then one ascending sweep over all."""
        first, bounds, rows = row.first, [], []
        for choice in choices:
            assert isinstance(choice.keys, RowKeys)
            cta_sync()  # the shared memory of the choice before is done with
            bounds.append(self.kth.find(choice.keys, choice.best))
            rows.append(choice.keys)
        mine = local("chosen_here", 1, I32)
        put(mine, i32(0), 0)

        def chosen(s: Expr, inside: Expr, keys: Sequence[Expr]) -> Expr:
            takes: Expr = None
            for key, (threshold, last) in zip(keys, bounds, strict=True):
                one = T.Or(key > threshold, T.And(equal(key, threshold), s <= last))
                takes = one if takes is None else T.Or(takes, one)
            return let("chosen", ballot(T.And(inside, takes)))

        each_of(rows, lambda s, inside, keys: put(mine, mine[0] + count_bits(chosen(s, inside, keys)), 0))
        cta_sync()
        taken = self.kth.before_warp(mine[0])
        best = self.kth.of_all_warps()
        to.keep_reserved(row, pages, best)
        places = InOrder.open(self.cta.lane, taken)

        def take(s: Expr, inside: Expr, keys: Sequence[Expr]) -> None:
            places.take(chosen(s, inside, keys), lambda n: to.place(first + s, first + n))

        each_of(rows, take)

    def _sweep(
        self, keys: RowKeys, best: Expr, bounds: tuple[Expr, Expr], put_chosen: Callable[[Expr, Expr], None]
    ) -> None:
        """Choose the best by the k-th key and one ascending sweep over all; of ``bounds`` see :meth:`KthKey.find`."""
        taken = self.shortlist.taken
        taken.clear()  # the search has barriers
        threshold, last = self.kth.find(keys, best, bounds)

        def chosen(s: Expr, inside: Expr, key: Expr) -> Expr:
            takes = T.Or(key > threshold, T.And(equal(key, threshold), s <= last))
            return let("chosen", ballot(T.And(inside, takes)))

        with choose(taken.has_room(keys.share * self.cta.warps)) as (few, many):
            with few():
                # a round of a warp is a word
                def put_word(s: Expr, inside: Expr, key: Expr) -> None:
                    here = chosen(s, inside, key)
                    with when(equal(self.cta.lane, i32(0))):
                        taken.put_word(quotient(s, i32(WARP)), here)

                keys.each(put_word)
                taken.place(self.kth.before_warp, put_chosen)
            with many():
                self._count_and_place(keys, chosen, put_chosen)

    def _count_and_place(
        self, keys: RowKeys, chosen: Callable[[Expr, Expr, Expr], Expr], put_chosen: Callable[[Expr, Expr], None]
    ) -> None:
        """Place the ``chosen`` of a row that has more pages than there are bits: all warps count, and then place."""
        mine = local("chosen_here", 1, I32)
        put(mine, i32(0), 0)
        keys.each(lambda s, inside, key: put(mine, mine[0] + count_bits(chosen(s, inside, key)), 0))
        places = InOrder.open(self.cta.lane, self.kth.before_warp(mine[0]))

        def take(s: Expr, inside: Expr, key: Expr) -> None:
            places.take(chosen(s, inside, key), lambda n: put_chosen(s, n))

        keys.each(take)
