"""Answers, recall and mass of the rules of AMASS and LOCKS beside ours, as ``vortex eval`` measures them.

Summaries are made by their packages (``--wheels``: a folder with both), in torch, at the widths that they ship; LOCKS
scores by its torch twin too, AMASS, whose scores are kernels alone, by its formula over its own codes. The candidates,
what is kept beside them and everything else is as for our flows, which run as ever.

    PYTHONPATH=.:bench python bench/eval_mass_peers.py --wheels W --prompts 8 --out bench/results/mass_peers_rules.json

With ``--recorded`` dense attention answers, and rules are asked what they would have read: recall and mass, quickly.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
from baselines.mass_peers import PEERS, Peer, stated
from baselines.peer_packages import prebuilt, unpacked
from eval_library import device

from vortex.evaluate.flow_rules import Compiled, FlowRules
from vortex.evaluate.models import Model, load_model
from vortex.evaluate.outcomes import BASELINES, Lane, Outcome
from vortex.evaluate.prefill import PromptCache, default_folder
from vortex.evaluate.prompts import Prompt
from vortex.evaluate.readers import flow_names
from vortex.evaluate.rules import Baseline, Read, Rule, baseline
from vortex.evaluate.run import Evaluation
from vortex.evaluate.shared_pages import PAGE, SharedPages
from vortex.evaluate.tasks import DEFAULT, write_prompts
from vortex.evaluate.traces import capture, judge
from vortex.spec import Spec

RULES = ("locks", "amass_clse", "amass_quad")


class Summaries:
    """One peer in an evaluation; the summaries of a prompt's full pages, made by its own functions."""

    def __init__(self, peer: Peer, kv_heads: int, group: int, dim: int, layers: tuple[int, ...]) -> None:
        self.peer, self.kv_heads, self.group, self.dim = peer, kv_heads, group, dim
        self.at = {layer: i for i, layer in enumerate(layers)}
        self.state: Any = None

    def lane(self, budget: int) -> Rule:
        return Kept(self, budget)

    def begin(self, pages: SharedPages) -> None:
        package, heads = self.peer.package, self.kv_heads
        config_of = importlib.import_module(f"{package}.config")
        if package == "locks":
            config, kind, build = config_of.LocksConfig(budget_pages=1), "Rki4State", "rki4_build_bulk"
        else:
            config, kind, build = (
                config_of.AmassConfig(budget=0.1, score=self.peer.score),
                "QuadState",
                "quad_build_bulk",
            )
        selection = importlib.import_module(f"{package}.selection")
        where = pages.k[0].device
        self.state = getattr(selection, kind)(
            where, num_layers=len(self.at), num_blocks=pages.full, n_kv=heads, G=self.group, head_dim=self.dim,
            page=PAGE, max_reqs=1, max_pages=pages.full, sink_pages=1, window_pages=1,
            **stated(self.peer, config, pages.full),
        )  # fmt: skip
        self.table = torch.arange(pages.full, dtype=torch.int32, device=where)[None]
        self.tokens = torch.tensor([pages.full * PAGE], dtype=torch.int32, device=where)
        keys = [pages.shared(pages.k[layer]).unflatten(1, (-1, PAGE)).permute(1, 2, 0, 3) for layer in self.at]
        getattr(selection, build)(self.state, keys, self.table, self.tokens, 1, pages.full)
        self.state.n_sel_hi.fill_(pages.full)

    def masses(self, layer: int, q: torch.Tensor, scale: float) -> torch.Tensor:
        """The logarithm of each page's mass for ``q`` [Hkv, G, D], as estimated: [Hkv, G, pages]."""
        state, at = self.state, self.at[layer]
        if self.peer.package == "locks":
            score = importlib.import_module("locks.selection.rki4_score_torch").rki4_score_torch
            score(state, at, q.flatten(0, 1)[None], self.table, self.tokens, 1, scale)
            return state.score_h[0]
        q = q.float()
        mean = state.quad_mu[at].float() * state.mu_scale[at].float()[..., None]
        basis = nibbles(state.quad_V[at]) * state.V_scale[at].float()[..., None, :]  # [pages, Hkv, D, r]
        along = torch.einsum("hgd,phdr->hgpr", q, basis)
        mass = torch.einsum("hgd,phd->hgp", q, mean) * scale
        if self.peer.score == "quad":
            spread = torch.einsum("hgpr,phr->hgp", along**2, state.quad_sig2[at].float())
            return mass + spread * scale**2 / (2 * PAGE)
        coords = nibbles(state.quad_c[at]) * state.c_scale[at].float()[..., None]  # [pages, Hkv, page, r]
        tokens = torch.einsum("hgpr,phtr->hgpt", along, coords) * scale
        rest = ((q**2).sum(-1)[..., None] - (along**2).sum(-1)).clamp_min(0) * state.quad_resid[at].float().T[:, None]
        return mass + tokens.logsumexp(-1) + rest * scale**2 / (2 * PAGE * (self.dim - state.r))


