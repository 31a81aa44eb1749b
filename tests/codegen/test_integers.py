"""Integer expressions nobody wrote by hand mean what torch makes of them: traced, interpreted, compiled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import vortex
from tests.codegen.harness import compile_all
from vortex.errors import VortexError
from vortex.flow.leaves import Place, eager
from vortex.flow.trace import trace_function
from vortex.ir.core import Module
from vortex.ir.interpret import run_function
from vortex.ir.types import S, TensorType, f32

PAGES, FIRST, LAYER = 9, 3, 5
ARGS = {"x": TensorType(f32, (S, 4))}
EXTREMES = [0.0, -0.5, 1.0, -1.9, 2.5, 7.0, -7.0, 1e9, -1e9, 2147483520.0, -2147483648.0, 3e9, -3e38, np.inf, -np.inf,
            np.nan, 65536.0, 46341.0]  # fmt: skip
INT32 = torch.tensor([1, -3, 2147483647, -2147483648], dtype=torch.int32)
INT64 = torch.tensor([5, -7, 1000, 1])
BYTES = torch.tensor([0, 1, 2, 9], dtype=torch.uint8)
DIVISORS = torch.tensor([3, -4, 1, 0], dtype=torch.int32)


class Undefined(Exception):
    """What C++ leaves undefined in torch: a signed quotient that does not fit ends its process."""


def _divided(compute: Any) -> Any:
    def run(a: Any, b: Any) -> Any:
        if isinstance(a, torch.Tensor) and not a.dtype.is_floating_point and a.dtype != torch.bool:
            b_ = torch.as_tensor(b)
            if bool(((b_ == -1) & (a == torch.iinfo(a.dtype).min)).any()):
                raise Undefined
        return compute(a, b)

    return run


ENV = {
    "torch": torch, "INT32": INT32, "INT64": INT64, "BYTES": BYTES, "DIVISORS": DIVISORS,
    "page_index": vortex.page_index, "page_count": vortex.page_count, "layer": vortex.layer,
    "quotient": _divided(lambda a, b: a // b), "modulo": _divided(lambda a, b: a % b),
    "fmod": _divided(torch.fmod),
    "trunc": _divided(lambda a, b: torch.div(a, b, rounding_mode="trunc")),
}  # fmt: skip
TENSORS = ["x.int()", "(x.int() % 1000)", "(page_index()[:, None])", "(page_index()[:, None] + 0 * INT32)",
           "page_count()", "layer()", "INT32", "INT64", "BYTES",
           "(x > 0)", "(x > 0).sum(-1, keepdim=True)", "x.shape[0]"]  # fmt: skip
NUMBERS = ["0", "1", "-1", "2", "3", "-7", "997", "46341", "1103515245", "2147483647", "-2147483648", "2654435761"]
UNARY = ["(-{a})", "{a}.abs()", "{a}.sign()", "(~{a})", "({a} ** 2)", "({a} ** 5)", "{a}.clamp(-5, 100)", "{a}.int()",
         "{a}.long()", "{a}.bool()", "{a}.sum(-1, keepdim=True)", "{a}.sum(-1, keepdim=True, dtype=torch.int32)",
         "{a}.prod(-1, keepdim=True, dtype=torch.int32)", "{a}.cumsum(-1, dtype=torch.int32)", "{a}.cumsum(-1)",
         "{a}.amax(-1, keepdim=True)", "{a}.amin(-1, keepdim=True)", "{a}.square()", "{a}.amax(0, keepdim=True)",
         "{a}.sum(0, keepdim=True, dtype=torch.int32)", "{a}.any(-1, keepdim=True)", "{a}.count_nonzero(-1)",
         "torch.zeros_like({a})"]  # fmt: skip
BINARY = ["({a} + {b})", "({a} - {b})", "({a} * {b})", "quotient({a}, {b})", "modulo({a}, {b})", "fmod({a}, {b})",
          "trunc({a}, {b})", "({a} < {b})", "({a} == {b})", "torch.where({a} > {b}, {a}, {b})",
          "quotient({a}, DIVISORS)", "modulo({a}, DIVISORS)"]  # fmt: skip
PAIRS = ["torch.maximum({a}, {b})", "torch.minimum({a}, {b})"]


@st.composite
def expressions(draw: Any, depth: int = 3) -> str:
    """Python text of an integer tensor computed from ``x``."""
    if depth == 0 or draw(st.integers(0, 5)) == 0:
        return str(draw(st.sampled_from(TENSORS)))
    a = draw(expressions(depth - 1))
    if draw(st.booleans()):
        return str(draw(st.sampled_from(UNARY))).format(a=a)
    if draw(st.integers(0, 4)) == 0:
        return str(draw(st.sampled_from(PAIRS))).format(a=a, b=draw(expressions(depth - 1)))
    b = draw(st.sampled_from(NUMBERS)) if draw(st.booleans()) else draw(expressions(depth - 1))
    return str(draw(st.sampled_from(BINARY))).format(a=a, b=b)


@dataclass
class Case:
    """An expression that was traced; ``want`` is torch's answer, or None where torch has none."""

    text: str
    module: Module
    x: torch.Tensor
    want: torch.Tensor | None
    dtype: torch.dtype


