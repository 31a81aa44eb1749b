"""The larger things a module can do without: functions, operations, fields, operands, declarations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from vortex.ir.core import Decl, Function, Module, Op, Value
from vortex.ir.dialects import flow
from vortex.ir.rewrite import drop_dead
from vortex.reduce.instead import STRATEGIES, Instead
from vortex.reduce.remake import Body, Candidate, remake, remake_function


class Functions:
    """Whole functions and kernels."""

    name = "functions"

    def of(self, m: Module) -> list[Function]:
        return list(m.functions.values())

    def without(self, m: Module, parts: Sequence[Function]) -> Iterator[Candidate]:
        yield lambda: remake(m, lambda f: None if f in parts else f)


class DeadOps:
    """All operations whose results nobody uses, together."""

    name = "dead operations"

    def of(self, m: Module) -> list[Module]:
        return [m]

    def without(self, m: Module, parts: Sequence[Module]) -> Iterator[Candidate]:
        yield lambda: remake(m, lambda f: _alive(remake_function(f)))


class Ops:
    """Operations and arguments; what used them uses something else, and what only they needed goes with them."""

    name = "operations"

    def of(self, m: Module) -> list[Op | Value]:
        found: list[Op | Value] = []
        for f in m.functions.values():
            found += [*f.args, *(o for o in f.ops if not isinstance(o, flow.Return))]
        return found

    def without(self, m: Module, parts: Sequence[Op | Value]) -> Iterator[Candidate]:
        lost = set(parts)
        for instead in STRATEGIES:
            yield partial(_without_ops, m, lost, instead, True)
        # what nobody uses may be what the test is about
        for instead in STRATEGIES if len(parts) == 1 else ():
            yield partial(_without_ops, m, lost, instead, False)


def _without_ops(m: Module, lost: set[Op | Value], instead: Instead, sweep: bool) -> Module:
    """``m`` without those for which ``instead`` finds something; ``sweep``: without dead ops as well."""

    def of_function(f: Function) -> Function:
        used = {v for o in f.ops for v in o.operands}

        def of_argument(a: Value, body: Body) -> Value | None:
            return _for_argument(a, a in used, instead, body) if a in lost else None

        def of_op(o: Op, operands: tuple[Value, ...], body: Body) -> Op | Value | None:
            if o not in lost:
                return o.with_operands(operands)
            if o.result is None or o.result not in used:
                return None
            found = instead(o.result.type, operands, body)
            return o.with_operands(operands) if found is None else found

        made = remake_function(f, of_op, of_argument)
        return _alive(made) if sweep else made

    return remake(m, of_function)


def _for_argument(a: Value, used: bool, instead: Instead, body: Body) -> Value | None:
    """What stands for an argument that goes; one that nobody uses may stand for itself."""
    return instead(a.type, (), body) if used else a


def _alive(f: Function) -> Function:
    """``f``, which must be nobody else's, without its dead ops."""
    drop_dead(f)
    return f


class Fields:
    """Summaries and state: what is declared, what writes them and the arguments that read them."""

    name = "fields"

    def of(self, m: Module) -> list[Decl]:
        return m.declared("field")

    def without(self, m: Module, parts: Sequence[Decl]) -> Iterator[Candidate]:
        for instead in STRATEGIES:
            yield partial(_without_fields, m, parts, instead)


def _without_fields(m: Module, parts: Sequence[Decl], instead: Instead) -> Module:
    names = {d.name for d in parts}

    def of_function(f: Function) -> Function:
        used = {v for o in f.ops for v in o.operands}

        def of_argument(a: Value, body: Body) -> Value | None:
            reads = f.name != "cache" and a.name in names
            return _for_argument(a, a in used, instead, body) if reads else None

        def of_op(o: Op, operands: tuple[Value, ...], body: Body) -> Op:
            if not isinstance(o, flow.Return) or not o.names:
                return o.with_operands(operands)
            left = [(name, v) for name, v in zip(o.names, operands, strict=True) if name not in names]
            return flow.Return(tuple(v for _, v in left), tuple(name for name, _ in left))

        return _alive(remake_function(f, of_op, of_argument))

    return remake(m, of_function, [d for d in m.decls.values() if d not in parts])


class Operands:
    """Operands of ops that take any number, what a function returns among them."""

    name = "operands"

    def of(self, m: Module) -> list[tuple[Op, int]]:
        every = [o for f in m.functions.values() for o in f.ops if o.form.variadic]
        return [(o, i) for o in every if not (isinstance(o, flow.Return) and o.names) for i in range(len(o.operands))]

    def without(self, m: Module, parts: Sequence[tuple[Op, int]]) -> Iterator[Candidate]:
        lost = set(parts)

        def of_op(o: Op, operands: tuple[Value, ...], body: Body) -> Op:
            return o.with_operands([v for i, v in enumerate(operands) if (o, i) not in lost])

        yield lambda: remake(m, lambda f: _alive(remake_function(f, of_op)))
        yield lambda: remake(m, lambda f: remake_function(f, of_op))


class Declarations:
    """Buffers, captured tensors and parameters that no op names."""

    name = "declarations"

    def of(self, m: Module) -> list[Decl]:
        return list(m.decls.values())

    def without(self, m: Module, parts: Sequence[Decl]) -> Iterator[Candidate]:
        yield lambda: remake(m, lambda f: f, [d for d in m.decls.values() if d not in parts])
