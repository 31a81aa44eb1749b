"""What operators of both sides compute, on tensors ``[1 or S, D0, D1]``; all three axes broadcast."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch

from vortex.compat.vortex_torch import calls
from vortex.errors import BAD_OPERATOR, Loc
from vortex.flow import source
from vortex.flow.tensor import lift, vTensor
from vortex.flow.tracer import current, fail

NEGATIVE = -1.0e30
"""What Where* gives where its condition does not hold."""


class vOp:
    """An operator: made in ``__init__`` with its constants, called in ``forward_cache`` or ``forward_indexer``."""

    def __init__(self) -> None:
        self.made_at: Loc | None = source.here()

    @property
    def op(self) -> str:
        """Its name in messages."""
        return type(self).__name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        hint = "build it of the operators that vortex_torch has, or write the flow for vortex, in plain torch"
        why = "an operator of one's own comes with kernel text, which is not read"
        raise fail(BAD_OPERATOR, op=self.op, why=why, hint=hint)


def bad(op: str, why: str, hint: str) -> Exception:
    """VX1080 at the line that makes the operator."""
    return fail(BAD_OPERATOR, op=op, why=why, hint=hint)


def number(op: str, name: str, x: Any) -> float:
    """A constant of an operator as a number."""
    try:
        return float(x)
    except (TypeError, ValueError):
        raise bad(op, f"{name} is {x!r}", f"{name} is a number") from None


def inner_dim(op: str, dim: Any, allowed: tuple[int, ...]) -> int:
    """An axis that the operator has; negative ones count from the end."""
    if isinstance(dim, bool) or not isinstance(dim, int) or (dim + 3 if dim < 0 else dim) not in allowed:
        raise bad(op, f"dim is {dim!r}", f"dim is {' or '.join(map(str, allowed))}: tensors are [1 or S, D0, D1]")
    return dim % 3


def constant(x: torch.Tensor) -> Any:
    """A tensor of the flow's own, traced while tracing."""
    return lift(x) if current() is not None else x


class Unary(vOp):
    """A function of every element, with two constants."""

    alpha = 0.0
    beta = 1.0

    def __init__(self, alpha: float | None = None, beta: float | None = None) -> None:
        super().__init__()
        self.alpha = number(self.op, "alpha", type(self).alpha if alpha is None else alpha)
        self.beta = number(self.op, "beta", type(self).beta if beta is None else beta)

    def compute(self, x: Any) -> Any:
        raise NotImplementedError

    def affine(self, x: Any) -> Any:
        """beta * x + alpha, the identity left out."""
        y = x if self.beta == 1 else x * self.beta
        return y if self.alpha == 0 else y + self.alpha


class Relu(Unary):
    """x where x >= alpha, else beta."""

    beta = 0.0

    def compute(self, x: Any) -> Any:
        return torch.where(x >= self.alpha, x, self.beta)


class Sigmoid(Unary):
    """1 / (1 + exp(beta * x + alpha)): the ordinary one has beta=-1, and without constants it is 1/2."""

    beta = 0.0

    def compute(self, x: Any) -> Any:
        return 1.0 / (self.affine(x).exp() + 1.0)


class Silu(Unary):
    """x / (1 + exp(beta * x + alpha)): the ordinary one has beta=-1, and without constants it is x / 2."""

    beta = 0.0

    def compute(self, x: Any) -> Any:
        return x / (self.affine(x).exp() + 1.0)


class Add_Mul(Unary):
    """beta * x + alpha."""

    def compute(self, x: Any) -> Any:
        return self.affine(x)


class Abs(Unary):
    """abs(beta * x + alpha)."""

    def compute(self, x: Any) -> Any:
        return self.affine(x).abs()


class Log(Unary):
    """log(beta * x + alpha)."""

    def compute(self, x: Any) -> Any:
        return self.affine(x).log()


class Exp(Unary):
    """exp(beta * x + alpha)."""

    def compute(self, x: Any) -> Any:
        return self.affine(x).exp()


