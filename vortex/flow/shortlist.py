"""Selections in steps: the best candidates as a page axis of their own.

    near = vortex.shortlist(bound, pages=64)      # bound: [S]
    keys = cache.k[near]                          # [S, page, D] -> [S1, page, D]

``near`` is an index and no tensor. A traced one knows the page axis that it makes, an eager one where its pages stand
on each axis that it can index.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from vortex.budget import integer
from vortex.errors import BAD_SCORE, BAD_SHORTLIST, OTHER_PAGES
from vortex.flow import source
from vortex.flow.leaves import here
from vortex.flow.padded import Padded
from vortex.flow.tensor import Near, foreign, kind, lift, vTensor
from vortex.flow.tracer import active, current, emit, fail, refuse
from vortex.ir.core import Value
from vortex.ir.dialects import flow
from vortex.ir.ranking import ranking
from vortex.ir.types import MOST_LISTED, S, Sym, TensorType, i32, whole_pages


class TracedNear(Near):
    """A shortlist of the flow that is traced."""

    __slots__ = ("candidates", "over", "positions")

    def __init__(self, over: Sym, positions: vTensor, candidates: vTensor) -> None:
        self.over = over
        """The page axis that was scored."""
        self.positions, self.candidates = positions, candidates
        """Where its pages stand on that axis, and among all candidates."""

    def of(self, x: vTensor, i: int) -> vTensor:
        """``x`` at the pages of the shortlist, by its axis ``i``."""
        if self.positions.home is not current():
            raise foreign(self.positions)
        pages = x.type.pages
        at = self._at(pages) if pages is not None else None
        if i == x.type.page_axis and at is not None:
            return emit(flow.Pick, x, at)
        if pages is None:
            why = f"{x.type} has no page axis to index by a shortlist"
        elif at is None:
            why = f"{x.type} is over the pages of another shortlist"
        else:
            why = f"axis {i} of {x.type} is indexed by a shortlist, and its pages are axis {x.type.page_axis}"
        axes = " or ".join(map(str, dict.fromkeys((S, whole_pages(self.over.blocks), self.over))))
        raise refuse(why, f"x[near] where the first axis of x is {axes}, x[:, near] where its second is")

    def _at(self, pages: Sym) -> vTensor | None:
        """The list by which a tensor over ``pages`` is indexed, if it can be."""
        if pages == self.over:
            return self.positions
        if pages == whole_pages(self.over.blocks):
            return self.candidates
        made = self.positions.type.pages
        assert made is not None
        listed = active().listed(made.in_blocks) if pages == S else None
        return None if listed is None else vTensor(listed)


class EagerNear(Near):
    """A shortlist of real scores: ``positions`` of ``scored`` pages, of ``blocks`` each, which are all candidates or
    the pages of the shortlist ``above``.
    """

    __slots__ = ("candidates", "pages", "places", "total")

    def __init__(self, positions: torch.Tensor, scored: int, blocks: int, above: EagerNear | None) -> None:
        self.total: int = scored * blocks if above is None else above.total
        """How many candidates there are."""
        self.pages: torch.Tensor = (
            positions if above is None else (above.pages if blocks > 1 else above.candidates)[positions]
        )
        """Where its pages stand among all pages."""
        self.candidates: torch.Tensor = self.pages
        """Where they, or their blocks, stand among all candidates."""
        if blocks > 1:
            self.candidates = (self.pages[:, None] * blocks + torch.arange(blocks)).reshape(-1)
        # one that holds all pages of the axis above it has them in the same places, so that no two differ for a number
        self.places = {self.total: self.candidates, self.total // blocks: self.pages, scored: positions}
        """Where its pages stand on each axis that it can index, by how many pages that has."""


class ByShortlist(TorchFunctionMode):
    """Lets real tensors be indexed by shortlists."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__getitem__ and len(args) == 2:
            return func(args[0], _placed(args[0], args[1]))
        return func(*args, **(kwargs or {}))


