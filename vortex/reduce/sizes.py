"""Smaller sizes: of pages, heads, fields and all other axes but that of the pages."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from vortex.ir.core import Attr, Decl, Function, Module, Op, Value
from vortex.ir.types import Dim, TensorType, Type
from vortex.reduce.remake import Body, Candidate, remake, remake_function


class Sizes:
    """Sizes of axes: everything of that size becomes smaller, in types, shapes and the module's attributes alike."""

    name = "sizes"

    def of(self, m: Module) -> list[int]:
        return [n for n in sorted(_sizes(m)) if n > 1]

    def without(self, m: Module, parts: Sequence[int]) -> Iterator[Candidate]:
        smaller = [1 << i for i in range(max(parts).bit_length()) if 1 << i < max(parts)]
        for n in smaller if len(parts) == 1 else [1]:
            yield partial(_resized, m, {old: n for old in parts}, False)
            yield partial(_resized, m, {old: n for old in parts}, True)


def total_size(m: Module) -> int:
    """The sum of all sizes in types of declarations, arguments and results."""
    return sum(sum(t.tile) for t in _types(m))


def _types(m: Module) -> Iterator[TensorType]:
    values = (v.type for f in m.functions.values() for v in f.values())
    yield from (t for t in (*(d.type for d in m.decls.values()), *values) if isinstance(t, TensorType))


def _sizes(m: Module) -> set[int]:
    return {n for t in _types(m) for n in t.tile} | {n for n in m.attrs.values() if _is_int(n)}


def _is_int(x: Attr) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)


def _resized(m: Module, sizes: Mapping[int, int], multiples: bool) -> Module:
    """``m`` with other sizes; with ``multiples`` what is n times as long as one of them stays n times as long."""

    def dim(d: Dim) -> Dim:
        if not isinstance(d, int) or d in sizes:
            return sizes.get(d, d) if isinstance(d, int) else d
        old = max((n for n in sizes if multiples and d and d % n == 0), default=0)
        return d // old * sizes[old] if old else d

    def of_type(t: Type) -> Type:
        return TensorType(t.dtype, tuple(map(dim, t.shape))) if isinstance(t, TensorType) else t

    def of_attr(o: Op, name: str) -> Attr:
        value = getattr(o, name)
        if isinstance(value, TensorType):
            return of_type(value)
        if name == "shape":
            return tuple(map(dim, value))
        return dim(value) if name in ("size", "page_size") else value

    def of_op(o: Op, operands: tuple[Value, ...], body: Body) -> Op:
        return o.with_operands(operands, **{f.name: of_attr(o, f.name) for f in o.form.attrs})

    def of_argument(a: Value, body: Body) -> Value:
        body.function.args.append(Value(a.name, of_type(a.type)))
        return body.function.args[-1]

    def of_function(f: Function) -> Function:
        return remake_function(f, of_op, of_argument)

    decls = [replace(d, type=of_type(d.type), attrs=_data(d, of_type(d.type))) for d in m.decls.values()]
    attrs = {k: dim(v) if _is_int(v) else v for k, v in m.attrs.items()}
    return replace(remake(m, of_function, decls), attrs=attrs)


def _data(d: Decl, t: Type) -> dict[str, Attr]:
    """The attributes of a declaration that becomes a ``t``: of a captured tensor the first of its numbers."""
    if d.keyword != "resource" or not isinstance(t, TensorType) or t == d.type:
        return d.attrs
    return {**d.attrs, "data": base64.b64encode(base64.b64decode(str(d.attrs["data"]))[: t.tile_bytes]).decode()}
