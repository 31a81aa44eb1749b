"""The baselines on a GPU, our staged kernels beside them: checked, tuned, then timed in turns.

From the repository's root, OUT being a folder for results:

    PYTHONPATH=bench python3 -m baselines --out $OUT/baselines.json [--kernels .gpu] [--only attend]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from . import cases, ceiling, check, flashinfer_peer, triton_topk, tune
from .ours import Ours

ATTEND = [
    (16, 4, False, 1, 32768, 30), (16, 4, False, 8, 32768, 30), (16, 4, False, 8, 32768, 128),
    (16, 4, False, 32, 32768, 30), (16, 4, False, 64, 32768, 64), (16, 4, False, 128, 32768, 64),
    (16, 4, False, 64, 32768, 512), (16, 4, False, 1, 131072, 8192), (16, 4, False, 32, 8192, 512),
    (16, 6, False, 64, 32768, 30), (32, 4, False, 64, 32768, 64), (64, 4, False, 64, 32768, 30),
    (16, 4, True, 8, 32768, 30), (16, 4, True, 64, 32768, 512),
]  # fmt: skip
"""Page, group, NHD, requests, tokens, pages kept."""
SELECT = [(1, 32768, 30), (8, 32768, 30), (32, 32768, 30), (128, 32768, 30), (1, 131072, 64), (256, 8192, 30)]
"""Requests, tokens, pages kept."""
TOPK = [(rows, n, k) for rows in (8, 64, 512, 2048) for n, k in ((512, 30), (2048, 30), (2048, 128), (8192, 64))]
HEADS, DIM = 8, 128
Launch = Callable[[cases.Tensors], object]


def attend_error(launch: Launch, t: cases.Tensors) -> float:
    """Relative to ``t['wanted']``; a line if it is too much."""
    t["out"].fill_(float("nan"))
    launch(t)
    error = check.relative(t["out"], t["wanted"])
    if not error < 1e-2:
        print(f"WRONG by {error:.1e}", flush=True)
    return error


class Bench:
    """Results so far, saved after every row."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.began, self.copy = given, time.time(), ceiling.copy_bandwidth()
        self.fi, self.ours = flashinfer_peer.load(), Ours.load(given.kernels) if given.kernels else None
        self.about = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "commit": given.commit}
        self.about |= {
            "command": " ".join(["python3", *sys.argv]),
            "date": time.strftime("%F %T"),
            "copy_TBps": self.copy / 1e12,
        }
        self.about |= {"read_TBps": ceiling.read_bandwidth() / 1e12, "launch_us": ceiling.launch_floor()}
        self.rows: list[dict[str, Any]] = []
        print(json.dumps(self.about), flush=True)

    def late(self) -> bool:
        return time.time() - self.began > self.given.seconds

    def race(self, label: str, size: int, sets: list[cases.Tensors], launches: dict[str, Launch], **more: Any) -> None:
        """One row: all contestants in turns on the same sets."""
        thunks = {name: [lambda s=s, go=go: go(s) for s in sets] for name, go in launches.items()}
        times = ceiling.in_turns(thunks)
        row = {"label": label, **more, "times": {name: t.row(size, self.copy) for name, t in times.items()}}
        self.rows.append(row)
        self.given.out.write_text(json.dumps({**self.about, "rows": self.rows}, indent=1))
        print(f"{label:34} {size / 1e6:9.1f} MB", end="")
        for name, t in times.items():
            print(f" | {name} {t.us:.2f} us {size / t.us * 1e6 / self.copy:.3f}", end="")
        print(flush=True)

    def attend(self) -> None:
        pools, held = {}, None
        for page, group, nhd, batch, tokens, kept in ATTEND:
            if self.late():
                break
            if held != (page, nhd):
                pools.clear()
                pages = int(self.given.pool * 1e9 / (2 * HEADS * page * DIM * 2))
                pools, held = cases.kv_pools(pages, HEADS, page, DIM, nhd=nhd), (page, nhd)
            lengths = torch.full((batch,), tokens)
            sets = [cases.attend_batch(pools, group, lengths, kept, 0)]
            size = cases.attend_bytes(sets[0])
            sets += [cases.attend_batch(pools, group, lengths, kept, s) for s in range(1, ceiling.sets_needed(size))]
            start = time.time()
            triton_best = tune.attend(sets)
            tuned = time.time() - start
            launches: dict[str, Launch] = {"triton": triton_best}
            mine = self.ours.best(sets) if self.ours else None
            if mine:
                launches["ours"] = mine[1]
            sets[0]["wanted"] = cases.attend_reference(sets[0])[0]
            errors = {name: attend_error(go, sets[0]) for name, go in launches.items()}
            if self.fi and not nhd:
                for one in sets:
                    flashinfer_peer.prepare(one)
                launches |= flashinfer_peer.attend_launches(self.fi, sets[0])
            label = f"{'NHD' if nhd else 'HND'} p{page} g{group} B={batch} n={tokens} k={kept}"
            names = {"triton": str(triton_best.config), "ours": mine[0] if mine else None}
            self.race(label, size, sets, launches, chosen=names, errors=errors, tuning_s=round(tuned, 1))

    def select(self) -> None:
        pools = cases.summary_pools(1 << 20, HEADS, DIM)
        for batch, tokens, kept in SELECT:
            for kind in ("centroid", "quest"):
                if self.late():
                    return
                lengths = torch.full((batch,), tokens)
                sets = [cases.select_batch(pools, 4, lengths, 16, kept, 0)]
                size = cases.select_bytes(sets[0], kind)
                more = range(1, ceiling.sets_needed(size))
                sets += [cases.select_batch(pools, 4, lengths, 16, kept, s) for s in more]
                score, taken = tune.score(kind, sets), kept - 3
                launches: dict[str, Launch] = {
                    "triton scores": score,
                    "+ triton top-k": lambda t, go=score: (go(t), triton_topk.topk(t)),
                    "+ torch.topk": lambda t, go=score, k=taken: (go(t), torch.topk(t["scores"], k, sorted=False)),
                }
                error = check.score_error(sets[0], kind, score.config) if batch <= 32 else None
                more_about = {"chosen": str(score.config), "error": error}
                self.race(f"{kind} B={batch} n={tokens} k={kept}", size, sets, launches, **more_about)
        del pools

    def topk(self) -> None:
        for rows, n, kept in TOPK:
            if self.late():
                return
            pools = cases.summary_pools(64, HEADS, 16)
            sets = []
            for seed in range(4):
                t = cases.select_batch(pools, 1, torch.full((rows // HEADS,), n), 1, kept, seed)
                t["scores"].normal_()
                t["rows"] = t["scores"].flatten(0, 1)[:, 1 : n - 2].contiguous()
                sets.append(t)
            launches: dict[str, Launch] = {
                f"triton w{w}": lambda t, w=w: triton_topk.topk(t, w) for w in (4, 8, 16, 32)
            }
            launches["torch.topk"] = lambda t, k=kept - 3: torch.topk(t["rows"], k, sorted=False)
            if self.fi:
                launches |= flashinfer_peer.topk_launches(self.fi, n - 3, 1, kept - 3)
            self.race(f"top-k {rows} x {n} k={kept}", rows * n * 4, sets, launches)

    def ratios(self) -> None:
        """How much faster ours is, over the rows that have both."""
        for other in ("triton", "flashinfer", "flashinfer_tc", "flashinfer_xqa"):
            found = [r["times"] for r in self.rows if {"ours", other} <= set(r["times"])]
            if found:
                each = [t[other]["us"] / t["ours"]["us"] for t in found]
                mean = math.exp(sum(map(math.log, each)) / len(each))
                print(f"{other} / ours: geometric mean {mean:.3f}, least {min(each):.3f}, {len(each)} rows")


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--out", type=Path, required=True)
    args.add_argument("--kernels", type=Path, help="folder of bench/stage_gpu.py: ours beside the baselines")
    args.add_argument("--only", nargs="*", default=["check", "attend", "select", "topk"])
    args.add_argument("--seconds", type=float, default=480, help="take up no new shapes after this long")
    args.add_argument("--pool", type=float, default=16, help="GB of K and V")
    args.add_argument("--commit", default="", help="noted in the results")
    given = args.parse_args()
    torch.manual_seed(0)
    if "check" in given.only:
        found = check.run("cuda", quick=False)
        print(*(f"WRONG {line}" for line, good in found if not good), sep="\n")
        print(f"baselines: {sum(good for _, good in found)} of {len(found)} right", flush=True)
    bench = Bench(given)
    for part in ("attend", "select", "topk"):
        if part in given.only:
            getattr(bench, part)()
    bench.ratios()


if __name__ == "__main__":
    main()
