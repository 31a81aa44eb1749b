"""Floats that an exact and finite mind would cancel: TVM does, and so kernels must hide them from it."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.codegen.harness import compile_all
from vortex.ir.core import Module
from vortex.ir.interpret import run_function
from vortex.ir.parser import parse_module

X = np.array([[0.0, 1e-9, -3.5, 1e20], [np.inf, -np.inf, np.nan, 7.25]], np.float32)

EXPRESSIONS = {
    "x - x": "%y = flow.sub(%c, %c) : f32[S, 4]",
    "exp(x) - exp(x)": """%a = flow.exp(%c) : f32[S, 4]
    %b = flow.exp(%c) : f32[S, 4]
    %y = flow.sub(%a, %b) : f32[S, 4]""",
    "(x + 1) - x": "%a = flow.add(%c, %one) : f32[S, 4]\n    %y = flow.sub(%a, %c) : f32[S, 4]",
    "(x + 1) - 1": "%a = flow.add(%c, %one) : f32[S, 4]\n    %y = flow.sub(%a, %one) : f32[S, 4]",
    "x - (x + x)": "%a = flow.add(%c, %c) : f32[S, 4]\n    %y = flow.sub(%c, %a) : f32[S, 4]",
    "x * 0": "%y = flow.mul(%c, %zero) : f32[S, 4]",
    "0 * x": "%y = flow.mul(%zero, %c) : f32[S, 4]",
    "0 / x": "%y = flow.div(%zero, %c) : f32[S, 4]",
    "x / x": "%y = flow.div(%c, %c) : f32[S, 4]",
    "x / 0": "%y = flow.div(%c, %zero) : f32[S, 4]",
    "where(x > 1, x, 1) - x": """%big = flow.gt(%c, %one) : bool[S, 4]
    %a = flow.where(%big, %c, %one) : f32[S, 4]
    %y = flow.sub(%a, %c) : f32[S, 4]""",
}


def module(body: str) -> Module:
    return parse_module(f"""// vortex-ir 1 | stage flow
flow.module @cancelling {{page_size = 4, head_dim = 4, group = 2, dtype = "bf16"}} {{
  field @c : f32[4]

  func @cache(%k: bf16[4, 4], %v: bf16[4, 4]) {{
    %c = flow.reduce_max(%k) {{axes = [0]}} : f32[4]
    flow.return(%c) {{names = ["c"]}}
  }}

  func @index(%q: bf16[2, 4], %c: f32[S, 4]) {{
    %one = flow.constant() {{number = 1.0}} : f32[]
    %zero = flow.constant() {{number = 0.0}} : f32[]
    {body}
    flow.return(%y)
  }}
}}
""")


@pytest.fixture(scope="module")
def compiled() -> object:
    return compile_all({f"e{i}": module(body) for i, body in enumerate(EXPRESSIONS.values())})


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_nothing_cancels_that_torch_computes(name: str, compiled: object) -> None:
    m, q = module(EXPRESSIONS[name]), np.zeros((2, 4), np.float32)
    with np.errstate(all="ignore"):
        want = run_function(m.functions["index"], [q, X], m, pages=len(X))[0]
    inputs = {"q": np.stack([q, q]), "c": np.stack([X, X])}
    have = compiled.run(f"e{list(EXPRESSIONS).index(name)}", inputs, len(X))[0]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(np.asarray(have).reshape(X.shape), np.asarray(want).reshape(X.shape))


def test_no_literal_is_taken_the_bits_of() -> None:
    """TVM's CUDA C++ would take its address, which is an error there."""
    from vortex.codegen import scalar
    from vortex.codegen.tir import Analyzer, T, f32, is_nan, tirx, word_of

    x, one, picked = tirx.Var("x", "float32"), f32(1), T.Select(T.bool(True), f32(1), f32(2))
    made = [scalar.sub(x + one, one), scalar.sub(x + one, x + picked), scalar.mul(x, f32(0)), scalar.absolute(f32(-1))]
    made += [scalar.maximum(one, picked), scalar.minimum(one, f32(float("nan"))), word_of(T.int32(7))]
    for e in (*made, T.Select(is_nan(picked), x, one)):
        assert not re.search(r"reinterpret\(\"\w+\", T\.(float32|u?int32)\([^()]*\)\)", str(Analyzer().simplify(e))), e