def case(text: str, seed: int) -> Case | None:
    """None where torch or the tracer refuses the expression."""
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.choice(np.array(EXTREMES, np.float32), (PAGES, 4)))
    seen: list[torch.dtype] = []

    def fn(x: Any) -> Any:
        made = eval(text, ENV, {"x": x})  # the texts are those above
        seen.append(made.dtype)  # a Python number has none: its expression says nothing of torch
        return made

    want: torch.Tensor | None = None
    try:
        with eager(Place(LAYER, FIRST, PAGES)):
            want = fn(x)
    except (RuntimeError, Undefined, ZeroDivisionError) as error:
        if "ZeroDivision" not in repr(error) and not isinstance(error, Undefined):
            return None
    except (AttributeError, TypeError, OverflowError):
        return None
    try:
        module = trace_function(fn, ARGS)
    except VortexError as error:
        if error.kind.code.startswith("VX1"):
            return None
        raise
    if want is not None:
        assert seen[-1] == seen[0], f"{text}: {seen[-1]} is {seen[0]} in torch"
    return Case(text, module, x, want, seen[-1])


def check(text: str, have: Any, want: torch.Tensor) -> None:
    found = torch.from_numpy(np.array(have)).expand(want.shape) if want.ndim else torch.as_tensor(have)
    assert torch.equal(found.long(), want.long()), (text, found, want)


@settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
    derandomize=True,
    phases=(Phase.generate,),
)
@given(expressions(), st.integers(0, 99))
def test_traced_integers_are_torchs(text: str, seed: int) -> None:
    made = case(text, seed)
    if made is None:
        return
    (got,) = run_function(
        made.module.functions["index"], [made.x.numpy()], made.module, pages=PAGES, layer=LAYER, first=FIRST
    )
    if made.want is not None:
        check(text, got, made.want)


@pytest.mark.parametrize("examples", [16, pytest.param(80, marks=pytest.mark.full)])
def test_compiled_integers_are_torchs(examples: int) -> None:
    """One library of many expressions: every kernel returns, whatever the divisors are, and says what torch says."""
    cases: dict[str, Case] = {}

    @settings(
        max_examples=examples * 3, deadline=None, suppress_health_check=list(HealthCheck), database=None,
        derandomize=True, phases=(Phase.generate,),
    )  # fmt: skip
    @given(expressions(2), st.integers(0, 99))
    def collect(text: str, seed: int) -> None:
        made = case(text, seed) if len(cases) < examples else None
        if made is not None and made.text not in {c.text for c in cases.values()}:
            cases[f"case{len(cases)}"] = made

    collect()
    assert len(cases) >= examples // 2
    compiled = compile_all({name: c.module for name, c in cases.items()})
    for name, c in cases.items():
        x = np.stack([c.x.numpy()] * 2)
        for have in compiled.run(name, {"x": x}, PAGES):
            if c.want is not None:
                check(c.text, have, c.want)


@pytest.mark.parametrize(
    "text",
    [
        "x.long()",
        "x.double()",
        "x.to(torch.int64)",
        "x.int().long() * 2654435761",
        "x.int().sum()",
        "x.int() + 3000000000",
        "x.int() ** x.int()",
        "x.int() ** -1",
        "page_count() * torch.tensor([2**31 - 1, 2])",
        "x.int() * torch.tensor([2**40])",
        "x.shape[0] * 1103515245",
    ],
)
def test_what_32_bits_may_not_hold_is_refused_with_what_works(text: str) -> None:
    with pytest.raises(VortexError, match=r"test_integers\.py|<string>") as caught:
        trace_function(lambda x: eval(text, ENV, {"x": x}) + x.int()[:, :1], ARGS)
    message = str(caught.value)
    assert caught.value.kind.code.startswith("VX1")
    assert "= help: " in message
