"""What can be chosen in each template: a finite set of points, every one of which builds and computes the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from vortex.codegen.templates import Config, find_template
from vortex.errors import NO_COMPILER, NOT_EMITTABLE
from vortex.ir.core import Function, Module
from vortex.targets.target import Target


@dataclass(frozen=True)
class Space:
    """The points of one template for one kernel; ``template`` is its name and version."""

    template: str
    points: tuple[Config, ...]
    default: Config
    """What is chosen without measurements; a point."""

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
        """The points whose knobs have these values, where the space has such knobs; the default stays."""
        mine = {name: set(v) for name, v in values.items() if name in self.default}
        points = tuple(p for p in self.points if p == self.default or all(p[n] in v for n, v in mine.items()))
        return Space(self.template, points, self.default)

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


def template_of(target: Target, f: Function) -> str | None:
    """Name and version of what there is to choose in a kernel; None where there is nothing."""
    template = find_template(target, f)
    return None if template is None else template.space


def space_of(program: Module, f: Function, target: Target) -> Space | None:
    """The space of a kernel's template on ``target``; None where there is nothing to choose.

    Raises:
        VortexError: VX4003 without TVM, VX4006 when no configuration of the kernel can be launched.
    """
    template = find_template(target, f)
    if template is None or template.space is None:
        return None
    bare = Function(f.keyword, f.name, f.args, f.ops, {k: v for k, v in f.attrs.items() if k != "schedule"})
    try:
        points = _unique(dict(p) for p in template.points_of(program, f))
        if not points:
            why = f"no configuration of '{f.name}' can be launched on {target.name}"
            raise NOT_EMITTABLE.at(why=why, hint="a smaller page or head dim")
        chosen = template.schedule_of(program, bare)
    except ImportError:
        raise NO_COMPILER.at(what="apache-tvm", hint="e.g. apt install gcc") from None
    default = {name: int(chosen[name]) for name in points[0]}
    if default not in points:
        points.append(default)
    return Space(template.space, tuple(points), default)


def _unique(points: Iterable[dict[str, int]]) -> list[dict[str, int]]:
    return list({freeze(p): p for p in points}.values())
