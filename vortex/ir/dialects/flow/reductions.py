"""Ops that fold or walk an axis: reductions, softmax, scans, convolution, contraction."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from vortex.ir.core import Op, Value, op
from vortex.ir.dialects.flow.kinds import (
    Reduce,
    arithmetic,
    one_page_axis,
    tensor,
)
from vortex.ir.numerics import widen
from vortex.ir.types import Dim, DType, Sym, TensorType, f32, i32


@op("flow.reduce_sum")
class ReduceSum(Reduce):
    """Sum; 0 over nothing."""

    folds = "sum"
    positive = "with operands"

    def fold(self, x: Any, axes: tuple[int, ...], keepdims: bool) -> Any:
        return np.sum(x, axis=axes, keepdims=keepdims, dtype=x.dtype if x.dtype != np.bool_ else np.int32)


@op("flow.reduce_mean")
class ReduceMean(Reduce):
    """Sum divided by count, fp32; NaN over nothing."""

    folds = "sum"
    positive = "with operands"

    def dtype(self, x: DType) -> DType:
        return f32

    def fold(self, x: Any, axes: tuple[int, ...], keepdims: bool) -> Any:
        count = math.prod(x.shape[a] for a in axes)
        return np.sum(widen(x), axis=axes, keepdims=keepdims, dtype=np.float32) / np.float32(count)


@op("flow.reduce_prod")
class ReduceProd(Reduce):
    """Product; 1 over nothing."""

    folds = "prod"

    def fold(self, x: Any, axes: tuple[int, ...], keepdims: bool) -> Any:
        return np.prod(x, axis=axes, keepdims=keepdims, dtype=x.dtype if x.dtype != np.bool_ else np.int32)


@op("flow.reduce_max")
class ReduceMax(Reduce):
    """Largest; NaN if any is NaN; -inf over nothing."""

    folds = "max"
    positive = "with operands"

    def fold(self, x: Any, axes: tuple[int, ...], keepdims: bool) -> Any:
        x = x if x.dtype == np.float32 else x.astype(np.int32)
        low = -np.inf if x.dtype == np.float32 else np.iinfo(np.int32).min
        return np.max(x, axis=axes, keepdims=keepdims, initial=low)


@op("flow.reduce_min")
class ReduceMin(Reduce):
    """Smallest; NaN if any is NaN; +inf over nothing."""

    folds = "min"
    positive = "with operands"

    def fold(self, x: Any, axes: tuple[int, ...], keepdims: bool) -> Any:
        x = x if x.dtype == np.float32 else x.astype(np.int32)
        high = np.inf if x.dtype == np.float32 else np.iinfo(np.int32).max
        return np.min(x, axis=axes, keepdims=keepdims, initial=high)


@op("flow.softmax")
class Softmax(Op):
    """exp(x - max) / sum of the same, along ``axis``."""

    x: Value
    axis: int
    role = "nest"
    rewritten_by = "expand-softmax"
    widens = True

    def infer(self) -> TensorType:
        t = tensor(self, self.x)
        self.require(0 <= self.axis < len(t.shape), f"axis {self.axis} of {t}")
        return t.with_dtype(f32)

    def crosses_pages(self) -> bool:
        return tensor(self, self.x).page_axis == self.axis

    def evaluate(self, x: Any) -> Any:
        x = widen(x)
        e = np.exp(x - np.max(x, axis=self.axis, keepdims=True, initial=-np.inf))
        return e / np.sum(e, axis=self.axis, keepdims=True, dtype=np.float32)


@op("flow.softmax_sum")
class SoftmaxSum(Op):
    """Sum of exp(x - max) over the pages, which stay as an axis of 1: what softmax divides by."""

    x: Value
    role = "nest"
    widens = True

    def infer(self) -> TensorType:
        t = tensor(self, self.x)
        self.require(t.page_axis is not None, f"no axis of pages in {t}")
        return TensorType(f32, tuple(1 if a == t.page_axis else d for a, d in enumerate(t.shape)))

    def crosses_pages(self) -> bool:
        return True

    def evaluate(self, x: Any) -> Any:
        x, axis = widen(x), tensor(self, self.x).page_axis
        e = np.exp(x - np.max(x, axis=axis, keepdims=True, initial=-np.inf))
        return np.sum(e, axis=axis, keepdims=True, dtype=np.float32)


@op("flow.scan")
class Scan(Op):
    """Running fold along ``axis``, the element itself included; ``kind`` is sum, prod, max or min."""

    x: Value
    axis: int
    kind: str = "sum"
    role = "nest"
    widens = True
    rereads = True
    KINDS: ClassVar[dict[str, Any]] = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}

    def infer(self) -> TensorType:
        t = tensor(self, self.x)
        self.require(0 <= self.axis < len(t.shape), f"axis {self.axis} of {t}")
        self.require(self.kind in self.KINDS, f"kind '{self.kind}' is none of {', '.join(self.KINDS)}")
        return t.with_dtype(arithmetic([t.dtype]))

    def crosses_pages(self) -> bool:
        return tensor(self, self.x).page_axis == self.axis

    def evaluate(self, x: Any) -> Any:
        x = x if x.dtype != np.bool_ else x.astype(np.int32)
        return self.KINDS[self.kind].accumulate(x, axis=self.axis, dtype=x.dtype)


@op("flow.argsort")
class ArgSort(Op):
    """Where the smallest element of ``axis`` is, the next, and so on; with ``descending`` the largest first.

    NaN counts as larger than every number, -0 equals +0, and of equal elements the lower index comes first.
    """

    x: Value
    axis: int
    descending: bool = False
    role = "nest"
    widens = True
    rereads = True
    folds = "sum"

    def infer(self) -> TensorType:
        t = tensor(self, self.x)
        self.require(0 <= self.axis < len(t.shape), f"axis {self.axis} of {t}")
        self.require(isinstance(t.shape[self.axis], int), "pages are not sorted, a selection orders them")
        return t.with_dtype(i32)

    def evaluate(self, x: Any) -> Any:
        x = x if x.dtype.kind == "f" else x.astype(np.int64)
        key = -x if self.descending else x
        # numpy's sort keeps NaN last whatever its sign, and 0 is not below -0
        order = np.argsort(key, axis=self.axis, kind="stable")
        if self.descending and x.dtype.kind == "f":
            first = np.argsort(~np.isnan(np.take_along_axis(x, order, self.axis)), axis=self.axis, kind="stable")
            order = np.take_along_axis(order, first, self.axis)
        return order.astype(np.int32)


@op("flow.conv")
class Conv(Op):
    """Cross-correlation along the pages: y[s, o] = sum over c, k of w[o, c, k] * x[s + k - K // 2, c].

    Pages outside the row count as zero. ``x``: [S, C], ``w``: [O, C / groups, K] with K odd.
    """

    x: Value
    w: Value
    groups: int = 1
    role = "nest"
    widens = True
    rereads = True
    folds = "sum"

    def infer(self) -> TensorType:
        x, w = tensor(self, self.x), tensor(self, self.w)
        self.require(len(x.shape) == 2 and x.page_axis == 0, f"x must be [S, C], got {x}")
        self.require(len(w.shape) == 3 and w.page_axis is None, f"w must be [O, C, K], got {w}")
        (o, c, k), n = w.tile, x.tile[0]
        fits = self.groups > 0 and o % self.groups == 0 and c * self.groups == n
        self.require(fits, f"{w} does not fit {x} in {self.groups} groups")
        self.require(k % 2 == 1, f"the kernel spans {k} pages; an odd number keeps the page axis")
        return TensorType(f32, (x.shape[0], o))

    def crosses_pages(self) -> bool:
        return True

    def carries(self) -> bool:
        return False

    def evaluate(self, x: Any, w: Any) -> Any:
        x, w = widen(x), widen(w)
        s, half, per_group = x.shape[0], w.shape[2] // 2, w.shape[1]
        padded = np.pad(x, ((half, half), (0, 0)))
        y = np.zeros((s, w.shape[0]), np.float32)
        for o in range(w.shape[0]):
            first = o // (w.shape[0] // self.groups) * per_group
            for c in range(per_group):
                for k in range(w.shape[2]):
                    y[:, o] += w[o, c, k] * padded[k : k + s, first + c]
        return y


@op("flow.dot")
class Dot(Op):
    """General contraction of two tensors, ``spec`` as in einsum: letters missing on the right are summed."""

    a: Value
    b: Value
    spec: str
    role = "nest"
    widens = True
    rereads = True
    folds = "sum"

    def infer(self) -> TensorType:
        a, b = tensor(self, self.a), tensor(self, self.b)
        la, lb, lo = self.letters()
        self.require(len(la) == len(a.shape) and len(lb) == len(b.shape), f"'{self.spec}' for {a} and {b}")
        dims: dict[str, Dim] = {}
        for letter, dim in zip(la + lb, a.shape + b.shape, strict=True):
            same = dims.setdefault(letter, dim) == dim
            self.require(same, f"'{letter}' of '{self.spec}' is {dims[letter]} in {a} and {dim} in {b}")
        self.require(set(lo) <= dims.keys(), f"'{self.spec}' names an axis on the right that no operand has")
        return one_page_axis(self, f32, tuple(dims[c] for c in lo))

    def letters(self) -> tuple[str, str, str]:
        """The axis letters of a, b and the result."""
        left, arrow, out = self.spec.partition("->")
        la, comma, lb = left.partition(",")
        terms = all(len(set(t)) == len(t) and f"a{t}".isalpha() and t.isascii() for t in (la, lb, out))
        ok = bool(arrow) and bool(comma) and terms
        self.require(ok, f"'{self.spec}' is not a contraction of two operands such as 'gd,sd->sg'")
        return la, lb, out

    def crosses_pages(self) -> bool:
        la, lb, lo = self.letters()
        dims = dict(zip(la + lb, tensor(self, self.a).shape + tensor(self, self.b).shape, strict=True))
        return any(isinstance(d, Sym) and c not in lo for c, d in dims.items())

    def evaluate(self, a: Any, b: Any) -> Any:
        return np.einsum(self.spec, widen(a), widen(b), optimize=False).astype(np.float32, copy=False)
