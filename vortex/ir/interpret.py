"""The meaning of flow IR: a function run on numpy arrays, op by op.

Floats of every storage type are held as fp32, integers as int32. Every value is laid out row-major
before the next op sees it: numpy adds in an order that depends on the layout, and equal IR must give
equal bits.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vortex.errors import IR_STRUCTURE, VortexError
from vortex.ir.core import Decl, Function, Module, Op, Value
from vortex.ir.numerics import narrow, unpack
from vortex.ir.ranking import Selected
from vortex.ir.types import DType, TensorType, bool_


@dataclass(frozen=True)
class Row:
    """What ops without operands read: the place in the batch and the module's constants."""

    module: Module
    pages: int = 0
    layer: int = 0
    first: int = 0
    page_index: Any = None
    head: int = 0
    """The KV head, counted over the whole model."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """The numbers of each ``param``, all sets of them: ``[layers, *shape]``, ``[layers, heads, *shape]``."""

    budget: int = 2**31 - 1
    """Pages that the budget leaves to rows of this layer and head, where it has a number for each."""

    def evaluate(self, o: Op, operands: Sequence[Any]) -> Any:
        """The result of one op."""
        with np.errstate(all="ignore"):
            made = o.evaluate_in(self, *operands)
        return made if isinstance(made, Selected) else np.asarray(made, order="C")

    def candidates(self) -> Any:
        """The logical index of each candidate page in its request."""
        return self.page_index if self.page_index is not None else range(self.first, self.first + self.pages)

    def resource(self, name: str) -> Any:
        """The array kept as ``resource @name``."""
        return resource(self.module, name)

    def parameter(self, name: str) -> Any:
        """The set of ``param @name`` for this layer and head; VX2008 where there are none."""
        d, x = self.module.decls[name], self.parameters.get(name)
        at = {"model": (), "layer": (self.layer,), "head": (self.layer, self.head)}[str(d.attrs.get("per"))]
        assert isinstance(d.type, TensorType)
        if x is None or any(i >= n for i, n in zip(at, x.shape, strict=False)) or x.shape[len(at) :] != d.type.tile:
            got = "is not given" if x is None else f"is given as {list(x.shape)}"
            raise IR_STRUCTURE.at(why=f"param @{name}, {d.type} per {d.attrs.get('per')}, {got}")
        return np.asarray(x[at], held_as(d.type.dtype))

    def run(self, ops: Sequence[Op], env: dict[Value, Any]) -> None:
        """Evaluate ``ops`` in order, adding their results to ``env``."""
        for o in ops:
            if o.result is not None:
                env[o.result] = self.evaluate(o, [env[v] for v in o.operands])
                assert fits(env[o.result], o.result, self.pages), f"{o.name} gave no {o.result!r}"


def run_function(
    f: Function,
    args: Sequence[Any],
    module: Module,
    *,
    pages: int = 0,
    layer: int = 0,
    first: int = 0,
    page_index: Sequence[int] | None = None,
    head: int = 0,
    parameters: Mapping[str, Any] | None = None,
    budget: int = 2**31 - 1,
) -> list[Any]:
    """What ``f`` returns for one row.

    Float arguments are fp32 arrays that hold values of their storage type already. The page count is that
    of the arguments over pages, else ``pages``; candidates are pages ``first`` and following unless
    ``page_index`` lists them. ``parameters`` has all sets of each parameter, and
    ``budget`` the pages of the row, as :class:`Row` says.

    Raises:
        VortexError: VX2008 when an argument does not fit its type.
    """
    if len(args) != len(f.args):
        raise IR_STRUCTURE.at(f.loc, why=f"@{f.name} takes {len(f.args)} arguments, got {len(args)}")
    env = {a: _held(x, a) for a, x in zip(f.args, args, strict=True)}
    for a, x in env.items():
        assert isinstance(a.type, TensorType)
        if a.type.page_axis is not None and a.type.pages is not None:
            pages = x.shape[a.type.page_axis] * a.type.pages.blocks
    for a, x in env.items():
        if not fits(x, a, pages):
            raise IR_STRUCTURE.at(f.loc, why=f"{a!r} of @{f.name} does not hold {list(x.shape)} of {pages} pages")
    end = f.ops[-1]
    Row(module, pages, layer, first, page_index, head, parameters or {}, budget).run(f.ops[:-1], env)
    return [env[v] for v in end.operands]


def began(d: Decl, pages: int) -> Any:
    """A state field that nobody has written yet, of ``pages`` pages where it belongs to them."""
    assert isinstance(d.type, TensorType)
    shape = (pages, *d.type.tile) if d.attrs["state"] == "page" else d.type.tile
    return narrow(np.full(shape, d.attrs["init"], np.float32), d.type.dtype)


def _held(x: Any, v: Value) -> Any:
    if not isinstance(v.type, TensorType) or np.ndim(x) != len(v.type.shape):
        raise IR_STRUCTURE.at(why=f"{v!r} cannot be given as {np.ndim(x)}-dimensional array")
    return np.asarray(x, held_as(v.type.dtype), order="C")


def held_as(dtype: DType) -> Any:
    """The numpy type in which the interpreters hold numbers of ``dtype``."""
    return np.float32 if dtype.is_float else np.bool_ if dtype == bool_ else np.int32


def fits(x: Any, v: Value, pages: int) -> bool:
    """Whether ``x`` can be the value ``v`` of a row of that many candidates."""
    if not isinstance(v.type, TensorType):
        return isinstance(x, Selected)
    shape = tuple(d if isinstance(d, int) else d.pages(pages) for d in v.type.shape)
    return x.shape == shape and x.dtype == held_as(v.type.dtype)


def resource(module: Module, name: str) -> Any:
    """The array kept as ``resource @name``.

    Raises:
        VortexError: VX2008 when its data is not base64 of as many bytes as its type has.
    """
    d = module.decls[name]
    assert isinstance(d.type, TensorType)
    try:
        data = base64.b64decode(str(d.attrs.get("data", "")), validate=True)
    except (binascii.Error, ValueError):
        raise _bad(name, "its data is not base64") from None
    if d.type.dtype.per_byte > 1 or len(data) != d.type.tile_bytes:
        raise _bad(name, f"its data has {len(data)} bytes, {d.type} has {d.type.tile_bytes}")
    return unpack(data, d.type.dtype).reshape(d.type.tile)


def _bad(name: str, why: str) -> VortexError:
    return IR_STRUCTURE.at(why=f"resource @{name}: {why}")
