"""``plan`` on a GPU: one CTA turns lengths into budgets and lists of work items of nearly equal bytes.

All pages of a kernel cost the same bytes, so balancing pages balances bytes. An item is at most ``item_pages``
consecutive pages of one request, for one KV head a CTA; a list has room for the requests and ``slots`` more, which
is how many CTAs (per KV head) the caller wants at work. For ``select`` a request that is only a little longer than an
item is one all the same, and the items of a longer one are equal: a short rest would cost a meeting of CTAs for little.

Where one choice of knobs does not do for all shapes, the schedule has a ``table`` of them, and each step looks up the
one whose bucket is nearest to what it is: a captured graph follows its lengths.

Where the budget says how many pages an item of ``attend`` has, all this is left aside for its list: how the pages of a
request are cut, and so the order in which its output is summed up, depends on no other request then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from vortex.codegen.arguments import Arguments
from vortex.codegen.budgets import ITEM, KEPT, SCORED, SLOTS, planned
from vortex.codegen.cuda.ptx import (
    WARP,
    ceil_quotient,
    cta_sync,
    overlap_launch,
    overlap_wait,
    remainder,
    shuffle,
    warp_sync,
)
from vortex.codegen.cuda.storage import Arena
from vortex.codegen.cuda.warp import Cta, rounds_of, warp_fold, warp_prefix
from vortex.codegen.cuda.work_list import ATTEND, HEADER, SELECT, pack_item, part_pages
from vortex.codegen.tir import I32, Expr, T, cast, choose, equal, i32, let, local, loop, put, register, when
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
    plan = next(o for o in f.ops if isinstance(o, page.Plan))
    # under MLA a request is a row, and has as many counters as its heads have blocks
    rows = args.size("B" if "kv_lora_rank" in program.attrs else "R")
    # for one CTA, ptxas need not spill to make room for two on an SM
    with T.attr({"tirx.launch_bounds_min_blocks_per_sm": 1}):
        T.cta_id([1])
        kernel = _Plan.open(args, Cta.open(knobs.threads), knobs)
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

    def item(self, fair: Expr, longest: Expr, given: Expr) -> Expr:
        """Pages of an item, where ``fair`` keep all slots busy and the longest request has ``longest``; ``given`` are
        those that the budget asks for, or 0.
        """

    def part(self, pages: Expr, item: Expr) -> Expr:
        """Pages of each item but the last of a request that has ``pages``."""


class _SelectCut(_Cut):
    """A request that is a little longer than an item is one all the same; items of a longer one are equal."""

    row, pages = SELECT, SCORED

    def __init__(self, blocks: int) -> None:
        self.blocks, self.quantum = blocks, WARP * blocks

    def item(self, fair: Expr, longest: Expr, given: Expr) -> Expr:
        return fair

    def part(self, pages: Expr, item: Expr) -> Expr:
        return part_pages(pages, item, self.blocks)


class _AttendCut(_Cut):
    """Items are of one size for all requests, such that the longest one is cut into equal items: a rest of a few pages
    would keep a CTA as a whole item does.
    """

    row, pages, quantum = ATTEND, KEPT, 1

    def item(self, fair: Expr, longest: Expr, given: Expr) -> Expr:
        equal_parts = T.max(i32(1), T.truncdiv(longest + (fair - T.truncdiv(fair, i32(4)) - 1), fair))
        return T.Select(given > 0, given, T.max(fair, ceil_quotient(longest, equal_parts)))

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
    """Where, for each request, the number of items of all requests up to it stands in shared memory; each warp has its
    own numbers where requests are few.
    """
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
        with self.cta.share("row", self.args.size("R")) as row:
            put(self.args.buffers["arrivals"], i32(0), row)
        with choose(self.args.size("B") <= WARP) as (few, many):
            with few():
                self._by_warps(plan, table, rows)
            with many():
                self._by_cta(plan, table, rows)

    def _by_warps(self, of: page.Plan, table: Sequence[Entry], rows: Expr) -> None:
        """Plan as many requests as a warp has lanes: a lane for each, and each warp finds all that it needs of them.
        Half of the warps write the list of ``select``, the others that of ``attend``, and no warp waits for another.
        """
        requests, lane, warp, half = self.args.size("B"), self.cta.lane, self.cta.warp, self.cta.warps // 2
        r, inside = let("r", T.min(lane, T.max(i32(0), requests - 1))), let("inside", lane < requests)
        found = planned(self.args, r, of, T.truncdiv)
        with when(T.And(equal(warp, i32(0)), inside)):
            found.write(self.args.buffers["plan"], r)
        own = local("own", 2, I32)
        sums = []
        for at, pages in enumerate((found.scored, found.kept)):
            put(own, T.Select(inside, pages, i32(0)), at)
            everything = register("everything", warp_fold(own[at], lambda a, b: a + b, "pages_of_all"))
            longest = warp_fold(own[at], lambda a, b: T.max(a, b), "longest")
            sums.append(_Sums(everything, register("longest", T.max(i32(1), longest))))
        least = self._least(table, rows, *sums)
        cuts: tuple[_Cut, _Cut] = (_SelectCut(of.whole), _AttendCut())
        with choose(warp < half) as both:
            for at, branch in enumerate(both):
                with branch():
                    item = self._item(cuts[at], sums[at], least[at])
                    if cuts[at].row == SELECT:
                        item = self._in_slots(cuts[at], own[at], inside, item)
                    elif "kv_lora_rank" in self.args.program.attrs:
                        item = self._in_one_wave(sums[at], item)
                    self._list_by_warps(cuts[at], own[at], inside, item, half)

    def _in_slots(self, cut: _Cut, pages: Expr, inside: Expr, item: Expr) -> Expr:
        """Pages of an item, where ``item`` of a few long requests would make more items than slots: the CTAs that find
        no room on the device would begin when the others end.
        """
        slots, requests = self._slots, self.args.size("B")
        parts = register("parts", T.Select(inside, self._parts(cut, pages, item), i32(0)))
        items = warp_fold(parts, lambda a, b: a + b, "items_in_all")
        larger = ceil_quotient(ceil_quotient(item * items, slots), i32(cut.quantum)) * cut.quantum
        return register("item_in_slots", T.Select(T.And(items > slots, 2 * requests <= slots), larger, item))

    def _in_one_wave(self, sums: _Sums, item: Expr) -> Expr:
        """Pages of an item of ``attend`` under MLA, whose CTAs fill an SM: the longest request has no more items than
        its share of the slots, for one item too many takes as long as all others. What the budget asks for stays.
        """
        slots, requests, given = self._slots, self.args.size("B"), self.args.buffers["budget"][ITEM]
        parts = T.max(i32(1), T.truncdiv(slots * sums.longest, T.max(i32(1), sums.everything)))
        larger = T.max(item, ceil_quotient(sums.longest, parts))
        few = T.And(2 * requests <= slots, equal(given, i32(0)))
        return register("item_in_one_wave", T.Select(few, larger, item))

    @staticmethod
    def _parts(cut: _Cut, pages: Expr, item: Expr) -> Expr:
        """Items of a request; one without work still has its outputs to write."""
        return T.max(i32(1), ceil_quotient(pages, cut.part(pages, item)))

    @property
    def _slots(self) -> Expr:
        """Items that there should be."""
        wanted, room = self.args.buffers["budget"][SLOTS], self.args.size("N") - HEADER - self.args.size("B")
        return register("slots", T.max(i32(1), T.Select(wanted > 0, T.min(wanted, room), room)))

    def _list_by_warps(self, cut: _Cut, pages: Expr, inside: Expr, item: Expr, warps: int) -> None:
        """Write a list by ``warps`` warps, where each lane has the ``pages`` of its request."""
        work, lane, warp = self.args.buffers["work"], self.cta.lane, self.cta.warp
        parts = register("parts", T.Select(inside, self._parts(cut, pages, item), i32(0)))
        ends = register("ends", warp_prefix(parts, lambda a, b: a + b, lane, "items_up_to"))
        mine = let("ends_of_warp", warp * WARP + self.ends)
        put(self.arena.i32, ends, mine + lane)
        warp_sync()
        items = register("items", T.min(shuffle(ends, i32(WARP - 1)), self.args.size("N") - HEADER))
        share = let("warp_of_list", remainder(warp, i32(warps)))
        with when(T.And(equal(share, i32(0)), equal(lane, i32(0)))):
            put(work, items, cut.row, 0)
            put(work, item, cut.row, 1)
        with loop("item_round", rounds_of(items, warps * WARP)) as turn:
            i = let("item", (turn * warps + share) * WARP + lane)
            with when(i < items):
                self._write_item(cut, i, mine)

    def _by_cta(self, of: page.Plan, table: Sequence[Entry], rows: Expr) -> None:
        """Plan any number of requests, dealt out to the threads of the CTA."""
        with self.cta.share("r", self.args.size("B")) as r:
            planned(self.args, r, of, T.truncdiv).write(self.args.buffers["plan"], r)
        # a thread reads the rows it wrote itself
        cuts: tuple[_Cut, _Cut] = (_SelectCut(of.whole), _AttendCut())
        scores = self._sums(cuts[0])
        cta_sync()
        sums = (scores, self._sums(cuts[1]))
        for cut, its, least in zip(cuts, sums, self._least(table, rows, *sums), strict=True):
            self._list(cut, self._item(cut, its, least))

    def _least(self, table: Sequence[Entry], rows: Expr, scores: _Sums, reads: _Sums) -> tuple[_Least, _Least]:
        """The fewest pages of an item of select, and of one of attend."""
        if not table:
            knobs = self.knobs
            return _Least(i32(knobs.select_pages)), _Least(i32(knobs.attend_pages), i32(knobs.attend_busy))
        return self._look_up(table, rows, scores.longest, reads.longest)

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

    def _item(self, cut: _Cut, sums: _Sums, least: _Least) -> Expr:
        """Pages of an item: about as many as keep every slot busy, and no fewer than ``least`` says."""
        slots, quantum, everything = self._slots, cut.quantum, sums.everything
        item = T.truncdiv(T.truncdiv(everything + (slots - 1), slots) + (quantum - 1), i32(quantum)) * quantum
        if least.busy is None:
            half = least.pages
        else:
            half = T.min(least.busy, T.truncdiv(2 * everything + (slots - 1), slots))
        item = register("fair_pages", T.max(least.pages, T.max(item, half)))
        return register("item_pages", cut.item(item, sums.longest, self.args.buffers["budget"][ITEM]))

    def _list(self, cut: _Cut, item: Expr) -> None:
        """Write the items of all requests in order, each of so many pages."""
        work, plan, requests = self.args.buffers["work"], self.args.buffers["plan"], self.args.size("B")
        rounds = rounds_of(requests, self.cta.threads)
        base = local("base", 1, I32)
        put(base, i32(0), 0)
        with loop("round", rounds) as turn:
            r = let("r", turn * self.cta.threads + self.cta.thread)
            parts = local("parts", 1, I32)
            put(parts, i32(0), 0)
            with when(r < requests):
                put(parts, self._parts(cut, plan[cut.pages, r], item), 0)
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
            self._write_item(cut, i, i32(self.ends))

    def _write_item(self, cut: _Cut, i: Expr, ends: Expr) -> None:
        """Write item ``i``, where the requests' ``ends`` stand from there on in shared memory."""
        r = self._request_of(i, ends)
        begin = local("begin", 1, I32)
        put(begin, i32(0), 0)
        with when(r > 0):
            put(begin, self.arena.i32[r - 1 + ends], 0)
        put(self.args.buffers["work"], pack_item(r, i - begin[0]), cut.row, i + HEADER)

    def _request_of(self, i: Expr, ends: Expr) -> Expr:
        """The first request whose items end beyond ``i``."""
        low, high = local("low", 1, I32), local("high", 1, I32)
        put(low, i32(0), 0)
        put(high, self.args.size("B") - 1, 0)
        with T.While(low[0] < high[0]):
            middle = let("middle", T.truncdiv(low[0] + high[0], i32(2)))
            beyond = let("beyond", self.arena.i32[middle + ends] > i)
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
