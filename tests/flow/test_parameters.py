"""Parameters and the head in a flow: traced as the eager code says, and mistakes at their line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vortex
from tests.flow.evaluate import run
from tests.flow.everywhere import Everywhere
from tests.flow.test_flows import data
from vortex.artifact.manifest import ParameterEntry
from vortex.check.weights import random_parameters
from vortex.errors import VortexError
from vortex.flow import oracle
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace, trace_function
from vortex.ir.core import Module
from vortex.ir.dialects import flow
from vortex.ir.interpret import run_function
from vortex.ir.numerics import narrow
from vortex.ir.parser import parse_module
from vortex.ir.printer import print_module
from vortex.ir.types import TensorType

SPEC = vortex.Spec(page_size=16, head_dim=8, group=4)
PLACES = [(0, 0), (2, 3), (1, 2)]
"""Layers and heads."""


def entries(module: Module) -> list[ParameterEntry]:
    """The parameters of a module as an artifact lists them."""
    return [ParameterEntry.of(d) for d in module.declared("param")]


@pytest.mark.parametrize("name", ["everywhere", "learned_query", "mlp_scorer"])
@pytest.mark.parametrize("pages", [0, 1, 2, 33])
def test_traced_equals_eager(name: str, pages: int) -> None:
    cls = Everywhere if name == "everywhere" else find_flow(name)
    module = parse_module(print_module(trace(cls, SPEC)))
    weights = random_parameters(entries(module), 3, 6, seed=pages)
    numbers = {n: x.float().numpy() for n, x in weights.items()}
    q, k, v = data(SPEC, pages, seed=pages)
    end = module.functions["cache"].ops[-1]
    assert isinstance(end, flow.Return)
    for layer, head in PLACES:
        stored = oracle.summaries(cls, SPEC, k, v, layer, head, weights)
        want = oracle.score(cls, SPEC, q, stored, layer, 2, pages, head, weights)
        assert want.shape == (pages,)
        where: dict[str, Any] = {"layer": layer, "head": head, "parameters": weights}
        for p in range(pages):
            made = run(module, {"k": k[p], "v": v[p]}, 0, "cache", **where)
            for n, x in zip(end.names, made, strict=True):
                kind = module.decls[n].type
                assert isinstance(kind, TensorType)
                np.testing.assert_allclose(narrow(x, kind.dtype), stored[n][p].float().numpy(), rtol=1e-2, atol=1e-5)
        given = [q.float().numpy(), *(x.float().numpy() for x in stored.values())]
        (selected,) = run_function(
            module.functions["index"], given, module, layer=layer, first=2, head=head, parameters=numbers
        )
        np.testing.assert_allclose(selected.score, want.numpy(), rtol=1e-4, atol=1e-4)


def test_a_table_reads_as_zero_beyond_its_end() -> None:
    """Torch raises an error there, and so does the eager oracle; a kernel has no way to."""

    def f() -> Any:
        return torch.tensor([[1.0, 2.0], [3.0, 4.0]])[vortex.layer(), vortex.head() - 2]

    index = trace_function(f, {}).functions["index"]
    got = [
        [float(run_function(index, [], trace_function(f, {}), layer=a, head=h)[0]) for h in range(6)] for a in (0, 1, 2)
    ]
    assert got == [[1, 2, 1, 2, 0, 0], [3, 4, 3, 4, 0, 0], [0] * 6]


def test_library_flows_compute_their_formulas() -> None:
    q, k, _ = (x.float() for x in data(SPEC, 9))
    for name in ("learned_query", "mlp_scorer"):
        cls = find_flow(name)
        w = random_parameters(entries(trace(cls, SPEC)), 2, 3)
        f = {
            n: x[1, 2].float() if n in ("wq", "wk") and name == "learned_query" else x[1].float() for n, x in w.items()
        }
        c = k.mean(1).bfloat16().float()
        if name == "learned_query":
            want = c @ sum(f["wk"][h] @ (f["wq"][h].T @ q[h]) for h in range(4))
        else:
            want = torch.relu(c @ f["wk"] + q.mean(0) @ f["wq"] + f["b"]) @ f["w2"]
        got = oracle.score(cls, SPEC, q, {"centroid": k.mean(1).bfloat16()}, 1, head=2, parameters=w)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_a_parameter_of_another_place_is_noticed() -> None:
    """The same numbers are not read whatever layer and head are: a fault in either would show."""
    module = trace(Everywhere, SPEC)
    w = random_parameters(entries(module), 3, 6)
    q, k, v = data(SPEC, 5)
    fields = oracle.summaries(Everywhere, SPEC, k, v, 0, 0, w)
    scores = [oracle.score(Everywhere, SPEC, q, fields, *(at[0], 0, 5, at[1]), w) for at in ((0, 0), (0, 1), (1, 0))]
    assert not any(torch.allclose(scores[0], s) for s in scores[1:])


FLOW = """
import torch, vortex