def _placed(x: torch.Tensor, key: Any) -> Any:
    keys = key if isinstance(key, tuple) else (key,)
    if not any(isinstance(k, EagerNear) for k in keys):
        return key
    found, axis = [], 0
    for i, k in enumerate(keys):
        if isinstance(k, EagerNear):
            k = k.places[x.shape[axis]]
        elif k is Ellipsis:
            axis = x.ndim - sum(later is not None for later in keys[i + 1 :]) - 1
        axis += k is not None
        found.append(k)
    return tuple(found)


def shortlist(score: Any, *, pages: int) -> Any:
    """The ``pages`` best candidates by ``score``, all where there are fewer: an index for tensors over pages.

    Where a flow has fields of pages beside fields of blocks, a score of pages lists pages, and ``cache.f[near]`` of a
    field of blocks has the blocks of these pages.

    ``cache.f[near]`` is field ``f`` at those pages, and ``x[near]`` any tensor whose first axis is S (``x[:, near]``
    where its second is). What follows has the shortlist's pages as its page axis; a selection by a score over them, or
    another shortlist, chooses among them. Scores order pages as they do in :func:`vortex.topk`; the list ascends.
    Reserved pages are selected as ever. Where the budget scores more pages than the shortlist has, all of these are
    selected and no others.

    Raises:
        VortexError: VX1006 when the score is not one number per page, VX1090 when ``pages`` is not an integer from 1
            to 4096.
    """
    count = integer(pages)
    if count is None or not 1 <= count <= MOST_LISTED:
        raise fail(BAD_SHORTLIST, got=repr(pages), most=MOST_LISTED)
    if current() is None:
        if not isinstance(score, torch.Tensor) or score.ndim != 1:
            got = list(score.shape) if isinstance(score, torch.Tensor) else type(score).__name__
            raise fail(BAD_SCORE, call="shortlist", got=got)
        return _eager(score, count)
    over = scored_pages(score, "shortlist")
    tracer = active()
    name = f"S{len({axis.name for axis in tracer.lists}) + 1}"
    axis = Sym(name, min(count, over.limit) if over.limit else count, over.blocks)
    names = source.assigned_names(frame) if (frame := source.user_frame()) is not None else ()
    made = flow.Shortlist(lift(score).value, TensorType(i32, (axis,)))
    positions = vTensor(tracer.function.add(made, names[0] if len(names) == 1 else "near", source.here()))
    candidates = positions
    if (above := tracer.listed(over)) is not None:
        candidates = emit(flow.Pick, vTensor(above), positions)
    tracer.lists[axis] = candidates.value
    return TracedNear(over, positions, candidates)


def listing(score: vTensor) -> tuple[Value, ...]:
    """Which candidates the pages of a score are: the list of a shortlist, nothing where they are all."""
    listed = active().listed(score.type.pages) if score.type.pages is not None else None
    return () if listed is None else (listed,)


def scored_pages(score: Any, call: str) -> Sym:
    """The pages that a traced score is of; VX1006 unless it is one number for each, VX1097 of cut or padded pages."""
    if isinstance(score, Near):
        raise score.refusal()
    if isinstance(score, Padded):
        raise fail(OTHER_PAGES, call=call, size=score.pages)
    if not isinstance(score, vTensor):
        got = kind(score) if not isinstance(score, torch.Tensor) else "a constant"
        raise fail(BAD_SCORE, call=call, got=got)
    pages = lift(score).type.pages
    if pages is None or len(score.dims) != 1:
        raise fail(BAD_SCORE, call=call, got=score.type)
    return pages


def _eager(score: torch.Tensor, count: int) -> EagerNear:
    positions = torch.from_numpy(ranking(score.detach().float().numpy())[:count].copy()).sort().values
    place = here("shortlist")
    made = EagerNear(positions, len(score), place.unit(), place.parent(len(score)))
    place.lists.append(made)
    return made
