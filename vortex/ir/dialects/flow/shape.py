"""Ops that move elements without computing."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from vortex.ir.core import Op, Value, op
from vortex.ir.dialects.flow.kinds import (
    View,
    alike,
    arithmetic,
    broadcast,
    one_page_axis,
    show,
    tensor,
)
from vortex.ir.types import Dim, S, Sym, TensorType, f32, i32


@op("flow.reshape")
class Reshape(View):
    """The same numbers in row-major order under another shape; the page axis stays an axis of its own."""

    shape: tuple[Dim, ...]
    positive = "with operands"

    def infer(self) -> TensorType:
        t = tensor(self, self.x)
        out = one_page_axis(self, t.dtype, self.shape)
        self.require(all(isinstance(d, Sym) or d >= 0 for d in self.shape), f"{show(self.shape)} has a negative size")
        same = out.numel == t.numel and out.pages == t.pages
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
class Transpose(View):
    """Axes in another order: axis i of the result is axis ``perm[i]`` of x."""

    perm: tuple[int, ...]

    def infer(self) -> TensorType:
        t = tensor(self, self.x)
        self.require(sorted(self.perm) == list(range(len(t.shape))), f"{list(self.perm)} is not an order of {t}")
        return TensorType(t.dtype, tuple(t.shape[p] for p in self.perm))

    def evaluate(self, x: Any) -> Any:
        return np.transpose(x, self.perm)


@op("flow.broadcast")
class Broadcast(View):
    """x repeated to ``shape`` along axes of size 1 and new leading ones."""

    shape: tuple[Dim, ...]

    def infer(self) -> TensorType:
        t = tensor(self, self.x)
        fits = broadcast(self, t.shape, self.shape) == self.shape
        self.require(fits, f"{t} does not broadcast to {show(self.shape)}")
        made = one_page_axis(self, t.dtype, self.shape)
        self.require(t.page_axis is not None or made.page_axis is None, "only a tensor over pages has a page axis")
        return made

    def evaluate(self, x: Any) -> Any:
        t = tensor(self, self.x)
        pages = x.shape[t.page_axis] if t.page_axis is not None else 0
        return np.broadcast_to(x, [pages if isinstance(d, Sym) else d for d in self.shape])


@op("flow.slice")
class Slice(View):
    """Elements start, start + step, ... (``size`` of them) of an axis; a negative step reverses."""

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
    role = "nest"

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


@op("flow.gather")
class Gather(Op):
    """Elements of ``axis``, which is not the page axis, at integer indices: beside it, x and index broadcast.

    result[i, j, k] = x[i, index[i, j, k], k] for axis 1. Indices below 0 or beyond the axis mean its ends.
    """

    x: Value
    index: Value
    axis: int
    role = "nest"
    rereads = True

    def infer(self) -> TensorType:
        x, at = tensor(self, self.x), tensor(self, self.index)
        self.require(at.dtype == i32, f"indices are i32, not {at.dtype}")
        self.require(len(x.shape) == len(at.shape), f"{x} and its indices {at} differ in rank")
        self.require(0 <= self.axis < len(x.shape), f"axis {self.axis} of {x}")
        d, n = x.shape[self.axis], at.shape[self.axis]
        self.require(isinstance(d, int) and isinstance(n, int), "pages are not gathered")
        self.require(d != 0 or n == 0, f"nothing to gather along axis {self.axis} of {x}")
        shape = broadcast(self, self._beside(x.shape), self._beside(at.shape))
        return one_page_axis(self, x.dtype, (*shape[: self.axis], n, *shape[self.axis + 1 :]))

    def _beside(self, shape: tuple[Any, ...]) -> tuple[Any, ...]:
        return (*shape[: self.axis], 1, *shape[self.axis + 1 :])

    def evaluate(self, x: Any, index: Any) -> Any:
        beside = np.broadcast_shapes(self._beside(x.shape), self._beside(index.shape))
        whole, at = ([*beside[: self.axis], a.shape[self.axis], *beside[self.axis + 1 :]] for a in (x, index))
        clamped = np.clip(np.broadcast_to(index, at), 0, max(x.shape[self.axis] - 1, 0))
        return np.take_along_axis(np.broadcast_to(x, whole), clamped, self.axis)


@op("flow.shift")
class Shift(Op):
    """The value of another page: y[s] = x[s - by]; ``outside`` says what stands there where there is no such page.

    ``fill`` puts a number there, ``edge`` the nearest page, ``wrap`` goes on at the other end.
    """

    x: Value
    by: int
    outside: str = "fill"
    fill: float = 0.0
    role = "nest"
    rereads = True
    OUTSIDE: ClassVar[tuple[str, ...]] = ("fill", "edge", "wrap")

    def infer(self) -> TensorType:
        t = tensor(self, self.x)
        self.require(t.page_axis is not None, f"{t} has no pages")
        self.require(self.outside in self.OUTSIDE, f"outside '{self.outside}' is none of {', '.join(self.OUTSIDE)}")
        whole = t.dtype.is_float or float(self.fill).is_integer()
        self.require(whole, f"{self.fill} is not a number of type {t.dtype}")
        return t

    def crosses_pages(self) -> bool:
        return True

    def carries(self) -> bool:
        return False

    def evaluate(self, x: Any) -> Any:
        axis = tensor(self, self.x).page_axis
        assert axis is not None
        n = x.shape[axis]
        if not n:
            return x
        at = np.arange(n) - self.by
        moved = np.take(x, at % n if self.outside == "wrap" else np.clip(at, 0, n - 1), axis=axis)
        if self.outside != "fill":
            return moved
        there = ((at >= 0) & (at < n)).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        return np.where(there, moved, np.asarray(self.fill).astype(x.dtype))
