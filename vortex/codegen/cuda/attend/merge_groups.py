"""How the many splits of a row under MLA become its output: in groups, each by the last of its CTAs, then the groups.

A split of 20 heads leaves 40 KiB, which one SM reads no faster than any other memory: the last CTA of a row that has
16 splits would read 640 KiB while all others are idle. So the last CTA of each group of splits makes one of them, and
the last of these CTAs makes the row's output of the groups:

    splits    0 1 2 3 | 4 5 6 7 | 8 9 ..        as many as one CTA merges at once, or fewer: no groups
    groups       0         1        2
    row                    .
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from vortex.codegen.cuda.attend.merge import QUAD, Merge, State
from vortex.codegen.cuda.attend.softmax import LOWEST
from vortex.codegen.cuda.ptx import (
    WARP,
    ceil_quotient,
    cta_sync,
    exp2,
    flat_view,
    pick,
    ptx,
    quotient,
    registers,
    remainder,
    shuffle_xor,
    wide,
)
from vortex.codegen.tir import F32, Buffer, Expr, T, equal, f32, i32, let, loop, put, when
from vortex.schedules.cuda_attend import partial_words
from vortex.schedules.cuda_latent import MOST_GROUPS

AT_ONCE = 5
"""Most quads of a thread whose splits are on their way together; 4 splits of each."""
SPLITS = 4


@dataclass(frozen=True)
class _Parts:
    """What one CTA merges: the splits of a group, or the groups of a row."""

    count: Expr
    word: Callable[[Expr], Expr]
    """Where the partials of one of them begin in ``partials``."""
    stats: int
    """Where its maxima and totals begin behind that."""


@dataclass(frozen=True)
class GroupedMerge(Merge):
    """:class:`Merge` of one softmax of each head, in all warps together, for many splits of many heads."""

    merged: int = 8
    """The most splits that one CTA merges at once where there are not more than its square."""

    @property
    def own(self) -> int:
        """Heads that are merged."""
        return min(self.heads, self.shape.group)

    @property
    def warps(self) -> int:
        return self.threads // WARP

    @property
    def split_stats(self) -> int:
        """Where the maxima and totals of a split begin in its partials."""
        return self.shape.group * self.shape.v_dim

    @property
    def group_stats(self) -> int:
        """The same of a group, which has its sums in the place of its first split: other threads read those of the
        split while they are written.
        """
        return partial_words(self.shape)

    def group_size(self) -> Expr:
        """Splits of a group; all of them where one CTA is to merge them. It depends on nothing but their number."""
        n, most = self.splits, self.merged
        many = T.max(i32(2 * most), ceil_quotient(n, i32(MOST_GROUPS)))
        some = T.Select(n <= most * most // 4, i32(max(1, most // 2)), T.Select(n <= most * most, i32(most), many))
        return let("group_size", T.Select(n <= most, n, some))

    def _meet(self) -> None:
        """Make the output of the groups, each of which the last of its CTAs makes of its splits."""
        size = self.group_size()
        group = let("group", quotient(self.split, size))
        groups, first = let("groups", ceil_quotient(self.splits, size)), let("first_of_group", group * size)
        members, told = let("members", T.min(size, self.splits - first)), self._told()
        with self._last(self.row.counter + 1 + group, members, told, 0):
            splits = _Parts(members, lambda i: self.word(first + i), self.split_stats)
            self._totals(splits)
            with when(equal(groups, i32(1))):
                self._sums(splits, self._finish)
            with when(groups > 1):
                self._sums(splits, lambda g, d, state, quad: self._leave_group(first, g, d, state, quad))
                with self._last(self.row.counter, groups, told, 1):
                    whole = _Parts(groups, lambda i: self.word(i * size), self.group_stats)
                    self._totals(whole)
                    self._sums(whole, self._finish)

    def _from_shared(self, g: Expr, d: Expr) -> State:
        """What the CTA has of a quad: there is one softmax of each head."""
        state, quad = registers("state", 2), registers("quad", QUAD)
        for e in range(2):
            put(state, self.shared[g * 2 + (self.stats + e)], e)
        for e in range(QUAD):
            put(quad, self.shared[g * self.pitch + d + e], e)
        return state, quad

    def _totals(self, parts: _Parts) -> None:
        """Leave the maximum and total of each head over all parts in shared memory, by a warp for each."""
        warp, lane = let("merge_warp", quotient(self.thread, WARP)), let("merge_lane", remainder(self.thread, WARP))
        turns = -(-self.own // self.warps)
        source = flat_view(self.args.buffers["partials"], F32, 16)
        top, total = registers("merged_top", turns), registers("merged_total", turns)
        tops, totals, factor = registers("tops", turns), registers("totals", turns), registers("factor", 2)
        now = registers("now", 1)
        for j in range(turns):
            put(top, f32(LOWEST), j)
            put(total, f32(0), j)
        with loop("some", ceil_quotient(parts.count, WARP)) as some:
            part = let("part", some * WARP + lane)
            base = let("word", parts.word(T.min(part, parts.count - 1)))
            for j in range(turns):
                head = let("head", T.min(self.begin + T.min(warp + j * self.warps, i32(self.own - 1)), self._most))
                ptx("ld.global.v2.f32", tops[j], totals[j], source.ptr_to([base + wide(head * 2 + parts.stats)]))
            with when(part < parts.count):
                for j in range(turns):
                    put(now, T.max(top[j], tops[j]), 0)
                    exp2(factor, 0, top[j] - now[0])
                    exp2(factor, 1, tops[j] - now[0])
                    put(total, total[j] * factor[0] + totals[j] * factor[1], j)
                    put(top, now[0], j)
        for j in range(turns):
            put(now, top[j], 0)
            for mask in (1, 2, 4, 8, 16):
                put(now, T.max(now[0], shuffle_xor(now[0], mask)), 0)
            exp2(factor, 0, top[j] - now[0])
            put(total, total[j] * factor[0], j)
            for mask in (1, 2, 4, 8, 16):
                put(total, total[j] + shuffle_xor(total[j], mask), j)
            with when(T.And(equal(lane, i32(0)), warp + j * self.warps < self.own)):
                self.put_stats(now[0], total[j], warp + j * self.warps)
        cta_sync()

    @property
    def _most(self) -> Expr:
        """The last head of a row."""
        return i32(self.shape.group - 1)

    def _sums(self, parts: _Parts, use: Callable[[Expr, Expr, Buffer, Buffer], None]) -> None:
        """Call ``use(head of the CTA, first dim, its state, the merged quad)`` for every quad, by the threads in turn.

        The parts are added up in order, whichever CTA came last: the bits are the same every time.
        """
        per_head, threads = self.shape.v_dim // QUAD, self.threads
        quads = self.own * per_head
        turns = -(-quads // threads)
        at_once = -(-turns // -(-turns // AT_ONCE))
        # whether every thread has as many quads, and every head is one of the row's
        exact = quads % (threads * at_once) == 0 and self.shape.group % self.own == 0
        source = flat_view(self.args.buffers["partials"], F32, 16)
        tops, came = registers("tops", SPLITS * at_once), registers("came", SPLITS * at_once * QUAD)
        sums, states, factor = registers("merged", at_once * QUAD), registers("state", at_once * 2), registers("f", 1)
        with loop("round", -(-turns // at_once)) as turn:
            places, heads, guards = [], [], []
            for q in range(at_once):
                at = let("quad", (turn * at_once + q) * threads + self.thread)
                if not exact:
                    at = let("quad", T.min(at, i32(quads - 1)))
                head = let("g", quotient(at, per_head))
                places.append(at)
                heads.append(head)
                guards.append(self._guard(exact, (turn * at_once + q) * threads + self.thread, quads, head))
                for e in range(QUAD):
                    put(sums, f32(0), q * QUAD + e)
                for e in range(2):
                    put(states, self.shared[head * 2 + (self.stats + e)], q * 2 + e)
            with loop("some", ceil_quotient(parts.count, SPLITS)) as some:
                for u in range(SPLITS):
                    base = let("word", parts.word(T.min(some * SPLITS + u, parts.count - 1)))
                    for q in range(at_once):
                        s = u * at_once + q
                        head = self.begin + heads[q]
                        offset = head * self.shape.v_dim + remainder(places[q], per_head) * QUAD
                        with guards[q]():
                            quad = source.ptr_to([base + wide(offset)])
                            ptx("ld.global.v4.f32", *pick(came, s * QUAD, QUAD), quad)
                            ptx("ld.global.f32", tops[s], source.ptr_to([base + wide(head * 2 + parts.stats)]))
                for u in range(SPLITS):
                    with when(some * SPLITS + u < parts.count):
                        for q in range(at_once):
                            s = u * at_once + q
                            with guards[q]():
                                exp2(factor, 0, tops[s] - states[q * 2])
                                for e in range(QUAD):
                                    put(sums, sums[q * QUAD + e] + came[s * QUAD + e] * factor[0], q * QUAD + e)
            for q in range(at_once):
                with guards[q]():
                    state, quad = registers("state_of", 2), registers("quad_of", QUAD)
                    for e in range(2):
                        put(state, states[q * 2 + e], e)
                    for e in range(QUAD):
                        put(quad, sums[q * QUAD + e], e)
                    use(heads[q], let("d", remainder(places[q], per_head) * QUAD), state, quad)

    def _guard(self, exact: bool, at: Expr, quads: int, head: Expr) -> Callable[[], AbstractContextManager[None]]:
        """What is done with a thread's quad, where it has one and its head is one of the row's."""
        if exact:
            return nullcontext
        there = let("there", T.And(at < quads, self.begin + head <= self._most))
        return lambda: when(there)

    def _leave_group(self, first: Expr, g: Expr, d: Expr, state: Buffer, quad: Buffer) -> None:
        """Write the partial result of a group in the place of its first split."""
        to = flat_view(self.args.buffers["partials"], F32, 16)
        base, g = let("word", self.word(first)), self.begin + g
        ptx("st.global.v4.f32", to.ptr_to([base + wide(g * self.shape.v_dim + d)]), *pick(quad, 0, QUAD))
        with when(equal(d, i32(0))):
            stats = let("stats", base + wide(g * 2 + self.group_stats))
            put(to, state[0], stats)
            put(to, state[1], stats + 1)
