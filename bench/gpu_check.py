"""Are the staged kernels right on this GPU? Fresh random data, poisoned outputs, eager calls and one captured graph."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from gpu_batches import Batch, Kernels, Pools, work_list

LIMIT = {"bf16": 1e-2, "f16": 2e-3}
"""Largest relative error (of the norm) against float64."""


def errors(batch: Batch, group: int) -> tuple[float, float]:
    """Relative error of the output, absolute error of the log-sum-exp."""
    out, lse = batch.expected(group)
    got = batch.tensors["out"].double()
    some = lse.isfinite()
    worst = (batch.tensors["lse"].double() - lse)[some].abs().max().item() if some.any() else 0.0
    empty = got[~some].abs().sum().item() if (~some).any() else 0.0
    same = torch.equal(batch.tensors["lse"].isneginf(), ~some)
    return (got - out).norm().item() / max(out.norm().item(), 1e-30) + empty, worst if same else float("nan")


def check(kernels: Kernels, name: str) -> list[dict[str, Any]]:
    """One kernel on ragged lengths, with several splits, both layouts, and lengths that change under a graph; then over
    pools whose heads or pages lie more than 2^31 elements apart.
    """
    about = kernels.about["kernels"][name]
    page, group, dtype = (about[n] for n in ("page", "group", "dtype"))
    call, results = getattr(kernels.module, name), []
    lengths = torch.tensor([1, page, page + 1, 30 * page - 3, 0, 700 * page + 5, 64 * page])
    for nhd in (False, True):
        pools = Pools.of(0.25, 4, about, nhd=nhd)
        for kept in (30, 512):
            for splits in (1, 4, 16):
                batch = Batch.make(pools, group, lengths, kept, seed=kept + splits).split(about, splits)
                given = batch.arguments(about["args"])
                for _ in range(3):  # the counters start where the launch before left them
                    call(*given)
                torch.cuda.synchronize()
                out, lse = errors(batch, group)
                ok = out < LIMIT[dtype] and lse < 2e-3
                results.append({"kernel": name, "nhd": nhd, "kept": kept, "splits": splits, "out": out, "lse": lse})
                results[-1]["ok"] = ok
        results.append(captured(call, about, pools))
    for axis in ("heads", "pages"):
        pools = Pools.far(4, about, axis)
        batch = Batch.make(pools, group, lengths, 30, seed=7).split(about, 4)
        call(*batch.arguments(about["args"]))
        torch.cuda.synchronize()
        out, lse = errors(batch, group)
        ok = out < LIMIT[dtype] and lse < 2e-3
        results.append({"kernel": name, "apart": axis, "out": out, "lse": lse, "ok": ok})
    return results


def captured(call: Any, about: dict[str, Any], pools: Pools) -> dict[str, Any]:
    """One graph; lengths, pages and counts go from the least to the most and back."""
    page, group = about["page"], about["group"]
    make = lambda lengths, seed: Batch.make(pools, group, torch.tensor(lengths), 128, seed=seed)  # noqa: E731
    steps = [[1, 1, 1], [400 * page, 399 * page + 1, 200 * page], [page, 7, 2 * page + 1]]
    held = make(steps[1], 0).split(about, 8)
    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        call(*held.arguments(about["args"]))
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        call(*held.arguments(about["args"]))
    worst = 0.0
    for seed, lengths in enumerate((*steps, steps[0])):
        fresh = make(lengths, seed + 1)
        for name in ("q", "lengths", "counts"):
            held.tensors[name].copy_(fresh.tensors[name])
        held.tensors["page_table"][:, : fresh.tensors["page_table"].shape[1]] = fresh.tensors["page_table"]
        held.tensors["pages"].fill_(1 << 28)
        held.tensors["pages"][..., : fresh.tensors["pages"].shape[2]] = fresh.tensors["pages"]
        slots = held.tensors["work"].shape[1] - 2 - len(lengths)
        held.tensors["work"].copy_(work_list(held.tensors["counts"], slots))
        for name in ("out", "lse", "partials"):
            held.tensors[name].fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        worst = max(worst, errors(held, group)[0])
    return {"kernel": "graph", "out": worst, "ok": worst < LIMIT[about["dtype"]]}


def main() -> int:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--kernels", type=Path, required=True)
    args.add_argument("--out", type=Path, required=True)
    found = args.parse_args()
    kernels = Kernels.load(found.kernels)
    results = []
    for name in kernels.about["kernels"]:
        try:
            results += check(kernels, name)
        except Exception as error:  # the others are still worth knowing
            results.append({"kernel": name, "ok": False, "error": f"{type(error).__name__}: {error}"[:400]})
        bad = [r for r in results if r["kernel"] == name and not r["ok"]]
        print(f"{name}: {'ok' if not bad else bad[:2]}", flush=True)
    device = torch.cuda.get_device_name()
    found.out.write_text(
        json.dumps(
            {
                "device": device,
                "date": time.strftime("%F %T"),
                "commit": kernels.about["commit"],
                "command": " ".join(["python3", *sys.argv]),
                "results": results,
            },
            indent=1,
        )
    )
    bad = [r for r in results if not r["ok"]]
    print(f"{len(results) - len(bad)} of {len(results)} right on {device}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
