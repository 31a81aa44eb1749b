"""Where page loops must end: the levels of the values of a ``rows`` kernel.

A row is computed in passes over its candidate pages. A value at level n can be computed in pass n: a
fold over pages (max, mean, softmax's denominator) is complete only when its pass has ended, so what
uses it is one level later.

    %dots = flow.dot(%q, %c)               level 0, pass 0
    %mean = flow.reduce_mean(%dots)        pass 0, known from level 1 on
    %diff = flow.sub(%dots, %mean)         level 1: %dots is *kept* from pass 0 to pass 1

State is written in the pass that looks at it last, after everything else; where an op looks at neighbouring pages, one
pass later. State of the row is written when all passes have ended, by which time no CTA of the row reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

from vortex.ir.core import Function, Op, Value
from vortex.ir.dialects import flow, page
from vortex.ir.types import TensorType


@dataclass(frozen=True)
class Staging:
    """The outcome of :func:`stage`."""

    level: dict[Value, int]
    """From which pass on a value is known (per page), or before which pass (per row)."""
    loop: dict[Op, int]
    """The pass an op over pages runs in; per-row ops run before the pass of that number."""
    loops: int
    """Passes over the candidates; 0 when nothing depends on them."""
    kept: dict[Value, int]
    """Per-page values that a later pass reads, and the last pass that does: they need scratch per page."""


def over_pages(v: Value) -> bool:
    """Whether the value has a page axis."""
    return isinstance(v.type, TensorType) and v.type.page_axis is not None


def stage(f: Function) -> Staging:
    """Assign every value of ``f`` its level, and find what must be kept between passes."""
    level: dict[Value, int] = dict.fromkeys(f.args, 0)
    loop: dict[Op, int] = {}
    loops = 0
    for o in f.ops:
        ready = max((level[v] for v in o.operands), default=0)
        spans_pages = any(over_pages(v) for v in o.operands)
        if isinstance(o, flow.Selection):
            # what says how many pages are taken may come later than the scores
            loop[o] = level[o.scored] if isinstance(o, flow.Part) else ready
        elif spans_pages and o.crosses_pages() and o.result is not None:
            folds = not over_pages(o.result)
            loop[o] = ready if folds else ready + 1
            level[o.result] = ready + 1
        else:
            loop[o] = ready
        if o.result is not None:
            level.setdefault(o.result, loop[o])
        if spans_pages or (o.result is not None and over_pages(o.result) and o.role != "leaf"):
            loops = max(loops, loop[o] + 1)
    for o, last in _updates(f, loop).items():
        if over_pages(o.x):
            loop[o] = max(loop[o], last)
            loops = max(loops, loop[o] + 1)
        else:
            loops = max(loops, 1)
    for o in _updates(f, loop):
        loop[o] = loop[o] if over_pages(o.x) else loops
    return Staging(level, loop, loops, _kept(f, level, loop))


def updated(f: Function) -> set[str]:
    """Buffers that a kernel reads and writes: state."""
    return {o.buffer for o in f.ops if isinstance(o, page.Store)} & {
        o.buffer for o in f.ops if isinstance(o, page.Load)
    }


def _updates(f: Function, loop: dict[Op, int]) -> dict[page.Store, int]:
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


def _kept(f: Function, level: dict[Value, int], loop: dict[Op, int]) -> dict[Value, int]:
    kept: dict[Value, int] = {}
    for o in f.ops:
        for v in o.operands:
            crosses = o.crosses_pages() and o.result is not None and over_pages(o.result)
            for source in _sources(v):
                if over_pages(source) and (loop[o] > level[source] or crosses):
                    kept[source] = max(kept.get(source, 0), loop[o])
    return kept


def _sources(v: Value) -> list[Value]:
    """The values behind the views of ``v`` that are computed, not loaded."""
    o = v.owner
    if o is None or o.role == "leaf":
        return []
    return _sources(o.x) if isinstance(o, flow.View) else [v]


def loads_by_loop(f: Function, staging: Staging) -> dict[Op, set[int]]:
    """For every ``page.load``, the passes in which memory is read: each pass reads it once."""
    found: dict[Op, set[int]] = {}
    for o in f.ops:
        for v in o.operands:
            origin = origin_of(v).owner
            if isinstance(origin, page.Load) and not isinstance(o, flow.View):
                found.setdefault(origin, set()).add(staging.loop[o] if over_pages(origin.value) else 0)
    return found
