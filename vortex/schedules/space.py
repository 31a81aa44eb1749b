"""The points of a template that a tuner may try: a finite set, every one of which builds and computes the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from vortex.errors import NOT_EMITTABLE
from vortex.ir.core import Function, Module
from vortex.schedules.template import schedulable
from vortex.targets.target import Target

Config = Mapping[str, int]


@dataclass(frozen=True)
class Space:
    """The points of one template for one kernel; ``template`` is its name and version."""

    template: str
    points: tuple[Config, ...]
    default: Config
    """What is chosen without measurements; a point."""
    variants: tuple[Config, ...] = ()
    """What is chosen so beside it, for some shapes; points as well."""

    @cached_property
    def _all(self) -> frozenset[tuple[tuple[str, int], ...]]:
        return frozenset(map(freeze, self.points))

    @cached_property
    def choices(self) -> dict[str, tuple[int, ...]]:
        """The values of each knob, ascending."""
        return {name: tuple(sorted({p[name] for p in self.points})) for name in self.default}

    def __contains__(self, config: Config) -> bool:
        return freeze(config) in self._all

    def __len__(self) -> int:
        return len(self.points)

    def __iter__(self) -> Iterator[Config]:
        return iter(self.points)

    def where(self, values: Mapping[str, Sequence[int]]) -> Space:
        """The points whose knobs have these values, where the space has such knobs; defaults stay."""
        mine = {name: set(v) for name, v in values.items() if name in self.default}
        stay = (self.default, *self.variants)
        points = tuple(p for p in self.points if p in stay or all(p[n] in v for n, v in mine.items()))
        return Space(self.template, points, self.default, self.variants)

    def neighbours(self, config: Config) -> list[Config]:
        """Points that differ in one knob, by one step of its values."""
        found: list[Config] = []
        for name, values in self.choices.items():
            at = values.index(config[name])
            for value in values[max(0, at - 1) : at + 2]:
                if value != config[name] and (other := {**config, name: value}) in self:
                    found.append(other)
        return found


def freeze(config: Config) -> tuple[tuple[str, int], ...]:
    """As something that can be compared and hashed."""
    return tuple(sorted(config.items()))


def space_of(program: Module, f: Function, target: Target) -> Space | None:
    """The space of a kernel's template on ``target``; None where there is nothing to choose.

    Raises:
        VortexError: VX4006 when no kernel of the template can be launched.
    """
    mine = schedulable(program, f, target)
    if mine is None:
        return None
    points = list({freeze(p): p for p in (k.attrs() for k in mine.space(program, f, target))}.values())
    if not points:
        why = f"no configuration of '{f.name}' can be launched on {target.name}"
        raise NOT_EMITTABLE.at(why=why, hint="a smaller page or head dim")
    default = mine.choose(program, f, target, {})
    mine.require(program, f, target, default)
    variants = tuple(knobs.attrs() for knobs, _ in mine.variants(program, f, target)[1:])
    points += [p for p in (default.attrs(), *variants) if p not in points]
    return Space(mine.key, tuple(points), default.attrs(), variants)
