"""Equal ops become one."""

from __future__ import annotations

from dataclasses import dataclass

from vortex.ir.core import Function, Module, Op, Value
from vortex.ir.dialects import page
from vortex.ir.printer import attr
from vortex.ir.rewrite import replace_uses
from vortex.passes.manager import Pass, PassContext, register


@register("cse", stage="any", tag="exact", version=1)
@dataclass(frozen=True, slots=True)
class Cse(Pass):
    """Compute once what is computed twice; in a kernel, load once what nobody writes in between.

    %a = flow.mul(%q, %c)
    %b = flow.mul(%c, %q)
    %s = flow.add(%a, %b)
      ->
    %a = flow.mul(%q, %c)
    %s = flow.add(%a, %a)
    """

    def run(self, module: Module, ctx: PassContext) -> Module:
        for f in module.functions.values():
            _unify(f)
        return module


def _unify(f: Function) -> None:
    seen: dict[object, Value] = {}
    for o in list(f.ops):
        if o.result is None:
            written = str(o.attrs.get("buffer"))
            seen = {k: v for k, v in seen.items() if not _reads(v, written)}
            continue
        key = _key(o)
        if key in seen:
            f.ops.remove(o)
            replace_uses(f, o.value, seen[key])
        else:
            seen[key] = o.value


def _reads(v: Value, buffer: str) -> bool:
    return isinstance(v.owner, page.Load | page.LoadSelection) and v.owner.buffer == buffer


def _key(o: Op) -> object:
    operands = [id(v) for v in o.operands]
    if o.commutes:
        operands.sort()
    # attributes as text: 0.0 and -0.0 are two numbers, and dicts do not hash
    return o.name, tuple(operands), attr(o.attrs), str(o.value.type)
