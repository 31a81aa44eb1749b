"""Where page loops must end: the levels of the values of a ``rows`` kernel.

A row is computed in passes over its candidate pages, or over the pages of a shortlist. A value at level n can be
computed in pass n: a fold over pages (max, mean, softmax's denominator) is complete only when its pass has ended, so
what uses it is one level later.

    %dots = flow.dot(%q, %c)               level 0, pass 0
    %mean = flow.reduce_mean(%dots)        pass 0, known from level 1 on
    %diff = flow.sub(%dots, %mean)         level 1: %dots is *kept* from pass 0 to pass 1

A shortlist is complete when the pass over its scores has ended, as a fold is; the passes after it that go over its
pages find them in the list, which is kept for the row.

    %near = flow.shortlist(%dots)          pass 0 over S; S1, its list, is known from level 1 on
    %k = flow.pick(%keys, %near)           level 1
    %mass = flow.dot(%q, %k)               level 1, pass 1 over S1

State is written in the pass that looks at it last, after everything else; where an op looks at neighbouring pages, one
pass later. State of the row is written when all passes have ended, by which time no CTA of the row reads it.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import TypeVar

from vortex.ir.core import Function, Op, Value
from vortex.ir.dialects import flow, page
from vortex.ir.types import S, Sym, TensorType

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True)
class Staging:
    """The outcome of :func:`stage`."""

    level: dict[Value, int]
    """From which pass on a value is known (per page), or before which pass (per row)."""
    loop: dict[Op, int]
    """The pass an op over pages runs in; per-row ops run before the pass of that number."""
    loops: int
    """Passes over the candidates; 0 when nothing depends on them."""
    axes: tuple[Sym, ...]
    """The page axis that each pass goes over: the candidates, or the pages of a shortlist."""
    kept: dict[Value, int]
    """Per-page values that a later pass reads, and the last pass that does: they need scratch per page."""


def over_pages(v: Value) -> bool:
    """Whether the value has a page axis."""
    return isinstance(v.type, TensorType) and v.type.page_axis is not None


def is_for_row(o: Op) -> bool:
    """Whether the op has one result for the row that is kept on chip."""
    return (
        o.result is not None
        and isinstance(o.result.type, TensorType)
        and not over_pages(o.result)
        and (o.notes.get("in") == "tile" or o.crosses_pages())
    )


def axis_of(o: Op) -> Sym | None:
    """The page axis that an op goes over: that of what it folds or ranks, else that of its result."""
    crosses = o.crosses_pages() or isinstance(o, flow.Selection)
    result = o.result.type.pages if o.result is not None and isinstance(o.result.type, TensorType) else None
    of_operands = next((v.type.pages for v in o.operands if isinstance(v.type, TensorType) and v.type.pages), None)
    return result if result is not None and not crosses else of_operands


class Stager:
    """Levels of ops that come one after another; writes of state are staged as all others are.

    Attributes:
        level, loop, kept: as of :class:`Staging`, of the ops so far.
        axes: the page axis of each pass so far.
    """

    def __init__(self, args: Iterable[Value] = ()) -> None:
        self.level: MutableMapping[Value, int] = dict.fromkeys(args, 0)
        self.loop: MutableMapping[Op, int] = {}
        self.axes: MutableMapping[int, Sym] = {}
        self.kept: MutableMapping[Value, int] = {}

    def add(self, o: Op) -> None:
        """Stage one more op, whose operands were staged before."""
        level = self.level
        ready = max((level[v] for v in o.operands), default=0)
        spans_pages = any(over_pages(v) for v in o.operands)
        axis = axis_of(o)
        in_pass = axis is not None and (spans_pages or o.role != "leaf")
        if isinstance(o, flow.Part):
            # what says how many pages are taken may come later than the scores
            ready = max(level[v] for v in (o.scored, o.near) if v is not None)
        elif spans_pages and o.crosses_pages() and o.result is not None and not folds(o):
            ready += 1
        self.loop[o] = self.place(ready, axis) if in_pass and axis is not None else ready
        if o.result is not None:
            level[o.result] = self.loop[o] + 1 if spans_pages and o.crosses_pages() and folds(o) else self.loop[o]
        self.keep(o)

    def place(self, ready: int, axis: Sym) -> int:
        """The first pass from ``ready`` on that goes over ``axis``, or over nothing yet."""
        while self.axes.setdefault(ready, axis) != axis:
            ready += 1
        return ready

    def keep(self, o: Op) -> None:
        """Note what ``o`` reads of earlier passes."""
        crosses = o.crosses_pages() and o.result is not None and not folds(o)
        for v in o.operands:
            for source in _sources(v):
                if over_pages(source) and (self.loop[o] > self.level[source] or crosses):
                    self.kept[source] = max(self.kept.get(source, 0), self.loop[o])

    def tried(self) -> Stager:
        """One that goes on from here, while this one stays as it is until :meth:`take`."""
        made = Stager()
        made.level, made.loop = ChainMap({}, self.level), ChainMap({}, self.loop)
        made.axes, made.kept = ChainMap({}, self.axes), ChainMap({}, self.kept)
        return made

    def take(self, tried: Stager) -> None:
        """Go on from where ``tried``, which was made of this one, stands."""
        take(self.level, tried.level)
        take(self.loop, tried.loop)
        take(self.axes, tried.axes)
        take(self.kept, tried.kept)


def take(mine: MutableMapping[K, V], tried: MutableMapping[K, V]) -> None:
    """Put into ``mine`` what ``tried``, a chain map over it, has more."""
    assert isinstance(tried, ChainMap)
    mine.update(tried.maps[0])


def stage(f: Function) -> Staging:
    """Assign every value of ``f`` its level, and find what must be kept between passes."""
    made = Stager(f.args)
    for o in f.ops:
        made.add(o)
    level, loop, axes = made.level, made.loop, made.axes
    updates = _updates(f, loop)
    for o, last in updates.items():
        if over_pages(o.x):
            loop[o] = made.place(max(loop[o], last), S)
        else:
            axes.setdefault(0, S)
    loops = max(axes, default=-1) + 1
    for o in updates:
        loop[o] = loop[o] if over_pages(o.x) else loops
    if updates:
        made.kept = {}
        for o in f.ops:
            made.keep(o)
    return Staging(dict(level), dict(loop), loops, tuple(axes.get(n, S) for n in range(loops)), dict(made.kept))


def folds(o: Op) -> bool:
    """Whether what an op makes of pages is complete only when the pass has ended: a number of the row, or a list."""
    return o.result is not None and (isinstance(o, flow.Shortlist) or not over_pages(o.result))


def updated(f: Function) -> set[str]:
    """Buffers that a kernel reads and writes: state."""
    return {o.buffer for o in f.ops if isinstance(o, page.Store)} & {
        o.buffer for o in f.ops if isinstance(o, page.Load)
    }


def _updates(f: Function, loop: Mapping[Op, int]) -> dict[page.Store, int]:
    """Writes of state that the kernel reads as well, with the first pass in which nothing needs what was there."""
    changed = updated(f)
    last = dict.fromkeys(changed, 0)
    for o in f.ops:
        for v in o.operands:
            origin = origin_of(v).owner
            if isinstance(origin, page.Load) and origin.buffer in changed:
                neighbours = o.crosses_pages() and o.result is not None and over_pages(o.result)
                last[origin.buffer] = max(last[origin.buffer], loop[o] + neighbours)
    return {o: last[o.buffer] for o in f.ops if isinstance(o, page.Store) and o.buffer in changed}


def origin_of(v: Value) -> Value:
    """What ``v`` is a view of."""
    while isinstance(v.owner, flow.View):
        v = v.owner.x
    return v


def _sources(v: Value) -> list[Value]:
    """The values behind the views of ``v`` that are computed, not loaded, and no lists, which are kept for the row."""
    o = v.owner
    if o is None or o.role == "leaf" or isinstance(o, flow.Shortlist):
        return []
    if isinstance(o, flow.Pick):
        return [*_sources(o.x), *_sources(o.at)]
    return _sources(o.x) if isinstance(o, flow.View) else [v]


def loads_by_loop(f: Function, staging: Staging) -> dict[Op, set[int]]:
    """For every ``page.load``, the passes in which memory is read: each reads it once, at the pages it goes over."""
    found: dict[Op, set[int]] = {}
    for o in f.ops:
        for v in o.operands:
            origin = origin_of(v).owner
            if isinstance(origin, page.Load) and not isinstance(o, flow.View):
                found.setdefault(origin, set()).add(staging.loop[o] if over_pages(origin.value) else 0)
    return found
