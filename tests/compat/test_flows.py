"""Flow files written for vortex_torch: each traced, run eagerly and compiled, against plain torch."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vortex
from tests.flow.test_flows import traced_scores
from tests.kernels.test_flows import BUDGETS, check_step
from vortex.compat.vortex_torch import algorithms, algorithms_mla
from vortex.compat.vortex_torch.names import CONTENTS
from vortex.driver import compile_flow
from vortex.flow import oracle
from vortex.flow.flow import find_flow
from vortex.runtime.decoder import load

Tensor = torch.Tensor
FLOWS = Path(__file__).parent / "flows"
RULES, GENERATIONS, COPIED = FLOWS / "rules.py", FLOWS / "generations.py", FLOWS / "copied_out.py"
SPEC = vortex.Spec(page_size=32, head_dim=16, group=4, dtype="f32")
ODD = vortex.Spec(page_size=16, head_dim=24, group=5)
MASK = -1e30


def c(k: Tensor) -> Tensor:
    return k.mean(1)


def dot(q: Tensor, k: Tensor) -> Tensor:
    return c(k) @ q.mean(0)


def quest(q: Tensor, k: Tensor, pick: Any = torch.maximum) -> Tensor:
    """Of each head, ``[S, G]``."""
    return pick(q[None] * k.amax(1)[:, None], q[None] * k.amin(1)[:, None]).sum(-1)


def w(v: Tensor) -> Tensor:
    return v.square().sum(1).sqrt()


def energy(v: Tensor) -> Tensor:
    return v.square().sum(-1).sqrt().mean(1)


def parts(k: Tensor, n: int) -> Tensor:
    """Runs of n tokens, ``[S, P / n, n, D]``."""
    return k.unflatten(1, (-1, n))


def smoothed(s: Tensor) -> Tensor:
    around = torch.nn.functional.pad(s, (1, 1))
    return 0.25 * around[:-2] + 0.5 * s + 0.25 * around[2:]


Formula = Callable[[Tensor, Tensor, Tensor], Tensor]
RULE: dict[str, Formula] = {
    "rule_2": lambda q, k, v: quest(q, k).amin(1),
    "rule_3": lambda q, k, v: quest(q, k, torch.minimum).amax(1),
    "rule_5": lambda q, k, v: torch.sigmoid(q.mean(0) * c(k)).sum(1),
    "rule_6": lambda q, k, v: energy(k),
    "rule_7": lambda q, k, v: dot(q, k) * torch.softmax(-dot(q, k), 0),
    "rule_9": lambda q, k, v: dot(q, k) * (parts(k, 8).amax(2) @ q.mean(0)).amax(1),
    "rule_10": lambda q, k, v: dot(q, k) * energy(v),
    "rule_11": lambda q, k, v: k.abs().mean(1) @ q.abs().mean(0),
    "rule_12": lambda q, k, v: dot(q, k) + 0.1 * torch.log(c(k).norm(dim=1) + 1e-6),
    "rule_14": lambda q, k, v: ((parts(k, 4).amax(2) - parts(k, 4).amin(2)) @ q.mean(0)).amax(1),
    "rule_15": lambda q, k, v: dot(q, k).relu() * dot(q, v).relu(),
    "rule_16": lambda q, k, v: (q.mean(0) * c(k) * w(v)).sum(1),
    "rule_17": lambda q, k, v: dot(q, k) + torch.where(w(v) @ q.mean(0) > (w(v) @ q.mean(0)).mean(), 0.0, MASK),
    "rule_18": lambda q, k, v: dot(q, k),
    "rule_19": lambda q, k, v: dot(q, k) * torch.sigmoid(0.02 * (w(v) @ q.mean(0))),
    "rule_20": lambda q, k, v: (c(k) @ q.T).amax(1) * (w(v) @ q.mean(0)),
    "rule_21": lambda q, k, v: smoothed(dot(q, k)),
}
Step = Callable[[dict[str, Any], Tensor, Tensor, Tensor], Tensor]


def velocity(kept: dict[str, Any], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    now, before = dot(q, k), kept.get("s", 0.0)
    kept["s"] = now
    return now - 0.5 * before


def variance(kept: dict[str, Any], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = dot(q, k)
    kept["x"], kept["x2"] = 0.7 * kept.get("x", 0.0) + 0.3 * s, 0.7 * kept.get("x2", 0.0) + 0.3 * s * s
    return s + 0.5 * (kept["x2"] - kept["x"] ** 2)


def query_average(kept: dict[str, Any], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    kept["q"] = 0.7 * kept.get("q", 0.0) + 0.3 * q.mean(0)
    return c(k) @ kept["q"]


def running_energy(kept: dict[str, Any], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    kept["e"] = 0.95 * kept.get("e", 0.0) + 0.05 * energy(v)
    return dot(q, k) * kept["e"]


def least_so_far(kept: dict[str, Any], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    kept["s"] = torch.minimum(kept.get("s", torch.tensor(1e6)), dot(q, k))
    return dot(q, k) - kept["s"]


def drifting(kept: dict[str, Any], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    now = kept.get("c", c(k))
    kept["c"] = 0.5 * now + 0.5 * q.mean(0)
    return now @ q.mean(0)


def running_score(kept: dict[str, Any], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    kept["s"] = 0.5 * kept.get("s", 0.0) + dot(q, k)
    return kept["s"]


def true_mass(kept: dict[str, Any], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    shares = torch.softmax(q @ k.flatten(0, 1).T * SPEC.head_dim**-0.5, -1).sum(0)
    return shares.unflatten(0, k.shape[:2]).amax(1)


def kept_rows(kept: dict[str, Any], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    kept["s"] = kept.get("s", 0.0) + (k @ q.sum(0)).amax(1)
    return kept["s"]


STATEFUL: dict[str, Step] = {
    "rule_1": velocity,
    "rule_4": variance,
    "rule_8": query_average,
    "rule_13": running_energy,
    "least_so_far": least_so_far,
    "drifting": drifting,
    "unfilled": running_score,
    "true_mass": true_mass,
    "kept_rows": kept_rows,
}
GENERATION: dict[str, Formula] = {
    "in-place": lambda q, k, v: torch.softmax(0.09 * (c(k) @ q.T), 0).amax(1),
    "torch_mean": lambda q, k, v: dot(q, k),
    "channels_even": lambda q, k, v: c(k)[:, [0, 1, 2, 3, 8, 9, 10, 11]] @ q.mean(0)[[0, 1, 2, 3, 8, 9, 10, 11]],
    "lazy": lambda q, k, v: k.square().sum(-1).amax(1),
}
SHIPPED: dict[str, Formula] = {
    "BlockSparseAttention": lambda q, k, v: dot(q, k),
    "GQABlockSparseAttention": lambda q, k, v: torch.softmax(0.09 * (c(k) @ q.T), 0).amax(1),
    "GQAQuestSparseAttention": lambda q, k, v: quest(q, k).amax(1),
    "MaskedQuestSparseAttention": lambda q, k, v: quest(q[:, 8:], k[..., 8:]).amax(1),
    "LServeSparseAttention": lambda q, k, v: torch.stack([quest(q, p) for p in parts(k, 16).unbind(1)]).amax((0, 2)),
    "LServeCentroidSparseAttention": lambda q, k, v: (parts(k, 16).mean(2) @ q.mean(0)).amax(1),
    "CenteredBlockSparseAttention": lambda q, k, v: dot(q, k) - dot(q, k).mean(),
    "VEnergyGatedCentroid": lambda q, k, v: dot(q, k) * energy(v),
    "NSASparseAttention": lambda q, k, v: dot(q, k),
    "FSASparseAttention": lambda q, k, v: dot(q, k),
    "FlashMoBASparseAttention": lambda q, k, v: dot(q, k),
}


def data(spec: vortex.Spec, pages: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    made = torch.Generator().manual_seed(seed)
    stored = oracle.TORCH[spec.dtype]
    q = torch.randn(spec.group, spec.head_dim, generator=made).to(stored)
    k, v = (torch.randn(pages, spec.page_size, spec.head_dim, generator=made).to(stored) for _ in "kv")
    return q, k, v


def agrees(cls: type[vortex.vFlow], formula: Formula, seed: int) -> None:
    """The flow's scores with the formula's, eagerly and through the IR; in bf16 the IR's with the eager ones."""
    for pages in (1, 33):
        q, k, v = data(SPEC, pages, seed + pages)
        eager = oracle.score(cls, SPEC, q, oracle.summaries(cls, SPEC, k, v))
        torch.testing.assert_close(eager, formula(q, k, v), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(traced_scores(cls, SPEC, q, k, v), eager.numpy(), rtol=2e-4, atol=2e-4)
    q, k, v = data(ODD, 5, seed)
    eager = oracle.score(cls, ODD, q, oracle.summaries(cls, ODD, k, v))
    np.testing.assert_allclose(traced_scores(cls, ODD, q, k, v), eager.numpy(), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", RULE)
def test_rules_compute_their_formulas(name: str) -> None:
    agrees(find_flow(f"{RULES}:{name}"), RULE[name], seed=int(name[5:]))


def follows(cls: type[vortex.vFlow], step: Step) -> None:
    """Three steps of the eager flow with those of the formula."""
    _, k, v = data(SPEC, 12, seed=3)
    tokens = [x.reshape(-1, 1, SPEC.head_dim) for x in (k, v)]
    state, kept = oracle.RequestState(cls, SPEC, 1), {}
    for i in range(3):
        q = data(SPEC, 1, seed=20 + i)[0]
        scores = oracle.step(cls, SPEC, q, *tokens, vortex.Budget(2), state=state).scores[0]
        torch.testing.assert_close(scores, step(kept, q, k[1:10], v[1:10]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", STATEFUL)
def test_rules_with_state_or_rows_follow_their_formulas(name: str) -> None:
    follows(find_flow(f"{RULES}:{name}"), STATEFUL[name])


def test_the_shipped_flow_with_state_follows_its_formula() -> None:
    follows(algorithms.RunningAvgBlockSparse, running_score)


def test_compiled_state_is_that_of_the_eager_flow(tmp_path: Path) -> None:
    from vortex.cli.main import main

    made = str(tmp_path / "state.vxa")
    compile_flow(f"{RULES}:drifting", spec=ODD, out=Path(made))
    assert main(["run", made, "--steps", "5", "--tokens", "30,400"]) == 0


@pytest.mark.parametrize("name", GENERATION)
def test_every_generation_is_read(name: str) -> None:
    agrees(find_flow(f"{GENERATIONS}:{name}"), GENERATION[name], seed=7)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_flows_compute_their_formulas(name: str) -> None:
    agrees(getattr(algorithms, name), SHIPPED[name], seed=11)


LATENT = vortex.Spec.of_latent("512+64", heads=3, page_size=32, dtype="f32")


def blend(a: float, b: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda q, k: a * (c(k)[:, :512] @ q.mean(0)[:512]) + b * (c(k)[:, 512:] @ q.mean(0)[512:])


SHIPPED_LATENT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "RopeAwareBlockSparseMLA": dot,
    "LServeCentroidMLA": lambda q, k: (parts(k, 16).mean(2) @ q.mean(0)).amax(1),
    "RopeUnawareBlockSparseMLA": blend(1, 0),
    "RopeUnawareLServeCentroidMLA": lambda q, k: (parts(k, 16).mean(2)[..., :512] @ q.mean(0)[:512]).amax(1),
    "RopeWeightedBlockSparseMLA_B10": blend(0.9, 0.1),
    "RopeWeightedBlockSparseMLA_B25": blend(0.75, 0.25),
    "RopeWeightedBlockSparseMLA_B50": blend(0.5, 0.5),
    "RopeWeightedBlockSparseMLA_B75": blend(0.25, 0.75),
    "RopeWeightedBlockSparseMLA_B90": blend(0.1, 0.9),
    "RopeWeightedBlockSparseMLA_B100": blend(0, 1),
    "QuestMLA": lambda q, k: quest(q.mean(0)[None], k)[:, 0],
}


@pytest.mark.parametrize("name", SHIPPED_LATENT)
def test_shipped_latent_flows_compute_their_formulas(name: str) -> None:
    cls = getattr(algorithms_mla, name)
    q, k, _ = data(LATENT, 5, seed=3)
    eager = oracle.score(cls, LATENT, q, oracle.summaries(cls, LATENT, k))
    torch.testing.assert_close(eager, SHIPPED_LATENT[name](q, k), rtol=1e-4, atol=1e-4)


def test_a_file_copied_out_of_the_package_is_read() -> None:
    spec = vortex.Spec.of_latent("24+8", heads=3, page_size=16, dtype="f32")
    q, k, _ = data(spec, 4, seed=5)
    q_mean = q.mean(0) * torch.tensor([0.75] * 24 + [0.25] * 8)
    want = {"rope_weighted": k.mean(1) @ q_mean, "derived": dot(q, k), "quest_mla": quest(q.mean(0)[None], k)[:, 0]}
    for name, scores in want.items():
        cls = find_flow(f"{COPIED}:{name}")
        eager = oracle.score(cls, spec, q, oracle.summaries(cls, spec, k))
        torch.testing.assert_close(eager, scores, rtol=1e-4, atol=1e-4)


def test_a_union_keeps_the_best_of_both() -> None:
    cls = find_flow(f"{RULES}:both_views")
    q, k, v = data(SPEC, 20, seed=6)
    tokens = [x.reshape(-1, 1, SPEC.head_dim) for x in (k, v)]
    done = oracle.step(cls, SPEC, q, *tokens, vortex.Budget(1, sink=1, recent=2))
    best = [(1 + dot(q, x[1:18]).argsort(descending=True)[:n]).tolist() for x, n in ((k, 3), (v, 2))]
    assert done.pages == [sorted({0, 18, 19, *best[0], *best[1]})]


def test_the_example_of_the_docs_is_read(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "compat.md").read_text()
    (tmp_path / "theirs.py").write_text("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)))
    agrees(find_flow(f"{tmp_path / 'theirs.py'}:best_head"), GENERATION["in-place"], seed=9)


def test_the_docs_have_every_operator() -> None:
    text = (Path(__file__).parents[2] / "docs" / "compat.md").read_text()
    for module in (CONTENTS["indexer"], CONTENTS["cache"], CONTENTS["abs"]):
        lacking = [n for n in module if f"`{n}" not in text and n not in ("Context", "get_ctx")]
        assert not lacking


def test_the_package_is_there_for_the_file_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    installed: Any = type(sys)("vortex_torch")
    monkeypatch.setitem(sys.modules, "vortex_torch", installed)
    cls = find_flow(f"{GENERATIONS}:torch_mean")
    assert sys.modules["vortex_torch"] is installed
    assert not [n for n in sys.modules if n.startswith("vortex_torch.")]
    q, k, v = data(SPEC, 3, seed=1)  # it imports nothing of the installed one later either
    torch.testing.assert_close(oracle.score(cls, SPEC, q, oracle.summaries(cls, SPEC, k, v)), dot(q, k))


def test_names_belong_to_their_files(tmp_path: Path) -> None:
    text = RULES.read_text()
    for name in ("a", "b"):
        (tmp_path / f"{name}.py").write_text(text.replace('"rule_2"', '"quest"'))
    first, second = (find_flow(f"{tmp_path / f'{n}.py'}:quest") for n in "ab")
    assert first is not second
    assert find_flow("quest") is not second  # the library's
    assert find_flow(f"{tmp_path / 'a.py'}:quest").__name__ == "MinOverHeads"


COMPILED = {"rule_17": RULES, "rule_21": RULES, "in-place": GENERATIONS}
"""Between them gates, statistics, a convolution and a softmax over the pages, test_all_compiled has the rest."""


def decodes(flow: str, spec: vortex.Spec, folder: Path, budgets: Sequence[vortex.Budget]) -> None:
    """The compiled flow's summaries, selections and outputs with the eager flow's."""
    made = compile_flow(flow, spec=spec, out=folder / "flow.vxa")
    assert made.artifact is not None
    decoder = load(made.artifact, budget=budgets[0], debug=True)
    for i, budget in enumerate(budgets):
        torch.manual_seed(i)
        check_step(flow, decoder, budget, ("HND", "NHD")[i % 2], integers=False)


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_flows_keep_the_pages_of_the_eager_ones(name: str, tmp_path: Path) -> None:
    decodes(f"{COMPILED[name]}:{name}", ODD, tmp_path, BUDGETS)


@pytest.mark.full
@pytest.mark.parametrize("name", [*RULE, *GENERATION])
def test_all_compiled(name: str, tmp_path: Path) -> None:
    file = RULES if name in RULE else GENERATIONS
    decodes(f"{file}:{name}", vortex.Spec(page_size=32, head_dim=64, group=4), tmp_path, BUDGETS[:2])
