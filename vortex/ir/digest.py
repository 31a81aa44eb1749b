"""Identity of IR: what it computes (structural), and with which choices (schedule)."""

from __future__ import annotations

import hashlib

from vortex.ir.core import Decl, Function, Module
from vortex.ir.printer import attr, print_op
from vortex.ir.scratch import is_scratch

VERSION = "vx1"

SHAPE = ("page_size", "head_dim", "group", "dtype", "kv_lora_rank", "kv_dtype", "block_size")
"""Attributes of a program that every kernel depends on."""


def structural(module: Module) -> str:
    """Hash of the meaning: names, locations, notes, what ``schedule`` writes do not enter. The cache and tuning key."""
    parts = [module.stage, attr({k: v for k, v in module.attrs.items() if k != "target"})]
    parts += [f"{d.keyword} {d.name} {d.type} {attr(d.attrs)}" for d in module.decls.values() if not is_scratch(d)]
    parts += [_canonical(f) for f in module.functions.values()]
    return _hash(parts)


def structural_of(f: Function) -> str:
    """Hash of one function or kernel."""
    return _hash([_canonical(f)])


def kernel(program: Module, f: Function) -> str:
    """Hash of a kernel with all it refers to: buffers, constants and the model shape, but not the program around it.

    Kernels that compute the same in programs of different flows have the same; the tuning key.
    """
    used = named(program, f)
    shape = {k: v for k, v in program.attrs.items() if k in SHAPE}
    parts = [f"{d.keyword} {d.name} {d.type} {attr(d.attrs)}" for d in used]
    return _hash([program.stage, attr(dict(sorted(shape.items()))), *parts, _canonical(f)])


def named(program: Module, f: Function) -> list[Decl]:
    """What of a program's declarations a kernel refers to, by name."""
    found = {name for o in f.ops for x in o.attrs.values() for name in _names(x) if name in program.decls}
    return [program.decls[name] for name in sorted(found)]


def _names(x: object) -> tuple[str, ...]:
    return (x,) if isinstance(x, str) else tuple(y for y in x if isinstance(y, str)) if isinstance(x, tuple) else ()


def schedule(module: Module) -> str:
    """Hash of the choices alone: target, every kernel's schedule, and whose work it takes in."""
    every = module.functions.values()
    chosen = [f"{f.name} {attr(f.attrs.get('schedule', {}))} {f.attrs.get('takes_in', '')}" for f in every]
    return _hash([attr(module.attrs.get("target", "")), *chosen])


def _hash(parts: list[str]) -> str:
    return f"{VERSION}:{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:24]}"


def _canonical(f: Function) -> str:
    """The function's text with values numbered in order of definition."""
    kept = [(v, v.name) for v in f.values()]
    try:
        for i, (v, _) in enumerate(kept):
            v.name = str(i)
        attrs = {k: v for k, v in f.attrs.items() if k not in ("schedule", "scratch", "takes_in")}
        args = ", ".join(str(a.type) for a in f.args)
        return "\n".join([f"{f.keyword} {f.name}({args}) {attr(attrs)}", *(print_op(o, notes=False) for o in f.ops)])
    finally:
        for v, name in kept:
            v.name = name