@vortex.register("{name}")
class Bad(vortex.vFlow):
    {attribute}

    def create_cache(self, spec):
        {declare}
        return {{"c": vortex.Field(spec.head_dim)}}

    def forward_cache(self, page):
        return {{"c": page.k.mean(0)}}

    def forward_indexer(self, q, cache):
        {use}
        return vortex.topk(cache.c @ q.mean(0))
"""


@pytest.mark.parametrize(
    ("attribute", "declare", "use", "code", "line", "says"),
    [
        ("w = vortex.Parameter('two words', 3)", "pass", "pass", "VX1040", 6, "two words"),
        ("w = vortex.Parameter('w', (3, 0))", "pass", "pass", "VX1040", 6, "size 0"),
        ("w = vortex.Parameter('w', 3, 'int7')", "pass", "pass", "VX1040", 6, "int7"),
        ("w = vortex.Parameter('w', 3, per='page')", "pass", "pass", "VX1040", 6, "per='page'"),
        ("pass", "self.w = vortex.Parameter('c', 3)", "pass", "VX1040", 9, "a field is called so"),
        ("pass", "self.w = vortex.Parameter('plan', 3)", "pass", "VX1040", 9, "taken"),
        ("a = vortex.Parameter('w', 3)", "self.w = vortex.Parameter('w', 4)", "pass", "VX1040", 9, "two parameters"),
        ("pass", "pass", "vortex.Parameter('w', 3).here()", "VX1040", 16, "not declared"),
        ("w = vortex.Parameter('w', 3)", "pass", "self.w += 1", "VX1026", 16, "captures"),
        ("w = vortex.Parameter('w', (3, 3))", "pass", "q @ self.w", "VX1005", 16, ""),
        ("pass", "pass", "torch.zeros(3)[vortex.head() + cache.c.sum(-1).int()]", "VX1005", 16, "of an axis of 3"),
    ],
)
def test_mistakes(tmp_path: Path, attribute: str, declare: str, use: str, code: str, line: int, says: str) -> None:
    file = tmp_path / "bad.py"
    file.write_text(FLOW.format(name=tmp_path.name, attribute=attribute, declare=declare, use=use))
    with pytest.raises(VortexError) as e:
        trace(find_flow(str(file)), SPEC)
    assert e.value.code == code, e.value.render()
    assert e.value.loc is not None
    assert (e.value.loc.line, says in e.value.render()) == (line, True), e.value.render()


def test_an_eager_step_without_numbers_says_so() -> None:
    q, _, _ = data(SPEC, 3)
    with pytest.raises(VortexError, match="has no numbers here"):
        oracle.score(find_flow("learned_query"), SPEC, q, {"centroid": torch.zeros(3, 8)})
    w = random_parameters(entries(trace(find_flow("learned_query"), SPEC)), 1, 1)
    with pytest.raises(VortexError, match="layer and head"):
        oracle.score(find_flow("learned_query"), SPEC, q, {"centroid": torch.zeros(3, 8)}, head=1, parameters=w)
