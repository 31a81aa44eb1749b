"""What a template leaves open, declared once for each: its knobs, the default, the points to try, derived facts.

A declaration is a subclass of :class:`Schedulable` that :func:`declare` takes in. ``schedule`` writes its default into
the IR, the emitter reads the knobs back with :func:`vortex.schedules.knobs.read_knobs`, a tuner walks ``space``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import ClassVar, Generic

from vortex.errors import NOT_EMITTABLE, Loc
from vortex.ir.core import Attr, Function, Module
from vortex.kinds.buckets import Bucket
from vortex.kinds.kind import KINDS, Argument
from vortex.schedules.knobs import K, Knobs, declared
from vortex.targets.target import TARGETS, Target

Variants = Sequence[tuple[K, tuple[Bucket, ...]]]
"""Knobs, and the buckets of shapes that they are for."""


class Schedulable(Generic[K]):
    """The open choices of the template for kernels of ``kind`` on targets of one kind ("cpu" or "cuda")."""

    target: ClassVar[str]
    kind: ClassVar[str]
    variant: ClassVar[str] = ""
    """Where a kind has several templates: which one, as the listing names it."""
    version: ClassVar[int]
    """Of the space: raised by hand when a knob's meaning or the code behind it changes so that old measurements say
    nothing any more."""
    looked_up: ClassVar[tuple[str, ...]] = ()
    """Knobs that the kernel looks up while it runs, where its schedule has a ``table`` of them."""
    scratch: ClassVar[tuple[str, ...]] = ()
    """Arguments that its kernels take beyond the buffers of the flow, for work that they share: scratch of the kind, in
    the order in which they take it. The page program declares them (:mod:`vortex.ir.scratch`).
    """
    knobs: type[K]

    def serves(self, f: Function) -> bool:
        """Whether a kernel of the kind is this template's."""
        return True

    def takes_in(self, program: Module, f: Function) -> Function | None:
        """The kernel whose work launches of ``f`` can do as well; None where there is none."""
        return None

    def choose(self, program: Module, f: Function, target: Target, given: Mapping[str, int]) -> K:
        """The knobs given, a default for each other one; whether they fit is for :meth:`refuse` to say."""
        raise NotImplementedError

    def variants(self, program: Module, f: Function, target: Target) -> Variants[K]:
        """Where one default does not do for all shapes: several, the first of which serves where no other is near."""
        return ()

    def space(self, program: Module, f: Function, target: Target) -> Iterable[K]:
        """Every point that a tuner may try; all of them can be launched."""
        raise NotImplementedError

    def refuse(self, program: Module, f: Function, target: Target, knobs: K) -> str | None:
        """Why no kernel of these legal numbers can be launched; None where one can."""
        return None

    def blamed(self, program: Module, f: Function, knobs: K) -> Loc | None:
        """The line of the flow that a refused kernel is to be blamed on: that of its last op which has one."""
        return next((o.loc for o in reversed(f.ops) if o.loc is not None), None)

    def remedy(self, program: Module, f: Function) -> str:
        """What to do where a kernel is refused."""
        return "leave the knobs out and run 'schedule', or take values that 'vortex passes schedule' lists"

    def facts(self, program: Module, f: Function, knobs: K) -> dict[str, Attr]:
        """What follows from the knobs and the manifest says beside them."""
        return {}

    # used by all

    @classmethod
    def taken(cls) -> tuple[Argument, ...]:
        """What its kind says of the arguments that ``scratch`` names."""
        return tuple(KINDS[cls.kind].scratch[name] for name in cls.scratch)

    @property
    def name(self) -> str:
        """Kind and variant, for people."""
        return f"{self.kind} ({self.variant})" if self.variant else self.kind

    @property
    def key(self) -> str:
        """Target, kind and version of the space, as tuning records name a template."""
        return f"{self.target}.{self.kind}@{self.version}"

    def require(self, program: Module, f: Function, target: Target, knobs: K) -> None:
        """VX4006 when no kernel of these knobs can be launched."""
        if (why := self.refuse(program, f, target, knobs)) is not None:
            why, hint = f"{self.name} on {target.name}: {why}", self.remedy(program, f)
            raise NOT_EMITTABLE.at(self.blamed(program, f, knobs), why=why, hint=hint)


DECLARED: list[Schedulable[Knobs]] = []
"""Of several that serve a kernel the last one declared goes first."""

MODULES = ("cpu", "cuda_plan", "cuda_append", "cuda_select", "cuda_attend", "cuda_latent")
"""Where the templates that come with vortex are declared."""


def declare(cls: type[Schedulable[K]]) -> type[Schedulable[K]]:
    """Take a declaration in; one that is there already stays where it is."""
    if not any(type(s) is cls for s in DECLARED):
        DECLARED.append(cls())  # type: ignore[arg-type]
    return cls


def declarations() -> tuple[Schedulable[Knobs], ...]:
    """All of them, in order of declaration."""
    for name in MODULES:
        import_module(f"vortex.schedules.{name}")
    return tuple(DECLARED)


def schedulable(program: Module, f: Function, target: Target) -> Schedulable[Knobs] | None:
    """The declaration for a kernel; None where its template leaves nothing open."""
    mine = (s for s in reversed(declarations()) if (s.target, s.kind) == (target.kind, f.attrs["kind"]))
    return next((s for s in mine if s.serves(f)), None)


def listing() -> list[dict[str, str]]:
    """Every knob of every template as people read it: kernel, targets, name, type, legal values, default, meaning."""
    return [
        {
            "kernel": s.name,
            "targets": ", ".join(t.name for t in TARGETS.values() if t.kind == s.target),
            "knob": k.name,
            "type": k.type,
            "values": str(k.legal),
            "default": k.default,
            "meaning": k.doc,
        }
        for s in declarations()
        for k in declared(s.knobs).values()
    ]
