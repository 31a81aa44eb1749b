"""Learned constants of vortex_torch flows: by layer, in artifacts and as parameters that are given at load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import vortex
from tests.compat.test_flows import SPEC, c, data
from vortex.compat.vortex_torch import algorithms_mla
from vortex.compat.vortex_torch.learned import weights
from vortex.driver import compile_flow
from vortex.errors import VortexError
from vortex.flow import oracle
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace
from vortex.runtime.decoder import load
from vortex.runtime.safetensors import write_safetensors

FILE = Path(__file__).parent / "flows" / "learned.py"
LARGE = vortex.Spec(page_size=16, head_dim=64, group=8, dtype="f32")


def scores(name: str, spec: vortex.Spec, layer: int, **more: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    cls = find_flow(f"{FILE}:{name}")
    q, k, v = data(spec, 6, seed=layer)
    fields = oracle.summaries(cls, spec, k, v, layer)
    return oracle.score(cls, spec, q, fields, layer, **more), q, c(k)


def constant(name: str, of: str) -> torch.Tensor:
    return getattr(find_flow(f"{FILE}:{name}"), of).bfloat16().float()


@pytest.mark.parametrize(("layer", "row"), [(0, 0), (1, 2), (2, 1), (3, 2), (4, 2), (40, 2)])
def test_each_layer_has_its_own(layer: int, row: int) -> None:
    got, q, k = scores("by_layer", SPEC, layer)
    want = k @ (constant("by_layer", "W")[row] @ q.flatten())
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_one_for_all_layers() -> None:
    got, q, k = scores("for_all", SPEC, 5)
    torch.testing.assert_close(got, k @ (constant("for_all", "W") @ q.flatten()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("layer", "row"), [(0, 0), (1, None), (2, 1), (3, None), (30, None)])
def test_learned_queries(layer: int, row: int | None) -> None:
    got, q, k = scores("query", SPEC, layer)
    wq, wk = constant("query", "WQ"), constant("query", "WK")
    mixed = q.sum(0) if row is None else sum(wk[row, h] @ (wq[row, h].T @ q[h]) for h in range(4))
    torch.testing.assert_close(got, 0.5 * (k @ mixed), rtol=1e-4, atol=1e-4)
    got, q, k = scores("identity", SPEC, layer)
    torch.testing.assert_close(got, k @ q.sum(0), rtol=1e-4, atol=1e-4)


def test_what_is_too_large_is_given_at_load(tmp_path: Path) -> None:
    flow = f"{FILE}:large"
    assert [d.name for d in trace(find_flow(flow), LARGE).decls.values() if d.keyword == "param"] == ["w"]
    given = weights(find_flow(flow), LARGE, layers=30)
    assert given["w"].shape == (30, 64, 512)
    for layer in (3, 29):  # the oracle has the flow's own numbers, and takes others
        got, q, k = scores("large", LARGE, layer)
        want = k @ (constant("large", "W")[min(layer, 23)] @ q.flatten())
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(scores("large", LARGE, layer, parameters=given)[0], got)
        torch.testing.assert_close(scores("large", LARGE, layer, parameters={"w": -given["w"]})[0], -got)
    made = compile_flow(flow, spec=LARGE, out=tmp_path / "large.vxa")
    write_safetensors(tmp_path / "w.safetensors", given)
    assert made.artifact is not None
    assert load(made.artifact, parameters=tmp_path / "w.safetensors", budget=vortex.Budget(2))


def test_the_shipped_learned_flow_begins_as_the_sum_of_queries() -> None:
    spec = vortex.Spec.of_latent("512+64", heads=20, page_size=16, dtype="f32")
    q, k, _ = data(spec, 3, seed=1)
    cls = algorithms_mla.LearnedBlockSparseMLA
    got = oracle.score(cls, spec, q, oracle.summaries(cls, spec, k))
    torch.testing.assert_close(got, c(k) @ q.sum(0), rtol=1e-3, atol=1e-3)


CASES = {
    "shape": ("Parameter(torch.zeros(3))", "VX1080", "[N, K]"),
    "value": ("Parameter([1, 2])", "VX1080", "[N, K]"),
    "lookup": ("Parameter(torch.zeros(2, 3, 4), 'x')", "VX1080", "layer_lookup"),
    "weights": ("LearnedQuery(torch.zeros(2, 4, 16, 3), torch.zeros(2, 4, 16, 2))", "VX1080", "[L, H, d, r]"),
    "heads": ("LearnedQuery(torch.zeros(2, 5, 16, 3), torch.zeros(2, 5, 16, 3))", "VX1081", "as many heads"),
    "inner": ("Parameter(torch.zeros(4, 15))", "VX1081", "last sizes differ"),
}


@pytest.mark.parametrize("name", CASES)
def test_mistakes(name: str, tmp_path: Path) -> None:
    made, code, says = CASES[name]
    use = "self.learned(q, ctx=ctx)" if "Query" in made else "GeMM()(q, self.learned, ctx=ctx)"
    text = FILE.read_text().replace("self.learned = LearnedQuery()", f"self.learned = {made}")
    head, middle, tail = text.rpartition("self.learned(q, ctx=ctx)")
    (tmp_path / "theirs.py").write_text(head + use + tail if middle else text)
    with pytest.raises(VortexError) as e:
        trace(find_flow(f"{tmp_path / 'theirs.py'}:identity"), SPEC)
    assert e.value.code == code, e.value.render()
    assert says in e.value.render()
    assert e.value.loc is not None and e.value.loc.file.endswith("theirs.py")
