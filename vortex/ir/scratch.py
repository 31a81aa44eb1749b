"""The scratch that the kernels of a target share, in the page program: which there is, and what each kernel does to it.

    buffer @scratch.work : i32[] {layout = "step", role = "scratch", shape = [2, "work_list"]}
    ..
    kernel @select() {kind = "select", domain = "rows", scratch = {work = "reads", arrivals = "updates"}} {

``schedule`` writes both from what templates take (``Schedulable.scratch``) and what the kinds say of it. The sizes that
``shape`` names are known when a step runs (``Layout.sizes`` in :mod:`vortex.runtime.scratch`). Some of them follow from
knobs; as none is here in numbers, an edited knob leaves the declarations true.
"""

from __future__ import annotations

from collections.abc import Iterable

from vortex.errors import IR_STRUCTURE
from vortex.ir.core import Decl, Function, Module
from vortex.ir.types import DTYPES, TensorType
from vortex.kinds.kind import KINDS, Argument

PREFIX = "scratch."
"""Of the buffers' names, so that a field may have the name of an argument."""


def declaration(a: Argument) -> Decl:
    """The buffer for an argument that the decoder gives."""
    attrs = {"layout": "step", "role": "scratch", "shape": a.shape}
    return Decl("buffer", PREFIX + a.name, TensorType(DTYPES[a.dtype], ()), attrs)


def accesses(taken: Iterable[Argument]) -> dict[str, str]:
    """Attribute ``scratch`` of a kernel that takes these arguments."""
    return {a.name: a.access for a in taken}


def is_scratch(d: Decl | None) -> bool:
    """Whether it is a buffer of scratch."""
    return d is not None and d.keyword == "buffer" and d.attrs.get("role") == "scratch"


def clear(program: Module) -> None:
    """Remove what an earlier ``schedule``, perhaps for another target, has declared."""
    program.decls = {name: d for name, d in program.decls.items() if not is_scratch(d)}
    for f in program.functions.values():
        f.attrs.pop("scratch", None)


def declare(program: Module, f: Function, taken: Iterable[Argument]) -> None:
    """Write into the program that kernel ``f`` takes these arguments; nothing if there are none."""
    given = list(taken)
    if given:
        f.attrs["scratch"] = accesses(given)
    for a in given:
        d = declaration(a)
        if not is_scratch(program.decls.get(d.name, d)):
            raise IR_STRUCTURE.at(why=f"@{d.name} is declared as something else than the kernels' scratch")
        program.decls[d.name] = d


def verify_scratch(program: Module) -> None:
    """Whether every buffer of scratch is one that a kind of kernel knows and some kernel names, and every kernel does
    to those that it names what its kind does.

    Raises:
        VortexError: VX2008 where not.
    """
    known = {PREFIX + a.name: declaration(a) for k in KINDS.values() for a in k.scratch.values()}
    used: set[str] = set()
    for f in program.functions.values():
        kind = KINDS[str(f.attrs["kind"])]
        named = f.attrs.get("scratch", {})
        if not isinstance(named, dict):
            raise IR_STRUCTURE.at(f.loc, why=f"kernel @{f.name}: scratch says what is done to each buffer, by name")
        for name, access in named.items():
            if name not in kind.scratch:
                have = ", ".join(kind.scratch) or "none"
                raise IR_STRUCTURE.at(f.loc, why=f"a kernel of kind '{kind.name}' has scratch {have}, and not '{name}'")
            if access != (right := kind.scratch[name].access):
                why = f"a kernel of kind '{kind.name}' {right} '{name}'; @{f.name} says {ascii(access)[:40]}"
                raise IR_STRUCTURE.at(f.loc, why=why)
            if not is_scratch(program.decls.get(PREFIX + name)):
                raise IR_STRUCTURE.at(f.loc, why=f"kernel @{f.name} names scratch '{name}', but no @{PREFIX}{name}")
            used.add(PREFIX + name)
    for d in program.declared("buffer"):
        if not is_scratch(d):
            if d.attrs.get("layout") == "step":
                raise IR_STRUCTURE.at(why=f"buffer @{d.name}: layout 'step' is for role 'scratch' alone")
            continue
        if d.name not in known:
            raise IR_STRUCTURE.at(why=f"buffer @{d.name} is no scratch of a kind: {', '.join(known)}")
        right_one = known[d.name]
        if (d.type, d.attrs) != (right_one.type, right_one.attrs):
            raise IR_STRUCTURE.at(why=f"buffer @{d.name} is {right_one.type} {right_one.attrs}, not {d.type} {d.attrs}")
        if d.name not in used:
            raise IR_STRUCTURE.at(why=f"no kernel names buffer @{d.name} in its 'scratch'")
