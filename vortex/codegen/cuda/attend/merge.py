"""How the softmaxes of a CTA's warps, and then those of the CTAs of a row, become the row's output."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeAlias

from vortex.codegen.arguments import Arguments
from vortex.codegen.cuda.arrival import arrive
from vortex.codegen.cuda.attend.softmax import LOWEST
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
State: TypeAlias = tuple[Buffer, Buffer]
"""Running maximum and total of a head, and the sums of 4 of its dims."""


@dataclass(frozen=True)
class Row:
    """The query heads that share one list of pages, and which of them are this CTA's."""

    request: Expr
    first: Expr
    """The row's first query head."""
    counter: Expr
    """The index of the arrival counter that the CTAs of these heads share."""
    begin: Expr | None = None
    """Where in the row this CTA's heads begin; None where it has all of them."""


@dataclass(frozen=True)
class Merge:
    """The last part of ``attend``: ``states`` softmaxes of each of ``heads`` heads in shared memory become one.

    Shared memory holds the sums of all states and heads, then a pair (maximum, total) for each:

        word 0                 pitch                          stats
        | sums of head 0 |pad| | sums of head 1 |pad| ..      | top 0, total 0 | top 1, total 1 | ..

    where the heads of a state stand together. What a split leaves in ``partials`` has the same two parts without the
    padding, for the ``shape.group`` heads of a row.
    """

    args: Arguments
    shape: AttendShape
    dtype: str
    """Of the output."""
    states: int
    heads: int
    threads: int
    thread: Expr
    row: Row
    split: Expr
    splits: Expr
    """How many CTAs work on this row, and which of them this one is."""
    word: Callable[[Expr], Expr]
    """Where the partials of a split of this row begin."""
    shared: Buffer
    """All of the CTA's shared memory."""
    unit: Expr | None = None
    """What values in fp8 are multiples of."""

    @property
    def pitch(self) -> int:
        """Words between heads; the odd quad spreads a store over all banks."""
        return self.shape.v_dim + QUAD

    @property
    def stats(self) -> int:
        """The word at which maxima and totals begin."""
        return self.states * self.heads * self.pitch

    def emit(self, share: Callable[[Merge], None]) -> None:
        """Write the row's output, or leave this CTA's part of it to the CTA that comes last.

        ``share`` writes what the CTA has with :meth:`put_sum` and :meth:`put_stats`.
        """
        # nothing of the ring is read any more; all copies were waited for
        cta_sync()
        share(self)
        cta_sync()
        with when(equal(self.splits, i32(1))):
            self._quads(self._from_shared, self._finish)
        with when(self.splits > 1):
            self._quads(self._from_shared, self._leave)
            self._meet()

    def _meet(self) -> None:
        """Make the row's output of what the splits left, in the CTA that comes last."""
        with self._last(self.row.counter, self.splits, self._told(), 0):
            self._quads(self._from_splits, self._finish)

    @staticmethod
    def _told() -> Buffer:
        """How many had come before, which one thread tells the others."""
        return T.alloc_buffer((4,), I32, scope="shared")  # one element would lose its scope

    def _last(self, counter: Expr, expected: Expr, told: Buffer, at: int) -> AbstractContextManager[None]:
        """Count this CTA in; what follows is for the last of ``expected``, which sees what the others left."""
        cta_sync()
        with when(equal(self.thread, i32(0))):
            arrive(self.args.buffers["arrivals"], counter, expected, told, at)
        cta_sync()
        return when(equal(told[at], expected - 1))

    def put_sum(self, x: Expr, head: Expr, dim: Expr) -> None:
        """Leave one sum in shared memory; ``head`` counts the heads of all states."""
        put(self.shared, x, head * self.pitch + dim)

    def put_stats(self, top: Expr, total: Expr, head: Expr) -> None:
        """Leave a head's maximum and total in shared memory."""
        put(self.shared, top, head * 2 + self.stats)
        put(self.shared, total, head * 2 + (self.stats + 1))

    def _quads(self, gather: Callable[[Expr, Expr], State], use: Callable[[Expr, Expr, Buffer, Buffer], None]) -> None:
        """Call ``use(head of the CTA, first dim, *gather(..))`` for every 4 dims of a head, by the threads in turn."""
        per_head, group, threads = self.shape.v_dim // QUAD, self.shape.group, self.threads
        whole = self.row.begin is None
        quads = (group if whole else self.heads) * per_head
        ragged = not whole and group % self.heads != 0

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

    @property
    def begin(self) -> Expr:
        """The first of this CTA's heads in its row."""
        return i32(0) if self.row.begin is None else self.row.begin

    def _open(self) -> State:
        """The state before the first softmax is taken in."""
        state, quad = registers("state", 2), registers("quad", QUAD)
        put(state, f32(LOWEST), 0)
        put(state, f32(0), 1)
        for e in range(QUAD):
            put(quad, f32(0), e)
        return state, quad

    def _from_shared(self, g: Expr, d: Expr) -> State:
        """Merge the states of the CTA, in order."""
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
        """Merge the splits in their order, whichever CTA came last: the bits are the same every time."""
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
        head = let("head", self.row.first + self.begin + g)
        unit = f32(1) if self.unit is None else self.unit
        # a row without tokens gives zeros and -inf; a NaN stays one
        share = let("share", T.Select(equal(state[1], f32(0)), f32(0), unit / state[1]))
        packed = words("packed", QUAD // 2)
        for e in range(QUAD // 2):
            pack_pair(self.dtype, packed[e], quad[2 * e] * share, quad[2 * e + 1] * share)
        ptx("st.global.v2.b32", out.ptr_to([wide(self.row.request), head, d]), packed[0], packed[1])
        with when(T.And(equal(d, i32(0)), self.args.size("L") > 0)):
            put(lse, (state[0] + T.log2(state[1])) * f32(LN2), self.row.request, head)
