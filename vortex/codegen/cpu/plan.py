"""``plan`` on a CPU: what each request keeps and scores, from its length and the budget."""

from __future__ import annotations

from vortex.codegen.arguments import Arguments
from vortex.codegen.tir import I64, T, cast, let, loop, put
from vortex.ir.core import Function, Module
from vortex.ir.dialects import page


def emit_plan(program: Module, f: Function) -> list[str]:
    """Write the kernel into the open TVM function; returns the names of its arguments in order."""
    args = Arguments(program, I64)
    lengths = args.tensor("lengths", ("B",), "int32")
    budget = args.tensor("budget", (5,), "int32")
    plan = args.tensor("plan", (4, "B"), "int32")
    size = next(o.page_size for o in f.ops if isinstance(o, page.Plan))
    with loop("r", args.size("B")) as r:
        n = let("n", T.floordiv(lengths[r] + (size - 1), T.int32(size)))
        reserved = let("reserved", budget[1] + budget[2])
        # ratio * n in 64 bits: numerator and n may both have 31
        share = T.floordiv(cast(I64, budget[3]) * cast(I64, n), cast(I64, budget[4]))
        total = let("total", T.max(cast(I64, budget[0] + reserved), share))
        fits = let("fits", cast(I64, n) <= total)
        put(plan, n, 0, r)
        put(plan, T.Select(fits, n, cast("int32", total)), 1, r)
        put(plan, T.Select(fits, T.int32(0), budget[1]), 2, r)
        put(plan, T.Select(fits, T.int32(0), n - reserved), 3, r)
    return args.names
