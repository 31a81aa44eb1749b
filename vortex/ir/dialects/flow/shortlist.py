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
        assert axis is not None
        fits = not ranked.limit or axis.limit <= ranked.limit
        self.require(fits, f"{axis} cannot list more pages than {ranked} has")
        self.require(axis.blocks == ranked.blocks, f"{axis} lists other pages than those of {ranked}")
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
        assert listed is not None and x.pages is not None
        self.require(listed.blocks == x.pages.blocks, f"{at} does not list what {x} is of")
        return TensorType(x.dtype, tuple(listed if isinstance(d, Sym) else d for d in x.shape))

    def evaluate(self, x: Any, at: Any) -> Any:
        return np.take(x, at, axis=tensor(self, self.x).page_axis)


@op("flow.blocks_of")
class BlocksOf(View):
    """Where the blocks of listed pages stand among the candidates: of each page all, in order.

    %near = flow.shortlist(%score) : i32[S1/4<=64]          3, 7
    %blocks = flow.blocks_of(%near) : i32[S1<=256]          12, 13, 14, 15, 28, 29, 30, 31
    """

    def infer(self) -> TensorType:
        x = tensor(self, self.x)
        fits = x.pages is not None and x.shape == (x.pages,) and x.dtype == i32 and x.pages.blocks > 1
        self.require(fits, f"{x} is no list of pages with several blocks")
        assert x.pages is not None
        return TensorType(i32, (x.pages.in_blocks,))

    @property
    def blocks(self) -> int:
        """Of a page."""
        pages = tensor(self, self.x).pages
        assert pages is not None
        return pages.blocks

    def evaluate(self, x: Any) -> Any:
        return (x[:, None] * self.blocks + np.arange(self.blocks, dtype=np.int32)).reshape(-1).astype(np.int32)


def is_list(v: Value) -> bool:
    """Whether a value lists pages that exist: a shortlist, one of another's pages, the blocks of either, or any of them
    from a buffer.
    """
    o: Op | None = v.owner
    if isinstance(o, Pick):
        return is_list(o.x) and is_list(o.at)
    if isinstance(o, BlocksOf):
        return is_list(o.x)
    return isinstance(o, Shortlist) or (o is not None and o.name == "page.load")
