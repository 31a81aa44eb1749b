"""New modules from parts of old ones: operations are made again on other operands, their types inferred anew.

A module is never changed in place, so declarations, attributes and locations are shared between the old one and the
new one. What does not fit together any more is a VortexError of the op's own, and then there is no such candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from vortex.ir.core import Decl, Function, Module, Op, Value

P = TypeVar("P")


@dataclass
class Body:
    """A function being made, and what stands there for each value of the old one."""

    function: Function
    now: dict[Value, Value] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    """Names of the old function and the new one."""

    @property
    def values(self) -> list[Value]:
        """What is defined so far."""
        return list(self.function.values())

    def add(self, new: Op) -> Value:
        """Append an op that the old function lacks; its result gets a name of its own."""
        self.function.ops.append(new)
        hint = name = new.value.name
        number = 1
        while name in self.taken:
            name, number = f"{hint}_{number}", number + 1
        self.taken.add(name)
        new.value.name = name
        return new.value


OfArgument = Callable[[Value, Body], Value | None]
"""What stands for an argument: another value, or None where it stays."""
OfOp = Callable[[Op, tuple[Value, ...], Body], Op | Value | None]
"""What becomes of an op, given its operands in the new function: an op, a value instead of its result, or nothing."""


def kept(o: Op, operands: Sequence[Value], body: Body) -> Op:
    """An op as it is, on other operands."""
    return o.with_operands(operands)


def remake_function(f: Function, of_op: OfOp = kept, of_argument: OfArgument = lambda a, body: None) -> Function:
    """``f`` with other ops and arguments.

    Raises:
        VortexError: an op does not fit its operands.
    """
    body = Body(Function(f.keyword, f.name, attrs=f.attrs, loc=f.loc), taken={v.name for v in f.values()})
    for a in f.args:
        instead = of_argument(a, body)
        if instead is None:
            instead = Value(a.name, a.type)
            body.function.args.append(instead)
        body.now[a] = instead
    for o in f.ops:
        made = of_op(o, tuple(body.now[v] for v in o.operands), body)
        if isinstance(made, Op):
            body.function.ops.append(made)
            made = made.result
        if o.result is not None and made is not None:
            body.now[o.result] = made
    return body.function


def remake(
    m: Module, of_function: Callable[[Function], Function | None], decls: Sequence[Decl] | None = None
) -> Module:
    """``m`` with other functions, None for one that goes, and other declarations where given."""
    named = m.decls if decls is None else {d.name: d for d in decls}
    functions = {n: made for n, f in m.functions.items() if (made := of_function(f)) is not None}
    return replace(m, decls=named, functions=functions)


Candidate = Callable[[], Module]
"""Makes a smaller module; raises VortexError where there is no such module."""


class Kind(Protocol[P]):
    """A kind of things that a module can do without."""

    name: str
    """Of the things, in the plural."""

    def of(self, m: Module) -> list[P]:
        """All that ``m`` has, in order."""

    def without(self, m: Module, parts: Sequence[P]) -> Iterator[Candidate]:
        """Ways of doing without some of them, the most promising first."""
