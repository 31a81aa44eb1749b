"""The choices that depend on the target, and where each came from."""

from __future__ import annotations

from dataclasses import dataclass

from vortex.ir.core import Attr, Function, Module
from vortex.ir.dialects import page
from vortex.ir.staging import loads_by_loop, stage
from vortex.ir.types import TensorType
from vortex.passes.manager import Pass, PassContext, register
from vortex.targets.gpu import UNMEASURED
from vortex.targets.target import TARGETS


@register("schedule", stage="page", tag="exact", version=1)
@dataclass(frozen=True, slots=True)
class Schedule(Pass):
    """Choose each kernel's knobs for the target and write them, with their origin, into the IR.

    On a CPU: ``lanes`` is the vector width in fp32 numbers, ``unroll`` how many outputs share one load of
    a summary, ``prefetch`` how many pages ahead summaries are asked for. ``bytes_per_page`` is what one
    candidate (or filled) page costs in memory traffic: the quantity that work is balanced by.

    What a tuning database knows goes before the defaults (``from = "db:ID"``, the id of the record; for a machine
    that nobody has measured ``"transfer:ID"``, the record of another); what the options say goes before both
    (``"user"``). The templates of a GPU choose what is left open; on a machine that nobody has measured from a model
    of it (``"model"``). Where one choice does not do for all shapes, ``variants`` are schedules for other ones: each
    becomes a kernel of its own, and ``serves`` says for which buckets (rows, columns, kept pages) each is. ``plan``,
    which shapes the work of the others, has one kernel with a ``table`` that it looks into each step.

        kernel @select {kind = "select", domain = "rows"}
          ->
        kernel @select {.., schedule = {lanes = 16, prefetch = 8, .., from = "heuristic"}}
    """

    lanes: int = 16
    unroll: int = 8
    prefetch: int = 8

    def run(self, module: Module, ctx: PassContext) -> Module:
        program = Module("page", module.name, dict(module.attrs), dict(module.decls), dict(module.functions))
        target = ctx.target or TARGETS["cpu"]
        program.attrs["target"] = target.name
        mine: dict[str, Attr] = {"lanes": self.lanes, "unroll": self.unroll, "prefetch": self.prefetch}
        user = self != Schedule()
        default = "model" if target.name in UNMEASURED else "heuristic"
        for f in program.functions.values():
            found = ctx.choose(program, f, target) if ctx.choose is not None and not user else None
            if f.attrs["kind"] == "plan" and found is None:
                continue
            size: dict[str, Attr] = {} if f.attrs["kind"] == "plan" else {"bytes_per_page": bytes_per_page(program, f)}
            if found is None:
                f.attrs["schedule"] = {**mine, **size, "from": "user" if user else default}
                continue
            f.attrs["schedule"] = {**size, **found.attrs}
            if found.others and f.attrs["kind"] == "plan":
                del f.attrs["schedule"]["serves"]
                f.attrs["schedule"]["table"] = tuple(v.attrs for v in (found, *found.others))
            elif found.others:
                f.attrs["schedule"]["variants"] = tuple(v.attrs for v in found.others)
        return program


def bytes_per_page(program: Module, f: Function) -> int:
    """Bytes a kernel reads for one page, each pass over the pages counted."""
    paged = {d.name: d.type for d in program.declared("buffer") if d.attrs["layout"] in ("paged", "ragged")}
    total = 0
    for o, passes in loads_by_loop(f, stage(f)).items():
        tile = paged.get(o.buffer) if isinstance(o, page.Load) else None
        if isinstance(tile, TensorType):
            total += tile.numel * tile.dtype.bytes * len(passes)
    for o in f.ops:
        if isinstance(o, page.Attend):
            for name in {o.keys, o.values}:
                tile = paged[name]
                total += tile.numel * tile.dtype.bytes if isinstance(tile, TensorType) else 0
    return total
