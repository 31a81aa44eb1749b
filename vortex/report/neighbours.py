"""Where a kernel's knobs came from, and what the tuning database has near its key."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

from vortex.errors import VortexError
from vortex.ir.core import Function, Module
from vortex.ir.dialects.page import block_size
from vortex.kinds.buckets import Bucket
from vortex.remarks.decisions import NotTaken
from vortex.report.model import Neighbour
from vortex.targets.target import TARGETS
from vortex.tune.explain import explain
from vortex.tune.keys import query_of
from vortex.tune.layers import Layers
from vortex.tune.record import Record
from vortex.tune.shapes import Shape

SHOWN = 6
"""Records of a kernel that a report lists."""
COMPUTED = ("from", "serves", "variants", "variant_of", "table")
"""Of a schedule, what is no knob."""

ORIGINS = {
    "db": "record {id} of the tuning database, measured on this kind of GPU",
    "transfer": "record {id}, measured on another GPU whose model gives the same default",
    "model": "the cost model",
    "heuristic": "defaults from the numbers of the GPU; nothing was measured",
    "user": "given by hand",
}


def origin(schedule: Mapping[str, object]) -> str:
    """Where a schedule came from, in words; empty for kernels that leave nothing open."""
    word, _, record = str(schedule.get("from", "")).partition(":")
    return ORIGINS.get(word, word).format(id=record)


def knobs(schedule: Mapping[str, object]) -> dict[str, str]:
    """The knobs, and the facts that follow from them."""
    return {name: str(x) for name, x in schedule.items() if name not in COMPUTED}


def serves(schedule: Mapping[str, object]) -> str:
    """The shapes that a schedule is for, where it is one of several."""
    found = schedule.get("serves")
    buckets = [b for b in found if isinstance(b, list | tuple)] if isinstance(found, list | tuple) else []
    return "; ".join(str(Bucket(*map(int, b))) for b in buckets if len(b) == 3)


def look_up(
    layers: Layers, program: Module, f: Function, target: str, shape: Shape
) -> tuple[NotTaken, tuple[Neighbour, ...]]:
    """What the database says of a kernel at a shape, and its records nearest to that."""
    if target not in TARGETS:
        return NotTaken(), ()
    try:
        query = query_of(program, f, TARGETS[target], shape.bucket(str(f.attrs["kind"]), block_size(program)))
    except (KeyError, VortexError):
        return NotTaken("this vortex has no template for the kernel as it was scheduled then"), ()
    if query is None:
        return NotTaken("the kernel leaves nothing to choose"), ()
    found = explain(layers, query)
    if found.hit is not None:
        layer = layers.layers[found.hit.layer]
        own = layers.best(layer, query.lookup, found.hit.record.key.bucket)
        near = (r for _, b in found.fallbacks for r in islice(layers.best(layer, query.lookup, b), 1))
        records = [*islice(own, SHOWN // 2), *near]
        unlike = {r.id: r for r in records}
        us = found.hit.record.us
        told = f"{found.hit.layer}: {found.reason}" + (f"; it took {us:.1f} us" if us else "")
        return NotTaken(told, measured=True), tuple(_neighbour(r) for r in islice(unlike.values(), SHOWN))
    return NotTaken(found.reason), tuple(_neighbour(d.record, ", ".join(d.components)) for d in found.nearest[:SHOWN])


def _neighbour(r: Record, differs: str = "") -> Neighbour:
    chosen = " ".join(f"{k}={v}" for k, v in r.point)
    return Neighbour(r.id[:12], str(r.key.bucket), chosen, r.us or 0.0, differs)