def nibbles(codes: torch.Tensor) -> torch.Tensor:
    """Signed numbers of four bits from bytes that hold two, the lower one first, in fp32."""
    both = torch.stack([codes << 4, codes], -1).flatten(-2)
    return (both >> 4).float()


class Kept(Baseline):
    """One budget of a peer; heads are divided by their best page, then added. What was decoded in full pages since the
    prompt ended has no summary here and is kept: a page in 16 tokens, from the 33rd on.
    """

    def __init__(self, peer: Summaries, budget: int) -> None:
        super().__init__(budget)
        self.peer = peer

    def read(self, layer: int, q: torch.Tensor, mass: torch.Tensor | None, scale: float) -> Read:
        n = self._step.pages
        kept = torch.ones(q.shape[0], n, dtype=torch.bool, device=q.device)
        if n <= self.budget.total(n):
            return Read(kept)
        of_pages = self.peer.masses(layer, q, scale)
        last = min(n - self.budget.recent, of_pages.shape[-1])
        of_pages = of_pages[..., self.budget.sink : last]
        score = (of_pages - of_pages.amax(-1, keepdim=True)).exp().sum(1)
        kept[:, self.budget.sink : last] = False
        kept[:, self.budget.sink : last].scatter_(1, score.topk(self.budget.pages).indices, True)
        return Read(kept)


@dataclass
class WithPeers(Evaluation):
    """An evaluation that knows the peers' rules beside flows."""

    peers: dict[str, FlowRules] = field(default_factory=dict)

    def lanes(self) -> list[Lane]:
        rules = ["oracle", *self.flows]
        return [Lane("dense", 0), *(Lane(rule, k) for rule in rules for k in self.budgets)]

    def _identity(self, rule: str) -> str:
        return f"{rule} of {__file__}" if rule in self.peers else super()._identity(rule)

    def _flow(self, rule: str) -> FlowRules | None:
        return self.peers[rule] if rule in self.peers else super()._flow(rule)


def recorded(
    evaluation: WithPeers, model: Model, prompts: Sequence[Prompt], keep: Callable[[list[Outcome]], None]
) -> list[Outcome]:
    """What all lanes would have read while dense attention gave the right answers; ``keep`` gets what is there."""
    spec = Spec(page_size=PAGE, head_dim=model.head_dim, group=model.group, dtype="f32")
    layers, cpu = tuple(range(len(model.sparse_layers))), torch.device("cpu")
    ready: dict[str, FlowRules] = {
        name: evaluation.peers[name]
        if name in evaluation.peers
        else Compiled(text, spec, model.kv_heads, layers, cpu, None)
        for name, text in evaluation.flows.items()
    }
    lanes, found = evaluation.lanes(), []

    def rules(pages: SharedPages) -> list[Rule]:
        for one in ready.values():
            one.begin(pages)
        return [baseline(x.rule, x.budget, "") if x.rule in BASELINES else ready[x.rule].lane(x.budget) for x in lanes]

    for prompt in prompts:
        trace = capture(model, prompt, PromptCache(evaluation.folder or default_folder()))
        with torch.inference_mode():
            made, failures = judge(trace, lanes, rules, torch.float32)
        evaluation.result.failures.update(failures)
        found += made
        keep(found)
        print(prompt.task, prompt.length, prompt.index, flush=True)
    return found


