"""Changing functions in place: what passes are written with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vortex.ir.core import Decl, Function, Module, Op, Value
from vortex.ir.names import Names

Rule = Callable[["Rewriter", Op], Value | None]
"""Looks at one op and gives the value that replaces its result, or None to leave it."""


def copy_module(m: Module) -> Module:
    """A module that shares no op, value or dict with ``m``."""
    decls = {n: Decl(d.keyword, d.name, d.type, dict(d.attrs)) for n, d in m.decls.items()}
    return Module(m.stage, m.name, dict(m.attrs), decls, {n: copy_function(f) for n, f in m.functions.items()})


def copy_function(f: Function) -> Function:
    """A function that shares no op or value with ``f``."""
    now = {a: Value(a.name, a.type) for a in f.args}
    ops = []
    for o in f.ops:
        made = o.with_operands([now[v] for v in o.operands])
        if o.result is not None:
            now[o.result] = made.value
        ops.append(made)
    return Function(f.keyword, f.name, list(now.values())[: len(f.args)], ops, dict(f.attrs), f.loc)


def set_operands(o: Op, operands: Sequence[Value]) -> None:
    """Give ``o`` other operands; its result must keep its type."""
    rest = list(operands)
    for name in o.form.operands:
        setattr(o, name, rest.pop(0))
    if o.form.variadic:
        setattr(o, o.form.variadic, tuple(rest))
    assert o.infer() == (o.result.type if o.result else None), f"{o.name} changes its type"


def replace_uses(f: Function, old: Value, new: Value) -> None:
    """Let every user of ``old`` use ``new``, a value of the same type."""
    assert old.type == new.type, f"{old!r} is no {new.type}"
    for o in f.ops:
        if old in o.operands:
            set_operands(o, [new if v is old else v for v in o.operands])


def behind(*made: Value) -> set[Value]:
    """These values and all that they are made from, arguments of the function included."""
    found: set[Value] = set()
    open_ = list(made)
    while open_:
        v = open_.pop()
        if v not in found:
            found.add(v)
            open_ += v.owner.operands if v.owner is not None else ()
    return found


def drop_dead(f: Function) -> bool:
    """Remove ops whose result nobody uses; ops without a result stay. Whether there were any."""
    used: set[Value] = set()
    kept: list[Op] = []
    for o in reversed(f.ops):
        if o.result is None or o.result in used:
            kept.append(o)
            used.update(o.operands)
    changed = len(kept) != len(f.ops)
    f.ops = kept[::-1]
    return changed


class Rewriter:
    """Applies rules to a function; new ops go in front of the op that a rule looks at."""

    def __init__(self, f: Function) -> None:
        self.f = f
        self.names = Names(v.name for v in f.values())
        f.forget_names()
        self.here = 0

    def add(self, new: Op, name: str = "") -> Value:
        """Put ``new`` in front of the current op, from whose place in the source it descends."""
        if new.loc is None:
            new.loc = self.f.ops[self.here].loc
        value = new.value
        value.name = self.fresh(name or value.name)
        self.f.ops.insert(self.here, new)
        self.here += 1
        return value

    def fresh(self, hint: str) -> str:
        """A name that no value of the function has or had: ``hint`` or ``hint_<number>``."""
        return self.names.take(hint)

    def uses(self, v: Value) -> int:
        """How many ops use ``v``."""
        return sum(v in o.operands for o in self.f.ops)

    def sweep(self, rule: Rule) -> bool:
        """Offer every op to ``rule`` once, in program order; whether anything was replaced."""
        changed = False
        self.here = 0
        while self.here < len(self.f.ops):
            o = self.f.ops[self.here]
            new = rule(self, o) if o.result is not None else None
            if new is not None and o.result is not None:
                self._put(o, o.result, new)
                changed = True
            self.here += 1
        return changed

    def _put(self, o: Op, old: Value, new: Value) -> None:
        del self.f.ops[self.here]
        made = new.owner
        # an op made for this place inherits the name that the flow's author gave
        if made is not None and self.here and self.f.ops[self.here - 1] is made and new not in o.operands:
            new.name = old.name
        self.here -= 1
        replace_uses(self.f, old, new)

    def to_fixpoint(self, rule: Rule) -> None:
        """Sweep and remove dead ops until nothing changes."""
        while self.sweep(rule) | drop_dead(self.f):
            pass
