"""Names of values: what they are, and that finding one takes no longer the more there are."""

from __future__ import annotations

import random

import pytest

from vortex.ir.core import Function, Value
from vortex.ir.dialects import flow
from vortex.ir.names import Names
from vortex.ir.rewrite import Rewriter
from vortex.ir.types import TensorType, f32

WIDE = TensorType(f32, (4,))


def first_unused(hint: str, used: list[str]) -> str:
    """By looking at all of them."""
    return next(n for n in (hint, *(f"{hint}_{k}" for k in range(1, len(used) + 2))) if n not in used)


@pytest.mark.parametrize("seed", range(20))
def test_names_are_the_first_that_no_value_has(seed: int) -> None:
    draw = random.Random(seed)
    f = Function("func", "f", [Value("x", WIDE), Value("sqrt_2", WIDE)])
    for _ in range(120):
        hint = draw.choice(["", "x", "sqrt", "sqrt_1", "sqrt_2", "sqrt_01", "sqrt_1_1", "x_", "_3"])
        names = [v.name for v in f.values()]
        what = draw.randrange(8)
        if what < 4 or not f.ops:
            made = f.add(flow.Sqrt(draw.choice(list(f.values()))), hint)
            assert made.name == first_unused(hint or "sqrt", names)
        elif what < 6:
            value = draw.choice(list(f.values()))
            names.remove(value.name)
            f.rename(value, hint or "x")
            assert value.name == first_unused(hint or "x", names)
        elif what == 6:
            del f.ops[draw.randrange(len(f.ops))]
        else:
            f.args.append(Value(f.fresh("x"), WIDE))
        assert f.fresh(hint or "y") == first_unused(hint or "y", [v.name for v in f.values()])


def test_names_are_counted_anew_after_a_rewrite() -> None:
    """It leaves as many ops as there were, the last one in its place."""
    f = Function("func", "f", [Value("x", WIDE)])
    old = f.add(flow.Sqrt(f.args[0]))
    f.add(flow.Log(f.args[0]))
    f.add(flow.Exp(old))
    rewriter = Rewriter(f)
    rewriter.sweep(lambda r, o: r.add(flow.Neg(r.add(flow.Abs(f.args[0])))) if isinstance(o, flow.Sqrt) else None)
    assert [v.name for v in f.values()] == ["x", "abs", "sqrt", "log", "exp"]
    del f.ops[2]
    assert f.fresh("abs") == "abs_1" and f.fresh("log") == "log"


class Looked(Names):
    """Counts the functions that were looked through."""

    times = 0

    def __init__(self, used: object) -> None:
        Looked.times += 1
        super().__init__(used)  # type: ignore[arg-type]


def test_a_function_is_looked_through_once_and_no_number_tried_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vortex.ir.core.Names", Looked)
    Looked.times = 0
    f, tried = Function("func", "f", [Value("x", WIDE)]), 0

    class Hint(str):
        def __format__(self, spec: str) -> str:
            nonlocal tried
            tried += 1
            return str(self)

    for _ in range(500):
        f.rename(f.add(flow.Sqrt(f.args[0]), Hint("sqrt")), Hint("named"))
        f.add(flow.Sqrt(f.args[0]), Hint("kept"))
    assert f.ops[-1].value.name == "kept_499"
    assert Looked.times == 1
    assert tried <= 3 * 1500
