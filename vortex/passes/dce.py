"""What nobody needs goes away."""

from __future__ import annotations

from dataclasses import dataclass

from vortex.ir.core import Module
from vortex.ir.dialects import flow, page
from vortex.ir.rewrite import drop_dead
from vortex.passes.manager import Pass, PassContext, register


@register("dce", stage="any", tag="exact", version=1)
@dataclass(frozen=True, slots=True)
class Dce(Pass):
    """Remove ops without users, workspace that no kernel reads, and resources that no op names.

    Declared fields and parameters stay, read or not: they are the layout of the cache and of the file of weights.

        %m = flow.reduce_mean(%s) {axes = [0]}
        %p = flow.topk(%s)
        flow.return(%p)
          ->
        %p = flow.topk(%s)
        flow.return(%p)
    """

    def run(self, module: Module, ctx: PassContext) -> Module:
        while _sweep(module):
            pass
        named = {o.symbol for f in module.functions.values() for o in f.ops if isinstance(o, flow.Resource)}
        module.decls = {n: d for n, d in module.decls.items() if d.keyword != "resource" or n in named}
        return module


def _sweep(module: Module) -> bool:
    changed = False
    for f in module.functions.values():
        changed |= drop_dead(f)
    if module.stage != "page":
        return changed
    loaded = {o.buffer for f in module.functions.values() for o in f.ops if isinstance(o, page.Load)}
    unread = {d.name for d in module.declared("buffer") if d.attrs["role"] == "workspace"} - loaded
    for f in module.functions.values():
        f.ops = [o for o in f.ops if not (isinstance(o, page.Store) and o.buffer in unread)]
    module.decls = {n: d for n, d in module.decls.items() if n not in unread}
    return changed or bool(unread)
