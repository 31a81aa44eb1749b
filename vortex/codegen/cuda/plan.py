"""``plan`` on a GPU: one CTA turns lengths into budgets and lists of work items of nearly equal bytes.

All pages of a kernel cost the same bytes, so balancing pages balances bytes. An item is at most ``item_pages``
consecutive pages of one request, for one KV head a CTA; a list has room for the requests and ``slots`` more, which
is how many CTAs (per KV head) the caller wants at work. For ``select`` a request that is only a little longer than an
item is one all the same, and the items of a longer one are equal: a short rest would cost a meeting of CTAs for little.

Where one choice of knobs does not do for all shapes, the schedule has a ``table`` of them, and each step looks up the
one whose bucket is nearest to what it is: a captured graph follows its lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from vortex.codegen.arguments import Arguments
from vortex.codegen.budgets import KEPT, SCORED, plan_request
from vortex.codegen.cuda.ptx import WARP, ceil_quotient, cta_sync, overlap_launch, overlap_wait
from vortex.codegen.cuda.storage import Arena
from vortex.codegen.cuda.warp import Cta, rounds_of, warp_fold, warp_prefix
from vortex.codegen.cuda.work_list import ATTEND, HEADER, SELECT, pack_item, part_pages
from vortex.codegen.tir import I32, Expr, T, cast, equal, i32, let, local, loop, put, when
from vortex.ir.core import Attr, Function, Module
from vortex.ir.dialects import page
from vortex.kinds.buckets import FALLBACK_STEPS, Bucket
from vortex.schedules.cuda_plan import CudaPlan, PlanKnobs
from vortex.schedules.knobs import read_knobs

MOST_REQUESTS = 4096
"""Requests of a step; each has a word in shared memory."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the table: the bucket of steps that these knobs are for."""

    bucket: Bucket
    knobs: PlanKnobs


