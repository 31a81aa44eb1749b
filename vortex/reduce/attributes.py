"""The smaller things a module can do without: attributes, notes, places in the source."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from vortex.ir.core import Attr, Decl, Function, Module, Op, Value
from vortex.reduce.remake import Body, Candidate, remake, remake_function

Owner = Module | Decl | Function | Op
Path = tuple[Owner, tuple[str, ...]]
"""Whose attribute, and its key; of a dictionary, such as a schedule, also the key in there."""
NOTES = "<>"
"""In the place of a key: a note of an op."""


class Places:
    """Where functions and their ops came from in the flow's source."""

    name = "places"

    def of(self, m: Module) -> list[Function]:
        return [f for f in m.functions.values() if f.loc or any(o.loc for o in f.ops)]

    def without(self, m: Module, parts: Sequence[Function]) -> Iterator[Candidate]:
        def of_op(o: Op, operands: tuple[Value, ...], body: Body) -> Op:
            made = o.with_operands(operands)
            made.loc = None
            return made

        yield lambda: remake(m, lambda f: replace(remake_function(f, of_op), loc=None) if f in parts else f)


class Attributes:
    """Attributes of the module, its declarations, functions and ops, each where it is not what holds by default."""

    name = "attributes"

    def of(self, m: Module) -> list[Path]:
        owners: list[Module | Decl | Function] = [m, *m.decls.values(), *m.functions.values()]
        found: list[Path] = [(x, key) for x in owners for key in _keys(x.attrs)]
        for o in (o for f in m.functions.values() for o in f.ops):
            found += [(o, (NOTES, key)) for key in o.notes]
            found += [(o, (name,)) for name, default in _defaults(o).items() if getattr(o, name) != default]
        return found

    def without(self, m: Module, parts: Sequence[Path]) -> Iterator[Candidate]:
        lost = set(parts)

        def left(x: Module | Decl | Function) -> dict[str, Attr]:
            return _left(x.attrs, lambda key: (x, key) in lost)

        def of_op(o: Op, operands: tuple[Value, ...], body: Body) -> Op:
            reset = {name: default for name, default in _defaults(o).items() if (o, (name,)) in lost}
            made = o.with_operands(operands, **reset)
            made.notes = {k: v for k, v in o.notes.items() if (o, (NOTES, k)) not in lost}
            return made

        def of_function(f: Function) -> Function:
            return replace(remake_function(f, of_op), attrs=left(f))

        decls = [replace(d, attrs=left(d)) for d in m.decls.values()]
        yield lambda: replace(remake(m, of_function, decls), attrs=left(m))


def _keys(attrs: Mapping[str, Attr]) -> Iterator[tuple[str, ...]]:
    for key, value in attrs.items():
        yield (key,)
        if isinstance(value, dict):
            yield from ((key, inner) for inner in value)


def _left(attrs: Mapping[str, Attr], goes: Callable[[tuple[str, ...]], bool]) -> dict[str, Attr]:
    found = {}
    for key, value in attrs.items():
        if not goes((key,)):
            whole = isinstance(value, dict)
            found[key] = {k: v for k, v in value.items() if not goes((key, k))} if whole else value
    return found


def _defaults(o: Op) -> dict[str, Attr]:
    return {f.name: f.default for f in o.form.attrs if f.default is not dataclasses.MISSING}
