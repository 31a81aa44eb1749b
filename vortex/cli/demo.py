"""The main job, on this CPU: compile quest, decode 64 steps of a ragged batch, and show what that kept and cost.

Eight requests of 100 to 20,000 tokens (32 query and 8 KV heads, head dim 128, pages of 16) are prefilled, join and
leave while others decode. A few pages of each are heavy: most of the dense attention mass lies there. Then the flow is
compiled for a GPU as well, which need not be there, for what its kernels take of it and are predicted to read.

examples:
  vortex demo
  vortex demo --flow gqa_block --steps 16
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vortex.cli.cross import cross_compile
from vortex.cli.numbers import bounded
from vortex.cli.show import progress, say, table
from vortex.install.scratch import scratch_folder
from vortex.targets.gpu import MACHINES

if TYPE_CHECKING:
    from vortex.check.reference import Reference
    from vortex.check.synthetic_batch import Check, Times, Trial
    from vortex.driver import Compilation

LENGTHS = {"a": 20_000, "b": 12_000, "c": 100, "d": 700, "e": 5_000, "f": 1_500, "g": 8_000, "h": 3_000}
"""Tokens of each request when it joins."""
JOINS = {0: "abcdef", 16: "g", 40: "h"}
LEAVES = {24: "b", 48: "d"}
"""Who joins, and who leaves, before which of 64 steps."""
KV_HEADS = 8
BUDGET = 29
"""Scored pages beside the first one and the last two."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--flow", metavar="FLOW", default="quest", help="the flow (default: quest)")
    parser.add_argument("--steps", metavar="N", type=int, default=64, help="steps to decode (default: 64)")
    gpus = [*MACHINES, "none"]
    parser.add_argument("--gpu", choices=gpus, default="sm_100a", help="cross-compile for it (default: sm_100a)")
    parser.add_argument("--dump-dir", metavar="DIR", type=Path, help="for dumps (default: dumps/NAME-HASH-TARGETS)")