def table_of(schedule: Mapping[str, Attr]) -> tuple[Entry, ...]:
    """The schedule's table, the entry first that goes before others as near; at most one a lane, spread evenly."""
    every = [
        Entry(Bucket(*numbers), read_knobs(PlanKnobs, {**schedule, **line}))
        for line in schedule.get("table", ())
        for numbers in line["serves"]
    ]
    every.sort(key=lambda e: e.bucket, reverse=True)
    most = min(WARP, len(every))
    return tuple(every[i * len(every) // most] for i in range(most))


def emit_plan(program: Module, f: Function) -> list[str]:
    """Write the kernel into the open TVM function; returns the names of its arguments in order."""
    args = Arguments(program)
    args.of_plan(CudaPlan.taken())
    knobs = read_knobs(PlanKnobs, f.attrs.get("schedule", {}))
    overlap_launch(knobs.overlap)
    T.device_entry()
    T.cta_id([1])
    warp, lane = T.warp_id([knobs.threads // WARP]), T.lane_id([WARP])
    cta = Cta(let("warp", warp), let("lane", lane), let("thread", warp * WARP + lane), knobs.threads)
    plan = next(o for o in f.ops if isinstance(o, page.Plan))
    kernel = _Plan.open(args, cta, knobs)
    # under MLA a request is a row, and has as many counters as its heads have blocks
    rows = args.size("B" if "kv_lora_rank" in program.attrs else "R")
    kernel.emit(plan, table_of(f.attrs.get("schedule", {})), rows)
    return args.names


@dataclass(frozen=True, slots=True)
class _Sums:
    """Pages of all requests together, and those of the longest one, at least 1."""

    everything: Expr
    longest: Expr


@dataclass(frozen=True)
class _Least:
    """The fewest pages that are worth an item of their own."""

    pages: Expr
    busy: Expr | None = None
    """The same once every second slot has an item, where that differs."""


class _Cut(Protocol):
    """How the list of one kernel is cut into items."""

    row: int
    """Of ``work``."""
    pages: int
    """The row of ``plan`` with the pages that the kernel works on."""
    quantum: int
    """What the pages of an item are a multiple of."""

    def item(self, fair: Expr, longest: Expr) -> Expr:
        """Pages of an item, where ``fair`` keep all slots busy and the longest request has ``longest``."""

    def part(self, pages: Expr, item: Expr) -> Expr:
        """Pages of each item but the last of a request that has ``pages``."""


class _SelectCut(_Cut):
    """A request that is a little longer than an item is one all the same; items of a longer one are equal."""

    row, pages = SELECT, SCORED

    def __init__(self, blocks: int) -> None:
        self.blocks, self.quantum = blocks, WARP * blocks

    def item(self, fair: Expr, longest: Expr) -> Expr:
        return fair

    def part(self, pages: Expr, item: Expr) -> Expr:
        return part_pages(pages, item, self.blocks)


class _AttendCut(_Cut):
    """Items are of one size for all requests, such that the longest one is cut into equal items: a rest of a few pages
    would keep a CTA as a whole item does.
    """

    row, pages, quantum = ATTEND, KEPT, 1

    def item(self, fair: Expr, longest: Expr) -> Expr:
        equal_parts = T.max(i32(1), T.truncdiv(longest + (fair - T.truncdiv(fair, i32(4)) - 1), fair))
        return T.max(fair, ceil_quotient(longest, equal_parts))

    def part(self, pages: Expr, item: Expr) -> Expr:
        return item


@dataclass(frozen=True)
class _Plan:
    """The body of the only CTA."""

    args: Arguments
    cta: Cta
    knobs: PlanKnobs
    arena: Arena
    ends: int
    """Where, for each request, the number of items of all requests up to it stands in shared memory."""
    totals: int
    """Where a word for each warp stands."""

    @classmethod
    def open(cls, args: Arguments, cta: Cta, knobs: PlanKnobs) -> _Plan:
        """Declare the shared memory, and wait for the kernel in front."""
        arena = Arena()
        ends, totals = arena.take(MOST_REQUESTS), arena.take(cta.warps)
        arena.open()
        overlap_wait(knobs.overlap)
        return cls(args, cta, knobs, arena, ends, totals)

    def emit(self, plan: page.Plan, table: Sequence[Entry], rows: Expr) -> None:
        """Clear the counters, then write budgets and both lists, by the knobs of the nearest entry of the table."""
        requests, knobs = self.args.size("B"), self.knobs
        with self.cta.share("row", self.args.size("R")) as row:
            put(self.args.buffers["arrivals"], i32(0), row)
        with self.cta.share("r", requests) as r:
            plan_request(self.args, r, plan, T.truncdiv)
        # a thread reads the rows it wrote itself
        select, attend = _SelectCut(plan.whole), _AttendCut()
        if not table:
            self._list(select, self._sums(select), _Least(i32(knobs.select_pages)))
            least = _Least(i32(knobs.attend_pages), i32(knobs.attend_busy))
            self._list(attend, self._sums(attend), least)
            return
        scores = self._sums(select)
        cta_sync()
        reads = self._sums(attend)
        of_select, of_attend = self._look_up(table, rows, scores.longest, reads.longest)
        self._list(select, scores, of_select)
        self._list(attend, reads, of_attend)

    def _look_up(self, table: Sequence[Entry], rows: Expr, scored: Expr, kept: Expr) -> tuple[_Least, _Least]:
        """The knobs of the nearest entry by the rule of ``kinds.buckets``; lane i measures how far entry i is."""
        budget, lane = self.args.buffers["budget"], self.cta.lane
        pages = T.max(kept, T.Select(scored > 1, scored + budget[1] + budget[2], i32(0)))
        axes = [(rows, [e.bucket.rows for e in table]), (pages, [e.bucket.columns for e in table]),
                (kept, [e.bucket.kept for e in table])]  # fmt: skip
        steps: Expr = i32(0)
        for here, there in axes:
            steps = steps + T.abs(_doublings(here) - _entry(lane, [n.bit_length() - 1 for n in there]))
        far = i32((FALLBACK_STEPS + 1) * WARP)
        nearest = warp_fold(T.Select(lane < len(table), steps * WARP + lane, far), lambda a, b: T.min(a, b), "nearest")
        which = let("which", T.Select(nearest < far, T.bitwise_and(nearest, i32(WARP - 1)), i32(len(table))))
        every = [*(e.knobs for e in table), self.knobs]
        values = ([k.select_pages for k in every], [k.attend_pages for k in every], [k.attend_busy for k in every])
        # in registers: TVM writes a bound value out wherever it is used, and the lists use these many times
        least = local("least_pages", len(values), I32)
        for i, v in enumerate(values):
            put(least, _entry(which, v), i)
        return _Least(least[0]), _Least(least[1], least[2])

    def _sums(self, cut: _Cut) -> _Sums:
        """Add up the pages of all requests; every thread has the result."""
        plan = self.args.buffers["plan"]
        total, most = local("total", 1, "int64"), local("most", 1, I32)
        put(total, T.int64(0), 0)
        put(most, i32(1), 0)
        with self.cta.share("r", self.args.size("B")) as r:
            put(total, total[0] + cast("int64", plan[cut.pages, r]), 0)
            put(most, T.max(most[0], plan[cut.pages, r]), 0)
        everything = self._fold(cast(I32, total[0]), lambda a, b: a + b)
        cta_sync()
        return _Sums(everything, self._fold(most[0], lambda a, b: T.max(a, b)))

    def _list(self, cut: _Cut, sums: _Sums, least: _Least) -> None:
        """Write the items of all requests in order, of about as many pages as keep every slot busy, and no fewer than
        ``least`` says.
        """
        work, plan, requests = self.args.buffers["work"], self.args.buffers["plan"], self.args.size("B")
        slots = let("slots", T.max(i32(1), self.args.size("N") - HEADER - requests))
        rounds = rounds_of(requests, self.cta.threads)
        quantum, everything = cut.quantum, sums.everything
        item = T.truncdiv(T.truncdiv(everything + (slots - 1), slots) + (quantum - 1), i32(quantum)) * quantum
        if least.busy is None:
            half = least.pages
        else:
            half = T.min(least.busy, T.truncdiv(2 * everything + (slots - 1), slots))
        item = let("fair_pages", T.max(least.pages, T.max(item, half)))
        item = let("item_pages", cut.item(item, sums.longest))
        base = local("base", 1, I32)
        put(base, i32(0), 0)
        with loop("round", rounds) as turn:
            r = let("r", turn * self.cta.threads + self.cta.thread)
            parts = local("parts", 1, I32)
            put(parts, i32(0), 0)
            with when(r < requests):
                # a request without work still has its outputs to write
                put(parts, T.max(i32(1), ceil_quotient(plan[cut.pages, r], cut.part(plan[cut.pages, r], item))), 0)
            before = self._prefix(parts[0])
            with when(r < requests):
                put(self.arena.i32, base[0] + before, r + self.ends)
            put(base, base[0] + self.arena.i32[self.totals + self.cta.warps - 1], 0)
        cta_sync()
        items = let("items", T.min(base[0], self.args.size("N") - HEADER))
        with when(equal(self.cta.thread, i32(0))):
            put(work, items, cut.row, 0)
            put(work, item, cut.row, 1)
        with self.cta.share("item", items) as i:
            r = self._request_of(i)
            begin = local("begin", 1, I32)
            put(begin, i32(0), 0)
            with when(r > 0):
                put(begin, self.arena.i32[r - 1 + self.ends], 0)
            put(work, pack_item(r, i - begin[0]), cut.row, i + HEADER)

    def _request_of(self, i: Expr) -> Expr:
        """The first request whose items end beyond ``i``."""
        low, high = local("low", 1, I32), local("high", 1, I32)
        put(low, i32(0), 0)
        put(high, self.args.size("B") - 1, 0)
        with T.While(low[0] < high[0]):
            middle = let("middle", T.truncdiv(low[0] + high[0], i32(2)))
            beyond = let("beyond", self.arena.i32[middle + self.ends] > i)
            put(high, T.Select(beyond, middle, high[0]), 0)
            put(low, T.Select(beyond, low[0], middle + 1), 0)
        return let("request", low[0])

    def _fold(self, x: Expr, take: Callable[[Expr, Expr], Expr]) -> Expr:
        """Fold ``x``, which is not negative, over all threads; every thread has the result."""
        mine = warp_fold(x, take, "mine")
        with when(equal(self.cta.lane, i32(0))):
            put(self.arena.i32, mine, self.cta.warp + self.totals)
        cta_sync()
        return warp_fold(self._of_warp(), take, "all")

    def _of_warp(self) -> Expr:
        """What warp i left, in lane i."""
        found = local("of_warp", 1, I32)
        put(found, i32(0), 0)
        with when(self.cta.lane < self.cta.warps):
            put(found, self.arena.i32[self.cta.lane + self.totals], 0)
        return found[0]

    def _prefix(self, x: Expr) -> Expr:
        """Add up ``x`` of this thread and all before it; ``totals`` then holds the sums up to each warp."""
        mine = warp_prefix(x, lambda a, b: a + b, self.cta.lane)
        cta_sync()
        with when(equal(self.cta.lane, i32(WARP - 1))):
            put(self.arena.i32, mine, self.cta.warp + self.totals)
        cta_sync()
        with when(equal(self.cta.warp, i32(0))):
            up_to = warp_prefix(self._of_warp(), lambda a, b: a + b, self.cta.lane, "up_to")
            with when(self.cta.lane < self.cta.warps):
                put(self.arena.i32, up_to, self.cta.lane + self.totals)
        cta_sync()
        before = local("before", 1, I32)
        put(before, mine, 0)
        with when(self.cta.warp > 0):
            put(before, mine + self.arena.i32[self.cta.warp - 1 + self.totals], 0)
        return let("up_to_me", before[0])


def _doublings(n: Expr) -> Expr:
    """How many doublings lead from 1 to the least power of two that is not below ``n``."""
    return T.Select(n > 1, 32 - cast(I32, T.clz(n - 1)), i32(0))


def _entry(at: Expr, values: Sequence[int]) -> Expr:
    """``values[at]`` as a chain of selects; the last value stands for all places beyond the others."""
    found: Expr = i32(values[-1])
    for i, value in reversed(list(enumerate(values[:-1]))):
        found = T.Select(equal(at, i32(i)), i32(value), found)
    return found
