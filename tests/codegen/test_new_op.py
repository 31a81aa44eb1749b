"""An op that is declared here, with its evaluator and its emitter, goes all the way without another edit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vortex
from tests.batches import batch, oracle_selection, summarise
from tests.codegen.harness import compile_all
from tests.cuda.harness import H200, cuda_source, lower
from vortex.budget import Budget
from vortex.codegen import scalar
from vortex.codegen.emit import emit_kernel
from vortex.driver import compile_flow
from vortex.flow import optable
from vortex.flow.trace import trace, trace_function
from vortex.ir import core
from vortex.ir.dialects import flow
from vortex.ir.interpret import run_function
from vortex.ir.parser import parse_module
from vortex.ir.printer import print_module
from vortex.ir.types import S, TensorType, f32

SPEC = vortex.Spec(page_size=8, head_dim=32, group=2)


@pytest.fixture
def sinh() -> Iterator[None]:
    """``flow.sinh``, for the length of a test; then every table is as it was."""
    tables: list[dict[Any, Any]] = [core.OPS, scalar.EMITTERS, optable._TABLE, optable._BY_NAME]
    optable._load()
    before = [dict(t) for t in tables]

    @core.op("flow.sinh")
    class Sinh(flow.Unary):
        """Hyperbolic sine."""

        repeats = 2

        def evaluate(self, x: Any) -> Any:
            return np.sinh(x)

    @scalar.emitter("flow.sinh")
    def emit(o: Any, operands: list[Any]) -> Any:
        (x,) = operands
        return (scalar.T.exp(x) - scalar.T.exp(-x)) * scalar.f32(0.5)

    @optable.traces("sinh", to="flow.sinh")
    def trace_sinh(input: Any) -> Any:
        """Hyperbolic sine."""
        from vortex.flow.tensor import lift
        from vortex.flow.tracer import emit as append

        return append(Sinh, lift(input))

    yield
    for table, was in zip(tables, before, strict=True):
        table.clear()
        table.update(was)


class Steep(vortex.vFlow):
    """Ranks pages by the sum of hyperbolic sines of their dots."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"mean": vortex.Field(spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": page.k.mean(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk(torch.sinh(cache.mean @ q.T / 4).sum(-1))


@pytest.mark.usefixtures("sinh")
def test_an_op_of_ones_own_is_traced_interpreted_and_compiled() -> None:
    module = trace_function(torch.sinh, {"x": TensorType(f32, (S, 4))})
    assert "flow.sinh" in print_module(module)
    assert print_module(parse_module(print_module(module))) == print_module(module)
    x = torch.randn(2, 33, 4)
    want = torch.sinh(x)
    (got,) = run_function(module.functions["index"], [x[0].numpy()], module)
    torch.testing.assert_close(torch.from_numpy(got), want[0])
    found = compile_all({"own": module}).run("own", {"x": x.numpy()}, 33)
    for have, row in zip(found, want, strict=True):
        torch.testing.assert_close(torch.from_numpy(np.ascontiguousarray(have)).float(), row)


@pytest.mark.usefixtures("sinh")
def test_a_flow_with_it_runs_on_a_cpu_and_is_written_for_a_gpu(tmp_path: Path) -> None:
    module = trace(Steep(), SPEC)
    made = compile_flow(Steep(), spec=SPEC, out=tmp_path / "steep.vxa")
    assert made.artifact is not None
    b = batch(module, (8 * 40 + 3, 8 * 9, 5), budget=Budget(4), stored=True, seed=1)
    summarise(module, b)
    decoder = vortex.load(made.artifact, budget=Budget(4))
    k, v = (torch.from_numpy(b.paged[n]).bfloat16() for n in ("k", "v"))
    decoder.bind(0, k, v, {"mean": torch.from_numpy(b.paged["mean"]).bfloat16()})
    decoder.plan(torch.from_numpy(b.lengths), torch.from_numpy(b.page_table))
    q = torch.from_numpy(b.q).bfloat16()
    decoder.decode(0, q, out=torch.empty_like(q))
    assert decoder.pages is not None
    assert decoder.counts is not None
    for r in range(b.requests):
        for h in range(b.heads):
            have = decoder.pages[r, h, : int(decoder.counts[r, h])].tolist()
            assert have == oracle_selection(module, b, r, h)

    program = lower(module)
    text = cuda_source(emit_kernel(program, program.functions["select"], H200))
    assert text.count("expf(") >= 2


def test_it_is_gone_afterwards() -> None:
    assert "flow.sinh" not in core.OPS
    assert "flow.sinh" not in scalar.EMITTERS
    assert "sinh" not in optable.known_names()
