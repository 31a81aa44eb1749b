"""Is a flow any good: how many of a real model's answers it keeps, beside dense, oracle, random and recent pages.

The model reads each prompt once, densely; then every rule, with every budget, decodes the answer from the pages that it
chooses itself. Prompts and outcomes are kept on disk, so that an interrupted run goes on where it stopped and the next
flow needs neither prompts nor baselines. Nothing is downloaded. The exit code is 1 when a flow failed or the time limit
left something out.

examples:
  vortex eval mass
  vortex eval quest my_flow.py:mine --tokens 4096,8192 --prompts 16 -o report.html
  vortex eval my_flow.py --tasks niah_multikey,vt --budgets 8 --verdict
  vortex eval quest --backend eager --time-limit 5m --json
  vortex eval quest mass --trace steps.safetensors
  vortex eval quest --budgets 16 --trace-pages trace.jsonl
  vortex eval quest --target sm_100a --cost-batch 8 --cost-tokens 131072
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vortex.cli.numbers import bounded, integers, seconds
from vortex.cli.show import check_out, emit_json, progress, say, written_first
from vortex.errors import BAD_OPTION, VortexError, counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from vortex.evaluate.cost import Workload
    from vortex.evaluate.models import Model
    from vortex.evaluate.outcomes import Outcome
    from vortex.evaluate.page_trace import PageTrace
    from vortex.evaluate.prompts import Prompt
    from vortex.evaluate.run import Evaluation
    from vortex.evaluate.statistics import Summary

INCOMPLETE = 1
TOKENS, BUDGETS, PROMPTS = "4096", "4,16,64", 4
COST_BATCH, COST_TOKENS = 32, 32768


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("flows", metavar="FLOW", nargs="+", help="name, file.py or file.py:name")
    parser.add_argument(
        "--model", metavar="NAME", default="smollm2", help="smollm2, a folder, or a name in the cache of Hugging Face"
    )
    parser.add_argument(
        "--tasks",
        metavar="T,T",
        help="by name, ours or RULER's; docs/eval_tasks.md lists them (default: niah_single,keyvalue)",
    )
    parser.add_argument("--tokens", metavar="N,N", default=TOKENS, help=f"of a prompt (default: {TOKENS})")
    parser.add_argument(
        "--budgets", metavar="K,K", default=BUDGETS, help=f"candidate pages that are kept beside 3 (default: {BUDGETS})"
    )
    parser.add_argument(
        "--prompts", metavar="N", type=int, default=PROMPTS, help=f"of each task and length (default: {PROMPTS})"
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of prompts and of random pages (default: 0)")
    add_backend(parser)
    parser.add_argument("--time-limit", metavar="TIME", help="after which nothing more is begun, e.g. 90s, 10m")
    parser.add_argument("--cache", metavar="DIR", type=Path, help="of prompts and outcomes (default: the user's)")
    parser.add_argument("--trace", metavar="FILE", type=Path, help="judge by recorded steps, without a model")
    parser.add_argument(
        "--trace-pages", metavar="FILE", type=Path, help="of one flow and budget: also record the pages read"
    )
    parser.add_argument("--target", metavar="NAME", default="sm_90a", help="GPU that costs are for (default: sm_90a)")
    for name, default, what in (("batch", COST_BATCH, "requests"), ("tokens", COST_TOKENS, "tokens of each request")):
        parser.add_argument(
            f"--cost-{name}",
            metavar="N",
            type=int,
            default=default,
            help=f"{what} that costs are for (default: {default})",
        )
    parser.add_argument("-o", dest="out", metavar="FILE", type=Path, help="also write a report, .html")
    parser.add_argument("--json", action="store_true", help="print JSON; docs/eval.md has the schema")
    parser.add_argument("--verdict", action="store_true", help="print one line of JSON for each flow and budget")


def run(args: argparse.Namespace) -> int:
    """Evaluate; 1 when something is missing."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    budgets, tokens = (sorted(set(integers(f"--{o}", getattr(args, o), "e.g. 4,16,64"))) for o in ("budgets", "tokens"))
    for option in ("prompts", "cost_batch", "cost_tokens"):
        bounded(args, option, 1)
    check_out(args.out)
    if args.json and args.verdict:
        raise BAD_OPTION.at(option="--verdict", why="contradicts --json", hint="give one of them")
    _check_trace_pages(args, budgets)
    at = _workload(args)
    limit = math.inf if args.time_limit is None else seconds("--time-limit", args.time_limit, none=True)
    until = time.monotonic() + limit
    weights = model_weights(args.parameters)
    from vortex.evaluate.readers import flow_names
    from vortex.evaluate.run import Evaluation

    flows = {name: text for text, name in flow_names(args.flows).items()}
    if args.trace is not None:
        return _traced(args, flows, budgets, weights, at)
    names = _tasks(args.tasks)
    from vortex.evaluate.models import load_model

    with progress(f"loading {args.model}", 1):
        model = load_model(args.model, args.device)
    at = _at_latent_rows(at) if model.kv_lora_rank else at
    evaluation = Evaluation(
        model, flows, budgets, args.backend, args.seed, parameters=weights, folder=args.cache, seconds=limit
    )
    untraced, too_long = evaluation.untraced(), _too_long(model, names, tokens)
    nothing = len(untraced) == len(flows)  # baselines alone tell nothing of a flow
    fitting = [] if nothing else [n for n in tokens if n <= model.context]
    for what, error in {**untraced, **too_long}.items() if fitting else ():
        say(f"{what} is left out: {error.message}")
    if args.trace_pages is not None and not fitting:
        say(f"{args.trace_pages} was not written: no flow was run")
    trace = _page_trace(args, model, flows, budgets, weights) if fitting else None
    prompts = _prompts(model, names, fitting, args.prompts, args.seed) if fitting else []
    _say_size(evaluation, prompts)
    sizes = f"{counted(len(prompts), 'prompt')}, {counted(len(evaluation.lanes()), 'lane')}"
    with progress(sizes, len(prompts)) if prompts else nullcontext(lambda done, note: None) as advance:
        result = evaluation.run(prompts, advance)
    result.failures |= too_long
    if result.missing:
        say(f"the time limit left out {result.missing} outcomes; the same command goes on where it stopped")
    summary = _summary(args, result.outcomes, result.failures, flows, budgets, model, model.sparse_layers, at)
    code = max(_show(args, summary, result.failures), INCOMPLETE if result.missing else 0)
    if trace is not None:
        answered = [p for p in prompts if f"{p.task} {p.length}" not in result.failures]
        code = max(code, _record_pages(args, trace, answered, until))
    return code


