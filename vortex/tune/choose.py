"""What a compilation takes from the databases: a configuration for each kernel, and where it came from."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from math import log as ln
from typing import TYPE_CHECKING

from vortex.codegen.space import Space, space_of
from vortex.errors import NO_COMPILER, VortexError
from vortex.ir.core import Function, Module
from vortex.passes.manager import Choice
from vortex.silicon import UNMEASURED
from vortex.target import Target
from vortex.tune.buckets import Bucket
from vortex.tune.keys import query_of
from vortex.tune.layers import Layers, Query
from vortex.tune.record import Record
from vortex.tune.shapes import Shape
from vortex.tune.silicon import SILICON

if TYPE_CHECKING:
    Group = dict[tuple[tuple[str, int], ...], Record]

SHOWN = 12
"""Digits of a record's id in the IR."""

log = logging.getLogger("vortex.tune")


class Chooser:
    """Asks ``layers`` for the kernels of one compilation.

    For a ``shape`` the best of its bucket, or of the nearest bucket there is. Without one, the configuration that
    serves all measured buckets best: the smallest geometric mean of its times over the best time of each.
    """

    def __init__(self, layers: Layers, shape: Shape | None = None) -> None:
        self.layers, self.shape = layers, shape

    def __call__(self, program: Module, f: Function, target: Target) -> Choice | None:
        """The choice for kernel ``f``; None where no database has one for it."""
        if not self.layers.layers:
            return None
        bucket = self.shape.bucket(str(f.attrs["kind"]), int(program.attrs["page_size"])) if self.shape else Bucket()
        query = query_of(program, f, target, bucket)
        if query is None:
            return None
        for origin, asked in _silicons(query, target):
            # most kernels have no record: then the space, whose templates take seconds to import, is not needed
            if not self.layers.buckets(asked.lookup):
                continue
            space = _space(program, f, target)
            if space is None:
                return None
            if (found := self._record(asked, space)) is not None:
                return Choice(dict(found.config), f"{origin}:{found.id[:SHOWN]}")
        return None

    def _record(self, query: Query, space: Space) -> Record | None:
        if self.shape is not None:
            hit = self.layers.find(query, space)
            return hit.record if hit else None
        return compromise(
            {b: group for b in self.layers.buckets(query.lookup) if (group := self._group(query, b, space))}
        )

    def _group(self, query: Query, bucket: Bucket, space: Space) -> Group:
        """What the first layer that has usable records of a bucket says of it."""
        for layer in self.layers.layers.values():
            found = {r.config: r for r in self.layers.best(layer, query.lookup, bucket) if dict(r.config) in space}
            if found:
                return found
        return {}


def _space(program: Module, f: Function, target: Target) -> Space | None:
    """The kernel's space; None without the compiler that knows it."""
    try:
        return space_of(program, f, target)
    except VortexError as e:
        if e.kind is not NO_COMPILER:
            raise
        log.warning("nothing is tuned: without a compiler nobody can say which configurations are valid")
        return None


def compromise(buckets: dict[Bucket, Group]) -> Record | None:
    """Of the configurations that were measured in the most buckets, the one that loses least against the best of each.

    The record is the one of the largest bucket it was measured in.
    """
    loss: dict[tuple[tuple[str, int], ...], list[float]] = {}
    for group in buckets.values():
        best = min(r.us or 0.0 for r in group.values())
        for config, r in group.items():
            loss.setdefault(config, []).append(ln((r.us or best) / best))
    if not loss:
        return None
    chosen = min(loss, key=lambda c: (-len(loss[c]), sum(loss[c]), c))
    return next(buckets[b][chosen] for b in sorted(buckets, reverse=True) if chosen in buckets[b])


def _silicons(query: Query, target: Target) -> Iterator[tuple[str, Query]]:
    """The query for the target's own machine, then, where nobody has measured one, for others of its kind."""
    yield "db", query
    if target.name not in UNMEASURED:
        return
    for name, silicon in SILICON.items():
        if name != target.name:
            yield "transfer", Query(query.key, silicon, query.template, query.measure)
