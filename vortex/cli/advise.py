"""Which configuration to serve: your own prompts through flows and budgets, beside dense attention.

The model answers each prompt densely; then every flow at every budget is led along that answer, and what it would have
said is compared token by token. Layers whose attention is too diffuse for the budget are made dense, worst first, as
long as that buys agreement for fewer bytes than a larger budget. What comes out is the configuration with the fewest
bytes at the wanted agreement, as --vortex-config of SGLang takes it, and one sentence why. Nothing is downloaded. The
exit code is 1 when nothing agrees so much, or a flow failed.

PROMPTS is a text file with a prompt a paragraph, or x.jsonl with {"prompt": "..."} on each line.

examples:
  vortex advise prompts.txt
  vortex advise prompts.jsonl --model ~/models/Qwen3-0.6B --flows quest,mass --budgets 16,64 -o vortex.json
  vortex advise prompts.txt --agreement 0.99 --tokens 128 --json
"""

from __future__ import annotations

import argparse
import json
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vortex.cli.eval import add_backend, model_weights
from vortex.cli.numbers import bounded, integers
from vortex.cli.show import check_out, emit_json, progress, say, table, write_text, written_first
from vortex.errors import BAD_OPTION, counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vortex.evaluate.advise import Advice, Advisor
    from vortex.evaluate.agreement import Configuration
    from vortex.evaluate.models import Model
    from vortex.evaluate.prompts import Prompt

NOTHING_REACHES = 1
FLOWS, LATENT_FLOWS = "quest,mass", "latent_quest,latent_topk"
BUDGETS, TOKENS, AGREEMENT = "4,16,64", 32, 0.95


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("prompts", metavar="PROMPTS", type=Path, help="a text file, or x.jsonl")
    parser.add_argument(
        "--model", metavar="NAME", default="smollm2", help="smollm2, a folder, or a name in the cache of Hugging Face"
    )
    parser.add_argument("--flows", metavar="F,F", help=f"names, file.py or file.py:name (default: {FLOWS})")
    parser.add_argument(
        "--budgets", metavar="K,K", default=BUDGETS, help=f"candidate pages that are kept beside 3 (default: {BUDGETS})"
    )
    parser.add_argument(
        "--tokens", metavar="N", type=int, default=TOKENS, help=f"to decode of each prompt, at most (default: {TOKENS})"
    )
    parser.add_argument(
        "--agreement",
        metavar="SHARE",
        type=float,
        default=AGREEMENT,
        help=f"of tokens that should be those of dense attention (default: {AGREEMENT})",
    )
    parser.add_argument("--page-size", metavar="N", type=int, default=16, help="tokens of a page (default: 16)")
    parser.add_argument(
        "--plain", action="store_true", help="continue the prompts as they are, without the model's chat template"
    )
    parser.add_argument(
        "--cost-tokens", metavar="N", type=int, default=0, help="of a request whose bytes are told (default: prompts')"
    )
    add_backend(parser)
    parser.add_argument("--cache", metavar="DIR", type=Path, help="of prompts (default: the user's)")
    parser.add_argument("-o", dest="out", metavar="FILE", type=Path, help="also write the configuration, .json")
    parser.add_argument("--json", action="store_true", help="print JSON; docs/advise.md has the schema")


def run(args: argparse.Namespace) -> int:
    """Advise; 1 when nothing agrees as much as is wanted, or a flow failed."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    budgets = sorted(set(integers("--budgets", args.budgets, "e.g. 4,16,64")))
    _require_numbers(args)
    check_out(args.out)
    weights = model_weights(args.parameters)
    from vortex.evaluate.own_prompts import own_prompts, read_texts

    texts = read_texts(args.prompts)
    if args.flows is not None:
        _names(args.flows)  # a name that nobody knows is said before a model is loaded
    from vortex.evaluate.advise import Advisor, Settings
    from vortex.evaluate.models import load_model

    with progress(f"loading {args.model}", 1):
        model = load_model(args.model, args.device)
    flows = _names(args.flows or (LATENT_FLOWS if model.kv_lora_rank else FLOWS))
    prompts = own_prompts(model.tokenizer, texts, args.tokens, plain=args.plain)
    settings = Settings(
        flows=flows,
        budgets=budgets,
        agreement=args.agreement,
        tokens=args.tokens,
        page_size=args.page_size,
        backend=args.backend,
        cost_tokens=args.cost_tokens,
        parameters=args.parameters or "",
    )
    advisor = Advisor(model, prompts, settings, parameters=weights, folder=args.cache)
    _say_short(prompts, budgets, args.page_size)
    while wave := advisor.next():
        _measure(advisor, wave, len(prompts) * args.tokens)
    return _show(args, advisor.advice(), model)


def _require_numbers(args: argparse.Namespace) -> None:
    """VX7001 for what is out of range."""
    for option, least in (("tokens", 1), ("page_size", 1), ("cost_tokens", 0)):
        bounded(args, option, least)
    if not 0 < args.agreement <= 1:
        why = f"is {args.agreement}; a share of tokens from 0 to 1 is needed"
        raise BAD_OPTION.at(option="--agreement", why=why, hint="e.g. --agreement 0.95")


def _names(flows: str) -> dict[str, str]:
    """Flows by name; VX1018 and VX7002 for those that there are not."""
    from vortex.evaluate.readers import flow_names

    return {name: text for text, name in flow_names([t.strip() for t in flows.split(",")]).items()}


def _say_short(prompts: Sequence[Prompt], budgets: Sequence[int], page: int) -> None:
    """Prompts that the smallest budget reads whole agree whatever is chosen."""
    from vortex.budget import Budget

    pages = [-(-(len(p.tokens) + p.new_tokens) // page) for p in prompts]
    short = sum(n <= Budget(min(budgets)).total(n) for n in pages)
    if short:
        say(f"{short} of {len(prompts)} prompts are so short that every budget reads all of them")


def _measure(advisor: Advisor, wave: list[Configuration], tokens: int) -> None:
    """One wave under a bar."""
    dense = any(c.dense_layers for c in wave)
    sizes = f"{counted(len(advisor.prompts), 'prompt')}, {counted(len(wave), 'configuration')}"
    what = f"{sizes}{' with dense layers' if dense else ''}"
    with progress(what, tokens) as advance:
        advisor.measure(wave, advance)


def _show(args: argparse.Namespace, advice: Advice, model: Model) -> int:
    """Print the advice and write the configuration."""
    for what, error in advice.failures.items():
        say(f"{what}: {error.render()}")
    chosen = advice.chosen
    config = None if chosen is None else json.dumps(advice.config(chosen))
    write = None if args.out is None or config is None else partial(write_text, config + "\n", args.out)
    with written_first(write):
        if args.json:
            emit_json(advice.as_json())
        else:
            _print(advice, config)
        if model.windowed_layers:
            say(f"layers with a sliding window stayed dense: {len(model.windowed_layers)}; no figure has them")
    if args.out is not None:
        if config is None:
            say(f"{args.out} was not written")
        else:
            say(f"wrote {args.out}: --attention-backend vortex --vortex-config {args.out}")
    return NOTHING_REACHES if config is None or advice.failures else 0


def _print(advice: Advice, config: str | None) -> None:
    """The tables, then the configuration and why."""
    from vortex.evaluate.advise_tables import configurations, layers

    for made in (configurations(advice), layers(advice)):
        if made.rows:
            table(made.head, made.rows, made.title)
            print(made.note, end="\n\n")
    if config is not None:
        print(config)
    print(advice.why())