def _check_trace_pages(args: argparse.Namespace, budgets: Sequence[int]) -> None:
    """VX7001 where there is no one lane to record, or no model."""
    if args.trace_pages is None:
        return
    if args.trace is not None:
        why = "needs a model, and --trace judges without one"
        raise BAD_OPTION.at(option="--trace-pages", why=why, hint="give one of them")
    if len(args.flows) > 1 or len(budgets) > 1:
        why = f"records one flow at one budget, not {len(args.flows)} at {len(budgets)}"
        raise BAD_OPTION.at(option="--trace-pages", why=why, hint="name one FLOW, and one budget: --budgets 16")


def _page_trace(
    args: argparse.Namespace,
    model: Model,
    flows: Mapping[str, str],
    budgets: Sequence[int],
    weights: Mapping[str, torch.Tensor] | None,
) -> PageTrace | None:
    """What records the pages, where that is asked for: its file is there before an hour of evaluation begins."""
    if args.trace_pages is None:
        return None
    from vortex.evaluate.outcomes import Lane
    from vortex.evaluate.page_trace import PageTrace

    ((rule, flow),) = flows.items()
    return PageTrace(args.trace_pages, model, Lane(rule, budgets[0]), flow, args.backend, weights)


def _record_pages(args: argparse.Namespace, trace: PageTrace, prompts: Sequence[Prompt], until: float) -> int:
    """Record prompts, none that would begin after ``until`` of the monotonic clock; 1 where some are left out."""
    from vortex.evaluate.prefill import PromptCache, default_folder

    cache = PromptCache(args.cache or default_folder())
    with progress(f"recording pages of {len(prompts)} prompts", len(prompts)) as advance:
        for done, prompt in enumerate(prompts):
            if time.monotonic() > until:
                say(f"the time limit left out {len(prompts) - done} of {len(prompts)} prompts: {args.trace_pages}")
                return INCOMPLETE
            advance(done, f"{prompt.task} {prompt.length}, prompt {prompt.index}")
            trace.add(prompt, cache)
    say(f"wrote {args.trace_pages}; read it with: vortex trace {args.trace_pages}")
    return 0


def _workload(args: argparse.Namespace) -> Workload:
    """Where costs are told; VX7001 for a target that is no GPU."""
    from vortex.evaluate.cost import Workload

    return Workload(batch=args.cost_batch, tokens=args.cost_tokens, target=args.target)


def add_backend(parser: argparse.ArgumentParser) -> None:
    """Declare where a model decodes, and how its flows run."""
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where model and kernels run (default: cpu)"
    )
    parser.add_argument(
        "--backend",
        choices=("compiled", "eager"),
        default="compiled",
        help="kernels, or the flow's own torch code (default: compiled)",
    )
    parser.add_argument("--parameters", metavar="FILE", help="weights of flows that have some, safetensors")


def model_weights(file: str | None) -> Mapping[str, torch.Tensor] | None:
    """The weights of flows in a file of safetensors; VX7002, VX6020."""
    if file is None:
        return None
    from vortex.runtime.safetensors import read_safetensors

    return read_safetensors(file)


