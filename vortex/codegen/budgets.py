"""What ``plan`` writes of each request on every target: how many pages it keeps, and which of them are scored."""

from __future__ import annotations

from collections.abc import Callable

from vortex.codegen.arguments import Arguments
from vortex.codegen.tir import I32, Expr, T, cast, i32, let, put

PAGES, KEPT, FIRST, SCORED = range(4)
"""Rows of ``plan`` ``[4, B]``: a request's pages, those it keeps, the first one that is scored, and how many are."""
WANTED, SINK, RECENT, NUMERATOR, DENOMINATOR = range(5)
"""Words of ``budget``: scored pages to keep, reserved ones at both ends, and the ratio of all pages to keep."""


def plan_request(args: Arguments, r: Expr, page_size: int, divide: Callable[[Expr, Expr], Expr]) -> None:
    """Write the column of ``plan`` of request ``r``; ``divide`` divides non-negative integers, rounding down.

    A request whose pages all fit its budget keeps them, and scores none.
    """
    lengths, budget, plan = (args.buffers[n] for n in ("lengths", "budget", "plan"))
    n = let("n", divide(lengths[r] + (page_size - 1), i32(page_size)))
    reserved = let("reserved", budget[SINK] + budget[RECENT])
    # ratio * n in 64 bits: numerator and n may both have 31
    share = divide(cast("int64", budget[NUMERATOR]) * cast("int64", n), cast("int64", budget[DENOMINATOR]))
    total = let("total", T.max(cast("int64", budget[WANTED] + reserved), share))
    fits = let("fits", cast("int64", n) <= total)
    put(plan, n, PAGES, r)
    put(plan, T.Select(fits, n, cast(I32, total)), KEPT, r)
    put(plan, T.Select(fits, i32(0), budget[SINK]), FIRST, r)
    put(plan, T.Select(fits, i32(0), n - reserved), SCORED, r)
