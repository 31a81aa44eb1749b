"""``plan`` on a CPU: what each request keeps and scores, from its length and the budget."""

from __future__ import annotations

from vortex.codegen.arguments import Arguments
from vortex.codegen.budgets import planned
from vortex.codegen.tir import I64, T, loop
from vortex.ir.core import Function, Module
from vortex.ir.dialects import page


def emit_plan(program: Module, f: Function) -> list[str]:
    """Write the kernel into the open TVM function; returns the names of its arguments in order."""
    args = Arguments(program, I64)
    args.of_plan()
    plan = next(o for o in f.ops if isinstance(o, page.Plan))
    with loop("r", args.size("B")) as r:
        planned(args, r, plan, T.floordiv).write(args.buffers["plan"], r)
    return args.names
