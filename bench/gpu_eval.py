"""Evaluation and the binding to transformers, on a device: compiled against eager, tokens against transformers' own.

    python3 bench/gpu_eval.py --device cuda --out $OUT/eval.json

* ``pages``: in each step, layer and KV head the compiled flow and the oracle are asked the same; a page that only one
  of them chose must be one that rounding explains (design 3, as ``vortex run`` judges it).
* ``answers``: each decodes by its own pages, and the texts are the same.
* ``tokens``: ``generate()`` with all pages kept gives the tokens of sdpa, 8 of 8 prompts.
* ``command``: what ``vortex eval`` says with both backends.

The exit code is 1 where one of them does not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import vortex.hf
from vortex.budget import Budget
from vortex.check.choices import differing
from vortex.check.verdict import numbers, rounded
from vortex.cli.main import main as vortex_command
from vortex.evaluate.decode import decode
from vortex.evaluate.flow_rules import Compiled, CompiledLane, Eager, EagerLane
from vortex.evaluate.lanes import Lanes
from vortex.evaluate.models import Model, load_model, model_folder
from vortex.evaluate.outcomes import Lane, Outcome
from vortex.evaluate.prefill import PromptCache
from vortex.evaluate.prompts import Prompt
from vortex.evaluate.readers import spec_of
from vortex.evaluate.rules import Read, Rule, Step
from vortex.evaluate.shared_pages import SharedPages
from vortex.evaluate.tasks import DEFAULT, find_task, write_prompts
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace
from vortex.ir.dialects.flow import cap_of
from vortex.ir.types import TensorType

QUESTIONS = {"niah_single": (300, 340, 400, 460), "keyvalue": (480, 500, 530, 560)}
"""Lengths of the prompts of ``tokens``: a batch of each task, padded on the left."""
CHUNK, NEW = 160, 16
"""Tokens of a chunk of them, and tokens that are generated; of ``answers``, too: wrong ones would go on."""


class Both:
    """A lane that decodes through the artifact and asks the oracle for the same pages, of a flow without state."""

    own_attention = True

    def __init__(self, text: str, compiled: Compiled, eager: Eager, budget: int) -> None:
        self.compiled, self.eager = CompiledLane(compiled, Budget(budget)), EagerLane(eager, Budget(budget))
        self.module = trace(find_flow(text), compiled.spec)
        self.rows = self.other = self.unexplained = 0
        """(Step, layer, head)s; those where other pages were chosen; pages of these that rounding does not explain."""

    def begin(self, pages: SharedPages, lane: int) -> None:
        self.compiled.begin(pages, lane)
        self.eager.begin(pages, lane)
        self.table = pages.page_table(torch.tensor([lane]))[0].tolist()

    def plan(self, step: Step) -> None:
        self.compiled.plan(step)
        self.eager.plan(step)
        self.step = step

    def read(self, layer: int, q: torch.Tensor, mass: torch.Tensor | None, scale: float) -> Read:
        made = self.compiled.read(layer, q, mass, scale)
        mine, right = made.pages.cpu(), self.eager.read(layer, q, mass, scale).pages.cpu()
        self.rows += len(mine)
        for head in (mine != right).any(-1).nonzero()[:, 0].tolist():
            self.other += 1
            self.unexplained += self._unexplained(layer, head, q[head], mine[head].nonzero()[:, 0].tolist())
        return made

    def _unexplained(self, layer: int, head: int, q: torch.Tensor, mine: list[int]) -> int:
        """Of the pages of a row, given the summaries that the kernels made."""
        flow, n, budget = self.compiled.flow, self.step.pages, self.eager.budget
        cap = cap_of(self.module)
        if not cap.scored(budget, n):
            return differing(mine, [], n, budget, cap)[0]
        at = cap.candidates(budget, n)
        first, last = at.start, at.stop
        types = {d.name: d.type.dtype for d in self.module.declared("field") if isinstance(d.type, TensorType)}
        table = self.table[first:last]
        fields = {name: numbers(x[table, head].cpu(), types[name]) for name, x in flow.fields[layer].items()}
        pools = self.eager.rows(layer, head, first, last)
        fields |= {name: x.float().numpy() for name, x in zip(flow.spec.pools, pools, strict=True)}
        left = budget.total(n) - budget.sink - budget.recent
        place = {"layer": layer, "head": head, "parameters": None, "state": {}, "budget": budget.row(layer, head)}
        parts, _ = rounded(self.module, q.float().cpu().numpy(), fields, slice(first, last), left, place)
        return differing(mine, parts, n, budget, cap)[0]


def compared(
    model: Model, prompts: Iterable[Prompt], flows: Mapping[str, str], budgets: Sequence[int], folder: Path
) -> list[dict[str, Any]]:
    """Of each prompt, flow and budget: how both backends chose and answered."""
    about = spec_of(model), model.kv_heads, model.sparse_layers, model.device, None
    compiled = {name: Compiled(text, *about) for name, text in flows.items()}
    eager = {name: Eager(text, *about) for name, text in flows.items()}
    lanes = [Lane(name, k) for name in flows for k in budgets]
    found = []
    for whole in prompts:
        prompt = replace(whole, new_tokens=min(whole.new_tokens, NEW))
        read = PromptCache(folder).read(model, prompt)
        new = 1 + max(len(prompt.answer), prompt.new_tokens)

        def decoded(make: Any, pages: SharedPages, prompt: Prompt = prompt) -> tuple[dict[Lane, Outcome], list[Any]]:
            rules: list[Rule] = [make(lane) for lane in lanes]
            reading = Lanes(pages, rules, model.sparse_layers)
            made = decode(model, prompt, lanes, reading)
            for lane, failure in reading.failed.items():
                raise RuntimeError(f"{lanes[lane]}, layer {failure.layer}: {failure.error or 'outputs are no numbers'}")
            return made, rules

        sides = []
        for both in (True, False):
            pages = SharedPages(read, len(lanes), new, device=model.device, dtype=model.dtype)
            with torch.inference_mode():
                for rules in (compiled, eager) if both else (eager,):
                    for flow in rules.values():  # type: ignore[attr-defined]
                        flow.begin(pages)
            sides.append(
                decoded(
                    lambda lane, both=both: (
                        Both(flows[lane.rule], compiled[lane.rule], eager[lane.rule], lane.budget)
                        if both
                        else eager[lane.rule].lane(lane.budget)
                    ),
                    pages,
                )
            )
        (mine, watched), (right, _) = sides
        for lane, rule in zip(lanes, watched, strict=True):
            a, b = mine[lane], right[lane]
            found.append(
                {
                    "task": prompt.task, "length": prompt.length, "index": prompt.index, "lane": str(lane),
                    "rows": rule.rows, "other_rows": rule.other, "unexplained_pages": rule.unexplained,
                    "answers": [a.text, b.text], "scores": [a.score, b.score], "logprobs": [a.logprob, b.logprob],
                    "recalls": [a.recall, b.recall], "pages": [a.pages, b.pages],
                }
            )  # fmt: skip
    return found


def wrong(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """What of :func:`compared` must not be."""
    found = []
    for row in rows:
        where = f"{row['task']} {row['length']}, prompt {row['index']}, {row['lane']}"
        if row["unexplained_pages"]:
            found.append(f"{where}: {row['unexplained_pages']} pages in {row['other_rows']} rows, not by rounding")
        if row["answers"][0] != row["answers"][1]:
            found.append(f"{where}: answers {row['answers']}")
    return found


def tokens(folder: Path, device: str, dtype: torch.dtype, flow: str = "quest") -> dict[str, Any]:
    """``generate()`` of 8 prompts through ``flow`` with all pages, and with one, beside sdpa."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    vortex.hf.register("all", flow=flow, budget=1000)
    vortex.hf.register("few", flow=flow, budget=1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    models = {
        name: AutoModelForCausalLM.from_pretrained(folder, attn_implementation=name, dtype=dtype).eval().to(device)
        for name in ("sdpa", "all", "few")
    }
    same = answered = differ = 0
    texts = []
    for task, lengths in QUESTIONS.items():
        prompts = [find_task(task).make(tokenizer, length, 1, seed=0)[0] for length in lengths]
        longest = max(len(p.tokens) for p in prompts)
        assert longest > CHUNK
        pad = [longest - len(p.tokens) for p in prompts]
        ids = torch.tensor([[0] * n + list(p.tokens) for n, p in zip(pad, prompts, strict=True)], device=device)
        mask = torch.tensor([[0] * n + [1] * (longest - n) for n in pad], device=device)
        given = {"input_ids": ids, "attention_mask": mask, "prefill_chunk_size": CHUNK, "pad_token_id": 0}
        made = {
            name: m.generate(**given, max_new_tokens=NEW, do_sample=False)[:, longest:].cpu()
            for name, m in models.items()
        }
        for row, prompt in enumerate(prompts):
            same += torch.equal(made["sdpa"][row], made["all"][row])
            differ += not torch.equal(made["sdpa"][row], made["few"][row])
            answered += prompt.scored(tokenizer.decode(made["all"][row])) == 1.0
            texts.append([tokenizer.decode(made[name][row], skip_special_tokens=True) for name in models])
    read = {name: vortex.hf.report(models[name]).pages_read for name in ("all", "few")}
    return {
        "flow": flow, "dtype": str(dtype), "prompts": len(texts), "same": same, "answered": answered,
        "others_with_one_page": differ, "pages_read": read, "texts": texts,
    }  # fmt: skip


def said_by_command(flows: Sequence[str], device: str, more: Sequence[str]) -> dict[str, Any]:
    """``vortex eval --json`` with each backend: exit code, failures, answers of each lane."""
    found = {}
    for backend in ("compiled", "eager"):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            code = vortex_command(["eval", *flows, "--device", device, "--backend", backend, *more, "--json"])
        result = json.loads(said.getvalue()) if said.getvalue() else {}
        lanes = {f"{x['rule']}@{x['budget']}": x["answers"] for x in result.get("lanes", [])}
        found[backend] = {"code": code, "failures": result.get("failures"), "answers": lanes}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--flows", nargs="+", default=["quest", "mass"], help="names or files, without state")
    parser.add_argument("--tokens", type=int, default=1024, help="of a prompt")
    parser.add_argument("--prompts", type=int, default=1, help="of each default task")
    parser.add_argument("--budgets", default="4,16")
    parser.add_argument("--cache", type=Path, default=Path("eval-cache"), help="of prompts and outcomes")
    parser.add_argument("--skip", nargs="*", default=[], choices=("pages", "tokens", "command"))
    parser.add_argument("--commit", default="")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    name = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    found: dict[str, Any] = {
        "device": name, "date": time.strftime("%F %T"), "commit": args.commit, "torch": torch.__version__,
        "command": " ".join(["python3", *sys.argv]), "wrong": [],
    }  # fmt: skip

    def keep(part: str, made: Any, odd: Sequence[str], began: float) -> None:
        found[part] = made
        found["wrong"] += odd
        took = time.monotonic() - began
        print(f"{part}: {'; '.join(odd) if odd else 'right'} ({took:.0f} s)", flush=True)
        args.out.write_text(json.dumps(found, indent=1) + "\n")

    if "tokens" not in args.skip:
        for dtype in (torch.float32,) if args.device == "cpu" else (torch.bfloat16, torch.float16):
            began = time.monotonic()
            made = tokens(model_folder("smollm2"), args.device, dtype)
            odd = [] if made["same"] == made["prompts"] else [f"{made['same']} of {made['prompts']} prompts in {dtype}"]
            keep(f"tokens {dtype}", made, odd, began)
    if "pages" not in args.skip:
        began = time.monotonic()
        model = load_model("smollm2", args.device)
        prompts = write_prompts(DEFAULT, model.tokenizer, [args.tokens], args.prompts, seed=0)
        flows = {find_flow(text).flow_name: text for text in args.flows}
        rows = compared(model, prompts, flows, [int(k) for k in args.budgets.split(",")], args.cache)
        keep("pages", rows, wrong(rows), began)
    if "command" not in args.skip:
        began = time.monotonic()
        more = ["--tokens", str(args.tokens), "--prompts", "1", "--budgets", args.budgets.split(",")[-1]]
        said = said_by_command(args.flows, args.device, [*more, "--cache", str(args.cache)])
        odd = [f"{b}: exit {x['code']}, {x['failures']}" for b, x in said.items() if x["code"]]
        odd += [] if said["compiled"]["answers"] == said["eager"]["answers"] else ["answers of the backends differ"]
        keep("command", said, odd, began)
    return int(bool(found["wrong"]))


if __name__ == "__main__":
    sys.exit(main())
