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

from vortex.codegen.arguments import Arguments
from vortex.codegen.cuda.ptx import WARP, cta_sync, overlap_launch, overlap_wait
from vortex.codegen.cuda.storage import Arena
from vortex.codegen.cuda.warp import Cta, rounds_of, warp_fold, warp_prefix
from vortex.codegen.cuda.work_list import HEADER, pack_item
from vortex.codegen.tir import I32, Expr, T, cast, equal, i32, let, local, loop, put, when
from vortex.ir.core import Attr, Function, Module
from vortex.ir.dialects import page
from vortex.kinds.buckets import FALLBACK_STEPS, Bucket
from vortex.schedules.cuda_plan import PlanKnobs
from vortex.schedules.knobs import read_knobs

MOST_REQUESTS = 4096


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the table: the bucket of steps that these knobs are for."""

    bucket: Bucket
    knobs: PlanKnobs


def table_of(schedule: Mapping[str, Attr]) -> tuple[Entry, ...]:
    """The schedule's table, the entry first that goes before others as near; at most one a lane, spread evenly."""
    every = [
        Entry(Bucket(*numbers), read_knobs(PlanKnobs, line))
        for line in schedule.get("table", ())
        for numbers in line["serves"]
    ]
    every.sort(key=lambda e: e.bucket, reverse=True)
    most = min(WARP, len(every))
    return tuple(every[i * len(every) // most] for i in range(most))


def emit_plan(program: Module, f: Function) -> list[str]:
    """Write the kernel into the open TVM function; returns the names of its arguments in order."""
    args = Arguments(program)
    args.tensor("lengths", ("B",), I32)
    args.tensor("budget", (5,), I32)
    args.tensor("plan", (4, "B"), I32)
    args.tensor("work", (2, "N"), I32)
    args.tensor("arrivals", ("R",), I32)
    knobs = read_knobs(PlanKnobs, f.attrs.get("schedule", {}))
    overlap_launch(knobs.overlap)
    T.device_entry()
    T.cta_id([1])
    warp, lane = T.warp_id([knobs.threads // WARP]), T.lane_id([WARP])
    cta = Cta(let("warp", warp), let("lane", lane), let("thread", warp * WARP + lane), knobs.threads)
    size = next(o.page_size for o in f.ops if isinstance(o, page.Plan))
    made = _Plan(args, cta, knobs)
    # under MLA a request is a row, and has as many counters as its heads have blocks
    made.emit(size, table_of(f.attrs.get("schedule", {})), args.size("B" if "kv_lora_rank" in program.attrs else "R"))
    return args.names


@dataclass(frozen=True, slots=True)
class _Sums:
    """Pages of all requests together, and of the longest; at least 1."""

    everything: Expr
    longest: Expr


class _Plan:
    def __init__(self, args: Arguments, cta: Cta, knobs: PlanKnobs) -> None:
        self.args, self.cta, self.knobs = args, cta, knobs
        self.arena = Arena()
        self.ends = self.arena.take(MOST_REQUESTS)
        self.totals = self.arena.take(cta.warps)
        self.arena.open()
        overlap_wait(knobs.overlap)

    def emit(self, size: int, table: Sequence[Entry], rows: Expr) -> None:
        plan, requests = self.args.buffers["plan"], self.args.size("B")
        with self.cta.share("row", self.args.size("R")) as row:
            put(self.args.buffers["arrivals"], i32(0), row)
        with self.cta.share("r", requests) as r:
            _plan_row(self.args, r, size)
        # a thread reads the rows it wrote itself
        to_score, to_read = (lambda r: plan[3, r]), (lambda r: plan[1, r])
        if not table:
            knobs = self.knobs
            self._list(0, to_score, self._sums(to_score), i32(knobs.select_pages), None, part_pages, WARP)
            least = i32(knobs.attend_pages), i32(knobs.attend_busy)
            self._list(1, to_read, self._sums(to_read), *least, _uniform, 1)
            return
        scores = self._sums(to_score)
        cta_sync()
        reads = self._sums(to_read)
        select_pages, attend_pages, attend_busy = self._look_up(table, rows, scores.longest, reads.longest)
        self._list(0, to_score, scores, select_pages, None, part_pages, WARP)
        self._list(1, to_read, reads, attend_pages, attend_busy, _uniform, 1)

    def _look_up(self, table: Sequence[Entry], rows: Expr, scored: Expr, kept: Expr) -> tuple[Expr, Expr, Expr]:
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
        return least[0], least[1], least[2]

    def _sums(self, pages: Callable[[Expr], Expr]) -> _Sums:
        """Of the pages of all requests, in every thread."""
        total, most = local("total", 1, "int64"), local("most", 1, I32)
        put(total, T.int64(0), 0)
        put(most, i32(1), 0)
        with self.cta.share("r", self.args.size("B")) as r:
            put(total, total[0] + cast("int64", pages(r)), 0)
            put(most, T.max(most[0], pages(r)), 0)
        everything = self._fold(cast(I32, total[0]), lambda a, b: a + b)
        cta_sync()
        return _Sums(everything, self._fold(most[0], lambda a, b: T.max(a, b)))

    def _list(
        self,
        kind: int,
        pages: Callable[[Expr], Expr],
        sums: _Sums,
        few: Expr,
        busy: Expr | None,
        part: Callable[[Expr, Expr], Expr],
        quantum: int,
    ) -> None:
        """The items of all requests in order: ``part`` pages each, of about ``item_pages``, which is a multiple of
        ``quantum`` and at least ``few``, or ``busy`` if still every second slot has one.
        """
        work, requests = self.args.buffers["work"], self.args.size("B")
        slots = let("slots", T.max(i32(1), self.args.size("N") - HEADER - requests))
        rounds = rounds_of(requests, self.cta.threads)
        everything, longest = sums.everything, sums.longest
        item = T.truncdiv(T.truncdiv(everything + (slots - 1), slots) + (quantum - 1), i32(quantum)) * quantum
        half = T.min(busy, T.truncdiv(2 * everything + (slots - 1), slots)) if busy is not None else few
        item = let("fair_pages", T.max(few, T.max(item, half)))
        if part is _uniform:
            # the longest request in equal items: a rest of a few pages would keep a CTA as a whole item does
            equal_parts = T.max(i32(1), T.truncdiv(longest + (item - T.truncdiv(item, i32(4)) - 1), item))
            item = T.max(item, rounds_of_expr(longest, equal_parts))
        item = let("item_pages", item)
        base = local("base", 1, I32)
        put(base, i32(0), 0)
        with loop("round", rounds) as turn:
            r = let("r", turn * self.cta.threads + self.cta.thread)
            parts = local("parts", 1, I32)
            put(parts, i32(0), 0)
            with when(r < requests):
                # a request without work still has its outputs to write
                put(parts, T.max(i32(1), rounds_of_expr(pages(r), part(pages(r), item))), 0)
            before = self._prefix(parts[0])
            with when(r < requests):
                put(self.arena.i32, base[0] + before, r + self.ends)
            put(base, base[0] + self.arena.i32[self.totals + self.cta.warps - 1], 0)
        cta_sync()
        items = let("items", T.min(base[0], self.args.size("N") - HEADER))
        with when(equal(self.cta.thread, i32(0))):
            put(work, items, kind, 0)
            put(work, item, kind, 1)
        with self.cta.share("item", items) as i:
            r = self._request_of(i)
            begin = local("begin", 1, I32)
            put(begin, i32(0), 0)
            with when(r > 0):
                put(begin, self.arena.i32[r - 1 + self.ends], 0)
            put(work, pack_item(r, i - begin[0]), kind, i + HEADER)

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
        """``x`` of all threads, none negative, in every thread."""
        mine = warp_fold(x, take, "mine")
        with when(equal(self.cta.lane, i32(0))):
            put(self.arena.i32, mine, self.cta.warp + self.totals)
        cta_sync()
        return warp_fold(self._of_warp(), take, "all")

    def _of_warp(self) -> Expr:
        """In lane i, what warp i left."""
        found = local("of_warp", 1, I32)
        put(found, i32(0), 0)
        with when(self.cta.lane < self.cta.warps):
            put(found, self.arena.i32[self.cta.lane + self.totals], 0)
        return found[0]

    def _prefix(self, x: Expr) -> Expr:
        """Of this thread and all before it; ``totals`` then holds the sums up to each warp."""
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


def part_pages(pages: Expr, item: Expr) -> Expr:
    """Pages of each item of ``select`` but a request's last, in whole page tiles: at most 5/4 of ``item``."""
    parts = let("even_parts", T.max(i32(1), T.truncdiv(pages + (item - T.truncdiv(item, i32(4)) - 1), item)))
    even = T.truncdiv(pages + (parts - 1), parts)
    return let("part_pages", T.max(i32(WARP), T.truncdiv(even + (WARP - 1), i32(WARP)) * WARP))


def _doublings(n: Expr) -> Expr:
    """From 1 to the least power of two that is not below ``n``."""
    return T.Select(n > 1, 32 - cast(I32, T.clz(n - 1)), i32(0))


def _entry(at: Expr, values: Sequence[int]) -> Expr:
    """``values[at]``, the last of them beyond the others; compiled in."""
    found: Expr = i32(values[-1])
    for i, value in reversed(list(enumerate(values[:-1]))):
        found = T.Select(equal(at, i32(i)), i32(value), found)
    return found


def _uniform(pages: Expr, item: Expr) -> Expr:
    """Items of ``attend`` are of one size for all requests."""
    return item


def rounds_of_expr(count: Expr, step: Expr) -> Expr:
    return T.truncdiv(count + step - 1, step)


def _plan_row(args: Arguments, r: Expr, size: int) -> None:
    lengths, budget, plan = (args.buffers[n] for n in ("lengths", "budget", "plan"))
    n = let("n", T.truncdiv(lengths[r] + (size - 1), i32(size)))
    reserved = let("reserved", budget[1] + budget[2])
    # ratio * n in 64 bits: numerator and n may both have 31
    share = T.truncdiv(cast("int64", budget[3]) * cast("int64", n), cast("int64", budget[4]))
    total = let("total", T.max(cast("int64", budget[0] + reserved), share))
    fits = let("fits", cast("int64", n) <= total)
    put(plan, n, 0, r)
    put(plan, T.Select(fits, n, cast(I32, total)), 1, r)
    put(plan, T.Select(fits, n * 0, budget[1]), 2, r)
    put(plan, T.Select(fits, n * 0, n - reserved), 3, r)
