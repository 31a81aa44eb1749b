"""Values from outside: constants, captured tensors, parameters, layer and head, the pages; and how a function ends."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from vortex.ir.core import Op, Value, op
from vortex.ir.numerics import narrow
from vortex.ir.types import TensorType, i32, whole_pages


@op("flow.constant")
class Constant(Op):
    """One number, the same everywhere."""

    number: float
    type: TensorType
    role = "leaf"

    def infer(self) -> TensorType:
        self.require(self.type.shape == (), f"a constant is a scalar, not {self.type}; use flow.resource")
        fits = self.type.dtype.is_float or (float(self.number).is_integer() and -(2**31) <= self.number < 2**31)
        self.require(fits, f"{self.number} is not a number of type {self.type.dtype}")
        return self.type

    def evaluate(self) -> Any:
        return narrow(np.asarray(self.number), self.type.dtype)


@op("flow.resource")
class Resource(Op):
    """A captured tensor, kept in the module under ``resource @name``."""

    symbol: str
    type: TensorType
    role = "leaf"

    def infer(self) -> TensorType:
        self.require(self.type.page_axis is None, "a captured tensor has no page axis")
        return self.type

    def evaluate_in(self, row: Any, *operands: Any) -> Any:
        return row.resource(self.symbol)


@op("flow.param")
class Param(Op):
    """The numbers of ``param @name`` for the layer that decodes and, where it has a set for each head, the KV head."""

    symbol: str
    per: str
    type: TensorType
    role = "leaf"
    PER: ClassVar[tuple[str, ...]] = ("model", "layer", "head")
    """One set of numbers for all, one for each layer, or one for each layer and KV head."""

    def infer(self) -> TensorType:
        self.require(self.per in self.PER, f"per is '{self.per}', none of {', '.join(self.PER)}")
        self.require(self.type.page_axis is None, "a parameter has no page axis")
        return self.type

    def evaluate_in(self, row: Any, *operands: Any) -> Any:
        return row.parameter(self.symbol)


@op("flow.layer")
class Layer(Op):
    """The number of the layer that decodes."""

    type: TensorType
    role = "leaf"

    def infer(self) -> TensorType:
        self.require(self.type == TensorType(i32), "the layer is i32[]")
        return self.type

    def evaluate_in(self, row: Any, *operands: Any) -> Any:
        return np.asarray(row.layer, np.int32)


@op("flow.head")
class Head(Op):
    """The KV head of the row, counted over the whole model."""

    type: TensorType
    role = "leaf"

    def infer(self) -> TensorType:
        self.require(self.type == TensorType(i32), "the head is i32[]")
        return self.type

    def evaluate_in(self, row: Any, *operands: Any) -> Any:
        return np.asarray(row.head, np.int32)


@op("flow.row_budget")
class RowBudget(Op):
    """The pages that the budget leaves to rows of this layer and KV head, where each has a number of its own."""

    type: TensorType
    role = "leaf"

    def infer(self) -> TensorType:
        self.require(self.type == TensorType(i32), "the budget of a row is i32[]")
        return self.type

    def evaluate_in(self, row: Any, *operands: Any) -> Any:
        return np.asarray(row.budget, np.int32)


@op("flow.page_index")
class PageIndex(Op):
    """Each candidate's logical page index in its request; of type i32[S/4] that of each page of four candidates."""

    type: TensorType
    role = "leaf"

    def infer(self) -> TensorType:
        axis = self.type.pages
        fits = axis is not None and axis == whole_pages(axis.blocks) and self.type == TensorType(i32, (axis,))
        self.require(fits, "the page index is i32[S]")
        return self.type

    def evaluate_in(self, row: Any, *operands: Any) -> Any:
        blocks = self.blocks
        return np.asarray(row.candidates(), np.int32)[::blocks] // blocks

    @property
    def blocks(self) -> int:
        """How many candidates each index is of."""
        assert self.type.pages is not None
        return self.type.pages.blocks


@op("flow.page_count")
class PageCount(Op):
    """How many candidates the row has."""

    type: TensorType
    role = "leaf"

    def infer(self) -> TensorType:
        self.require(self.type == TensorType(i32), "the page count is i32[]")
        return self.type

    def evaluate_in(self, row: Any, *operands: Any) -> Any:
        return np.asarray(row.pages, np.int32)


STATES = ("page", "request")
"""What state can belong to, beside the request's slot: one of the request's pages, or nothing more."""
SELECTED = "pages"
"""What the selection is called where @index returns state beside it; no field has that name."""


@op("flow.return")
class Return(Op):
    """What the function gives back; ``names`` are the fields written by @cache, or ``pages`` and the state fields
    written by @index.
    """

    values: tuple[Value, ...]
    names: tuple[str, ...] = ()
    role = "effect"

    def infer(self) -> None:
        fits = not self.names or (len(self.names) == len(self.values) and len(set(self.names)) == len(self.names))
        self.require(fits, "one name for each value, none twice")
