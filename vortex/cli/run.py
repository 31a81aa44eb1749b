"""Decode a small random batch with an artifact and check it against its own flow IR, interpreted.

examples:
  vortex run quest.vxa
  vortex run quest.vxa --tokens 40,1000 --kv-heads 2 --pages 8
  vortex run quest.vxa --target sm_90
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from vortex.cli.show import emit_json, say, table
from vortex.errors import BAD_OPTION, NOT_ARTIFACT

if TYPE_CHECKING:
    from vortex.ir.core import Module

TOLERANCE = {"f32": 1e-4, "f16": 4e-3, "bf16": 2e-2}
"""How far an output may lie from the reference, by its storage type."""
CHECK_FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("artifact", metavar="ARTIFACT", help="a .vxa folder; running it runs its code")
    parser.add_argument(
        "--target", metavar="NAME", help="whose library to run: cpu, sm_90, .. (default: this GPU's if there, else cpu)"
    )
    parser.add_argument("--tokens", metavar="N,N,..", default="5,200,1000", help="prefilled tokens of each request")
    parser.add_argument("--steps", metavar="N", type=int, default=4, help="steps to decode (default: 4)")
    parser.add_argument("--kv-heads", metavar="N", type=int, help="KV heads (default: 2; under MLA 1)")
    parser.add_argument("--pages", metavar="N", type=int, default=8, help="scored pages of the budget (default: 8)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the random numbers (default: 0)")
    parser.add_argument("--require-digest", metavar="HEX", help="refuse an artifact of another digest")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Decode and compare; 1 when something differs."""
    lengths = _lengths(args.tokens)
    for option in ("steps", "kv_heads"):
        if getattr(args, option) is not None and getattr(args, option) < 1:
            raise BAD_OPTION.at(option=f"--{option.replace('_', '-')}", why="must be at least 1", hint="give more")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from vortex.budget import Budget
    from vortex.check.reference import interpreted
    from vortex.check.synthetic_batch import Trial
    from vortex.runtime.decoder import load

    module = traced_flow(args.artifact)
    budget, digest = Budget(args.pages), args.require_digest
    decoder = load(args.artifact, target=args.target, budget=budget, require_digest=digest, debug=True)
    spec = decoder.spec
    kv_heads = args.kv_heads or (1 if spec.kv_lora_rank else 2)
    trial = Trial(decoder, kv_heads, sum(-(-(n + args.steps) // spec.page_size) for n in lengths), args.seed)
    for i, n in enumerate(lengths):
        trial.join(f"r{i}", n)
    times = [trial.step() for _ in range(args.steps)]
    reference = interpreted(module, spec)
    checks = {name: trial.check(name, reference) for name in trial.requests}
    good = {name: c.error <= TOLERANCE[spec.dtype] and not c.differing for name, c in checks.items()}
    best = min(t.decode for t in times)
    if args.json:
        rows = [{"request": name, "ok": good[name], **asdict(c)} for name, c in checks.items()]
        emit_json({"flow": module.name, "target": decoder.library.name, "requests": rows, "decode_seconds": best})
    else:
        head = ("request", "tokens", "pages", "selected", "error", "differing", "mass kept")
        table(
            head,
            [
                [n, *map(str, (c.length, c.pages, c.selected, f"{c.error:.1e}", c.differing, f"{c.kept:.1%}"))]
                for n, c in checks.items()
            ],
        )
        for name in (name for name, ok in good.items() if not ok):
            say(f"{name} differs from its reference: error {checks[name].error:.1e}, {checks[name].differing} pages")
    batch = f"{len(lengths)} requests, {kv_heads} KV heads"
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


def _lengths(text: str) -> list[int]:
    parts = [p.strip() for p in text.split(",")]
    if not all(p.isdecimal() and int(p) for p in parts):
        raise BAD_OPTION.at(
            option="--tokens", why=f"'{text}' is not a list of positive integers", hint="e.g. 5,200,1000"
        )
    return [int(p) for p in parts]