def _tasks(text: str | None) -> list[str]:
    """Names of tasks; VX7003 for one that there is not."""
    from vortex.evaluate.tasks import DEFAULT, find_task

    return [find_task(t.strip()).name for t in (text.split(",") if text else DEFAULT)]


def _prompts(model: Model, tasks: Sequence[str], tokens: Sequence[int], count: int, seed: int) -> list[Prompt]:
    from vortex.evaluate.tasks import write_prompts

    with progress("writing prompts", len(tasks) * len(tokens)):
        return write_prompts(tasks, model.tokenizer, tokens, count, seed)


def _too_long(model: Model, tasks: Sequence[str], tokens: Sequence[int]) -> dict[str, VortexError]:
    """VX9121 by task and length, for prompts that the model has no context for, which nobody has to write to know."""
    from vortex.errors import PROMPT_TOO_LONG

    return {
        f"{task} {n}": PROMPT_TOO_LONG.at(
            what=f"{task}, prompts of {n} tokens, answers included", model=model.name, context=model.context
        )
        for n in tokens
        if n > model.context
        for task in tasks
    }


def _say_size(evaluation: Evaluation, prompts: Sequence[Prompt]) -> None:
    from vortex.evaluate.prefill import PromptCache, stored_bytes

    cache, model = PromptCache(evaluation.folder), evaluation.model
    new = [p for p in prompts if not cache.has(model, p)]
    if new:
        size = sum(stored_bytes(model, len(p.tokens)) for p in new)
        say(f"K and V of {counted(len(new), 'prompt')} will be kept in {cache.folder}: {size / 1e6:.0f} MB")


def _summary(
    args: argparse.Namespace,
    outcomes: Sequence[Outcome],
    failures: dict[str, VortexError],
    flows: Mapping[str, str],
    budgets: Sequence[int],
    model: Model | None,
    layers: Sequence[int],
    at: Workload,
) -> Summary:
    """Statistics and costs ``at`` a workload; a flow whose cost cannot be told joins the failures."""
    from vortex.evaluate.cost import cost_of_baseline, cost_of_flow
    from vortex.evaluate.outcomes import BASELINES, Lane
    from vortex.evaluate.statistics import Failure, Settings, summarise
    from vortex.flow.flow import find_flow
    from vortex.install.versions import vortex_version

    baselines = {o.lane for o in outcomes if o.lane.rule in BASELINES}
    costs = {lane: cost_of_baseline(lane.rule, lane.budget, at) for lane in baselines}
    for name, text in flows.items():
        if name in failures:
            continue
        try:
            costs |= {Lane(name, k): cost for k, cost in cost_of_flow(find_flow(text), budgets, at).items()}
        except VortexError as error:
            failures[name] = error
    settings = Settings(
        model=model.name if model is not None else str(args.trace),
        seed=args.seed,
        device=args.device,
        backend=args.backend,
        layers=tuple(layers),
        windowed=len(model.windowed_layers) if model is not None else 0,
        workload=at,
        command=shlex.join(["vortex", "eval", *args.argv]),
        versions={"vortex": vortex_version()},
    )
    return summarise(outcomes, settings, costs, [Failure(what, e.render()) for what, e in failures.items()])


def _at_latent_rows(at: Workload) -> Workload:
    """The same where a model keeps latent rows: those of DeepSeek-V3."""
    from vortex.spec import Spec

    return replace(at, kv_heads=1, spec=Spec.of_latent())


def _show(args: argparse.Namespace, summary: Summary, failures: Mapping[str, VortexError]) -> int:
    """Print the summary and write the report."""
    import json

    from vortex.cli.eval_tables import print_tables
    from vortex.evaluate.report import write_html

    for what, error in failures.items():
        say(f"{what}: {error.render()}")
    with written_first(None if args.out is None else partial(write_html, summary, args.out)):
        if args.json:
            emit_json(summary.as_json())
        elif args.verdict:
            for verdict in summary.verdicts():
                print(json.dumps(verdict))
        else:
            print_tables(summary)
    if args.out is not None:
        say(f"wrote {args.out}")
    return INCOMPLETE if failures else 0


def _traced(
    args: argparse.Namespace,
    flows: Mapping[str, str],
    budgets: Sequence[int],
    weights: Mapping[str, torch.Tensor] | None,
    at: Workload,
) -> int:
    """Judge by recorded steps."""
    from vortex.evaluate.run import judge_trace
    from vortex.evaluate.traces import read_trace

    trace = read_trace(args.trace)
    what = f"{args.trace}: {trace.steps} steps of {len(trace.layers)} layers, {trace.prompt} tokens"
    with progress(what, 1):
        outcomes, failures = judge_trace(trace, flows, budgets, args.backend, args.seed, weights)
    summary = _summary(args, outcomes, failures, flows, budgets, None, trace.layers, at)
    return _show(args, summary, failures)