def totals(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """Of each lane over all prompts, and prompts lost and won beside dense; of recorded steps no answers."""
    dense = {(o.task, o.length, o.index): o for o in outcomes if o.lane.rule == "dense"}
    found = []
    for lane in dict.fromkeys(o.lane for o in outcomes):
        mine = [(o, dense[o.task, o.length, o.index]) for o in outcomes if o.lane == lane]
        recalls = [o.recall for o, _ in mine if not math.isnan(o.recall)]
        row: dict[str, Any] = {
            "rule": lane.rule, "pages": lane.budget, "prompts": len(mine),
            "answers": sum(o.score for o, _ in mine) / len(mine),
            "lost": sum(o.score < d.score for o, d in mine), "won": sum(o.score > d.score for o, d in mine),
            "log_prob_to_dense": sum(o.logprob - d.logprob for o, d in mine) / len(mine),
            "recall": sum(recalls) / max(1, len(recalls)),
            "mass": sum(float(o.mass.mean()) for o, _ in mine) / len(mine),
            "worst_head": min(float(o.mass.min()) for o, _ in mine),
        }  # fmt: skip
        if math.isnan(row["answers"]):
            row = {n: x for n, x in row.items() if n not in ("answers", "lost", "won", "log_prob_to_dense")}
        found.append(row)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, required=True)
    parser.add_argument("--flows", nargs="+", default=["mass"])
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=RULES)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096])
    parser.add_argument("--budgets", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--prompts", type=int, default=4, help="of each task and length")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="every N-th prompt, from the I-th on")
    parser.add_argument("--recorded", action="store_true", help="judge what would have been read, without answers")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--commit", default="")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if importlib.util.find_spec("triton") is None:  # their packages import kernels that are not called here
        for name in ("triton", "triton.language", "triton.language.extra", "triton.language.extra.cuda"):
            sys.modules[name] = MagicMock()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        prebuilt(Path(folder))
        for package in {PEERS[name].package for name in args.rules}:
            unpacked(package, args.wheels, Path(folder))
        model = load_model(device=args.device)
        made = (model.kv_heads, model.group, model.head_dim, model.sparse_layers)
        prompts = write_prompts(DEFAULT, model.tokenizer, args.tokens, args.prompts, seed=0)
        first, step = map(int, args.shard.split("/"))
        flows = {name: text for text, name in flow_names(args.flows).items()}
        if args.recorded:
            made = (*made[:3], tuple(range(len(model.sparse_layers))))
        peers: dict[str, FlowRules] = {name: Summaries(PEERS[name], *made) for name in args.rules}
        evaluation = WithPeers(
            model,
            {**flows, **{n: n for n in peers}},
            args.budgets,
            folder=args.cache,
            seconds=args.seconds,
            peers=peers,
        )
        result = evaluation.result

        def keep(outcomes: list[Outcome]) -> None:
            found = {
                "device": device([args.device]), "date": time.strftime("%F %T"), "commit": args.commit,
                "command": " ".join(["python", *sys.argv]), "seconds": round(time.monotonic() - start, 1),
                "missing": result.missing, "totals": totals(outcomes),
            }  # fmt: skip
            args.out.write_text(json.dumps(found, indent=1) + "\n")

        if args.recorded:
            result.outcomes = recorded(evaluation, model, prompts[first::step], keep)
        else:
            result = evaluation.run(prompts[first::step], lambda done, note: print(done, note, flush=True))
        keep(result.outcomes)
    for what, error in result.failures.items():
        print(what, error.render())
    for row in totals(result.outcomes):
        print("  ".join(f"{n} {x:.3f}" if isinstance(x, float) else f"{n} {x}" for n, x in row.items()))
    return int(bool(result.failures))


if __name__ == "__main__":
    sys.exit(main())
