"""What can be chosen in each template: a finite set of points, every one of which builds and computes the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from vortex.codegen.emit import schedule_of
from vortex.errors import NOT_EMITTABLE
from vortex.ir.core import Attr, Function, Module
from vortex.ir.dialects import page
from vortex.targets.target import Target

Config = Mapping[str, int]

VERSIONS = {
    ("cpu", "append"): 1,
    ("cpu", "select"): 1,
    ("cpu", "attend"): 1,
    ("cuda", "plan"): 1,
    ("cuda", "append"): 1,
    ("cuda", "select"): 1,
    ("cuda", "attend"): 1,
}
"""Of each template's space: raised by hand when a knob's meaning or the code behind it changes so that old
measurements say nothing any more. Templates that are not here have nothing to choose."""


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


def template_of(target: Target, kind: str) -> str | None:
    """Name and version of the template of one kernel kind; None where there is nothing to choose."""
    version = VERSIONS.get((target.kind, kind))
    return None if version is None else f"{target.kind}.{kind}@{version}"


def space_of(program: Module, f: Function, target: Target) -> Space | None:
    """The space of a kernel's template on ``target``; None where there is nothing to choose.

    Raises:
        VortexError: VX4003 without TVM, VX4006 when the kernel has no template.
    """
    at = target.kind, str(f.attrs["kind"])
    template = template_of(target, at[1])
    if template is None:
        return None
    points = _unique(dict(p) for p in _POINTS[at](program, f))
    if not points:
        why = f"no configuration of '{f.name}' can be launched on {target.name}"
        raise NOT_EMITTABLE.at(why=why, hint="a smaller page or head dim")
    default = {name: int(_chosen(program, f, target)[name]) for name in points[0]}
    if default not in points:
        points.append(default)
    return Space(template, tuple(points), default)


def _chosen(program: Module, f: Function, target: Target) -> dict[str, Attr]:
    """What the template takes where the schedule is silent."""
    if target.kind == "cpu":
        from vortex.codegen.cpu.knobs import choose

        return choose({}).attrs()
    attrs = {k: v for k, v in f.attrs.items() if k != "schedule"}
    return schedule_of(program, Function(f.keyword, f.name, f.args, f.ops, attrs), target)


def _unique(points: Iterator[dict[str, int]]) -> list[dict[str, int]]:
    return list({freeze(p): p for p in points}.values())


def _cpu(program: Module, f: Function) -> Sequence[Config]:
    from vortex.codegen.cpu.knobs import space

    return [k.attrs() for k in space(str(f.attrs["kind"]))]


def _plan(program: Module, f: Function) -> Sequence[Config]:
    from vortex.codegen.cuda.plan import space

    return [k.attrs() for k in space()]


def _append(program: Module, f: Function) -> Sequence[Config]:
    from vortex.codegen.cuda.append import space

    return [k.attrs() for k in space()]


def _select(program: Module, f: Function) -> Sequence[Config]:
    from vortex.codegen.cuda.select.knobs import space

    return [k.attrs() for k in space()]


def _attend(program: Module, f: Function) -> Sequence[Config]:
    from vortex.codegen.cuda.attend import dense, dense_knobs, latent, latent_knobs

    op = next(o for o in f.ops if isinstance(o, page.Attend))
    if dense.is_latent(op):
        return [k.attrs() for k in latent_knobs.space(latent.shape_of(program, op))]
    return [k.attrs() for k in dense_knobs.space(dense.shape_of(program, op))]


_POINTS: dict[tuple[str, str], Callable[[Module, Function], Sequence[Config]]] = {
    ("cpu", "append"): _cpu,
    ("cpu", "select"): _cpu,
    ("cpu", "attend"): _cpu,
    ("cuda", "plan"): _plan,
    ("cuda", "append"): _append,
    ("cuda", "select"): _select,
    ("cuda", "attend"): _attend,
}