class MaskSlice(vOp):
    """alpha where ``start <= index < end`` along ``dim``, else beta, in the shape of its operand."""

    def __init__(self, start: int, end: int, dim: int = 2, alpha: float = 1.0, beta: float = 0.0) -> None:
        super().__init__()
        self.start, self.end = int(number(self.op, "start", start)), int(number(self.op, "end", end))
        self.dim = inner_dim(self.op, dim, (1, 2))
        self.alpha, self.beta = number(self.op, "alpha", alpha), number(self.op, "beta", beta)

    def compute(self, x: Any) -> Any:
        index = torch.arange(x.shape[self.dim])
        inside = (index >= self.start) & (index < self.end)
        mask = torch.where(inside, self.alpha, self.beta).float()
        return constant(mask.reshape([1, -1, 1] if self.dim == 1 else [1, 1, -1])).expand(*x.shape)


class Reshape(vOp):
    """The last two axes as others of as many elements, row-major."""

    def __init__(self, batch_dim: int, x2: int, y2: int) -> None:
        super().__init__()
        if batch_dim != -1:
            raise bad(self.op, f"its first argument is {batch_dim!r}", "write Reshape(-1, x2, y2)")
        for size in (x2, y2):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise bad(self.op, f"a size is {size!r}", "write Reshape(-1, x2, y2) with positive integers")
        self.x2, self.y2 = x2, y2

    def compute(self, x: Any) -> Any:
        if x.shape[1] * x.shape[2] != self.x2 * self.y2:
            why = f"{calls.shape_of(x)} has not {self.x2} * {self.y2} elements in its last two axes"
            raise calls.refuse(self.op, why, "as many elements before as after")
        return x.reshape(x.shape[0], self.x2, self.y2)


class Binary(vOp):
    """A function of two tensors, element by element; sizes of 1 broadcast."""

    def compute(self, x: Any, y: Any) -> Any:
        raise NotImplementedError

    def checked(self, x: Any, y: Any) -> Any:
        """The result, unless the shapes do not fit."""
        for a, b in zip(x.shape[1:], y.shape[1:], strict=True):
            if a != b and 1 not in (a, b):
                why = f"{calls.shape_of(x)} and {calls.shape_of(y)} do not broadcast"
                raise calls.refuse(self.op, why, "equal sizes, or 1 on one side")
        return self.compute(x, y)


class Multiply(Binary):
    """x * y."""

    def compute(self, x: Any, y: Any) -> Any:
        return x * y


class Add(Binary):
    """alpha * x + beta * y."""

    def __init__(self, alpha: float = 1.0, beta: float = 1.0) -> None:
        super().__init__()
        self.alpha, self.beta = number(self.op, "alpha", alpha), number(self.op, "beta", beta)

    def compute(self, x: Any, y: Any) -> Any:
        a = x if self.alpha == 1 else x * self.alpha
        return a + y if self.beta == 1 else a - y if self.beta == -1 else a + y * self.beta


class Maximum(Binary):
    """The larger of x and y."""

    def compute(self, x: Any, y: Any) -> Any:
        return torch.maximum(x, y)


class Minimum(Binary):
    """The smaller of x and y."""

    def compute(self, x: Any, y: Any) -> Any:
        return torch.minimum(x, y)


class Where(Binary):
    """0 where the comparison holds, else -1e30: a mask to add."""

    compares: Callable[[Any, Any], Any]

    def compute(self, x: Any, y: Any) -> Any:
        return torch.where(type(self).compares(x, y), 0.0, NEGATIVE)


class WhereEqual(Where):
    """0 where x == y, else -1e30."""

    compares = staticmethod(torch.eq)


class WhereNotEqual(Where):
    """0 where x != y, else -1e30."""

    compares = staticmethod(torch.ne)


class WhereGreater(Where):
    """0 where x > y, else -1e30."""

    compares = staticmethod(torch.gt)


class WhereGreaterEqual(Where):
    """0 where x >= y, else -1e30."""

    compares = staticmethod(torch.ge)


class WhereLess(Where):
    """0 where x < y, else -1e30."""

    compares = staticmethod(torch.lt)


