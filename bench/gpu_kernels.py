"""How fast are the staged kernels on this GPU? CUDA-graph time over page ids random in a pool far larger than L2.

A graph holds several launches, each on page ids of its own; the median of its replays over their number is the time of
one. Beside it stands the bandwidth of a device copy (read and written) measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from gpu_batches import Batch, Kernels, Pools

REPLAYS = 15
BATCHES = [
    (1, 1024, 1), (1, 32768, 30), (1, 32768, 128), (4, 32768, 64), (8, 32768, 30), (8, 32768, 128), (32, 32768, 30),
    (32, 32768, 64), (64, 32768, 64), (128, 32768, 30), (128, 32768, 64), (64, 32768, 512), (8, 32768, 2048),
    (1, 131072, 8192), (128, 32768, 512),
]  # fmt: skip
"""Requests, tokens, pages kept; the first shows what a launch costs without bytes."""
RAGGED = [131072] + [2048] * 63


def replay_us(graph: torch.cuda.CUDAGraph, launches: int) -> float:
    """Microseconds a launch, median of the replays."""
    for _ in range(2):
        graph.replay()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(REPLAYS)]
    for before, after in events:
        before.record()
        graph.replay()
        after.record()
    torch.cuda.synchronize()
    return sorted(a.elapsed_time(b) for a, b in events)[REPLAYS // 2] * 1e3 / launches


def capture(launch: Any, sets: list[Any]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    launch(sets[0])
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for one in sets:
            launch(one)
    return graph


def copy_bandwidth() -> float:
    """Bytes a second, read and written: the best of a few ways to copy 1 to 4 GB of random numbers."""
    best = 0.0
    for numel in (1 << 27, 1 << 28, 1 << 29):
        a = torch.randn(numel, device="cuda")
        b = torch.empty_like(a)
        ways = (lambda a=a, b=b: b.copy_(a), lambda a=a, b=b: torch.add(a, 1.0, out=b))
        for way in ways:
            for replay in (
                capture(lambda _, way=way: way(), [0] * 4).replay,
                lambda way=way: [way() for _ in range(4)],
            ):
                best = max(best, 4 * 8 * numel / _call_us(replay) * 1e6)
    return best


def _call_us(call: Any) -> float:
    """Microseconds of a call, median of a few."""
    times = []
    for _ in range(8):
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        call()
        after.record()
        torch.cuda.synchronize()
        times.append(before.elapsed_time(after) * 1e3)
    return sorted(times)[4]


def sets_of(pools: Pools, about: dict[str, Any], lengths: list[int], kept: int) -> list[Batch]:
    """Enough batches that what one reads is out of L2 when it comes again."""
    make = lambda seed: Batch.make(pools, about["group"], torch.tensor(lengths), kept, seed=seed)  # noqa: E731
    first = make(0)
    return [first, *(make(s) for s in range(1, max(3, min(24, -(-(400 << 20) // max(1, first.bytes))))))]


def measure(kernels: Kernels, name: str, sets: list[Batch], splits: int) -> float:
    """Microseconds a launch with that many splits."""
    about, call = kernels.about["kernels"][name], getattr(kernels.module, name)
    first = sets[0].split(about, splits).tensors
    given = []
    for s in sets:
        s.tensors |= {name: first[name] for name in ("partials", "work") if name in first}
        given.append(s.arguments(about["args"]))
    return replay_us(capture(lambda arguments: call(*arguments), given), len(given))


def splits_for(rows: int, kept: int, warps: int) -> list[int]:
    most = max(1, -(-kept // warps))
    return [s for s in (1, 2, 3, 4, 6, 8, 16, 32, 64, 128) if s <= most and (s == 1 or rows * s <= 2112)]


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--kernels", type=Path, required=True)
    args.add_argument("--out", type=Path, required=True)
    args.add_argument("--seconds", type=float, default=360, help="stop taking up new shapes after this long")
    args.add_argument("--pool", type=float, default=24, help="GB of K and V")
    args.add_argument("--only", type=int, nargs="*", help="batch sizes (default: all)")
    found = args.parse_args()
    began, kernels = time.time(), Kernels.load(found.kernels)
    device, copy = torch.cuda.get_device_name(), copy_bandwidth()
    print(f"{device}: copy {copy / 1e12:.2f} TB/s")
    rows_out: list[dict[str, Any]] = []

    def note(name: str, label: str, sets: list[Batch], heads: int, kept: int, layout: str) -> None:
        about = kernels.about["kernels"][name]
        rows = sets[0].tensors["arrivals"].shape[0]
        size = sum(s.bytes for s in sets) / len(sets)
        for splits in splits_for(rows, kept, about["knobs"]["warps"]):
            us = measure(kernels, name, sets, splits)
            speed = size / us * 1e6
            row = {"kernel": name, "batch": label, "layout": layout, "splits": splits, "us": round(us, 2)}
            row |= {"MB": round(size / 1e6, 2), "TB/s": round(speed / 1e12, 3), "of_copy": round(speed / copy, 3)}
            rows_out.append(row)

    def save() -> None:
        about = {"device": device, "torch": torch.__version__, "copy_TBps": copy / 1e12, "date": time.strftime("%F %T")}
        about |= {
            "command": " ".join(["python3", *sys.argv]),
            "commit": kernels.about["commit"],
            "kernels": kernels.about["kernels"],
            "rows": rows_out,
        }
        found.out.write_text(json.dumps(about, indent=1))

    def best(label: str) -> None:
        mine = [r for r in rows_out if r["batch"] == label]
        if mine:
            r = min(mine, key=lambda r: r["us"])
            print(f"{label:32} {r['MB']:9.1f} MB {r['us']:9.2f} us {r['of_copy']:6.3f} of copy: ", end="")
            print(f"{r['kernel']} splits {r['splits']}", flush=True)
        save()

    everything = kernels.about["kernels"]
    types = dict.fromkeys(a["kv_dtype"] for a in everything.values() if a["main"])
    for layout, kv in [(layout, kv) for layout in ("HND", "NHD") for kv in types]:
        main_ones = [n for n, a in everything.items() if a["main"] and a["kv_dtype"] == kv]
        first, of, sets = everything[main_ones[0]], f"{layout} {kv}" if len(types) > 1 else layout, []
        pools = Pools.of(found.pool, 8, first, nhd=layout == "NHD")
        batches = BATCHES if layout == "HND" else BATCHES[3::3]
        if found.only:
            batches = [b for b in batches if b[0] in found.only]
        for batch, tokens, kept in batches:
            if time.time() - began > found.seconds:
                break
            label = f"{of} B={batch} n={tokens} k={kept}"
            sets = sets_of(pools, first, [tokens] * batch, kept)
            for name in main_ones:
                note(name, label, sets, 8, kept, layout)
            best(label)
        if layout == "HND":
            label = f"{of} dense 1x128K+63x2K"
            sets = sets_of(pools, first, RAGGED, 8192)
            for name in main_ones:
                note(name, label, sets, 8, 8192, layout)
            best(label)
        del pools, sets
    for name in [n for n, a in everything.items() if not a["main"]]:
        if time.time() - began > found.seconds:
            break
        a = everything[name]
        pools = Pools.of(4, 8, a)
        for batch, kept_tokens in ((8, 480), (128, 1024)):
            kept = kept_tokens // a["page"]
            label = f"{name} B={batch} {kept_tokens} tokens"
            note(name, label, sets_of(pools, a, [32768] * batch, kept), 8, kept, "HND")
            best(label)
        del pools
    save()


if __name__ == "__main__":
    main()
