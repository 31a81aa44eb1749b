"""What forward_indexer ends in: a choice of pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch

from vortex.budget import Cap, integer
from vortex.errors import (
    BAD_SCORE,
    BAD_SELECTION,
    NEGATIVE_MASS,
    NO_CAP,
    NO_EFFECT,
    PAGES_SELECTED,
    SMALL_SHORTLIST,
    Loc,
    warn,
)
from vortex.flow import source
from vortex.flow.shortlist import listing, scored_pages
from vortex.flow.tensor import PageDim, kind, lift, vTensor
from vortex.flow.tracer import active, current, emit, fail
from vortex.ir.core import Function, Value
from vortex.ir.dialects import flow
from vortex.ir.increasing import peel
from vortex.ir.ranking import MASS_BITS, SHARE_BITS, Ranked, Selected, United, numerator
from vortex.ir.types import TensorType, bool_, i32


@dataclass(frozen=True, slots=True)
class Part:
    """The best pages by ``score``: a traced tensor, or the scores of an eager step."""

    score: Any
    pages: int = 0
    """The most that are taken; 0 where the budget says."""
    count: Any = None
    """How many are wanted, where the flow says: a traced number, or that of an eager step."""
    p: float = 0.0
    """The share of the mass that is reached; 0 where scores are no masses."""
    loc: Loc | None = None
    """The call that made it."""
    near: torch.Tensor | None = None
    """Of an eager step, which of its candidates the pages that are scored are, if they are those of a shortlist."""
    row: int | None = None
    """How many candidates that has."""

    def op(self, function: Function) -> Value:
        """The traced choice, in flow IR."""
        score = lift(self.score).value
        at = listing(lift(self.score))
        if self.p:
            return function.add(flow.TopP(score, self.p, self.pages, at), "pages", self.loc)
        count = () if self.count is None else (lift(self.count).value,)
        return function.add(flow.TopK(score, self.pages, (*count, *at)), "pages", self.loc)

    def best(self, left: int) -> list[int]:
        """The candidates of an eager step that are taken, best first, where the budget leaves ``left`` pages."""
        scores: list[float] = self.score.detach().float().tolist()
        if self.p:
            scores = [x if x > 0 else 0.0 for x in scores]
        order = sorted(range(len(scores)), key=lambda i: (1, 0.0, i) if math.isnan(scores[i]) else (0, -scores[i], i))
        most = min(self.pages or left, len(scores))
        if self.p and scores:
            most = min(most, _reaching([scores[i] for i in order], self.p))
        best = order[: most if self.count is None else max(0, min(most, int(self.count)))]
        return best if self.near is None else self.near[best].tolist()

    @property
    def candidates(self) -> int:
        """How many candidates an eager step has, scored or not."""
        return len(self.score) if self.row is None else self.row

    def over(self) -> torch.Tensor:
        """The scores of all candidates of an eager step, NaN for those that a shortlist left out."""
        scores: torch.Tensor = self.score.detach().float()
        if self.near is None:
            return scores
        return torch.full((self.candidates,), math.nan).index_copy(0, self.near, scores)


def _reaching(masses: Sequence[float], p: float) -> int:
    """How many of the masses, largest first, reach the share ``p`` of all, counted in whole numbers of which the
    largest has 31 bits (:mod:`vortex.ir.ranking`).
    """
    finite = [min(x, 2.0**128) for x in masses]
    exponent = max(math.frexp(finite[0])[1], -125)
    numbers = [math.floor(math.ldexp(x, MASS_BITS - exponent)) for x in finite]
    need = sum(numbers) * numerator(p)
    reached = 0
    for i, x in enumerate(numbers, 1):
        reached += x
        if reached << SHARE_BITS >= need:
            return i
    return len(numbers)


@dataclass(frozen=True, slots=True)
class Selection:
    """The pages of all ``parts``."""

    parts: tuple[Part, ...]
    loc: Loc | None = None
    """The call that made it."""

    @property
    def score(self) -> Any:
        """Of the first part."""
        return self.parts[0].score

    @property
    def cap(self) -> Cap:
        """What bounds how many pages are selected."""
        always = len(self.parts) > 1 or any(part.p or part.count is not None for part in self.parts)
        return Cap(sum(not part.pages for part in self.parts), sum(part.pages for part in self.parts), always)

    def ranked(self) -> Selected:
        """The choice of an eager step as an interpreter gives it."""
        made = tuple(
            Ranked(
                part.score.detach().float().numpy(),
                part.pages,
                part.count,
                numerator(part.p) if part.p else 0,
                None if part.near is None else part.near.numpy(),
                part.row,
            )
            for part in self.parts
        )
        return made[0] if len(made) == 1 else United(made)

    def op(self, function: Function) -> Value:
        """The traced choice, in flow IR."""
        made = tuple(part.op(function) for part in self.parts)
        return made[0] if len(made) == 1 else function.add(flow.Union(made), "pages", self.loc)


def topk(score: Any, *, pages: Any = None, count: Any = None, tolerance: float = 0.0) -> Selection:
    """Keep the pages with the best scores, as many as the budget leaves; what forward_indexer returns counts.

    Order: +inf, finite numbers, -inf, NaN; ties go to the lower page.

    Args:
        score: one number per page, ``[S]``, or one for each of a shortlist's, which are then the pages to choose from.
        pages: a budget of its own, at least 1: the most pages that are kept beside the reserved ones, whatever
            ``Budget`` says of scored pages.
        count: how many are kept within that, a number of the row made from ``page_count()``, ``layer()``, statistics of
            scores and the like; its fraction does not count, and below 1 it keeps none.
        tolerance: the share of the best that may be missed, at least 0 and below 1. All kernels of today are exact, so
            nothing is.

    Raises:
        VortexError: VX1006 when the score is not one number per page, VX1070 for another argument out of its range,
            VX1071 for ``pages`` that only a step knows.
    """
    if not isinstance(tolerance, Real) or isinstance(tolerance, bool) or not 0 <= tolerance < 1:
        raise fail(
            BAD_SELECTION, why=f"tolerance is {_shown(tolerance)}", hint="give a share of the best, such as 0.05"
        )
    made = Part(_score(score, "topk"), _pages(pages), None if count is None else _count(count), loc=source.here())
    if current() is not None:
        _warn_of_no_effect(lift(score).value)
    _warn_of_shortlist(made)
    return Selection((made,), made.loc)


def topp(mass: Any, p: float, *, pages: Any = None) -> Selection:
    """Keep the fewest pages, best first, whose mass reaches the share ``p`` of that of all candidates: at least one,
    and at most as many as the budget leaves, or ``pages``. Negative masses and NaN count as 0.

    Masses are added as whole numbers, of which the largest of a row has 31 bits, so that every kernel cuts at the same
    page: what is less than 2^-31 of the largest counts as 0.

    Raises:
        VortexError: VX1006 when the mass is not one number per page, VX1070 when p is not above 0 and at most 1, VX1071
            for ``pages`` that only a step knows.
    """
    if not isinstance(p, Real) or isinstance(p, bool) or not 0 < p <= 1:
        why = f"p is {_shown(p)}, not a number above 0 and at most 1"
        raise fail(BAD_SELECTION, why=why, hint="give the share of the mass that is kept, such as topp(mass, 0.9)")
    made = Part(_score(mass, "topp"), _pages(pages), p=float(p), loc=source.here())
    _warn_of_signs(made)
    _warn_of_shortlist(made)
    return Selection((made,), made.loc)


def union(*selections: Selection) -> Selection:
    """Keep all pages of the selections, each with a budget of its own: its ``pages``, or what ``Budget`` leaves.

    Rows are always scored, and the bound of pages kept is the sum of the parts'.

    Raises:
        VortexError: VX1070 for what is no selection, none at all, or more than 8 of them.
    """
    hint = "write vortex.union(vortex.topk(a, pages=8), vortex.topk(b, pages=8))"
    for i, selection in enumerate(selections):
        if not isinstance(selection, Selection):
            raise fail(BAD_SELECTION, why=f"part {i} of union is {_shown(selection)}, not a selection", hint=hint)
    parts = tuple(part for selection in selections for part in selection.parts)
    if not 1 <= len(parts) <= flow.MOST_PARTS:
        raise fail(BAD_SELECTION, why=f"union of {len(parts)} selections; it takes 1 to {flow.MOST_PARTS}", hint=hint)
    return replace(Selection(parts), loc=source.here())


# arguments ---------------------------------------------------------------------------------------------


def _score(score: Any, call: str) -> Any:
    """One number for each page; VX1006 otherwise."""
    if current() is None:
        if not isinstance(score, torch.Tensor) or score.ndim != 1:
            got = list(score.shape) if isinstance(score, torch.Tensor) else type(score).__name__
            raise fail(BAD_SCORE, call=call, got=got)
        return score
    if (pages := scored_pages(score, call)).blocks > 1:
        raise fail(PAGES_SELECTED, call=call, got=f"[{pages}]")
    return score


def _pages(pages: Any) -> int:
    """A bound that is known before the step; 0 for that of the budget."""
    if pages is None:
        return 0
    if isinstance(pages, torch.Tensor | vTensor):
        raise fail(NO_CAP)
    number = integer(pages)
    if number is None or not 1 <= number < flow.MOST_PAGES:
        why = f"pages is {_shown(pages)}, not an integer from 1 to {flow.MOST_PAGES - 1}"
        raise fail(BAD_SELECTION, why=why, hint="leave it out for as many as the budget says")
    return number


def _count(count: Any) -> Any:
    """A number of the row as an integer: traced, or that of an eager step."""
    hint = "reduce it first, such as count=scores.max(); a number that is known beforehand is pages=n"
    # of an eager step, x.shape[0] is a Python number; one that is written down was refused by the trace before it
    taken = PageDim if current() is not None else int | float
    if isinstance(count, bool) or not isinstance(count, torch.Tensor | vTensor | taken):
        raise fail(BAD_SELECTION, why=f"count is {_shown(count)}, not a traced number of the row", hint=hint)
    if current() is None:
        if isinstance(count, torch.Tensor) and count.numel() != 1:
            raise fail(BAD_SELECTION, why=f"count has shape {list(count.shape)}, not one number", hint=hint)
        number = float(count)
        return 0 if number != number else int(max(0.0, min(number, float(flow.MOST_PAGES))))
    made = lift(count)
    if any(d != 1 for d in made.dims) or made.type.dtype == bool_:
        raise fail(BAD_SELECTION, why=f"count is {made.type}, not one number of the row", hint=hint)
    number = made.reshape(())
    return number.clamp(0, flow.MOST_PAGES).to(torch.int32) if number.type.dtype.is_float else number.to(torch.int32)


def _warn_of_signs(part: Part) -> None:
    """Say that masses are negative, in an eager step, or may be, in a trace."""
    if current() is None:
        if bool((part.score < 0).any()):
            warn(NEGATIVE_MASS.at(part.loc, what="some of these masses are negative"))
    elif _of_both_signs(lift(part.score).value):
        warn(NEGATIVE_MASS.at(part.loc, what="these masses may be negative"))


def _warn_of_shortlist(part: Part) -> None:
    """Say that more pages are kept than the shortlist can have; in a trace, which knows its length."""
    pages = lift(part.score).type.pages if current() is not None else None
    if pages is not None and pages.listed and pages.limit < part.pages:
        warn(SMALL_SHORTLIST.at(part.loc, pages=part.pages, listed=pages.limit))


def _warn_of_no_effect(score: Value) -> None:
    """Say that the last map that makes a score keeps the order of pages; a cast is not what anybody would leave out."""
    while isinstance(score.owner, flow.Cast):
        score = score.owner.x
    if score.owner is not None and peel(score, scalar=False) is not None:
        what = score.owner.name.removeprefix("flow.")
        warn(NO_EFFECT.at(score.owner.loc or source.here(), what=what))


def _of_both_signs(v: Value) -> bool:
    """Whether a value is made by what gives numbers of either sign: a dot product, a difference, a logarithm."""
    o = v.owner
    if isinstance(o, flow.View | flow.Reduce | flow.Cast):
        return _of_both_signs(o.operands[0])
    if isinstance(o, flow.Dot | flow.Sub | flow.Neg):
        return True
    return isinstance(o, flow.Log | flow.Log2 | flow.Log10 | flow.Tanh | flow.Sin | flow.Cos)


def _shown(x: Any) -> str:
    if isinstance(x, vTensor):
        return f"a traced {x.type}"
    if isinstance(x, torch.Tensor):
        return f"a tensor {list(x.shape)}"
    return repr(x) if isinstance(x, Real | str | None) else kind(x)


def by_row(selection: Selection) -> Selection:
    """The same where rows have budgets of their own, which a kernel looks up by layer and head.

    Raises:
        VortexError: VX1070 for a part that neither counts its pages nor has a bound of its own.
    """
    own: Any = None
    made = []
    for part in selection.parts:
        if part.p and not part.pages:
            why = "rows have budgets of their own (budget_table), and topp takes pages until it has its share"
            hint = "bound it by itself: topp(mass, p, pages=64)"
            raise BAD_SELECTION.at(part.loc, why=why, hint=hint)
        if not part.pages:
            own = active().once("row_budget", flow.RowBudget(TensorType(i32)), "row_budget") if own is None else own
            part = replace(part, count=own if part.count is None else emit(flow.Minimum, lift(part.count), own))
        made.append(part)
    return replace(selection, parts=tuple(made))
