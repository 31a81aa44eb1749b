"""Ops that move elements without computing."""

from __future__ import annotations

from typing import Any

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
from vortex.ir.types import Dim, S, Sym, TensorType, f32


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
