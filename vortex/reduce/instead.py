"""What stands instead of a value that goes: strategies, each of which finds one or has none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from vortex.ir.core import Value
from vortex.ir.dialects import flow
from vortex.ir.types import Dim, TensorType, Type
from vortex.reduce.remake import Body

Instead = Callable[[Type, Sequence[Value], Body], Value | None]
"""Given the type of a value that goes and the operands that it was made from: what its users use."""


def first_operand(lost: Type, operands: Sequence[Value], body: Body) -> Value | None:
    """An operand, of the same type if there is one; else the latest value of that type."""
    return _of_type(lost, operands) or _of_type(lost, reversed(body.values)) or next(iter(operands), None)


def last_operand(lost: Type, operands: Sequence[Value], body: Body) -> Value | None:
    """As :func:`first_operand`, from the last operand on."""
    return first_operand(lost, operands[::-1], body)


def first_value(lost: Type, operands: Sequence[Value], body: Body) -> Value | None:
    """The first value of the same type, so that all that stands between goes as well."""
    return _of_type(lost, body.values)


def folded_value(lost: Type, operands: Sequence[Value], body: Body) -> Value | None:
    """The maximum over axes that the first value of more axes has beyond the shape that is needed."""
    if not isinstance(lost, TensorType):
        return None
    for v in body.values:
        axes = _beyond(v.type.shape, lost.shape) if isinstance(v.type, TensorType) else ()
        if axes:
            return body.add(flow.ReduceMax(v, axes))
    return None


def number(lost: Type, operands: Sequence[Value], body: Body) -> Value | None:
    """The number 1, which broadcasts where elementwise ops use it."""
    if not isinstance(lost, TensorType) or not operands:
        return None
    return body.add(flow.Constant(1.0, TensorType(lost.dtype)))


def numbers(lost: Type, operands: Sequence[Value], body: Body) -> Value | None:
    """Ones of the same shape, which must be without pages."""
    if not isinstance(lost, TensorType) or lost.page_axis is not None or not lost.shape:
        return None
    return body.add(flow.Broadcast(body.add(flow.Constant(1.0, TensorType(lost.dtype))), lost.shape))


STRATEGIES: tuple[Instead, ...] = (first_operand, last_operand, first_value, folded_value, number, numbers)
"""In the order in which they are tried."""


def _of_type(lost: Type, values: Iterable[Value]) -> Value | None:
    return next((v for v in values if v.type == lost), None)


def _beyond(shape: Sequence[Dim], wanted: Sequence[Dim]) -> tuple[int, ...]:
    """The axes without which ``shape`` is what is wanted; none where it cannot be."""
    rest = list(wanted)
    axes = []
    for i, d in enumerate(shape):
        if rest and rest[0] == d:
            rest.pop(0)
        else:
            axes.append(i)
    return tuple(axes) if not rest else ()
