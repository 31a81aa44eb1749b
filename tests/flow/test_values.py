"""Every listed function on extreme numbers, floats, integers and bools, alone and in chains, against torch itself."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.codegen.harness import compile_all
from vortex.errors import VortexError
from vortex.flow import optable
from vortex.flow.arithmetic import Fp32Arithmetic
from vortex.flow.optable import listing
from vortex.flow.trace import trace_function
from vortex.ir.core import Module
from vortex.ir.interpret import run_function
from vortex.ir.types import S, TensorType, f32

EXTREMES = [
    *(0.0, -0.0, 1e-45, 1e-38, -1e-38, 1e-8, 0.3, -0.3, 0.5, -0.5, 1.0, -1.0, 1.5, 2.5, -2.5, 7.0, -7.25, 20.5),
    *(88.7, -88.7, 104.0, -104.0, 1e4, -1e4, 2.0**24 + 1, 1e10, 3e38, -3e38, math.inf, -math.inf, math.nan),
]
FIRST = torch.tensor(EXTREMES).repeat_interleave(len(EXTREMES))
SECOND = torch.tensor(EXTREMES).repeat(len(EXTREMES))
X, Y = torch.stack([FIRST, SECOND], 1), torch.stack([SECOND, FIRST], 1)
"""[S, 2]: every pair, both ways round."""
TYPES = {"x": TensorType(f32, (S, 2)), "y": TensorType(f32, (S, 2))}
CALLS: dict[str, Callable[[Any], Callable[[Any, Any], Any]]] = {
    "x": lambda f: lambda x, y: f(x),
    "x, y": lambda f: lambda x, y: f(x, y),
    "x, -1": lambda f: lambda x, y: f(x, -1),
    "x, y, y": lambda f: lambda x, y: f(x, y, y),
    "x, y, x": lambda f: lambda x, y: f(x, y, x),
    "x, 2.0": lambda f: lambda x, y: f(x, 2.0),
    "x, y, 0.3": lambda f: lambda x, y: f(x, y, 0.3),
}


def _modest(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Where no step of a sum of products is near the ends of fp32."""
    sizes = torch.maximum(x.abs(), y.abs()).amax(-1, keepdim=True)
    return ((sizes < 1e15) & ((x.abs() > 1e-15) | (x == 0)) & ((y.abs() > 1e-15) | (y == 0))).expand(x.shape)


KNOWN: dict[str, tuple[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]] = {
    "addcmul": ("torch fuses the product with the sum", _modest),
    "lerp": ("torch fuses the product with the sum", _modest),
    "fmod": (
        "torch gives NaN in vectors where the quotient overflows, the remainder elsewhere; we the remainder",
        lambda x, y: ~((x / y).abs() > 1e6),
    ),
    "remainder": ("as fmod", lambda x, y: ~((x / y).abs() > 1e6)),
    "gelu": ("torch gives NaN for infinity and infinity for 3e38, we the number", lambda x, y: ~(x.abs() > 1e38)),
    "var": ("squares beyond fp32, which torch adds up in fp64", _modest),
    "std": ("squares beyond fp32, which torch adds up in fp64", _modest),
}
"""Where we differ from torch on purpose or in the last bits, and the numbers on which both must still agree."""


def _function(name: str) -> Callable[..., Any]:
    scope, _, last = name.rpartition(".")
    if scope == "torch.Tensor":
        return lambda x, *rest: getattr(x, last)(*rest)
    found: Any = F if scope == "F" else torch
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]


