"""What ``plan`` writes of each request on every target: how many pages it keeps, and which of them are scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vortex.budget import Cap
from vortex.codegen.arguments import Arguments
from vortex.codegen.tir import I32, Buffer, Expr, T, cast, i32, let, put
from vortex.ir.dialects import page

PAGES, KEPT, FIRST, SCORED = range(4)
"""Rows of ``plan`` ``[4, B]``: a request's pages, those it keeps, the first one that is scored, and how many are."""
WANTED, SINK, RECENT, NUMERATOR, DENOMINATOR, ITEM, SLOTS = range(7)
"""Words of ``budget``: scored pages to keep, reserved ones at both ends, the ratio of all pages to keep; on a GPU the
pages of every work item of ``attend``, 0 where these are for ``plan`` to choose, and how many CTAs a KV head the lists
are to keep at work, 0 for what they have room for."""
TOP_K = Cap()
"""Of a selection by rank of as many pages as the budget says."""


@dataclass(frozen=True)
class Planned:
    """A column of ``plan``: what one request keeps and scores."""

    pages: Expr
    kept: Expr
    first: Expr
    scored: Expr

    def write(self, plan: Buffer, r: Expr) -> None:
        """Write the column of request ``r``."""
        for row, x in ((PAGES, self.pages), (KEPT, self.kept), (FIRST, self.first), (SCORED, self.scored)):
            put(plan, x, row, r)


def _budget_of(args: Arguments, r: Expr) -> Buffer | list[Expr]:
    """The words of the budget of request ``r``: its own where it has one, else those of all."""
    budget, own = args.buffers["budget"], args.buffers.get("request_budget")
    if own is None:
        return budget
    given = let("given", own[r, WANTED] >= 0)
    words = [let("word", T.Select(given, own[r, i], budget[i])) for i in range(ITEM)]
    words[DENOMINATOR] = let("denominator", T.max(i32(1), words[DENOMINATOR]))  # the caller's memory: never divide by 0
    return words


def planned(args: Arguments, r: Expr, of: page.Plan, divide: Callable[[Expr, Expr], Expr]) -> Planned:
    """What request ``r`` keeps and scores; ``divide`` divides non-negative integers, rounding down.

    A request whose pages all fit its budget keeps them, and scores none, unless the selection always scores. What it
    keeps is what the parts of the selection may take together, which may be more than there is.
    """
    page_size, cap = of.page_size, of.cap
    lengths, budget = args.buffers["lengths"], _budget_of(args, r)
    n = let("n", divide(lengths[r] + (page_size - 1), i32(page_size)))
    reserved = let("reserved", budget[SINK] + budget[RECENT])
    # ratio * n in 64 bits: numerator and n may both have 31
    share = divide(cast("int64", budget[NUMERATOR]) * cast("int64", n), cast("int64", budget[DENOMINATOR]))
    total = let("total", T.max(cast("int64", budget[WANTED] + reserved), share))
    kept: Expr
    if cap == TOP_K:
        fits = let("fits", cast("int64", n) <= total)
        kept = cast(I32, total)
    else:
        if cap.whole > 1:
            # whole pages of blocks: what is reserved reaches on to where a page begins
            whole = i32(cap.whole)
            first = let("first", divide(budget[SINK] + (cap.whole - 1), whole) * cap.whole)
            end = divide(T.max(i32(0), n - budget[RECENT]), whole) * cap.whole
            candidates = let("candidates", end - first)
        else:
            candidates = let("candidates", n - reserved)
        left = let("left", total - cast("int64", reserved))
        most = T.int64(0) if cap.always else left * T.int64(cap.budgets) + T.int64(cap.pages)
        fits = let("fits", cast("int64", candidates) <= most)
        open_pages = cast(I32, T.min(left, cast("int64", candidates))) * cap.budgets
        kept = (reserved if cap.whole == 1 else n - candidates) + open_pages + T.min(i32(cap.pages), candidates)
    return Planned(
        n,
        T.Select(fits, n, kept),
        T.Select(fits, i32(0), budget[SINK] if cap.whole == 1 else first),
        T.Select(fits, i32(0), n - reserved if cap.whole == 1 else candidates),
    )
