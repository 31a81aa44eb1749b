"""What a compilation takes from the databases: a configuration for each kernel, and where it came from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import log as ln
from pathlib import Path
from typing import TYPE_CHECKING

from vortex.ir.core import Function, Module
from vortex.ir.dialects.page import block_size
from vortex.kinds.buckets import Bucket, serving
from vortex.passes.manager import Choice
from vortex.schedules.space import Space, space_of
from vortex.schedules.template import schedulable
from vortex.targets.gpu import MACHINES, UNMEASURED
from vortex.targets.target import TARGETS, Target
from vortex.tune.keys import machine_key, query_of
from vortex.tune.layers import Layers, Query
from vortex.tune.record import Record
from vortex.tune.shapes import Shape, read_shape

if TYPE_CHECKING:
    from vortex.tune.search import Point

    Group = dict[Point, Record]

WORTH = ln(1.02)
"""What a further variant must save in some bucket: it costs seconds to build and place in every artifact."""

UNKNOWN = ln(1.25)
"""Loss of a configuration where nobody measured it."""

SHOWN = 12
"""Digits of a record's id in the IR."""

VARIANTS = 4
"""The most kernels that stand for one, unless told otherwise."""


def chooser(db: Path | None = None, shape: str | None = None, variants: int = VARIANTS) -> Chooser:
    """What compilations ask, those of the command line and those of Python: the databases of :meth:`Layers.default`.

    Raises:
        VortexError: VX8007 for a shape that is none, VX7002 or VX8001 for a ``db`` that is not there or is none.
    """
    return Chooser(Layers.default(db), read_shape(shape) if shape else None, variants)


def defaults() -> Chooser:
    """What a compilation takes where no database says anything: the defaults, of several shapes where these differ."""
    return Chooser(Layers({}), most=VARIANTS)


class Chooser:
    """Asks ``layers`` for the kernels of one compilation.

    For a ``shape`` the best of its bucket, or of the nearest bucket there is. Without one, up to ``most`` variants that
    serve all measured buckets: see :func:`cover`.
    """

    def __init__(self, layers: Layers, shape: Shape | None = None, most: int = 1) -> None:
        self.layers, self.shape, self.most = layers, shape, most

    def __str__(self) -> str:
        return f"{self.layers} for {self.shape or 'all shapes'}, at most {self.most} variants"

    def __call__(self, program: Module, f: Function, target: Target) -> Choice | None:
        """The choice for kernel ``f``: what the databases say, or else defaults where these differ with the shape. None
        where there is one default, and no database has a choice.
        """
        return self._measured(program, f, target) or self._default(program, f, target)

    def _measured(self, program: Module, f: Function, target: Target) -> Choice | None:
        """What the databases say."""
        if not self.layers.layers:
            return None
        query = query_of(program, f, target, self._bucket(program, f))
        if query is None:
            return None
        for other, asked in _machines(query, target):
            # most kernels have no record: then the space is not needed
            if not self.layers.buckets(asked.lookup):
                continue
            space = space_of(program, f, target)
            if space is None:
                return None
            if other != target and not _alike(program, f, space, other):
                continue
            if found := self._found(asked, space):
                return _choice(found, "db" if other == target else "transfer")
        return None

    def _default(self, program: Module, f: Function, target: Target) -> Choice | None:
        """Defaults of several shapes, or the one of the given shape."""
        mine = schedulable(program, f, target)
        lines = mine.variants(program, f, target) if mine is not None else ()
        if not lines or (self.shape is None and self.most < len(lines)):
            return None
        origin = "model" if target.name in UNMEASURED else "heuristic"
        made = [Choice(knobs.attrs(), origin, serves) for knobs, serves in lines]
        if self.shape is None:
            return replace(made[0], others=tuple(made[1:]))
        return replace(serving(self._bucket(program, f), [(c, c.serves) for c in made]), serves=())

    def _bucket(self, program: Module, f: Function) -> Bucket:
        return self.shape.bucket(str(f.attrs["kind"]), block_size(program)) if self.shape else Bucket()

    def _found(self, query: Query, space: Space) -> list[Served]:
        if self.shape is not None:
            hit = self.layers.find(query, space)
            return [Served(hit.record)] if hit else []
        groups = {b: group for b in self.layers.buckets(query.lookup) if (group := self._group(query, b, space))}
        return cover(groups, self.most)

    def _group(self, query: Query, bucket: Bucket, space: Space) -> Group:
        """What the first layer that has usable records of a bucket says of it; noisy ones where no calm one is."""
        for layer in self.layers.layers.values():
            found = {r.point: r for r in self.layers.best(layer, query.lookup, bucket) if dict(r.point) in space}
            if found:
                return {c: r for c, r in found.items() if not r.noisy} or found
        return {}


