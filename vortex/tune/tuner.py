"""Tuning on this machine, and the choice of what a bundle holds: the two ways into the search."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

from vortex.driver import compile_flow
from vortex.errors import BAD_OPTION, BUNDLE_BUSY, UNKNOWN_NAME, nearest_or_all, writing
from vortex.ir.core import Function, Module
from vortex.ir.dialects.page import block_size
from vortex.kinds.kind import KINDS
from vortex.schedules.space import Config, Space, space_of
from vortex.spec import Spec
from vortex.targets.target import Target
from vortex.tune.build import Told, build_bundle
from vortex.tune.bundle import Bundle, Candidate
from vortex.tune.keys import query_of
from vortex.tune.layers import Layers
from vortex.tune.predict import predictor
from vortex.tune.record import Record
from vortex.tune.search import Point, propose
from vortex.tune.shapes import Shape


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Two that build one bundle would sweep away each other's candidates."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / ".lock").open("w", encoding="utf-8")
    with lock as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BUNDLE_BUSY.at(path=path) from None
        yield


@dataclass
class Tuner:
    """What is tuned: flows, at shapes, for a target; ``layers`` is what is known before."""

    flows: Sequence[str]
    spec: Spec
    target: Target
    shapes: Sequence[Shape]
    path: Path
    layers: Layers
    kinds: Sequence[str] = field(default_factory=lambda: [k.name for k in KINDS.values() if k.tuned])
    most: int = 24
    """Candidates of one kernel in one bundle."""
    jobs: int | None = None
    seed: int = 0
    where: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Values of knobs to stay with; the default is tried all the same."""
    known: list[Record] = field(default_factory=list)
    """Measured since."""
    _programs: dict[str, Module] = field(default_factory=dict, init=False)
    """Page IR of the flows, once their artifacts are in ``path``."""
    _built: tuple[Candidate, ...] = field(default=(), init=False)

    def bundle(self, told: Told = lambda done, total: None, most: int | None = None, until: float = inf) -> Bundle:
        """Build the next candidates, ``most`` of each kernel; from ``until`` on (a ``time.monotonic()``) none is begun.

        What this tuner built before stays in the bundle.

        Raises:
            VortexError: VX8010 while another process builds this bundle, and whatever compiling raises.
        """
        with _alone(self.path):
            if not self._programs:
                self._check_where()
                self._programs = self._compiled()
            bundle = build_bundle(
                self.path,
                self._programs,
                {name: self._base(name) for name in self._programs},
                self.target,
                self.shapes,
                lambda program, f, space: self._propose(program, f, space, most or self.most),
                kinds=self.kinds,
                jobs=self.jobs,
                told=told,
                built=self._built,
                until=until,
            )
        self._built = bundle.candidates
        return bundle

    def _base(self, name: str) -> Path:
        return self.path / "base" / f"{name}.vxa"

    def _compiled(self) -> dict[str, Module]:
        """The flows with default knobs, as artifacts in ``path``; their page IR by name."""
        programs = {}
        (self.path / "base").mkdir(parents=True, exist_ok=True)
        for flow in self.flows:
            made = compile_flow(flow, spec=self.spec, targets=[self.target], out=self._base("new"))
            program = made.programs[self.target.name]
            shutil.rmtree(self._base(program.name), ignore_errors=True)
            self._base("new").rename(self._base(program.name))
            programs[program.name] = program
        return programs

    def _check_where(self) -> None:
        """VX7003 for a knob that no kernel of ``kinds`` has, VX7001 for values that none of their spaces has."""
        if not self.where:
            return
        choices: dict[str, set[int]] = {}
        for flow in self.flows:
            program = compile_flow(flow, spec=self.spec, targets=[self.target], to="page").programs[self.target.name]
            for f in program.functions.values():
                space = space_of(program, f, self.target) if f.attrs["kind"] in self.kinds else None
                for name, numbers in space.choices.items() if space is not None else ():
                    choices.setdefault(name, set()).update(numbers)
        for name, values in self.where.items():
            if name not in choices:
                raise UNKNOWN_NAME.at(what="knob", name=name, nearest=nearest_or_all(name, choices))
            if odd := sorted(set(values) - choices[name]):
                have = ", ".join(map(str, sorted(choices[name])))
                why = f"no kernel of {', '.join(self.kinds)} is tried with {name}={','.join(map(str, odd))}"
                raise BAD_OPTION.at(option="--where", why=why, hint=f"{name} is one of {have}")

    def _propose(self, program: Module, f: Function, space: Space, most: int) -> Sequence[Config]:
        space = space.where(self.where)
        predict = predictor(program, f, self.target, self.shapes)
        return propose(space, most, predict, self._known(program, f, space), self.seed)

    def _known(self, program: Module, f: Function, space: Space) -> dict[Point, float]:
        """How far each measured point is from the best of its bucket, the mean over buckets."""
        query = query_of(program, f, self.target, self.shapes[0].bucket(str(f.attrs["kind"]), block_size(program)))
        if query is None:
            return {}
        groups: dict[object, dict[Point, float]] = {}
        for r in self.known:
            if r.lookup == query.lookup:
                groups.setdefault(r.key.bucket, {})[r.point] = r.us or float("inf")
        for bucket in self.layers.buckets(query.lookup):
            for layer in self.layers.layers.values():
                for r in self.layers.best(layer, query.lookup, bucket):
                    groups.setdefault(bucket, {}).setdefault(r.point, r.us or float("inf"))
        found: dict[Point, list[float]] = {}
        for group in groups.values():
            best = min(group.values())
            for point, us in group.items():
                found.setdefault(point, []).append(us / best if best < float("inf") else 1.0)
        return {point: sum(x) / len(x) for point, x in found.items()}
