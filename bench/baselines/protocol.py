"""Ours against FlashInfer, Triton and torch, shape by shape: sparse and dense attention over pages, and top-k.

Every contestant is checked against float64 before it is timed; then all replay in turns, each measured twice, over
page ids random in a pool far larger than L2 and fresh in every launch. FlashInfer gets its strongest use: one plan for
all launches, for pages chosen per KV head the view ``[P * Hkv, 1, page, D]``; its best kernel counts. Ours are the
kernels and knobs an artifact has by default, planned once as well.

    bash .gpu/run_all.sh peers                      # or, from the repository's root, with .gpu/ staged:
    PYTHONPATH=bench python3 -m baselines.protocol --peers .gpu/peers --out $OUT/peers.json --minutes 4

Shapes come in an order that keeps the range covered when ``--minutes`` ends the run early. Rows say the bytes' floor
and each contestant's bytes a second beside those of a copy; a dense row of at least 0.5 GB whose best baseline is
below 60 % of the copy is void.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from . import cases, ceiling, check, flashinfer_peer, triton_topk, tune
from .planned import Launch, Planned

HEADS, DIM, TOKENS = 8, 128, 32768
PAGES, GROUPS = (16, 32, 64), (4, 2, 6)
TRITON = {(16, 4), (64, 4), (16, 6)}
"""Page and group of the shapes that Triton is tuned for too; each pair costs seconds of compiling."""


def sparse_shapes() -> list[tuple[int, int, int, int]]:
    """Page, group, requests, pages kept: the widest first, then what lies between."""
    corners = [(b, k) for k in (30, 128) for b in (1, 8, 32, 128)]
    rest = [(b, k) for k in (16, 64) for b in (1, 8, 32, 128)]
    layouts = [(16, 4), (64, 4), (16, 6), (32, 4), (16, 2), (32, 6), (64, 2), (64, 6), (32, 2)]
    return [(*layout, *one) for batch in (corners, rest) for layout in layouts for one in batch]


def dense_shapes() -> list[tuple[int, int, int, int]]:
    """Page, group, requests, tokens."""
    layouts = [(16, 4), (64, 4), (16, 6), (32, 4), (16, 2), (32, 6), (64, 2), (64, 6), (32, 2)]
    sizes = [(1, 8192), (1, 131072), (8, 32768), (32, 8192), (32, 32768), (128, 8192), (1, 32768), (8, 8192)]
    sizes += [(8, 131072), (128, 32768), (32, 131072)]
    return [(*layout, *size) for layout in layouts for size in sizes]


TOPK = [
    *((rows, n, k) for n, k in itertools.product((2048, 512, 8192), (30, 128, 64)) for rows in (8, 64, 512, 2048)),
    *((rows, n, k) for n, k in ((65536, 64), (8192, 2048), (65536, 2048), (32768, 512)) for rows in (8, 16, 64, 512)),
]
"""Rows, candidates, how many of them are taken."""


class Protocol:
    """Rows so far, written after every one."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.began = given, time.time()
        self.copy = ceiling.copy_bandwidth()
        self.fi, self.ours = flashinfer_peer.load(), Planned.load(given.peers, given.slots)
        self.beside = {folder.name: Planned.load(folder, given.slots) for folder in given.beside}
        self.about: dict[str, Any] = {
            "device": torch.cuda.get_device_name(), "torch": torch.__version__, "date": time.strftime("%F %T"),
            "command": " ".join(["python3", *sys.argv]), "commit": self.ours.about["commit"],
            "flashinfer": getattr(self.fi, "__version__", None), "slots": given.slots, "copy_TBps": self.copy / 1e12,
            "read_TBps": ceiling.read_bandwidth() / 1e12, "launch_us": ceiling.launch_floor(),
        }  # fmt: skip
        self.rows: list[dict[str, Any]] = []
        print(json.dumps(self.about), flush=True)

    def until(self, share: float) -> Callable[[], bool]:
        """Whether this part's time is over: ``share`` of what is left now."""
        end = time.time() + share * max(0.0, 60 * self.given.minutes - (time.time() - self.began))
        return lambda: time.time() > end

    def race(self, part: str, size: int, sets: list[cases.Tensors], launches: dict[str, Launch], **shape: Any) -> None:
        found = ceiling.twice({name: [lambda s=s, go=go: go(s) for s in sets] for name, go in launches.items()})
        times = {}
        for name, (first, second) in found.items():
            times[name] = first.row(size, self.copy) | {"again_us": round(second.us, 3)}
            times[name]["spread"] = round(abs(second.us - first.us) / first.us, 4)
        row = {"part": part, **shape, "bytes": size, "floor_us": round(size / self.copy * 1e6, 3), "times": times}
        others = [t for name, t in times.items() if name != "ours"]
        if part == "dense" and size >= 5e8 and others:
            row["void"] = max(t["of_copy"] for t in others) < 0.6
        self.rows.append(row)
        self.save()
        label = " ".join(f"{k}={v}" for k, v in shape.items() if isinstance(v, int))
        each = " | ".join(f"{n} {t['us']:.2f} {t['of_copy']:.2f}" for n, t in times.items())
        print(f"{part} {label}: floor {row['floor_us']:.2f} us | {each}", flush=True)

    def save(self) -> None:
        made = {**self.about, "summary": summary(self.rows), "rows": self.rows}
        self.given.out.write_text(json.dumps(made, indent=1) + "\n")

    # attention

    def attention(self, part: str, shapes: list[tuple[int, int, int, int]], late: Callable[[], bool]) -> None:
        numel = int(self.given.pool * 1e9 / 4) // (HEADS * 64 * DIM) * (HEADS * 64 * DIM)
        flat = [cases.fill((numel // DIM, DIM), torch.bfloat16, "cuda") for _ in range(2)]
        for page, group, batch, number in shapes:
            if late():
                print(f"{part}: out of time", flush=True)
                return
            k, v = (x.view(-1, HEADS, page, DIM) for x in flat)
            tokens, kept = (TOKENS, number) if part == "sparse" else (number, number // page)
            try:
                self.attend(part, {"k": k, "v": v}, page, group, batch, tokens, kept)
            except torch.cuda.OutOfMemoryError as error:
                print(f"{part} page={page} group={group} B={batch} n={tokens}: {str(error)[:100]}", flush=True)
            torch.cuda.empty_cache()

    def attend(
        self, part: str, pools: cases.Tensors, page: int, group: int, batch: int, tokens: int, kept: int
    ) -> None:
        lengths = torch.full((batch,), tokens)
        sets = [cases.attend_batch(pools, group, lengths, kept, 0)]
        size = cases.attend_bytes(sets[0])
        sets += [cases.attend_batch(pools, group, lengths, kept, s) for s in range(1, ceiling.sets_needed(size))]
        for one in sets:
            one["lse"] = one["lse"][:0]
        sets[0]["sample"], sets[0]["wanted"] = cases.sampled_reference(sets[0])
        budget = [kept - 3, 1, 2, 0, 1] if part == "sparse" else [kept, 1, 2, 0, 1]
        launches: dict[str, Launch] = {}
        errors = {}
        if mine := self.ours.bind(f"p{page}_g{group}", "attend", sets[0], budget):
            launches["ours"] = mine
        if not self.given.no_triton and (page, group) in TRITON and size < 2e9:
            launches["triton"] = tune.attend(sets)
        for name in list(launches):
            errors[name] = check.sampled_error(launches[name], sets[0])
            if not errors[name] < 1e-2:
                print(f"{name} is WRONG by {errors[name]:.1e}", flush=True)
                launches.pop(name)
        if self.fi:
            for one in sets:
                flashinfer_peer.prepare(one)
            launches |= flashinfer_peer.attend_launches(self.fi, sets[0])
        shape = {"page": page, "group": group, "B": batch, "n": tokens, "k": kept}
        self.race(part, size, sets, launches, **shape, errors=errors)

    # top-k

    def topk(self, late: Callable[[], bool]) -> None:
        for rows, n, k in TOPK:
            if late():
                print("topk: out of time", flush=True)
                return
            self.topk_row(rows, n, k)

    def topk_row(self, rows: int, n: int, k: int) -> None:
        sets = [ready_batch(rows // HEADS, n, k, seed) for seed in range(4)]
        first = sets[0]
        launches: dict[str, Launch] = {"torch.topk": lambda t: t.update(got=torch.topk(t["rows"], k, sorted=False))}
        wrong = {}
        if not self.given.no_triton and n <= 8192:
            launches["triton"] = lambda t: triton_topk.topk(t["triton"])
            wrong["triton"] = wrong_pages(lambda: launches["triton"](first), first["triton"], k)
        for name, staged in {"ours": self.ours, **self.beside}.items():
            if mine := staged.bind("ready", "select", first, [k, 0, 1, 0, 1]):
                launches[name] = mine
                wrong[name] = wrong_pages(lambda mine=mine: mine(first), first, k)
        if self.fi:
            theirs = flashinfer_peer.topk_launches(self.fi, n, 0, k)
            wrong |= {name: flashinfer_peer.topk_wrong(launch, first, k) for name, launch in theirs.items()}
            launches |= theirs
        for name, why in wrong.items():
            if why:
                print(f"topk rows={rows} n={n} k={k}: {name} is WRONG: {why}", flush=True)
                launches.pop(name)
        self.race("topk", rows * n * 4, sets, launches, rows=rows, n=n, k=k)


def ready_batch(batch: int, n: int, k: int, seed: int) -> cases.Tensors:
    """Scores of ``n`` candidates a row for all contestants: as a matrix, and one number a page for ours.

    Our flow reserves the last of ``n + 1`` pages; pages lie in memory in the order of their table. Triton's kernel
    reserves none, and has a power of two of columns.
    """
    g = torch.Generator(device="cuda").manual_seed(seed)
    made = {"device": "cuda", "dtype": torch.int32}
    scores = torch.randn(batch, HEADS, n + 1, device="cuda", generator=g)
    rows = scores[..., :n].contiguous()

    def lists(pages: int, kept: int) -> cases.Tensors:
        plan = torch.tensor([pages, kept, 0, n], **made)[:, None].expand(4, batch).contiguous()
        listed = torch.full((batch, HEADS, kept), cases.FAR, **made)
        return {
            "plan": plan,
            "pages": listed,
            "counts": torch.full((batch, HEADS), -1, **made),
            "rows": rows.flatten(0, 1),
        }

    return {
        **lists(n + 1, k + 1), "scores": rows, "triton": {**lists(n, k), "scores": rows},
        "page_table": torch.arange(batch * (n + 1), **made).view(batch, n + 1),
        "field.score": scores.transpose(1, 2).reshape(-1, HEADS, 1).contiguous(),
        "lengths": torch.full((batch,), 16 * (n + 1), **made),
    }  # fmt: skip


def wrong_pages(launch: Callable[[], object], t: cases.Tensors, k: int) -> str:
    """What is wrong with the pages it writes, if anything: the k best, then those reserved, ascending."""
    t["pages"].fill_(cases.FAR)
    t["counts"].fill_(-1)
    launch()
    best = t["rows"].topk(k).indices.sort(-1).values.view(*t["counts"].shape, k)
    if not bool((t["counts"] == t["pages"].shape[-1]).all()):
        return f"counts {t['counts'].unique().tolist()[:4]}"
    same = t["pages"][..., :k] == best
    return "" if bool(same.all()) else f"{int((~same).sum())} of {same.numel()} pages"


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Over the rows of a part: how many times as long as ours the others take; FlashInfer's best of a row as one."""
    return {f"{part}: {name} / ours": found for part, name, found in _ratios(rows)}


def _ratios(rows: list[dict[str, Any]]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for part in ("sparse", "dense", "topk"):
        mine = [r["times"] for r in rows if r["part"] == part and "ours" in r["times"] and not r.get("void")]
        for name in sorted({n for t in mine for n in t if n != "ours"}):
            each = [t[name]["us"] / t["ours"]["us"] for t in mine if name in t]
            yield part, name, _spread(each)
        best = [[t[n]["us"] for n in t if n.startswith("flashinfer")] for t in mine]
        if any(best):
            each = [min(b) / t["ours"]["us"] for b, t in zip(best, mine, strict=True) if b]
            yield part, "best flashinfer", _spread(each)


def _spread(each: list[float]) -> dict[str, Any]:
    mean = math.exp(sum(map(math.log, each)) / len(each))
    return {"geometric_mean": round(mean, 4), "least": round(min(each), 4), "most": round(max(each), 4),
            "rows": len(each), "slower": sum(e < 1 for e in each)}  # fmt: skip


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--out", type=Path, required=True)
    args.add_argument("--peers", type=Path, default=Path(".gpu/peers"), help="what bench/stage_peers.py made")
    args.add_argument(
        "--beside", type=Path, nargs="*", default=[], help="the same of other commits, whose top-k is measured, too"
    )
    args.add_argument("--only", nargs="*", default=["topk", "sparse", "dense"])
    args.add_argument("--minutes", type=float, default=4.0)
    args.add_argument("--pool", type=float, default=12, help="GB of K and V")
    args.add_argument("--slots", type=int, default=0, help="CTAs per KV head of our lists (default: the decoder's)")
    args.add_argument("--no-triton", action="store_true")
    given = args.parse_args()
    torch.manual_seed(0)
    made = Protocol(given)
    if "topk" in given.only:
        made.topk(made.until(0.15 if len(given.only) > 1 else 1.0))
    if "sparse" in given.only:
        made.attention("sparse", sparse_shapes(), made.until(0.6 if "dense" in given.only else 1.0))
    if "dense" in given.only:
        made.attention("dense", dense_shapes(), made.until(1.0))
    print(json.dumps(summary(made.rows), indent=1))


if __name__ == "__main__":
    main()
