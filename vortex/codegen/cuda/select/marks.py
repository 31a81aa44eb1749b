"""Pages of a long row whose keys reach a bound, where those are so many that all keys are read: marked, then listed.

::

    keys       9 2 7 3 8 1 4 6 ..    the bound is 3
    marks      1 0 1 1 1 0 1 1       a bit for each page, a word for 32 of them
    listed     9 7 3 8 4 6           with their pages
"""

from __future__ import annotations

from dataclasses import dataclass

from vortex.codegen.cuda.ptx import WARP, cta_sync
from vortex.codegen.cuda.select.kth_key import KthKey
from vortex.codegen.cuda.storage import Opened
from vortex.codegen.cuda.warp import Cta, ballot, count_bits, each_bit, rounds_of, warp_prefix
from vortex.codegen.tir import I32, U32, Buffer, Expr, T, equal, i32, let, local, loop, put, when

TOGETHER = 16
"""Keys of a thread that are read together."""


@dataclass(frozen=True)
class Marks:
    """Lists the keys of a row in the workspace that reach a bound, with their pages."""

    cta: Cta
    kth: KthKey
    keys: Opened
    scored: Expr
    at: int
    """Where the list comes to shared memory: first keys, then pages, each of ``room``."""
    room: int
    words: int
    """Words behind it for the marks of each warp."""

    def list(self, bound: Expr, best: Expr, found: Buffer) -> None:
        """List them, ascending; ``found`` then says how many those are, or more than there is room for where they are
        not listed: they may be too many, or less than the ``best`` that are wanted.
        """
        rounds = local("rounds_of_warp", 1, I32)
        put(rounds, rounds_of(self.scored, WARP * self.cta.warps), 0)
        with when(rounds[0] <= self.words):
            to = self.kth.before_warp(self._mark(bound, rounds[0]))
            put(found, self.kth.of_all_warps(), 0)
            with when(found[0] < best):
                put(found, i32(self.room + 1), 0)
            with when(found[0] <= self.room):
                self._list_pages(rounds[0], to)
                cta_sync()
                self._read_keys(found[0])

    def _mark(self, bound: Expr, rounds: Expr) -> Expr:
        """Mark the pages that reach the bound; says how many of this warp do. A warp has a range of pages of its own,
        as in :class:`RowKeys`, of so many ``rounds`` of 32.
        """
        batch, marks = local("keys_to_mark", TOGETHER, U32), local("marks_of_lane", 1, U32)
        count, first = local("marked", 1, I32), local("first_of_lane", 1, I32)
        put(count, i32(0), 0)
        put(first, self.cta.warp * rounds * WARP + self.cta.lane, 0)
        with loop("mark_round", rounds_of(rounds, TOGETHER), rolled=True) as turn:
            # all loads are on their way before the first is looked at
            with loop("i", TOGETHER) as i:
                put(batch, T.reinterpret(U32, self.keys.get(T.min(first[0] + i * WARP, self.scored - 1))), i)
            put(marks, T.uint32(0), 0)
            with loop("i", TOGETHER) as i:
                inside = T.And(turn * TOGETHER + i < rounds, first[0] + i * WARP < self.scored)
                reaching = let("reaching", ballot(T.And(inside, batch[i] >= bound)))
                put(count, count[0] + count_bits(reaching), 0)
                put(marks, T.Select(equal(self.cta.lane, i), reaching, marks[0]), 0)
            word = let("word", turn * TOGETHER + self.cta.lane)
            with when(T.And(self.cta.lane < TOGETHER, word < rounds)):
                put(self.kth.arena.u32, marks[0], word + self._marks_of_warp)
            put(first, first[0] + TOGETHER * WARP, 0)
        return count[0]

    def _list_pages(self, rounds: Expr, to: Buffer) -> None:
        """List the marked pages of this warp from ``to`` on; a lane has some words of marks."""
        shared = self.kth.arena
        each, mine, left, at = (
            local(name, 1, dtype)
            for name, dtype in (("words_of_lane", I32), ("marked_here", I32), ("left_of_word", U32), ("place", I32))
        )
        put(each, rounds_of(rounds, WARP), 0)
        put(mine, i32(0), 0)

        def word_of(j: Expr) -> Expr:
            number = let("number", self.cta.lane * each[0] + j)
            marks = shared.u32[T.min(number, rounds - 1) + self._marks_of_warp]
            return let("marks", T.Select(number < rounds, marks, T.uint32(0)))

        with loop("word_round", each[0], rolled=True) as j:
            put(mine, mine[0] + count_bits(word_of(j)), 0)
        put(at, to[0] + warp_prefix(mine[0], lambda a, b: a + b, self.cta.lane) - mine[0], 0)
        with loop("word_round", each[0], rolled=True) as j:
            put(left, word_of(j), 0)
            page = let("first_of_word", ((self.cta.warp * rounds) + (self.cta.lane * each[0] + j)) * WARP)

            def take(bit: Expr, page: Expr = page) -> None:
                put(shared.i32, page + bit, at[0] + (self.at + self.room))
                put(at, at[0] + 1, 0)

            each_bit(left, take)

    def _read_keys(self, count: Expr) -> None:
        """Bring the keys of the listed pages to shared memory."""
        shared, batch, first = self.kth.arena, local("keys_of_list", TOGETHER, U32), local("first_of_list", 1, I32)
        with loop("list_round", rounds_of(count, TOGETHER * self.cta.threads), rolled=True) as turn:
            put(first, turn * (TOGETHER * self.cta.threads) + self.cta.thread, 0)
            with loop("i", TOGETHER) as i:
                page = shared.i32[T.min(first[0] + i * self.cta.threads, count - 1) + (self.at + self.room)]
                put(batch, T.reinterpret(U32, self.keys.get(page)), i)
            with loop("i", TOGETHER) as i, when(first[0] + i * self.cta.threads < count):
                put(shared.u32, batch[i], first[0] + (self.at + i * self.cta.threads))

    @property
    def _marks_of_warp(self) -> Expr:
        """Where the marks of this warp stand."""
        return self.cta.warp * self.words + (self.at + 2 * self.room)