class WhereLessEqual(Where):
    """0 where x <= y, else -1e30."""

    compares = staticmethod(torch.le)


def _letters(x: Any, row: str) -> tuple[str, Any]:
    """A matrix for each page or one for all, ``x`` without axes of one element but the last: its letters, itself."""
    pages = "" if isinstance(x.shape[0], int) and x.shape[0] == 1 else "s"
    named = pages + ("" if x.shape[1] == 1 else row) + "k"
    sizes = [d for d, keep in zip(x.shape, (pages, row in named, True), strict=True) if keep]
    return named, x if len(sizes) == 3 else x.reshape(*sizes)


class GeMM(vOp):
    """y x^T: x ``[1 or S, Nx, K]``, y ``[1 or S, Ny, K]``, gives ``[1 or S, Ny, Nx]``."""

    def compute(self, x: Any, y: Any) -> Any:
        if x.shape[2] != y.shape[2]:
            why = f"x is {calls.shape_of(x)} and y is {calls.shape_of(y)}: the last sizes differ"
            raise calls.refuse(self.op, why, f"{self.op}(x, y) is y x^T: equal last sizes")
        # without axes of one element, as a flow for vortex would write it
        (a, rows), (b, cols) = _letters(y, "a"), _letters(x, "b")
        pages = y.shape[0] if "s" in a else x.shape[0]
        lead = "s" if "s" in a + b else ""
        made = torch.einsum(f"{a},{b}->{lead}{a.strip('sk')}{b.strip('sk')}", rows, cols)
        return made.reshape(pages, y.shape[1], x.shape[1])


class Reduction(vOp):
    """A fold of one axis, which is kept with size 1."""

    allowed: tuple[int, ...] = (1, 2)

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.dim = inner_dim(self.op, dim, self.allowed)

    def compute(self, x: Any) -> Any:
        return self.fold(x, self.dim, True)

    def fold(self, x: Any, dim: int, keep: bool) -> Any:
        raise NotImplementedError


class Mean(Reduction):
    """Mean along an axis."""

    def fold(self, x: Any, dim: int, keep: bool) -> Any:
        return x.mean(dim, keepdim=keep)


class Max(Reduction):
    """Largest along an axis."""

    def fold(self, x: Any, dim: int, keep: bool) -> Any:
        return x.amax(dim, keepdim=keep)


class Min(Reduction):
    """Smallest along an axis."""

    def fold(self, x: Any, dim: int, keep: bool) -> Any:
        return x.amin(dim, keepdim=keep)


class Sum(Reduction):
    """Sum along an axis."""

    def fold(self, x: Any, dim: int, keep: bool) -> Any:
        return x.sum(dim, keepdim=keep)


class L2Norm(Reduction):
    """Square root of the sum of squares along an axis."""

    def fold(self, x: Any, dim: int, keep: bool) -> Any:
        return (x * x).sum(dim, keepdim=keep).sqrt()


class Interleave(Reduction):
    """A fold of each run of k elements along an axis of k * n."""

    def __init__(self, dim: int = 1, k: int = 1) -> None:
        super().__init__(dim)
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise bad(self.op, f"k is {k!r}", "k is a positive integer")
        self.k = k

    def compute(self, x: Any) -> Any:
        n = x.shape[self.dim]
        if n % self.k:
            why = f"k={self.k} does not divide axis {self.dim} of {calls.shape_of(x)}"
            raise calls.refuse(self.op, why, f"a divisor of {n}")
        return self.fold(x.unflatten(self.dim, (n // self.k, self.k)), self.dim + 1, False)


def same_object(function: Callable[..., Any]) -> Callable[..., Any]:
    """An operator that older generations of the package run in place.

    Where a flow drops the result of the call, its operand has the new values.
    """

    @functools.wraps(function)
    def call(self: vOp, x: Any, ctx: Any = None) -> Any:
        made = function(self, x, ctx)
        if source.drops_result(sys._getframe(1)):
            if isinstance(x, vTensor):
                x.value = made.value
            else:
                x.copy_(made)
        return made

    return call
