"""Record decoding steps of a real model, to judge flows by them later without it: vortex eval --trace.

One file of safetensors holds K and V of a prompt, the queries of the steps that decode its right answer densely, and
the places of what must be read; vortex/evaluate/traces.py describes it. Its size is said before anything is computed.

examples:
  vortex capture -o steps.safetensors
  vortex capture --task keyvalue --tokens 2048 --layers 5,12,20 --kv-heads 0 -o small.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vortex.cli.numbers import bounded, integers
from vortex.cli.show import check_out, emit_json, progress, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--model", metavar="NAME", default="smollm2", help="smollm2, a folder, or a name in the cache of Hugging Face"
    )
    parser.add_argument("--task", metavar="NAME", default="niah_single", help="ours or RULER's (default: niah_single)")
    parser.add_argument("--tokens", metavar="N", type=int, default=4096, help="of the prompt (default: 4096)")
    parser.add_argument("--index", metavar="N", type=int, default=0, help="which of the task's prompts (default: 0)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of prompts (default: 0)")
    parser.add_argument("--layers", metavar="N,N", help="to record (default: all where pages can be selected)")
    parser.add_argument("--kv-heads", metavar="N,N", help="to record (default: all)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the model runs (default: cpu)")
    parser.add_argument("--cache", metavar="DIR", type=Path, help="of prompts (default: the user's)")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    parser.add_argument("-o", dest="out", metavar="FILE", type=Path, required=True, help="the file, .safetensors")


def run(args: argparse.Namespace) -> int:
    """Record one prompt."""
    layers, heads = _listed("--layers", args.layers), _listed("--kv-heads", args.kv_heads)
    bounded(args, "tokens", 1)
    bounded(args, "index", 0)
    check_out(args.out)
    from vortex.evaluate.tasks import find_task

    task = find_task(args.task)
    from vortex.evaluate.models import load_model
    from vortex.evaluate.prefill import PromptCache
    from vortex.evaluate.traces import capture, trace_bytes, write_trace

    with progress(f"loading {args.model}", 1):
        model = load_model(args.model, args.device)
    prompt = task.make(model.tokenizer, args.tokens, args.index + 1, args.seed)[args.index]
    size = trace_bytes(model, prompt, len(layers or model.sparse_layers), len(heads) or model.kv_heads)
    say(f"{args.out} will take {size / 1e6:.1f} MB")
    with progress(f"{task.name}, {len(prompt.tokens)} tokens", 1):
        write_trace(capture(model, prompt, PromptCache(args.cache), layers, heads), args.out)
    if args.json:
        emit_json({"trace": args.out, "bytes": args.out.stat().st_size, "steps": len(prompt.answer)})
    else:
        say(f"wrote {args.out}: {len(prompt.answer)} steps")
    return 0


def _listed(option: str, text: str | None) -> list[int]:
    return [] if text is None else integers(option, text, "e.g. 0,5,12", least=0)
