"""Decode a small random batch with an artifact and check it against its own flow IR, interpreted.

Every step of every layer is compared: which pages each row keeps (a page that only one side keeps must score as the
last one kept, within rounding), the outputs, the tokens in the cache and the summaries of all full pages.

examples:
  vortex run quest.vxa
  vortex run quest.vxa --tokens 40,1000 --kv-heads 2 --pages 8
  vortex run quest.vxa --target sm_90
  vortex run learned_query.vxa --parameters weights.safetensors
  vortex run quest.vxa --tokens 4000,16000 --trace trace.jsonl
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from vortex.cli.exit_codes import CHECK_FAILED
from vortex.cli.numbers import bounded, integers
from vortex.cli.show import check_out, emit_json, lines, say, table
from vortex.errors import BAD_OPTION, NOT_ARTIFACT, counted

if TYPE_CHECKING:
    from vortex.ir.core import Module

MOST_KV_HEADS = 1024
"""As of shapes that are tuned for."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("artifact", metavar="ARTIFACT", help="a .vxa folder; running it runs its code")
    parser.add_argument(
        "--target", metavar="NAME", help="whose library to run: cpu, sm_90, .. (default: this GPU's if there, else cpu)"
    )
    parser.add_argument(
        "--tokens",
        metavar="N,N,..",
        default="5,200,1000",
        help="prefilled tokens of each request (default: 5,200,1000)",
    )
    parser.add_argument("--steps", metavar="N", type=int, default=4, help="steps to decode (default: 4)")
    parser.add_argument("--kv-heads", metavar="N", type=int, help="KV heads (default: 2; under MLA 1)")
    parser.add_argument("--pages", metavar="N", type=int, default=8, help="scored pages of the budget (default: 8)")
    parser.add_argument(
        "--parameters", metavar="FILE", help="weights of the flow, safetensors (default: random ones, of two layers)"
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the random numbers (default: 0)")
    parser.add_argument("--require-digest", metavar="HEX", help="refuse an artifact of another digest")
    parser.add_argument(
        "--trace", metavar="FILE", type=Path, help="then record which pages are read of a batch with heavy pages"
    )
    parser.add_argument("--trace-mass", action="store_true", help="record attention mass there, too")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Decode and compare; 1 when something differs."""
    lengths = integers("--tokens", args.tokens, "e.g. 5,200,1000")
    bounded(args, "steps", 1)
    bounded(args, "kv_heads", 1, MOST_KV_HEADS)
    bounded(args, "seed", 0, 2**63 - 1)
    check_out(args.trace)
    if args.trace_mass and args.trace is None:
        raise BAD_OPTION.at(option="--trace-mass", why="has no trace to stand in", hint="add --trace FILE")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from vortex.artifact.folder import read_manifest
    from vortex.budget import Budget
    from vortex.check.verdict import LAYERS, judge
    from vortex.check.weights import random_parameters
    from vortex.runtime.decoder import load

    flow = traced_flow(args.artifact)
    budget, digest = Budget(args.pages), args.require_digest
    manifest = read_manifest(args.artifact)
    kv_heads = args.kv_heads or (1 if manifest.spec.kv_lora_rank else 2)
    weights = args.parameters or random_parameters(manifest.parameters, LAYERS, kv_heads, args.seed)
    decoder = load(
        args.artifact, target=args.target, budget=budget, require_digest=digest, debug=True, parameters=weights
    )
    if args.trace is not None:
        from vortex.check.page_trace import trace_planted

        trace_planted(
            decoder,
            args.trace,
            lengths,
            kv_heads=kv_heads,
            layers=LAYERS,
            steps=args.steps,
            seed=args.seed,
            mass=args.trace_mass,
        )
        say(f"wrote {args.trace}; read it with: vortex trace {args.trace}")
    found, times = judge(decoder, flow, lengths, kv_heads=kv_heads, steps=args.steps, seed=args.seed)
    good = {name: verdict.good(decoder.spec.dtype) for name, verdict in found.items()}
    best = min(t.decode for t in times)
    if args.json:
        judged = [{"request": name, "ok": good[name], **asdict(v)} for name, v in found.items()]
        emit_json({"flow": flow.name, "target": decoder.library.name, "requests": judged, "decode_seconds": best})
    else:
        head = (
            "request",
            "tokens",
            "pages",
            "selected",
            "error",
            "differing",
            "gap",
            "summaries",
            "tokens lost",
            "mass kept",
        )
        rows = []
        for name, v in found.items():
            counts = (
                v.length,
                v.pages,
                v.selected,
                f"{v.error:.1e}",
                v.differing,
                f"{v.gap:.1e}",
                v.summaries,
                v.tokens,
            )
            rows.append([name, *map(str, counts), f"{v.kept:.1%}"])
        table(head, rows)
        print(lines("mass kept: the share of dense attention's, on made-up numbers; of a model's mass it says nothing"))
        for name in (name for name, ok in good.items() if not ok):
            say(f"{name} differs from its reference: {found[name].why()}")
    batch = f"{counted(len(lengths), 'request')}, {counted(decoder.kv_heads, 'KV head')}, {LAYERS} layers"
    say(f"select + attend on {decoder.library.name}: {1e3 * best:.3f} ms for {batch}")
    return 0 if all(good.values()) else CHECK_FAILED


def traced_flow(artifact: str) -> Module:
    """The flow IR that an artifact was made from; VX5001 when it was made from a later stage."""
    from vortex.artifact.folder import read_file, read_manifest
    from vortex.ir.parser import parse_module

    manifest = read_manifest(artifact)
    for name in manifest.files:
        if name.endswith(".flow"):
            return parse_module(read_file(artifact, manifest, name).decode(), f"{Path(artifact) / name}")
    raise NOT_ARTIFACT.at(path=artifact, why="it holds no flow IR to check against; it was compiled from a later stage")
