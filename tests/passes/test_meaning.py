"""Every pass keeps the promise of its tag, on random flows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.strategies import arguments, flows
from vortex.ir.core import Function, Module
from vortex.ir.dialects import flow
from vortex.ir.interpret import run_function
from vortex.ir.parser import parse_module
from vortex.ir.printer import print_module
from vortex.ir.ranking import Ranked
from vortex.passes.manager import DEFAULT_PIPELINE, PassContext, run_pipeline

EXACT = ["canonicalize", "cse", "dce", "expand-softmax", "canonicalize,cse,expand-softmax,canonicalize,cse,dce"]
PAGES = st.sampled_from([0, 1, 2, 33])
SIMPLIFY = DEFAULT_PIPELINE["flow"].removesuffix(",outline")


def results(m: Module, pages: int, seed: int, **kind: bool) -> list[Any]:
    f = m.functions["index"]
    out = run_function(f, arguments(f, pages, seed, **kind), m, pages=pages, first=1)
    return [x.score if isinstance(x, Ranked) else x for x in out]


def bits(x: Any) -> bytes:
    """The value's bits, all NaNs alike."""
    x = np.asarray(x)
    return b"".join([str(x.shape).encode(), np.where(x != x, np.float32(np.nan), x).astype(x.dtype).tobytes()])


@pytest.mark.parametrize("passes", EXACT)
@given(text=flows(), pages=PAGES, seed=st.integers(0, 99), specials=st.booleans())
@settings(max_examples=60, deadline=None)
def test_exact_passes_keep_every_bit(passes: str, text: str, pages: int, seed: int, specials: bool) -> None:
    m = parse_module(text)
    after = run_pipeline(m, passes, PassContext())
    for a, b in zip(
        results(m, pages, seed, specials=specials), results(after, pages, seed, specials=specials), strict=True
    ):
        assert a.dtype == b.dtype
        assert bits(a) == bits(b)


def largest(m: Module, f: Function, args: list[Any]) -> float:
    """The largest magnitude on the way to the results."""
    every = Function("func", f.name, f.args, [*f.ops[:-1], flow.Return(tuple(f.values()))])
    found = run_function(every, args, m, first=1)
    arrays = [np.abs(np.asarray(x, np.float64)) for x in found if not isinstance(x, Ranked)]
    return max(float(x.max(initial=0)) for x in arrays)


@given(text=flows(polynomial=True, ranked=False), pages=PAGES, seed=st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_reassociate_is_equal_on_small_integers(text: str, pages: int, seed: int) -> None:
    """Sums, products and means over powers of two of small integers have no rounding, in any order."""
    m = parse_module(text)
    f = m.functions["index"]
    assume(largest(m, f, arguments(f, pages, seed, integers=True)) < 2**14)
    after = run_pipeline(m, "reassociate", PassContext())
    for a, b in zip(results(m, pages, seed, integers=True), results(after, pages, seed, integers=True), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@given(text=flows(polynomial=True, ranked=False, steps=5), pages=PAGES, seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_reassociate_is_close_on_real_numbers(text: str, pages: int, seed: int) -> None:
    m = parse_module(text)
    f = m.functions["index"]
    args = arguments(f, pages, seed)
    scale = max(1.0, largest(m, f, [np.abs(a) for a in args]))
    after = run_pipeline(m, "reassociate", PassContext())
    for a, b in zip(results(m, pages, seed), results(after, pages, seed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale)


@st.composite
def increasing(draw: Any) -> str:
    """A flow whose score is a chain of increasing maps, and some others, of a small integer."""
    lines = ["%x0 = flow.reduce_sum(%c0) {axes = [1]} : f32[S]"]
    maps = ["centre", "exp", "sigmoid", "tanh", "softmax", "double", "shift", "relu", "max", "share", "square"]
    for i, name in enumerate(draw(st.lists(st.sampled_from(maps), max_size=4)), 1):
        x, y = f"%x{i - 1}", f"%x{i}"
        lines += {
            "centre": [f"%m{i} = flow.reduce_mean({x}) {{axes = [0]}} : f32[]", f"{y} = flow.sub({x}, %m{i}) : f32[S]"],
            "double": [f"%k{i} = flow.constant() {{number = 2.0}} : f32[]", f"{y} = flow.mul(%k{i}, {x}) : f32[S]"],
            "shift": [f"%r{i} = flow.reduce_max(%q) {{axes = [0, 1]}} : f32[]", f"{y} = flow.add(%r{i}, {x}) : f32[S]"],
            "relu": [f"%z{i} = flow.constant() {{number = 0.0}} : f32[]", f"{y} = flow.maximum(%z{i}, {x}) : f32[S]"],
            "max": [f"%a{i} = flow.reduce_max({x}) {{axes = [0]}} : f32[]", f"{y} = flow.minimum(%a{i}, {x}) : f32[S]"],
            "share": [
                f"%e{i} = flow.exp({x}) : f32[S]",
                f"%t{i} = flow.reduce_sum(%e{i}) {{axes = [0]}} : f32[]",
                f"{y} = flow.div(%e{i}, %t{i}) : f32[S]",
            ],
            "square": [f"{y} = flow.mul({x}, {x}) : f32[S]"],
            "softmax": [f"{y} = flow.softmax({x}) {{axis = 0}} : f32[S]"],
        }.get(name, [f"{y} = flow.{name}({x}) : f32[S]"])
        last = i
    body = "\n".join([*lines, f"%p = flow.topk(%x{last if len(lines) > 1 else 0}) : selection", "flow.return(%p)"])
    return f"flow.module @m {{\nfunc @index(%q: bf16[2, 4], %c0: f32[S, 4]) {{\n{body}\n}}\n}}\n"


@given(text=increasing(), pages=PAGES, seed=st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_drop_monotone_never_swaps_two_pages(text: str, pages: int, seed: int) -> None:
    """A page above another stays above it; what the map rounded to a tie may come apart."""
    m = parse_module(text)
    after = run_pipeline(m, "drop-monotone,dce", PassContext())
    (a,), (b,) = results(m, pages, seed, integers=True), results(after, pages, seed, integers=True)
    assume(np.isfinite(a).all())
    above = a[:, None] > a[None]
    assert (b[:, None] > b[None])[above].all()


@given(text=flows())
@settings(max_examples=50, deadline=None)
def test_the_way_down_is_deterministic_and_settles(text: str) -> None:
    m = parse_module(text)
    once = print_module(run_pipeline(m, SIMPLIFY, PassContext()))
    assert print_module(run_pipeline(m, SIMPLIFY, PassContext())) == once
    assert print_module(m) == text
    again = print_module(run_pipeline(parse_module(once), "canonicalize,cse,dce", PassContext()))
    assert print_module(run_pipeline(parse_module(again), "canonicalize,cse,dce", PassContext())) == again
