"""From what a CTA has in shared memory, and then from the CTAs of a row, to the row's output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from vortex.codegen.arguments import Arguments
from vortex.codegen.cuda.ptx import (
    LN2,
    cta_sync,
    exp2,
    flat_view,
    pack_pair,
    pick,
    ptx,
    quotient,
    registers,
    remainder,
    wide,
    words,
)  # fmt: skip
from vortex.codegen.tir import F32, I32, Buffer, Expr, T, equal, f32, i32, let, loop, put, when
from vortex.schedules.cuda_attend import AttendShape

QUAD = 4
"""Dims of one head that a thread merges: 16 bytes of fp32."""
AT_ONCE = 4
"""Splits read together, so that their latencies overlap."""
LOWEST = -3.0e38
"""The maximum of no scores: finite, so that the difference of two of them is 0 and not NaN."""

State: TypeAlias = tuple[Buffer, Buffer]
"""Running maximum and total of a head, and the sums of 4 of its dims."""


@dataclass
class Merge:
    """The last part of ``attend``: ``states`` softmaxes of each of ``heads`` heads in shared memory become one.

    ``shape.group`` heads make a row, all of them of one CTA unless ``emit`` is told which.
    """

    args: Arguments
    shape: AttendShape
    states: int
    heads: int
    threads: int
    dtype: str
    arena: Buffer
    split: Expr
    splits: Expr
    """CTAs that work on this row, and which of them this is."""
    word: Callable[[Expr], Expr]
    """Where the partials of a split of this row begin."""
    unit: Expr | None = None
    """What values in fp8 are multiples of."""

    @property
    def pitch(self) -> int:
        """Words between heads; the odd quad spreads a store over all banks."""
        return self.shape.v_dim + QUAD

    def emit(
        self,
        request: Expr,
        first: Expr,
        row: Expr,
        thread: Expr,
        share: Callable[[Merge], None],
        begin: Expr | None = None,
    ) -> None:
        """Write the row's output, or leave this CTA's part of it to the one that comes last.

        ``first`` is the row's first query head, ``row`` its number among the counters, ``begin`` where in the row this
        CTA's heads begin, if not all of them are its own. ``share`` writes what the CTA has with :meth:`put_sum` and
        :meth:`put_stats`.
        """
        self.request, self.first, self.thread = request, first, thread
        self.begin, self.all = (i32(0), True) if begin is None else (begin, False)
        self.shared = self.arena.view(F32)
        self.stats = self.states * self.heads * self.pitch
        # nothing of the ring is read any more; all copies were waited for
        cta_sync()
        share(self)
        cta_sync()
        with when(equal(self.splits, i32(1))):
            self._quads(self._from_shared, self._finish)
        with when(self.splits > 1):
            self._quads(self._from_shared, self._leave)
            last = T.alloc_buffer((4,), I32, scope="shared")  # one element would lose its scope
            cta_sync()
            with when(equal(self.thread, i32(0))):
                before = registers("before", 2, I32)
                # releases what the barrier above gathered from all threads, acquires what others released
                arrivals = self.args.buffers["arrivals"]
                ptx("atom.acq_rel.gpu.global.add.s32", before[0], arrivals.ptr_to([row]), i32(1))
                put(last, before[0], 0)
                with when(equal(before[0], self.splits - 1)):
                    put(arrivals, i32(0), row)
            cta_sync()
            with when(equal(last[0], self.splits - 1)):
                self._quads(self._from_splits, self._finish)

    def put_sum(self, x: Expr, head: Expr, dim: Expr) -> None:
        """Share one sum; ``head`` counts the heads of all states."""
        put(self.shared, x, head * self.pitch + dim)

    def put_stats(self, top: Expr, total: Expr, head: Expr) -> None:
        """Share a head's maximum and total."""
        put(self.shared, top, head * 2 + self.stats)
        put(self.shared, total, head * 2 + (self.stats + 1))

    def _quads(self, gather: Callable[[Expr, Expr], State], use: Callable[[Expr, Expr, Buffer, Buffer], None]) -> None:
        """``use(head of the CTA, first dim, *gather(..))`` for each 4 dims of each head, over the CTA's threads."""
        per_head, group, threads = self.shape.v_dim // QUAD, self.shape.group, self.threads
        quads = (group if self.all else self.heads) * per_head
        ragged = not self.all and group % self.heads != 0

        def one(at: Expr) -> None:
            g, d = let("g", quotient(at, per_head)), let("d", remainder(at, per_head) * QUAD)
            if ragged:
                with when(self.begin + g < group):
                    use(g, d, *gather(g, d))
            else:
                use(g, d, *gather(g, d))

        with loop("round", -(-quads // threads)) as turn:
            at = let("quad", turn * threads + self.thread)
            if quads % threads == 0:
                one(at)
            else:
                with when(at < quads):
                    one(at)

    def _open(self) -> State:
        """Running maximum and total, and four sums, of nothing."""
        state, quad = registers("state", 2), registers("quad", QUAD)
        put(state, f32(LOWEST), 0)
        put(state, f32(0), 1)
        for e in range(QUAD):
            put(quad, f32(0), e)
        return state, quad

    def _from_shared(self, g: Expr, d: Expr) -> State:
        state, quad = self._open()
        factor = registers("factor", 2)
        for w in range(self.states):
            put(state, T.max(state[0], self.shared[(g + w * self.heads) * 2 + self.stats]), 0)
        for w in range(self.states):
            at = let("from_state", g + w * self.heads)
            exp2(factor, 0, self.shared[at * 2 + self.stats] - state[0])
            put(state, state[1] + self.shared[at * 2 + (self.stats + 1)] * factor[0], 1)
            for e in range(QUAD):
                put(quad, quad[e] + self.shared[at * self.pitch + d + e] * factor[0], e)
        return state, quad

    def _leave(self, g: Expr, d: Expr, state: Buffer, quad: Buffer) -> None:
        """Write the partial result of this split."""
        to = flat_view(self.args.buffers["partials"], F32, 16)
        base, g = let("word", self.word(self.split)), self.begin + g
        ptx("st.global.v4.f32", to.ptr_to([base + wide(g * self.shape.v_dim + d)]), *pick(quad, 0, QUAD))
        with when(equal(d, i32(0))):
            stats = let("stats", base + wide(g * 2 + self.shape.group * self.shape.v_dim))
            put(to, state[0], stats)
            put(to, state[1], stats + 1)

    def _from_splits(self, g: Expr, d: Expr) -> State:
        """In order of the splits, whoever came last: the same bits every time."""
        state, quad = self._open()
        source, g = flat_view(self.args.buffers["partials"], F32, 16), self.begin + g
        tops, totals = registers("tops", AT_ONCE), registers("totals", AT_ONCE)
        quads = registers("quads", AT_ONCE * QUAD)
        now, factor = registers("now", 2), registers("factor", 2)
        with loop("some", quotient(self.splits + (AT_ONCE - 1), AT_ONCE)) as some:
            for u in range(AT_ONCE):
                split = let("split", T.min(some * AT_ONCE + u, self.splits - 1))
                base = let("word", self.word(split))
                ptx(
                    "ld.global.v4.f32",
                    *pick(quads, u * QUAD, QUAD),
                    source.ptr_to([base + wide(g * self.shape.v_dim + d)]),
                )
                stats = let("stats", base + wide(g * 2 + self.shape.group * self.shape.v_dim))
                ptx("ld.global.v2.f32", tops[u], totals[u], source.ptr_to([stats]))
            for u in range(AT_ONCE):
                with when(some * AT_ONCE + u < self.splits):
                    put(now, T.max(state[0], tops[u]), 0)
                    exp2(factor, 0, state[0] - now[0])
                    exp2(factor, 1, tops[u] - now[0])
                    put(state, now[0], 0)
                    put(state, state[1] * factor[0] + totals[u] * factor[1], 1)
                    for e in range(QUAD):
                        put(quad, quad[e] * factor[0] + quads[u * QUAD + e] * factor[1], e)
        return state, quad

    def _finish(self, g: Expr, d: Expr, state: Buffer, quad: Buffer) -> None:
        """Normalise and write the output, and the log-sum-exp where it is wanted."""
        out, lse = self.args.buffers["out"], self.args.buffers["lse"]
        head = let("head", self.first + self.begin + g)
        unit = f32(1) if self.unit is None else self.unit
        # a row without tokens gives zeros and -inf; a NaN stays one
        share = let("share", T.Select(equal(state[1], f32(0)), f32(0), unit / state[1]))
        packed = words("packed", QUAD // 2)
        for e in range(QUAD // 2):
            pack_pair(self.dtype, packed[e], quad[2 * e] * share, quad[2 * e + 1] * share)
        ptx("st.global.v2.b32", out.ptr_to([self.request, head, d]), packed[0], packed[1])
        with when(T.And(equal(d, i32(0)), self.args.size("L") > 0)):
            put(lse, (state[0] + T.log2(state[1])) * f32(LN2), self.request, head)
