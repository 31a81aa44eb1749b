"""What one call of a flow becomes keeps the call's name, where it is several ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from vortex.flow.trace import trace_function
from vortex.ir.core import Module
from vortex.ir.dialects import flow
from vortex.ir.digest import structural
from vortex.ir.parser import parse_module
from vortex.ir.printer import print_module
from vortex.ir.types import S, TensorType, f32
from vortex.passes.manager import PassContext, parse_pipeline, run_pipeline


def traced(fn: Callable[..., Any]) -> Module:
    return trace_function(fn, {"x": TensorType(f32, (S, 4)), "y": TensorType(f32, (S, 4))})


def calls(module: Module) -> list[str]:
    """The calls of ops in order, each once for neighbours; those of constants left out, which calls share."""
    found: list[str] = []
    for o in module.functions["index"].ops:
        call = o.loc.call if o.loc is not None else ""
        if o.role != "leaf" and (not found or found[-1] != call):
            found.append(call)
    return found


def test_two_calls_of_a_name_are_told_apart() -> None:
    module = traced(lambda x, y: x.logsumexp(1) + torch.logsumexp(y, 1) * x.amax(1))
    assert calls(module) == ["logsumexp", "logsumexp.2", ""]


@pytest.mark.parametrize(
    ("fn", "name"),
    [
        (lambda x, y: torch.nn.functional.cosine_similarity(x, y, dim=1), "cosine_similarity"),
        (lambda x, y: x.var(1), "var"),
        (lambda x, y: x.std(1), "std"),
        (lambda x, y: torch.linalg.vector_norm(x, dim=1), "vector_norm"),
        (lambda x, y: torch.nn.functional.layer_norm(x, (4,)), "layer_norm"),
    ],
)
def test_composed_functions_keep_their_name(fn: Callable[..., Any], name: str) -> None:
    assert calls(traced(fn))[0] == name


def test_what_is_one_op_needs_no_name() -> None:
    assert calls(traced(lambda x, y: (x * 2.0).sum(1) + y.softmax(1).amax(1))) == [""]


def test_softmax_is_spelled_out_under_its_name() -> None:
    module = traced(lambda x, y: x.softmax(0).amax(1))
    made = run_pipeline(module, parse_pipeline("expand-softmax"), PassContext(None))
    assert calls(made) == ["softmax", ""]


def test_names_of_calls_are_read_back_and_mean_nothing() -> None:
    module = traced(lambda x, y: x.logsumexp(1))
    text = print_module(module)
    again = parse_module(text)
    assert text.count(" in logsumexp\n") > 5 and print_module(again) == text
    without = parse_module(text.replace(" in logsumexp", ""))
    assert structural(without) == structural(module) and calls(without) == [""]
    assert any(isinstance(o, flow.Exp) for o in again.functions["index"].ops)
