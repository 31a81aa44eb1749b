"""Augmented assignment, ``x += y``: as in torch for every name of ``x``, refused where views would see it."""

from __future__ import annotations

from typing import Any

from vortex.errors import ALIASED, BAD_SHAPE
from vortex.flow.dispatch import fills
from vortex.flow.tensor import vTensor
from vortex.flow.tracer import active, emit, fail
from vortex.ir.core import Value
from vortex.ir.dialects import flow
from vortex.ir.types import TensorType, bool_, f32

VIEWS = (flow.Reshape, flow.Transpose, flow.Slice, flow.Broadcast)
"""Ops whose result may share memory with their operand when torch runs them."""
COPIES = frozenset(
    [
        "clone",
        "repeat",
        "tile",
        "repeat_interleave",
        "cat",
        "concat",
        "concatenate",
        "stack",
        "flip",
        "roll",
        "zeros_like",
        "ones_like",
        "full_like",
        "new_zeros",
        "new_ones",
        "new_full",
        "pad",
    ]
)
"""Functions that give memory of its own, whatever they become."""


def viewing(made: vTensor, x: vTensor, *, repeated: bool = False) -> vTensor:
    """``made``, which computes elements of ``x`` that torch would leave in the memory of ``x``."""
    active().views[made.value] = x.value, repeated
    return made


def fresh(result: object, before: int, name: str) -> object:
    """What a torch function gives, as an object of its own where tracing had nothing to do but pass an operand on.

    ``before`` is how many traced tensors there were when the call began.
    """
    if isinstance(result, tuple):
        if hasattr(result, "_fields"):  # values and indices, which have memory of their own
            parts: Any = type(result)
            return parts(*(_own(part, before) for part in result))
        return result  # parts of a tensor: slices, which are views by what they are
    if not isinstance(result, vTensor):
        return result
    if result.born <= before:
        result = vTensor(result.value)
    result.copied = name in COPIES
    return result


def _own(x: object, before: int) -> object:
    """A copy, as far as torch is concerned, of a tensor that was there before."""
    if not isinstance(x, vTensor) or x.born > before:
        return x
    made = vTensor(x.value)
    made.copied = True
    return made


@fills("assigned")
def assigned(x: vTensor, made: vTensor, operator: str) -> vTensor:
    """``x`` with the value of ``made``, for all who hold the object; VX1005, VX1026."""
    sign = f"{operator}="
    if made.dims != x.dims:
        shapes = f"{flow.show(x.dims)} does not hold the result, {flow.show(made.dims)}"
        raise fail(
            BAD_SHAPE, op=f"'{sign}' writes in place", why=shapes, expected=f"x = x {operator} y is a new tensor"
        )
    if _rank(made) > _rank(x):
        types = f"{x.type.dtype} does not hold {made.type.dtype}"
        raise fail(BAD_SHAPE, op=f"'{sign}' writes in place", why=types, expected=f"x = x {operator} y is a new tensor")
    root, spread = _root(x.value)
    what = ""
    if not x.copied and isinstance(root.owner, flow.Resource | flow.Param):
        what = "a tensor that the flow captures"
    elif not x.copied and spread:
        what = "a tensor whose elements were repeated by expand or unfold and lie in memory once"
    elif any(_shared(x, root, other) for other in active().alive()):
        what = "memory that another tensor of the flow shares: one is a view of the other, and torch would change both"
    if what:
        raise fail(ALIASED, sign=sign, operator=operator, what=what)
    if _rank(made) < _rank(x):
        made = emit(flow.Cast, made, to=f32 if x.type.dtype.is_float else x.type.dtype)
    x.value = made.value
    return x


def _rank(x: vTensor) -> int:
    """torch's categories in the order in which one holds the other: bool, integer, float."""
    kind = x.type.dtype
    return 2 if kind.is_float else 0 if kind == bool_ else 1


def _root(value: Value) -> tuple[Value, bool]:
    """The value that ``value`` may be a view of in the end, and whether axes were repeated on the way."""
    spread, views = False, active().views
    while value in views or isinstance(value.owner, VIEWS):
        if value in views:
            value, repeated = views[value]
        else:
            assert value.owner is not None
            value, repeated = value.owner.operands[0], isinstance(value.owner, flow.Broadcast)
        spread = spread or repeated
    return value, spread


def _shared(x: vTensor, root: Value, other: vTensor) -> bool:
    """Whether ``other`` may share memory with ``x``: the same origin, and the later of the two is not a copy."""
    if other is x or (other.copied if other.born > x.born else x.copied):
        return False
    return isinstance(other.value.type, TensorType) and _root(other.value)[0] is root
