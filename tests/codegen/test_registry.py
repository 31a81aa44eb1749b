"""Every op that is declared says all of what passes, interpreters and templates ask of it."""

from __future__ import annotations

from typing import Any, ClassVar, get_args

import pytest

from vortex.codegen.scalar import EMITTERS
from vortex.codegen.tiles import NESTS
from vortex.codegen.values import LEAVES
from vortex.ir.core import OPS, Op, Role, Value, op
from vortex.ir.dialects import flow, page

BY_PROGRAM = "page."
"""Ops of this dialect are run by the page interpreter and emitted by templates, kernel kind by kernel kind."""
BY_SELECT = (flow.Shortlist, flow.SoftmaxSum)
"""What templates of ``select`` do between their sweeps; a pass makes the second for GPUs alone."""


def lacks(kind: type[Op]) -> list[str]:
    """What an op of that class does not say, in words."""
    role = getattr(kind, "role", None)
    if role not in get_args(Role):
        return ["a role"]
    missing = [] if kind.infer is not Op.infer else ["a type"]
    if kind.name.startswith(BY_PROGRAM) or role == "effect":
        return missing
    if kind.evaluate is Op.evaluate and kind.evaluate_in is Op.evaluate_in:
        missing.append("an evaluator")
    emitted = {
        "elementwise": kind.emitter in EMITTERS,
        "view": issubclass(kind, flow.View),
        "leaf": kind in LEAVES,
        "nest": bool(kind.rewritten_by) or any(issubclass(kind, base) for base in (*NESTS, *BY_SELECT)),
        "selection": kind.parts is not flow.Selection.parts if issubclass(kind, flow.Selection) else False,
    }
    if not emitted[role]:
        missing.append("an emitter")
    if issubclass(kind, flow.Part) and kind.scored is flow.Part.scored:
        missing.append("a score")
    if issubclass(kind, flow.Reduce) and not kind.folds:
        missing.append("how it folds")
    return missing


def test_every_op_is_complete() -> None:
    assert page.Load.name in OPS
    assert {name: what for name, kind in OPS.items() if (what := lacks(kind))} == {}


@pytest.mark.parametrize(
    ("base", "body", "missing"),
    [
        (Op, {"__annotations__": {"x": "Value"}}, ["a role"]),
        (flow.Unary, {}, ["an evaluator", "an emitter"]),
        (flow.Unary, {"evaluate": lambda self, x: x}, ["an emitter"]),
        (flow.Unary, {"evaluate": lambda self, x: x, "emitter": "flow.exp"}, []),
        (flow.Reduce, {}, ["how it folds"]),
        (flow.Selection, {"__annotations__": {"x": "Value"}}, ["a type", "an evaluator", "an emitter"]),
        (flow.Part, {"__annotations__": {"x": "Value"}}, ["a score"]),
    ],
)
def test_what_is_lacking_is_named(
    base: type[Op], body: dict[str, Any], missing: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vortex.ir.core.OPS", OPS.copy())
    made = op("flow.unfinished")(type("Unfinished", (base,), {"__module__": __name__, **body}))
    assert lacks(made) == missing


def test_facts_agree_with_what_is_emitted() -> None:
    """``repeats`` is how often the emitted text has an operand: counted, not believed."""
    from vortex.codegen.scalar import emit_scalar
    from vortex.codegen.tir import F32, I32, tirx
    from vortex.ir.types import DType, TensorType, bool_, f32, i32

    def count(kind: type[Op], dtype: DType) -> int:
        made = kind(*(Value(n, TensorType(dtype)) for n in kind.form.operands))
        tvm_type = {f32: F32, i32: I32, bool_: "bool"}[dtype]
        names = [tirx.Var(f"only_{n}", tvm_type) for n in kind.form.operands]
        text = str(emit_scalar(made, list(names)))
        return max(text.count(n.name) for n in names)

    for kind in OPS.values():
        if issubclass(kind, flow.Logical | flow.Not):
            assert count(kind, bool_) == kind.repeats, kind.name
        elif issubclass(kind, flow.FloorDivide | flow.DifferingBits):
            assert count(kind, i32) == kind.repeats, kind.name
        elif issubclass(kind, flow.Unary | flow.Binary):
            assert max(count(kind, f32), count(kind, i32)) == kind.repeats, kind.name
    c, a, b = (tirx.Var(n, t) for n, t in (("cond", "bool"), ("left", F32), ("right", F32)))
    where = flow.Where(*(Value(n, TensorType(t)) for n, t in (("c", bool_), ("a", f32), ("b", f32))))
    text = str(emit_scalar(where, [c, a, b]))
    assert [text.count(n) for n in ("cond", "left", "right")] == [flow.Where.repeats] * 3


class _Facts:
    """What the classes say, so that a change of a fact is seen here and not only in a kernel's text."""

    said: ClassVar[dict[str, set[type[Op]]]] = {
        "commutes": {flow.Add, flow.Mul, flow.Eq, flow.Ne, flow.And, flow.Or, flow.Xor, flow.DifferingBits},
        "increasing": {flow.Exp, flow.Sigmoid, flow.Tanh},
        "rereads": {flow.Dot, flow.Conv, flow.Scan, flow.ArgSort, flow.Gather, flow.Shift},
    }


@pytest.mark.parametrize("fact", _Facts.said)
def test_facts_are_said_where_they_hold(fact: str) -> None:
    assert {kind for kind in OPS.values() if getattr(kind, fact)} == _Facts.said[fact]
