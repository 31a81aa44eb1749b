"""The ``flow`` dialect: what a sparse-attention algorithm computes, with no word on where or when.

Tensors have at most one page axis, ``S``. Elementwise ops broadcast as numpy does. Arithmetic is fp32
(int32 where both sides are integers); narrower floats are storage types and widen when they are read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from vortex.ir.core import Op, Value, op
from vortex.ir.numerics import narrow, widen
from vortex.ir.types import Dim, DType, S, SelectionType, Sym, TensorType, bool_, f32, i32, selection

# shared by the declarations below ----------------------------------------------------------------


def tensor(o: Op, v: Value) -> TensorType:
    """The tensor type of an operand; a selection is refused."""
    if not isinstance(v.type, TensorType):
        o.require(False, f"%{v.name} is a {v.type}, a tensor is needed")
    assert isinstance(v.type, TensorType)
    return v.type


def one_page_axis(o: Op, dtype: DType, shape: tuple[Dim, ...]) -> TensorType:
    o.require(sum(isinstance(d, Sym) for d in shape) <= 1, "the result has two page axes")
    return TensorType(dtype, shape)


def broadcast(o: Op, *shapes: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """The numpy broadcast of the shapes; the page axis fits itself and 1."""
    out: list[Dim] = []
    for back in range(1, max(map(len, shapes), default=0) + 1):
        dims = {s[-back] for s in shapes if len(s) >= back} - {1}
        if len(dims) > 1:
            o.require(False, f"shapes {' and '.join(map(show, shapes))} do not broadcast")
        out.append(dims.pop() if dims else 1)
    return tuple(reversed(out))


def show(shape: tuple[Dim, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def arithmetic(dtypes: list[DType]) -> DType:
    return i32 if all(not d.is_float for d in dtypes) else f32


def alike(*arrays: Any) -> tuple[Any, ...]:
    """The operands in the type that arithmetic on all of them has; numpy alone would go to fp64."""
    to = np.int32 if all(x.dtype.kind != "f" for x in arrays) else np.float32
    return tuple(x.astype(to, copy=False) for x in arrays)


@dataclass(eq=False, repr=False)
class Unary(Op):
    """One number in, one number out."""

    x: Value
    makes: ClassVar[DType] = f32

    def infer(self) -> TensorType:
        return tensor(self, self.x).with_dtype(self.makes)


@dataclass(eq=False, repr=False)
class Binary(Op):
    """Two broadcast operands; int32 when both are integers, else fp32."""

    a: Value
    b: Value

    def infer(self) -> TensorType:
        a, b = tensor(self, self.a), tensor(self, self.b)
        return one_page_axis(self, self.dtype(a.dtype, b.dtype), broadcast(self, a.shape, b.shape))

    def dtype(self, a: DType, b: DType) -> DType:
        return arithmetic([a, b])


@dataclass(eq=False, repr=False)
class Compare(Binary):
    """Two broadcast operands compared; bool. Every comparison with NaN is false, except ``ne``."""

    def dtype(self, a: DType, b: DType) -> DType:
        return bool_


@dataclass(eq=False, repr=False)
class Logical(Compare):
    """Two broadcast bools."""

    def dtype(self, a: DType, b: DType) -> DType:
        self.require(a == b == bool_, f"needs bool operands, got {a} and {b}")
        return bool_


@dataclass(eq=False, repr=False)
class Reduce(Op):
    """Folds the listed axes, in index order; ``S`` among them makes one number per row."""

    x: Value
    axes: tuple[int, ...]
    keepdims: bool = False

    def infer(self) -> TensorType:
        t = tensor(self, self.x)
        ok = len(set(self.axes)) == len(self.axes) and all(0 <= a < len(t.shape) for a in self.axes)
        self.require(ok, f"axes {list(self.axes)} of {t}")
        kept = [1 if i in self.axes else d for i, d in enumerate(t.shape) if self.keepdims or i not in self.axes]
        return TensorType(self.dtype(t.dtype), tuple(kept))

    def dtype(self, x: DType) -> DType:
        return arithmetic([x])

    def crosses_pages(self) -> bool:
        return tensor(self, self.x).page_axis in self.axes

    def evaluate(self, x: Any) -> Any:
        return self.fold(x, self.axes, self.keepdims)

    def fold(self, x: Any, axes: tuple[int, ...], keepdims: bool) -> Any:
        raise NotImplementedError


# elementwise -------------------------------------------------------------------------------------


@op("flow.neg")
class Neg(Unary):
    """-x"""

    def infer(self) -> TensorType:
        t = tensor(self, self.x)
        return t.with_dtype(arithmetic([t.dtype]))

    def evaluate(self, x: Any) -> Any:
        return np.negative(*alike(x))


@op("flow.abs")
class Abs(Neg):
    """|x|"""

    def evaluate(self, x: Any) -> Any:
        return np.abs(*alike(x))


@op("flow.exp")
class Exp(Unary):
    """e ** x"""

    def evaluate(self, x: Any) -> Any:
        return np.exp(widen(x))


@op("flow.log")
class Log(Unary):
    """Natural logarithm."""

    def evaluate(self, x: Any) -> Any:
        return np.log(widen(x))


@op("flow.sqrt")
class Sqrt(Unary):
    """Square root."""

    def evaluate(self, x: Any) -> Any:
        return np.sqrt(widen(x))


@op("flow.rsqrt")
class Rsqrt(Unary):
    """1 / sqrt(x)"""

    def evaluate(self, x: Any) -> Any:
        return np.float32(1) / np.sqrt(widen(x))


@op("flow.sin")
class Sin(Unary):
    """Sine, radians."""

    def evaluate(self, x: Any) -> Any:
        return np.sin(widen(x))


@op("flow.cos")
class Cos(Unary):
    """Cosine, radians."""

    def evaluate(self, x: Any) -> Any:
        return np.cos(widen(x))


@op("flow.tanh")
class Tanh(Unary):
    """Hyperbolic tangent."""

    def evaluate(self, x: Any) -> Any:
        return np.tanh(widen(x))


@op("flow.sigmoid")
class Sigmoid(Unary):
    """1 / (1 + exp(-x))"""

    def evaluate(self, x: Any) -> Any:
        return np.float32(1) / (np.float32(1) + np.exp(-widen(x)))


@op("flow.erf")
class Erf(Unary):
    """Error function."""

    def evaluate(self, x: Any) -> Any:
        return np.vectorize(math.erf, otypes=[np.float32])(widen(x))


@op("flow.floor")
class Floor(Unary):
    """Largest integer not above x."""

    def evaluate(self, x: Any) -> Any:
        return np.floor(widen(x))


@op("flow.ceil")
class Ceil(Unary):
    """Smallest integer not below x."""

    def evaluate(self, x: Any) -> Any:
        return np.ceil(widen(x))


@op("flow.round")
class Round(Unary):
    """Nearest integer, halves to even."""

    def evaluate(self, x: Any) -> Any:
        return np.rint(widen(x))


@op("flow.trunc")
class Trunc(Unary):
    """Integer part."""

    def evaluate(self, x: Any) -> Any:
        return np.trunc(widen(x))


@op("flow.isnan")
class IsNan(Unary):
    """Whether x is NaN."""

    makes = bool_

    def evaluate(self, x: Any) -> Any:
        return np.isnan(widen(x))


@op("flow.not")
class Not(Unary):
    """Logical negation of a bool."""

    makes = bool_

    def infer(self) -> TensorType:
        t = tensor(self, self.x)
        self.require(t.dtype == bool_, f"needs a bool operand, got {t.dtype}")
        return t

    def evaluate(self, x: Any) -> Any:
        return np.logical_not(x)


@op("flow.cast")
class Cast(Op):
    """x as ``to``; a float cast to a narrow float is rounded to it, to nearest even."""

    x: Value
    to: DType

    def infer(self) -> TensorType:
        return tensor(self, self.x).with_dtype(self.to)

    def evaluate(self, x: Any) -> Any:
        return narrow(x, self.to)


@op("flow.add")
class Add(Binary):
    """a + b"""

    def evaluate(self, a: Any, b: Any) -> Any:
        return np.add(*alike(a, b))


@op("flow.sub")
class Sub(Binary):
    """a - b"""

    def evaluate(self, a: Any, b: Any) -> Any:
        return np.subtract(*alike(a, b))


@op("flow.mul")
class Mul(Binary):
    """a * b"""

    def evaluate(self, a: Any, b: Any) -> Any:
        return np.multiply(*alike(a, b))


@op("flow.div")
class Div(Binary):
    """a / b, always fp32"""

    def dtype(self, a: DType, b: DType) -> DType:
        return f32

    def evaluate(self, a: Any, b: Any) -> Any:
        return widen(a) / widen(b)


@op("flow.pow")
class Pow(Div):
    """a ** b, always fp32"""

    def evaluate(self, a: Any, b: Any) -> Any:
        return np.power(widen(a), widen(b))


@op("flow.remainder")
class Remainder(Binary):
    """a - floor(a / b) * b: the sign of b, as in torch.remainder"""

    def evaluate(self, a: Any, b: Any) -> Any:
        return np.mod(*alike(a, b))


@op("flow.maximum")
class Maximum(Binary):
    """The larger; NaN if either is."""

    def evaluate(self, a: Any, b: Any) -> Any:
        return np.maximum(*alike(a, b))


@op("flow.minimum")
class Minimum(Binary):
    """The smaller; NaN if either is."""

    def evaluate(self, a: Any, b: Any) -> Any:
        return np.minimum(*alike(a, b))


@op("flow.lt")
class Lt(Compare):
    """a < b"""

    def evaluate(self, a: Any, b: Any) -> Any:
        return np.less(*alike(a, b))


@op("flow.le")
class Le(Compare):
    """a <= b"""

    def evaluate(self, a: Any, b: Any) -> Any:
        return np.less_equal(*alike(a, b))


@op("flow.gt")
class Gt(Compare):
    """a > b"""

    def evaluate(self, a: Any, b: Any) -> Any:
        return np.greater(*alike(a, b))


@op("flow.ge")
class Ge(Compare):
    """a >= b"""

    def evaluate(self, a: Any, b: Any) -> Any:
        return np.greater_equal(*alike(a, b))


@op("flow.eq")
class Eq(Compare):
    """a == b"""

    def evaluate(self, a: Any, b: Any) -> Any:
        return np.equal(*alike(a, b))


@op("flow.ne")
class Ne(Compare):
    """a != b"""

    def evaluate(self, a: Any, b: Any) -> Any:
        return np.not_equal(*alike(a, b))


@op("flow.and")
class And(Logical):
    """a and b"""

    def evaluate(self, a: Any, b: Any) -> Any:
        return np.logical_and(a, b)


@op("flow.or")
class Or(Logical):
    """a or b"""

    def evaluate(self, a: Any, b: Any) -> Any:
        return np.logical_or(a, b)


@op("flow.xor")
class Xor(Logical):
    """a or b, not both"""

    def evaluate(self, a: Any, b: Any) -> Any:
        return np.logical_xor(a, b)


@op("flow.where")
class Where(Op):
    """a where cond holds, else b; broadcast."""

    cond: Value
    a: Value
    b: Value

    def infer(self) -> TensorType:
        c, a, b = tensor(self, self.cond), tensor(self, self.a), tensor(self, self.b)
        self.require(c.dtype == bool_, f"the condition is {c.dtype}, not bool")
        same = a.dtype if a.dtype == b.dtype == bool_ else arithmetic([a.dtype, b.dtype])
        return one_page_axis(self, same, broadcast(self, c.shape, a.shape, b.shape))

    def evaluate(self, cond: Any, a: Any, b: Any) -> Any:
        return np.where(cond, *((a, b) if a.dtype == b.dtype == np.bool_ else alike(a, b)))


# reductions --------------------------------------------------------------------------------------


@op("flow.reduce_sum")
class ReduceSum(Reduce):
    """Sum; 0 over nothing."""

    def fold(self, x: Any, axes: tuple[int, ...], keepdims: bool) -> Any:
        return np.sum(x, axis=axes, keepdims=keepdims, dtype=x.dtype if x.dtype != np.bool_ else np.int32)


@op("flow.reduce_mean")
class ReduceMean(Reduce):
    """Sum divided by count, fp32; NaN over nothing."""

    def dtype(self, x: DType) -> DType:
        return f32

    def fold(self, x: Any, axes: tuple[int, ...], keepdims: bool) -> Any:
        count = math.prod(x.shape[a] for a in axes)
        return np.sum(widen(x), axis=axes, keepdims=keepdims, dtype=np.float32) / np.float32(count)


@op("flow.reduce_prod")
class ReduceProd(Reduce):
    """Product; 1 over nothing."""

    def fold(self, x: Any, axes: tuple[int, ...], keepdims: bool) -> Any:
        return np.prod(x, axis=axes, keepdims=keepdims, dtype=x.dtype if x.dtype != np.bool_ else np.int32)


@op("flow.reduce_max")
class ReduceMax(Reduce):
    """Largest; NaN if any is NaN; -inf over nothing."""

    def fold(self, x: Any, axes: tuple[int, ...], keepdims: bool) -> Any:
        x = x if x.dtype == np.float32 else x.astype(np.int32)
        low = -np.inf if x.dtype == np.float32 else np.iinfo(np.int32).min
        return np.max(x, axis=axes, keepdims=keepdims, initial=low)


@op("flow.reduce_min")
class ReduceMin(Reduce):
    """Smallest; NaN if any is NaN; +inf over nothing."""

    def fold(self, x: Any, axes: tuple[int, ...], keepdims: bool) -> Any:
        x = x if x.dtype == np.float32 else x.astype(np.int32)
        high = np.inf if x.dtype == np.float32 else np.iinfo(np.int32).max
        return np.min(x, axis=axes, keepdims=keepdims, initial=high)


@op("flow.softmax")
class Softmax(Op):
    """exp(x - max) / sum of the same, along ``axis``."""

    x: Value
    axis: int

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


@op("flow.scan")
class Scan(Op):
    """Running fold along ``axis``, the element itself included; ``kind`` is sum, prod, max or min."""

    x: Value
    axis: int
    kind: str = "sum"
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


@op("flow.conv")
class Conv(Op):
    """Cross-correlation along the pages: y[s, o] = sum over c, k of w[o, c, k] * x[s + k - K // 2, c].

    Pages outside the row count as zero. ``x``: [S, C], ``w``: [O, C / groups, K] with K odd.
    """

    x: Value
    w: Value
    groups: int = 1

    def infer(self) -> TensorType:
        x, w = tensor(self, self.x), tensor(self, self.w)
        self.require(len(x.shape) == 2 and x.page_axis == 0, f"x must be [S, C], got {x}")
        self.require(len(w.shape) == 3 and w.page_axis is None, f"w must be [O, C, K], got {w}")
        (o, c, k), n = w.tile, x.tile[0]
        fits = self.groups > 0 and o % self.groups == 0 and c * self.groups == n
        self.require(fits, f"{w} does not fit {x} in {self.groups} groups")
        self.require(k % 2 == 1, f"the kernel spans {k} pages; an odd number keeps the page axis")
        return TensorType(f32, (S, o))

    def crosses_pages(self) -> bool:
        return True

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
        self.require(ok, f"'{self.spec}' is no contraction of two operands such as 'gd,sd->sg'")
        return la, lb, out

    def crosses_pages(self) -> bool:
        la, lb, lo = self.letters()
        dims = dict(zip(la + lb, tensor(self, self.a).shape + tensor(self, self.b).shape, strict=True))
        return any(isinstance(d, Sym) and c not in lo for c, d in dims.items())

    def evaluate(self, a: Any, b: Any) -> Any:
        return np.einsum(self.spec, widen(a), widen(b), optimize=False).astype(np.float32, copy=False)


# shape -------------------------------------------------------------------------------------------


@op("flow.reshape")
class Reshape(Op):
    """The same numbers in row-major order under another shape; the page axis stays an axis of its own."""

    x: Value
    shape: tuple[Dim, ...]

    def infer(self) -> TensorType:
        t = tensor(self, self.x)
        out = one_page_axis(self, t.dtype, self.shape)
        self.require(all(isinstance(d, Sym) or d >= 0 for d in self.shape), f"{show(self.shape)} has a negative size")
        same = out.numel == t.numel and (out.page_axis is None) == (t.page_axis is None)
        self.require(same, f"{t} does not reshape to {show(self.shape)}")
        if t.page_axis is not None and out.page_axis is not None:
            before, after = t.shape[: t.page_axis], out.shape[: out.page_axis]
            ok = TensorType(f32, before).numel == TensorType(f32, after).numel
            self.require(ok, f"reshaping {t} to {show(self.shape)} would mix the page axis with another")
        return out

    def evaluate(self, x: Any) -> Any:
        t = tensor(self, self.x)
        pages = x.shape[t.page_axis] if t.page_axis is not None else 0
        return x.reshape([pages if isinstance(d, Sym) else d for d in self.shape])


@op("flow.transpose")
class Transpose(Op):
    """Axes in another order: axis i of the result is axis ``perm[i]`` of x."""

    x: Value
    perm: tuple[int, ...]

    def infer(self) -> TensorType:
        t = tensor(self, self.x)
        self.require(sorted(self.perm) == list(range(len(t.shape))), f"{list(self.perm)} is no order of {t}")
        return TensorType(t.dtype, tuple(t.shape[p] for p in self.perm))

    def evaluate(self, x: Any) -> Any:
        return np.transpose(x, self.perm)


@op("flow.broadcast")
class Broadcast(Op):
    """x repeated to ``shape`` along axes of size 1 and new leading ones."""

    x: Value
    shape: tuple[Dim, ...]

    def infer(self) -> TensorType:
        t = tensor(self, self.x)
        fits = broadcast(self, t.shape, self.shape) == self.shape
        self.require(fits, f"{t} does not broadcast to {show(self.shape)}")
        self.require(t.page_axis is not None or S not in self.shape, "only a tensor over pages has a page axis")
        return one_page_axis(self, t.dtype, self.shape)

    def evaluate(self, x: Any) -> Any:
        t = tensor(self, self.x)
        pages = x.shape[t.page_axis] if t.page_axis is not None else 0
        return np.broadcast_to(x, [pages if isinstance(d, Sym) else d for d in self.shape])


@op("flow.slice")
class Slice(Op):
    """Elements start, start + step, ... (``size`` of them) of an axis; a negative step reverses."""

    x: Value
    axis: int
    start: int
    size: int
    step: int = 1

    def infer(self) -> TensorType:
        t = tensor(self, self.x)
        self.require(0 <= self.axis < len(t.shape), f"axis {self.axis} of {t}")
        dim = t.shape[self.axis]
        self.require(isinstance(dim, int), "the page axis cannot be sliced")
        assert isinstance(dim, int)
        last = self.start + (self.size - 1) * self.step
        inside = self.size == 0 or (0 <= self.start < dim and 0 <= last < dim)
        self.require(self.size >= 0 and self.step != 0 and inside, f"slice leaves axis {self.axis} of {t}")
        return TensorType(t.dtype, (*t.shape[: self.axis], self.size, *t.shape[self.axis + 1 :]))

    def evaluate(self, x: Any) -> Any:
        return np.take(x, [self.start + i * self.step for i in range(self.size)], axis=self.axis)


@op("flow.concat")
class Concat(Op):
    """Operands one after another along ``axis``, which is not the page axis."""

    parts: tuple[Value, ...]
    axis: int

    def infer(self) -> TensorType:
        self.require(bool(self.parts), "nothing to join")
        types = [tensor(self, p) for p in self.parts]
        first = types[0]
        self.require(0 <= self.axis < len(first.shape), f"axis {self.axis} of {first}")
        total = 0
        for t in types:
            d = t.shape[self.axis] if len(t.shape) == len(first.shape) else S
            self.require(isinstance(d, int), f"{t} cannot be joined along axis {self.axis}")
            rest = (*t.shape[: self.axis], first.shape[self.axis], *t.shape[self.axis + 1 :])
            self.require(rest == first.shape, f"{first} and {t} differ beside axis {self.axis}")
            total += d if isinstance(d, int) else 0
        same = first.dtype if all(t.dtype == first.dtype for t in types) else arithmetic([t.dtype for t in types])
        return TensorType(same, (*first.shape[: self.axis], total, *first.shape[self.axis + 1 :]))

    def evaluate(self, *parts: Any) -> Any:
        same = len({p.dtype for p in parts}) == 1
        return np.concatenate(parts if same else alike(*parts), axis=self.axis)


# leaves ------------------------------------------------------------------------------------------


@op("flow.constant")
class Constant(Op):
    """One number, the same everywhere."""

    number: float
    type: TensorType

    def infer(self) -> TensorType:
        self.require(self.type.shape == (), f"a constant is a scalar, not {self.type}; use flow.resource")
        fits = self.type.dtype.is_float or (float(self.number).is_integer() and -(2**31) <= self.number < 2**31)
        self.require(fits, f"{self.number} is no {self.type.dtype}")
        return self.type

    def evaluate(self) -> Any:
        return narrow(np.asarray(self.number), self.type.dtype)


@op("flow.resource")
class Resource(Op):
    """A captured tensor, kept in the module under ``resource @name``."""

    symbol: str
    type: TensorType

    def infer(self) -> TensorType:
        self.require(self.type.page_axis is None, "a captured tensor has no page axis")
        return self.type


@op("flow.layer")
class Layer(Op):
    """The number of the layer that decodes."""

    type: TensorType

    def infer(self) -> TensorType:
        self.require(self.type == TensorType(i32), "the layer is i32[]")
        return self.type


@op("flow.page_index")
class PageIndex(Op):
    """Each candidate's logical page index in its request."""

    type: TensorType

    def infer(self) -> TensorType:
        self.require(self.type == TensorType(i32, (S,)), "the page index is i32[S]")
        return self.type


@op("flow.page_count")
class PageCount(Op):
    """How many candidates the row has."""

    type: TensorType

    def infer(self) -> TensorType:
        self.require(self.type == TensorType(i32), "the page count is i32[]")
        return self.type


# ends --------------------------------------------------------------------------------------------


@op("flow.topk")
class TopK(Op):
    """The best pages by score, as many as the budget leaves: +inf > finite > -inf > NaN, ties to the lower page."""

    score: Value

    def infer(self) -> SelectionType:
        t = tensor(self, self.score)
        self.require(t.shape == (S,), f"the score must be one number per page, [S], not {show(t.shape)}")
        return selection


@op("flow.return")
class Return(Op):
    """What the function gives back; ``names`` are the fields written by @cache."""

    values: tuple[Value, ...]
    names: tuple[str, ...] = ()

    def infer(self) -> None:
        fits = not self.names or (len(self.names) == len(self.values) and len(set(self.names)) == len(self.names))
        self.require(fits, "one name for each value, none twice")
