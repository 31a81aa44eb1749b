"""The rules of examples/catalogue*.py: each against its formula, traced, and as kernels, all of them in one library."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import vortex
from tests.codegen.harness import Compiled, compile_all
from tests.flow.test_flows import traced_scores
from vortex.flow import oracle
from vortex.flow.files import at_home  # noqa: F401 - what find_flow loads files by
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace
from vortex.ir.core import Module
from vortex.ir.dialects import flow
from vortex.passes.manager import DEFAULT_PIPELINE, PassContext, run_pipeline
from vortex.targets.target import TARGETS

Tensor = torch.Tensor
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SPEC = vortex.Spec(page_size=16, head_dim=32, group=4, dtype="f32")
LATENT = vortex.Spec.of_latent("24+8", 5, page_size=16, dtype="f32")
RANK = 24
PIPELINE = ",".join(DEFAULT_PIPELINE.values())


def _parts(k: Tensor, n: int) -> Tensor:
    """[pages, parts of n tokens, n, D]"""
    return k.reshape(k.shape[0], -1, n, k.shape[-1])


def _bound(q: Tensor, k: Tensor, pick: Callable[..., Tensor] = torch.maximum) -> Tensor:
    """Quest's bound [pages, heads] from the definition: each feature's best product."""
    ends = torch.stack([k.amin(-2), k.amax(-2)])[..., None, :] * q
    return pick(ends[0], ends[1]).sum(-1)


def _w(v: Tensor) -> Tensor:
    return v.square().sum(1).sqrt()


KV: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "worst_head_quest": lambda q, k, v: _bound(q, k).amin(1),
    "anti_quest": lambda q, k, v: _bound(q, k, torch.minimum).amax(1),
    "saturated": lambda q, k, v: (1 / (1 + (-q.mean(0) * k.mean(1)).exp())).sum(1),
    "key_norm": lambda q, k, v: k.square().sum(-1).sqrt().mean(1),
    "bipolar": lambda q, k, v: (s := k.mean(1) @ q.mean(0)) * (-s).exp() / (-s).exp().sum(),
    "mean_times_part_max": lambda q, k, v: (k.mean(1) @ q.mean(0)) * (_parts(k, 8).amax(2) @ q.mean(0)).amax(1),
    "absolute": lambda q, k, v: k.abs().mean(1) @ q.abs().mean(0),
    "log_norm_bias": lambda q, k, v: k.mean(1) @ q.mean(0) + 0.1 * (k.mean(1).square().sum(1).sqrt() + 1e-6).log(),
    "query_spread": lambda q, k, v: ((_parts(k, 4).amax(2) - _parts(k, 4).amin(2)) @ q.mean(0)).amax(1),
    "key_and_value": lambda q, k, v: (k.mean(1) @ q.mean(0)).clamp(min=0) * (v.mean(1) @ q.mean(0)).clamp(min=0),
    "value_temperature": lambda q, k, v: torch.einsum("d,sd,sd->s", q.mean(0), k.mean(1), _w(v)),
    "value_gate": lambda q, k, v: k.mean(1) @ q.mean(0) + torch.where((g := _w(v) @ q.mean(0)) > g.mean(), 0.0, -1e30),
    "mini_centroids": lambda q, k, v: k.mean(1) @ q.mean(0),
    "sigmoid_value_gate": lambda q, k, v: (k.mean(1) @ q.mean(0)) / (1 + (-0.02 * (_w(v) @ q.mean(0))).exp()),
    "best_head_value": lambda q, k, v: (k.mean(1) @ q.T).amax(1) * (_w(v) @ q.mean(0)),
    "smoothed": lambda q, k, v: _smoothed(k.mean(1) @ q.mean(0)),
    "quest_times_values": lambda q, k, v: _bound(q, k).amax(1) * v.square().sum(-1).sqrt().mean(1),
    "dual_band": lambda q, k, v: (
        k.mean(1) @ q.mean(0) + (_parts(k, 8).mean(2) @ q.mean(0)).amax(1) + 0.1 * k.mean(1).square().sum(1).sqrt()
    ),
    "head_centroid_grid": lambda q, k, v: (_parts(k, 8).mean(2) @ q.T).amax((1, 2)),
    "cosine": lambda q, k, v: torch.nn.functional.normalize(k.mean(1), dim=1) @ q.mean(0),
    "query_channels": lambda q, k, v: k.mean(1) @ (m := q.mean(0)).where(m.abs() >= m.abs().sort().values[-4], 0.0),
    "channel_study": lambda q, k, v: k.mean(1)[:, :16] @ q.mean(0)[:16],
}
MLA: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rope_unaware": lambda q, x: _content(q, x),
    "lserve_centroid_mla": lambda q, x: x.mean(1) @ q.mean(0),
    "rope_unaware_lserve_centroid_mla": lambda q, x: _content(q, x),
    **{
        f"rope_weighted_b{b}": lambda q, x, b=b: (1 - b / 100) * _content(q, x) + b / 100 * _rope(q, x)
        for b in (10, 25, 50, 75, 90)
    },
    "rope_only": lambda q, x: _rope(q, x),
    "self_gated_rope": lambda q, x: _content(q, x) + 0.5 * (r := _rope(q, x)) / (1 + (-r).exp()),
    "low_frequency_rope": lambda q, x: x.mean(1)[:, 26:28] @ q.mean(0)[26:28] + x.mean(1)[:, 30:] @ q.mean(0)[30:],
    "sub_page_quest_mla": lambda q, x: _bound(q.mean(0)[None], _parts(x, 8))[..., 0].amax(1),
    "mean_quest_blend": lambda q, x: 0.5 * (x.mean(1) @ q.mean(0)) + 0.5 * _bound(q.mean(0)[None], x)[:, 0],
    "spiky_page_rescue": lambda q, x: (
        (m := x.mean(1) @ q.mean(0)) + 0.25 * (_bound(q.mean(0)[None], x)[:, 0] - m).clamp(min=0)
    ),
    "split_estimator": lambda q, x: _content(q, x) + _bound(q.mean(0)[None, RANK:], x[..., RANK:])[:, 0],
    "asymmetric": lambda q, x: _content(q, x) + (_parts(x[..., RANK:], 4).mean(2) @ q.mean(0)[RANK:]).amax(1),
    "mass_aware": lambda q, x: (
        x.mean(1) @ q.mean(0) + 0.5 * ((x - x.mean(1, keepdim=True)).square().mean(1) @ q.mean(0).square())
    ),
    "low_rank_centroid": lambda q, x: (x.mean(1)[:, ::2] + x.mean(1)[:, 1::2]) / 2 @ (q.mean(0)[::2] + q.mean(0)[1::2]),
}


def _content(q: Tensor, x: Tensor) -> Tensor:
    return x.mean(1)[:, :RANK] @ q.mean(0)[:RANK]


def _rope(q: Tensor, x: Tensor) -> Tensor:
    return x.mean(1)[:, RANK:] @ q.mean(0)[RANK:]


def _smoothed(s: Tensor) -> Tensor:
    before, after = torch.cat([s.new_zeros(1), s[:-1]]), torch.cat([s[1:], s.new_zeros(1)])
    return 0.25 * before + 0.5 * s + 0.25 * after


def rule(name: str) -> type[vortex.vFlow]:
    """A flow of the examples."""
    file = "catalogue.py" if name in KV else "catalogue_mla.py"
    return find_flow(f"{EXAMPLES / file}:{name}")


def numbers(name: str, pages: int, seed: int) -> tuple[vortex.Spec, Tensor, list[Tensor]]:
    """A row: the query, and the pages of each pool."""
    spec, made = (SPEC if name in KV else LATENT), torch.Generator().manual_seed(seed)
    shape = (pages, spec.page_size, spec.head_dim)
    pools = [torch.randn(shape, generator=made) for _ in spec.pools]
    return spec, torch.randn(spec.group, spec.head_dim, generator=made), pools


def formula(name: str, q: Tensor, pools: list[Tensor]) -> Tensor:
    """What the rule says."""
    return KV[name](q, *pools) if name in KV else MLA[name](q, *pools)


ALL = [*KV, *MLA]
CLOSE = {"rtol": 1e-3, "atol": 1e-3}


@pytest.mark.parametrize("name", ALL)
def test_a_rule_is_its_formula_eager_and_traced(name: str) -> None:
    for pages in (1, 2, 33):
        spec, q, pools = numbers(name, pages, pages)
        fields = oracle.summaries(rule(name), spec, *pools)
        want = formula(name, q, pools)
        torch.testing.assert_close(oracle.score(rule(name), spec, q, fields), want, **CLOSE)
        if name in KV:
            got = traced_scores(rule(name), spec, q, *pools)
            torch.testing.assert_close(torch.as_tensor(np.array(got)), want, **CLOSE)


@pytest.mark.parametrize("name", ALL)
def test_a_rule_becomes_kernels_for_a_gpu(name: str) -> None:
    """Four kernels, scheduled: the rule is scored and its pages chosen in one launch."""
    spec = vortex.Spec(page_size=16, head_dim=128, group=4) if name in KV else vortex.Spec.of_latent("512+64", 20)
    program = run_pipeline(trace(rule(name), spec), PIPELINE, PassContext(TARGETS["sm_90a"]))
    assert [f.attrs["kind"] for f in program.functions.values()] == ["plan", "append", "select", "attend"]


def scores_only(module: Module) -> Module:
    """The flow with its scores in place of its selection."""
    f = module.functions["index"]
    chosen = f.ops[-2]
    assert isinstance(chosen, flow.TopK)
    f.ops[-2:] = [flow.Return((chosen.score,))]
    return module


@cache
def compiled() -> Compiled:
    """Every rule's scores, in one library."""
    return compile_all({name: scores_only(trace(rule(name), numbers(name, 1, 0)[0])) for name in ALL})


@pytest.mark.xdist_group("catalogue")
@pytest.mark.parametrize("name", ALL)
def test_kernels_compute_the_rule(name: str) -> None:
    for pages in (0, 1, 2, 33):
        rows = [numbers(name, pages, seed) for seed in (1, 2)]
        fields = [oracle.summaries(rule(name), spec, *pools) for spec, _, pools in rows]
        inputs = {n: np.stack([f[n].numpy() for f in fields]) for n in fields[0]}
        inputs["q"] = np.stack([q.numpy() for _, q, _ in rows])
        for (_, q, pools), have in zip(rows, compiled().run(name, inputs, pages), strict=True):
            if pages:
                torch.testing.assert_close(torch.from_numpy(have.copy()), formula(name, q, pools), **CLOSE)