def _choice(found: Sequence[Served], origin: str) -> Choice:
    """The first with the others as its variants."""
    made = [Choice(dict(x.record.point), f"{origin}:{x.record.id[:SHOWN]}", x.buckets) for x in found]
    return replace(made[0], others=tuple(made[1:]))


@dataclass(frozen=True, slots=True)
class Served:
    """A record whose configuration is chosen, and the buckets it is for; none where it is for all."""

    record: Record
    buckets: tuple[Bucket, ...] = ()


def cover(buckets: dict[Bucket, Group], most: int) -> list[Served]:
    """Up to ``most`` configurations such that each bucket's best of them loses little against its best of all.

    The first is the one that serves all buckets best by itself: measured in the most of them, the smallest geometric
    mean of its times over the best. Others follow as long as one brings a bucket ``WORTH`` or more, the one that brings
    most over all buckets first. Each record is the one of the largest bucket that its configuration is for.
    """
    loss: dict[Point, dict[Bucket, float]] = {}
    for bucket, group in buckets.items():
        best = min(r.us or 0.0 for r in group.values())
        for config, r in group.items():
            loss.setdefault(config, {})[bucket] = ln((r.us or best) / best)
    if not loss:
        return []
    chosen = [min(loss, key=lambda c: (-len(loss[c]), sum(loss[c].values()), c))]
    while len(chosen) < most:
        now = {b: min(loss[c].get(b, UNKNOWN) for c in chosen) for b in buckets}
        gains = {c: {b: now[b] - x for b, x in at.items() if x < now[b]} for c, at in loss.items()}
        worth = [c for c, gain in gains.items() if max(gain.values(), default=0.0) >= WORTH]
        if not worth:
            break
        chosen.append(max(worth, key=lambda c: (sum(gains[c].values()), c)))
    serves: dict[Point, list[Bucket]] = {c: [] for c in chosen}
    for b in sorted(buckets):
        serves[min(chosen, key=lambda c: loss[c].get(b, UNKNOWN))].append(b)
    if len(chosen) == 1:
        return [Served(_largest(buckets, chosen[0]))]
    return [Served(_largest(buckets, c, at), tuple(at)) for c, at in serves.items() if at]


def _largest(buckets: dict[Bucket, Group], config: Point, among: Sequence[Bucket] = ()) -> Record:
    """The record of ``config`` in the largest bucket that has one."""
    return next(buckets[b][config] for b in sorted(among or buckets, reverse=True) if config in buckets[b])


def _machines(query: Query, target: Target) -> Iterator[tuple[Target, Query]]:
    """The query for the target's own machine, then, where nobody has measured one, for others of its kind."""
    yield target, query
    if target.name not in UNMEASURED:
        return
    for name in MACHINES:
        if name != target.name:
            yield TARGETS[name], Query(query.key, machine_key(TARGETS[name]), query.template, query.measure)


def _alike(program: Module, f: Function, space: Space, other: Target) -> bool:
    """Whether the models of two machines give a kernel the same default: else what the one measured is not the other's,
    and a default made for the machine says more.
    """
    theirs = space_of(program, f, other)
    return theirs is not None and theirs.default == space.default