def run(args: argparse.Namespace) -> int:
    """Compile, decode, print."""
    bounded(args, "steps", 1)
    # threads that spin between kernels stall each other where other processes run; read when torch loads
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from vortex.budget import Budget
    from vortex.check.reference import eager
    from vortex.check.synthetic_batch import Trial
    from vortex.check.weights import random_parameters
    from vortex.driver import compile_flow
    from vortex.flow.flow import find_flow
    from vortex.runtime.decoder import load
    from vortex.spec import Spec

    spec = Spec.of_heads("32/8", head_dim=128, page_size=16, dtype="bf16")
    say(f"compiling {args.flow} for cpu ...")
    start = time.perf_counter()
    with scratch_folder("vortex-demo-") as scratch:
        out = scratch / "demo.vxa"
        made = compile_flow(
            args.flow, spec=spec, out=out, dump=args.dump_dir or "auto", argv=["vortex", "demo", *args.argv]
        )
        say(f"compiled in {time.perf_counter() - start:.1f} s, of which our own code {made.own_seconds:.2f} s")
        assert made.manifest is not None
        weights = random_parameters(made.manifest.parameters, 1, KV_HEADS)
        decoder = load(out, target="cpu", budget=Budget(pages=BUDGET), parameters=weights)
        most = sum(-(-(n + args.steps) // spec.page_size) for n in LENGTHS.values())
        trial = Trial(decoder, KV_HEADS, most)
        times, checks, dense = decode(trial, args.steps, eager(find_flow(args.flow), spec, weights))
    _print(args.flow, made, times, checks, dense)
    if args.gpu != "none":
        lengths = [checks[name].length for name in trial.requests]
        budget = Budget(pages=BUDGET)
        cross_compile(args.flow, spec, args.gpu, kv_heads=KV_HEADS, budget=budget, lengths=lengths)
    if made.dumps:
        print(f"\nevery stage's text is in {made.dumps}")
    return 0


def decode(
    trial: Trial, steps: int, reference: Reference
) -> tuple[list[Times], dict[str, Check], dict[str, list[float]]]:
    """The times of every step, each request's last check, and seconds of dense attention by request."""
    times: list[Times] = []
    checks: dict[str, Check] = {}
    dense: dict[str, list[float]] = {}
    leaves = {min(at * steps // 64, steps - 1): who for at, who in LEAVES.items()}
    joins = {min(at * steps // 64, steps - 1): who for at, who in JOINS.items()}
    with progress(f"decoding {steps} steps of a batch of {len(JOINS[0])} to {len(LENGTHS)} requests", steps) as advance:
        for at in range(steps):
            for name in leaves.get(at, ""):
                trial.leave(name)
            for name in joins.get(at, ""):
                advance(at, f"prefill of {name}: {LENGTHS[name]} tokens")
                trial.join(name, LENGTHS[name])
            times.append(trial.step())
            leaving = leaves.get(at + 1, "")
            due = trial.requests if at in (0, steps - 1) else [*joins.get(at, ""), *leaving]
            for name in due:
                advance(at, f"checking {name} against the eager oracle")
                checks[name] = _worst(checks.get(name), trial.check(name, reference))
                dense.setdefault(name, []).append(_seconds(trial.dense(name)))
            advance(at + 1, f"batch of {len(trial.requests)}")
    return times, checks, dense


def _worst(before: Check | None, now: Check) -> Check:
    """The later check, with the errors of both."""
    if before is None:
        return now
    from dataclasses import replace

    differing = max(before.differing, now.differing)
    return replace(now, error=max(before.error, now.error), differing=differing)


def _seconds(call: object) -> float:
    """The best of a few calls."""
    assert callable(call)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def _print(
    flow: str, made: Compilation, times: list[Times], checks: dict[str, Check], dense: dict[str, list[float]]
) -> None:
    head = ("request", "tokens", "pages", "selected", "error", "differing", "mass kept", "at random", "dense ms")
    rows = [
        [
            name,
            f"{c.length}",
            f"{c.pages}",
            f"{c.selected}",
            f"{c.error:.1e}",
            f"{c.differing}",
            f"{100 * c.kept:.1f}%",
            f"{100 * c.random:.1f}%",
            f"{1e3 * dense[name][-1]:.2f}",
        ]
        for name, c in sorted(checks.items(), key=lambda item: item[1].length)
    ]
    print()
    table(head, rows, f"{flow}: {len(times)} steps, 32 query and 8 KV heads, head dim 128, pages of 16")
    chosen = [c for c in checks.values() if c.selected < c.pages]
    kept, random = (sum(getattr(c, what) for c in chosen) / max(1, len(chosen)) for what in ("kept", "random"))
    step = sorted(times[len(times) // 2 :], key=lambda t: t.step)[len(times) // 4]
    stayed = [name for name in checks if name not in LEAVES.values()]
    full = sum(dense[name][-1] for name in stayed)
    oracle = sum(checks[name].reference_seconds for name in stayed)
    facts = (
        ("error", f"at most {max(c.error for c in checks.values()):.1e} against the eager oracle, outputs being bf16"),
        ("differing", "pages that only one of kernel and oracle selected, over all heads"),
        ("mass kept", f"{100 * kept:.1f}% of dense attention where pages are dropped"),
        ("at random", f"{100 * random:.1f}%, so the flow keeps {kept / max(random, 1e-9):.1f} times as much"),
        (
            "step",
            f"{1e3 * step.step:.2f} ms for the batch, of which select + attend {1e3 * step.decode:.2f} ms (median)",
        ),
        ("dense", f"{1e3 * full:.2f} ms for the same batch by torch's scaled_dot_product_attention"),
        ("ratio", f"select + attend is {full / step.decode:.1f} times as fast as dense attention"),
        ("", f"and {oracle / step.decode:.0f} times as fast as the eager oracle"),
    )
    print()
    for what, text in facts:
        print(f"{what:<10} {text}")
