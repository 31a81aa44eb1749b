"""Selections in steps: the best pages as a page axis of their own, and what other values hold at those pages."""

from __future__ import annotations

from typing import Any

import numpy as np

from vortex.ir.core import Op, Value, op
from vortex.ir.dialects.flow.kinds import Ranking, View, tensor
from vortex.ir.ranking import ranking
from vortex.ir.types import MOST_LISTED, Sym, TensorType, i32


@op("flow.shortlist")
class Shortlist(Ranking):
    """The positions of the best pages by score, ascending: all of them where there are no more than are wanted.

    %near = flow.shortlist(%score) : i32[S1<=64]
    """

    score: Value
    type: TensorType
    role = "nest"

    def infer(self) -> TensorType:
        axis = self.type.pages
        listed = self.type.dtype == i32 and self.type.shape == (axis,) and axis is not None
        self.require(listed and axis is not None and 1 <= axis.limit <= MOST_LISTED, f"{self.type} is no list of pages")
        ranked = self.pages_of(self.score)
        self.require(axis != ranked, "a shortlist makes a page axis of its own")
        fits = axis is None or not ranked.limit or axis.limit <= ranked.limit
        self.require(fits, f"{axis} cannot list more pages than {ranked} has")
        return self.type

    @property
    def scored(self) -> Value:
        return self.score

    @property
    def listed(self) -> Sym:
        """The page axis that it makes."""
        assert self.type.pages is not None
        return self.type.pages

    def crosses_pages(self) -> bool:
        return True

    def carries(self) -> bool:
        return False

    def evaluate(self, score: Any) -> Any:
        return np.sort(ranking(score)[: self.listed.limit]).astype(np.int32)


@op("flow.pick")
class Pick(View):
    """``x`` at the pages that ``at`` lists by their positions along its page axis, which becomes the axis of ``at``.

    %k_near = flow.pick(%k, %near) : bf16[S1<=64, 16, 128]
    """

    at: Value

    def infer(self) -> TensorType:
        x, at = tensor(self, self.x), tensor(self, self.at)
        listed = at.pages
        self.require(at.dtype == i32 and len(at.shape) == 1 and listed is not None, f"{at} is no list of pages")
        self.require(x.page_axis is not None, f"{x} has no page axis")
        assert listed is not None
        return TensorType(x.dtype, tuple(listed if isinstance(d, Sym) else d for d in x.shape))

    def evaluate(self, x: Any, at: Any) -> Any:
        return np.take(x, at, axis=tensor(self, self.x).page_axis)


def is_list(v: Value) -> bool:
    """Whether a value lists pages that exist: a shortlist, one of another's pages, or either from a buffer."""
    o: Op | None = v.owner
    if isinstance(o, Pick):
        return is_list(o.x) and is_list(o.at)
    return isinstance(o, Shortlist) or (o is not None and o.name == "page.load")