def _eager(fn: Callable[..., Any], x: torch.Tensor, y: torch.Tensor) -> Any:
    """torch's answer, or the error."""
    try:
        with Fp32Arithmetic(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return fn(x.clone(), y.clone())
    except Exception as error:  # whatever torch raises: it refuses
        return error


def _traced(fn: Callable[..., Any], x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor] | VortexError:
    try:
        module = trace_function(fn, TYPES)
    except VortexError as error:
        if not error.code.startswith("VX1"):
            raise
        return error
    got = run_function(module.functions["index"], [x.numpy(), y.numpy()], module, pages=len(x))
    return [torch.as_tensor(np.array(g)) for g in got]


def _agree(text: str, have: torch.Tensor, want: torch.Tensor, where: torch.Tensor | None = None) -> None:
    assert have.shape == want.shape, text
    assert have.dtype.is_floating_point == want.dtype.is_floating_point, (
        f"{text}: {have.dtype} is {want.dtype} in torch"
    )
    same = torch.isclose(have.double(), want.double(), rtol=2e-5, atol=1e-36, equal_nan=True)
    if where is not None and where.shape == same.shape:
        same |= ~where
    elif where is not None and where.shape[:1] == same.shape[:1]:
        same |= ~where.all(-1).reshape([-1] + [1] * (same.ndim - 1)).expand(same.shape)
    if not bool(same.all()):
        at = tuple((~same).nonzero()[0].tolist())
        raise AssertionError(f"{text} at {at}: {have[at]}, in torch {want[at]}")


@pytest.mark.parametrize("name", [row["name"] for row in listing()])
def test_a_function_of_extreme_numbers_is_torchs(name: str) -> None:
    known = KNOWN.get(name.rpartition(".")[2])
    for call, form in CALLS.items():
        fn = form(_function(name))
        want = _eager(fn, X, Y)
        if isinstance(want, Exception):
            continue
        got = _traced(fn, X, Y)
        if isinstance(got, VortexError):
            continue
        wanted = want if isinstance(want, tuple | list) else [want]
        for have, w in zip(got, wanted, strict=True):
            _agree(f"{name}({call})", have, torch.as_tensor(w), known[1](X, Y) if known is not None else None)


WHOLE = torch.tensor([[1.0, -2.0], [3.0, 0.0], [7.0, -7.0]]), torch.tensor([[2.0, 3.0], [-3.0, 1.0], [5.0, 2.0]])
CASTS: dict[str, Callable[[Any], Any]] = {"int": lambda x: x.int(), "bool": lambda x: x > 1}
LENIENT = {"broadcast_tensors", "diff", "hardtanh", "new_zeros", "new_ones"}
"""What torch refuses for the sake of values: a number among tensors, a negative order or size, bounds in disorder."""


@pytest.mark.parametrize("kind", CASTS)
@pytest.mark.parametrize("name", [row["name"] for row in listing()])
def test_a_function_of_integers_or_bools_is_torchs_or_refused_as_by_torch(name: str, kind: str) -> None:
    cast = CASTS[kind]
    for call, form in CALLS.items():
        function = form(_function(name))

        def fn(x: Any, y: Any, function: Any = function) -> Any:
            return function(cast(x), cast(y))

        want, got = _eager(fn, *WHOLE), _traced(fn, *WHOLE)
        if isinstance(got, VortexError):
            continue
        if isinstance(want, Exception):
            assert name.rpartition(".")[2] in LENIENT, f"{name}({call}) of {kind}: torch says {want}"
            continue
        for have, w in zip(got, want if isinstance(want, tuple | list) else [want], strict=True):
            _agree(f"{name}({call}) of {kind}", have, torch.as_tensor(w))


@pytest.mark.parametrize("every", [12, pytest.param(1, marks=pytest.mark.full)])
def test_kernels_of_extreme_numbers_are_torchs(every: int) -> None:
    """One library: the functions of one and two numbers, each handler once."""
    modules: dict[str, Module] = {}
    wanted: dict[str, tuple[str, torch.Tensor]] = {}
    seen: set[tuple[Any, str]] = set()
    for name in sorted(row["name"] for row in listing())[::every]:
        for call in ("x", "x, y", "x, -1"):
            handler = optable._BY_NAME[name.rpartition(".")[2]].handler
            fn = CALLS[call](_function(name))
            want = _eager(fn, X, Y)
            first = (handler, call) not in seen and isinstance(want, torch.Tensor)
            if not first or want.shape[:1] != X.shape[:1] or want.numel() == 0:
                continue
            try:
                module = trace_function(fn, TYPES)
            except VortexError:
                continue
            seen.add((handler, call))
            modules[f"f{len(modules)}"] = module
            wanted[f"f{len(modules) - 1}"] = f"{name}({call})", want
    compiled, wrong = compile_all(modules), []
    for key, (text, want) in wanted.items():
        known = KNOWN.get(text.partition("(")[0].rpartition(".")[2])
        for have in compiled.run(key, {"x": np.stack([X.numpy()] * 2), "y": np.stack([Y.numpy()] * 2)}, len(X)):
            found = torch.from_numpy(have.copy())
            found = found if want.dtype.is_floating_point or not found.dtype.is_floating_point else found.int()
            try:
                _agree(text, found, want, known[1](X, Y) if known is not None else None)
            except AssertionError as error:
                wrong.append(str(error).partition("\n")[0])
    assert not wrong


# chains ------------------------------------------------------------------------------------------

EXACT = ["(-{a})", "{a}.abs()", "{a}.floor()", "{a}.trunc()", "{a}.sign()", "{a}.round()", "{a}.relu()",
         "{a}.clamp(-2.0, 7.0)", "{a}.nan_to_num(3.0)", "{a}.isnan().float()", "{a}.flip(-1)", "{a}[..., [1, 0]]",
         "{a}.sort(-1).values", "{a}.sort(-1, descending=True).values", "{a}.argsort(-1).float()",
         "{a}.amax(-1, keepdim=True)", "{a}.argmax(-1, keepdim=True).float()", "{a}.median(-1, keepdim=True).values",
         "{a}.bfloat16().float()", "{a}.half().float()", "{a}.roll(3, 0)", "F.pad({a}, (0, 0, 2, 0), value=-1.0)[:-2]",
         "{a}.cummax(-1).values", "{a}.topk(1, -1).values", "({a} * 2)", "torch.bucketize({a}, EDGES).float()",
         "{a}.gather(1, {a}.argmin(-1, keepdim=True))", "{a}.int().float()", "({a} > 0).float()"]  # fmt: skip
PAIRS = [
    *("torch.maximum({a}, {b})", "torch.minimum({a}, {b})", "torch.fmax({a}, {b})", "({a} == {b}).float()"),
    *("torch.where({a} < {b}, {a}, {b})", "torch.where({a}.isnan(), {b}, {a})"),
    *("({a} + {b})", "({a} - {b})", "({a} * {b})", "torch.cat([{a}, {b}], -1)[..., :2]"),
]
EDGES = torch.tensor([-1.0, 0.0, 0.5, 7.0])


@st.composite
def chains(draw: Any, depth: int = 4) -> str:
    """Python text of a tensor computed by exact functions, so that torch and we agree to the last bit."""
    if depth == 0 or draw(st.integers(0, 7)) == 0:
        return str(draw(st.sampled_from(["x", "y", "W"])))
    a = draw(chains(depth - 1))
    if draw(st.integers(0, 2)):
        return str(draw(st.sampled_from(EXACT))).format(a=a)
    return str(draw(st.sampled_from(PAIRS))).format(a=a, b=draw(chains(depth - 1)))


@settings(
    max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True,
    phases=(Phase.generate,),
)  # fmt: skip
@given(chains(), st.integers(0, 99))
def test_chains_of_exact_functions_are_torchs_to_the_last_bit(text: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = (torch.from_numpy(rng.choice(np.array(EXTREMES, np.float32), (33, 2))) for _ in "xy")
    given = {"torch": torch, "F": F, "EDGES": EDGES, "W": torch.tensor([1.5, -0.0])}

    def fn(x: Any, y: Any) -> Any:
        return eval(text, given, {"x": x, "y": y}) + x * 0  # the texts are those above

    want, got = _eager(fn, x, y), _traced(fn, x, y)
    if isinstance(want, Exception) or isinstance(got, VortexError):
        assert isinstance(got, VortexError), (text, want)
        return
    assert torch.equal(got[0].nan_to_num(1.25), want.nan_to_num(1.25)), (text, got[0], want)
