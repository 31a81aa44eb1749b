"""CPU decode of Quest at 8 requests x 32K tokens: our kernels, torch's dense attention and the eager oracle.

All three run in one process, taking turns, on one batch: ratios of medians. The Python cost of a step is
measured apart, on a batch so small that the kernels take next to nothing.

    python bench/cpu_speed.py [--requests 8] [--tokens 32768] [-o bench/results/cpu_speed.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from vortex.budget import Budget
from vortex.driver import compile_flow
from vortex.flow import oracle
from vortex.flow.flow import find_flow
from vortex.runtime.decoder import Decoder, load
from vortex.runtime.paged_cache import PagedCache
from vortex.spec import Spec

SPEC = Spec(page_size=16, head_dim=128, group=4)
HKV = 8
BUDGET = Budget(27)


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def summary(times: list[float]) -> dict[str, float]:
    """Median and quartiles, in milliseconds."""
    low, mid, high = statistics.quantiles(times, n=4)
    return {"median_ms": mid * 1e3, "quartile_ms": low * 1e3, "upper_ms": high * 1e3, "runs": len(times)}


def filled(decoder: Decoder, requests: int, tokens: int) -> tuple[PagedCache, list[int]]:
    """A cache in which every request has ``tokens`` random tokens, planned for the next step."""
    pages = -(-tokens // SPEC.page_size)
    cache = PagedCache(requests * pages, HKV, SPEC, decoder.fields)
    decoder.bind(0, cache.k[0], cache.v[0], cache.fields[0])
    for r in range(requests):
        cache.add(r)
        loc, offsets = cache.extend_batch([r], [tokens])
        decoder.plan(cache.lengths([r]), cache.page_table([r]))
        decoder.append(0, *torch.randn(2, tokens, HKV, SPEC.head_dim).bfloat16(), loc, offsets)
    everyone = list(range(requests))
    decoder.plan(cache.lengths(everyone), cache.page_table(everyone))
    return cache, everyone


def decode_speed(decoder: Decoder, requests: int, tokens: int, runs: int) -> dict[str, object]:
    cache, everyone = filled(decoder, requests, tokens)
    q = torch.randn(requests, HKV * SPEC.group, SPEC.head_dim).bfloat16()
    out = torch.empty_like(q)
    where = torch.tensor([cache.pages(r) for r in everyone])
    dense_k, dense_v = (
        pool[0][where].permute(0, 2, 1, 3, 4).reshape(requests, HKV, -1, SPEC.head_dim)[:, :, :tokens].contiguous()
        for pool in (cache.k, cache.v)
    )
    flow = find_flow("quest")
    keys, values = (x.transpose(1, 2) for x in (dense_k, dense_v))
    full = tokens // SPEC.page_size
    fields = [[{n: f[where[r, :full], h] for n, f in cache.fields[0].items()} for h in range(HKV)] for r in everyone]

    def dense() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q[:, :, None], dense_k, dense_v, enable_gqa=True)

    def eager() -> None:
        for r in everyone:
            oracle.step(flow, SPEC, q[r], keys[r], values[r], BUDGET, fields=fields[r])

    work: dict[str, Callable[[], object]] = {
        "vortex": lambda: decoder.decode(0, q, out=out),
        "dense": dense,
        "eager": eager,
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    for name in work:
        work[name]()
    for _ in range(runs):
        for name, call in work.items():
            times[name].append(seconds(call))
    found: dict[str, object] = {name: summary(t) for name, t in times.items()}
    for name in ("dense", "eager"):
        ratios = [b / a for a, b in zip(times["vortex"], times[name], strict=True)]
        found[f"{name}_over_vortex"] = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
    found["select_bytes"] = requests * HKV * (full - 3) * SPEC.head_dim * 2 * 2
    return found


def python_cost(decoder: Decoder) -> dict[str, float]:
    """A decode call of one token, in microseconds: kernels of next to no work and all of the Python."""
    filled(decoder, 1, 1)
    q = torch.randn(1, HKV * SPEC.group, SPEC.head_dim).bfloat16()
    out = torch.empty_like(q)
    for _ in range(200):
        decoder.decode(0, q, out=out)
    times = [seconds(lambda: decoder.decode(0, q, out=out)) * 1e6 for _ in range(2000)]
    return {"median_us": statistics.median(times), "best_us": min(times)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("-o", "--out", type=Path, default=Path("bench/results/cpu_speed.json"))
    args = parser.parse_args()
    torch.manual_seed(0)
    with TemporaryDirectory() as folder:
        made = compile_flow("quest", spec=SPEC, out=Path(folder) / "quest.vxa")
        assert made.artifact is not None
        decoder = load(made.artifact, budget=BUDGET)
        found = {
            "device": platform.processor() or platform.machine(),
            "threads": os.cpu_count(),
            "date": time.strftime("%Y-%m-%d"),
            "commit": subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], text=True).strip(),
            "command": " ".join(["python", *sys.argv]),
            "load": os.getloadavg()[0],
            "shape": {"requests": args.requests, "tokens": args.tokens, "heads": f"{HKV * SPEC.group}/{HKV}",
                      "head_dim": SPEC.head_dim, "page_size": SPEC.page_size, "pages_kept": BUDGET.total(1)},
            "decode": decode_speed(decoder, args.requests, args.tokens, args.runs),
            "python": python_cost(decoder),
        }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
