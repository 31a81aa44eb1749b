"""``vortex_torch.cache``: operators of ``forward_cache``, on tensors ``[1, D0, D1]`` of one full block.

Each takes ``output``, the field that it writes; without one its result is a value to go on with.
"""

from __future__ import annotations

from typing import Any

from vortex.compat.vortex_torch import calls, operators
from vortex.compat.vortex_torch.calls import ContextBase, Slot, tensor


class Context(ContextBase):
    """``ctx`` of this side."""


def _written(op: operators.vOp, made: Any, output: Any) -> Any:
    if calls.current(op.op).method != "forward_cache":
        why = "an operator of vortex_torch.cache is called in forward_indexer"
        raise calls.refuse(op.op, why, f"from vortex_torch.indexer import {op.op}")
    if output is None:
        return made
    if not isinstance(output, Slot):
        why = f"output is a {type(output).__name__}, not a field that create_cache declares"
        raise calls.refuse(op.op, why, 'write op(x, cache["name"], loc=loc, ctx=ctx)')
    output.write(op.op, made)
    return output


class _One:
    """Called with one operand."""

    def __call__(self: Any, x: Any, output: Any = None, loc: Any = None, ctx: Any = None) -> Any:
        return _written(self, self.compute(tensor(self.op, x)), output)


class _Two:
    """Called with two operands."""

    def __call__(self: Any, x: Any, y: Any, output: Any = None, loc: Any = None, ctx: Any = None) -> Any:
        x, y = tensor(self.op, x), tensor(self.op, y)
        return _written(self, getattr(self, "checked", self.compute)(x, y), output)


class Relu(_One, operators.Relu):
    """x where x >= alpha, else beta."""


class Sigmoid(_One, operators.Sigmoid):
    """1 / (1 + exp(beta * x + alpha))."""


class Silu(_One, operators.Silu):
    """x / (1 + exp(beta * x + alpha))."""


class Add_Mul(_One, operators.Add_Mul):
    """beta * x + alpha."""


class Abs(_One, operators.Abs):
    """abs(beta * x + alpha)."""


class Log(_One, operators.Log):
    """log(beta * x + alpha)."""


class Exp(_One, operators.Exp):
    """exp(beta * x + alpha)."""


class MaskSlice(_One, operators.MaskSlice):
    """alpha inside a slice, beta outside."""


class Reshape(_One, operators.Reshape):
    """Other last two axes."""


class Mean(_One, operators.Mean):
    """Mean along an axis."""


class Max(_One, operators.Max):
    """Largest along an axis."""


class Min(_One, operators.Min):
    """Smallest along an axis."""


class L2Norm(_One, operators.L2Norm):
    """Euclidean norm along an axis."""


class MeanInterleave(_One, operators.Interleave, operators.Mean):
    """Mean of each run of k."""


class MaxInterleave(_One, operators.Interleave, operators.Max):
    """Largest of each run of k."""


class MinInterleave(_One, operators.Interleave, operators.Min):
    """Smallest of each run of k."""


class L2NormInterleave(_One, operators.Interleave, operators.L2Norm):
    """Euclidean norm of each run of k."""


class GeMM(_Two, operators.GeMM):
    """y x^T."""


class Multiply(_Two, operators.Multiply):
    """x * y."""


class Add(_Two, operators.Add):
    """alpha * x + beta * y."""


class Maximum(_Two, operators.Maximum):
    """The larger of x and y."""


class Minimum(_Two, operators.Minimum):
    """The smaller of x and y."""


class WhereEqual(_Two, operators.WhereEqual):
    """0 where x == y, else -1e30."""


class WhereNotEqual(_Two, operators.WhereNotEqual):
    """0 where x != y, else -1e30."""


class WhereGreater(_Two, operators.WhereGreater):
    """0 where x > y, else -1e30."""


class WhereGreaterEqual(_Two, operators.WhereGreaterEqual):
    """0 where x >= y, else -1e30."""


class WhereLess(_Two, operators.WhereLess):
    """0 where x < y, else -1e30."""


class WhereLessEqual(_Two, operators.WhereLessEqual):
    """0 where x <= y, else -1e30."""


class Fill(operators.vOp):
    """alpha in the whole field."""

    def __init__(self, alpha: float = 0.0) -> None:
        super().__init__()
        self.alpha = operators.number(self.op, "alpha", alpha)

    def __call__(self, x: Any, loc: Any = None, ctx: Any = None) -> Any:
        if not isinstance(x, Slot):
            why = f"it is given a {type(x).__name__}, not a field that create_cache declares"
            raise calls.refuse(self.op, why, 'write fill(cache["name"], loc=loc, ctx=ctx)')
        import torch

        _written(self, operators.constant(torch.full(x.shape, self.alpha)), x)
        calls.current(self.op).filled[x.name] = self.alpha
        return x
