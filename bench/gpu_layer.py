"""One layer of a flow on a GPU: plan, append, select and attend of an artifact, checked against torch, then timed.

Needs torch, apache-tvm-ffi and artifacts made for the GPU; no compiler. Page ids are random over a pool far larger
than L2. From the repository's root, artifacts staged in .gpu/ by

    vortex compile quest --target sm_90 -o .gpu/quest.vxa

    PYTHONPATH=. python3 bench/gpu_layer.py .gpu/quest.vxa .gpu/block_topk.vxa --out $OUT/layer.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial as bound
from pathlib import Path
from typing import Any, cast

import torch
import tvm_ffi

from vortex.artifact.folder import read_manifest
from vortex.budget import Budget
from vortex.runtime.variants import Variants

HKV, DIM, PAGE, GROUP, POOL = 8, 128, 16, 4, 131072
"""KV heads, head size, tokens of a page, queries per KV head, pages of the pool."""
BUDGET = Budget(27)
SHAPES = [(1, 32763), (4, 32763), (8, 32763), (16, 8187), (32, 8187), (32, 32763), (64, 32763), (128, 8187)]
"""Requests and their tokens; the last page is partial."""
CHECKED = [[1], [16, 17, 480, 500], [32763, 1, 900, 5000, 16384], [700] * 40]
COLD = 400 << 20


class Layer:
    """The kernels of an artifact over one pool."""

    def __init__(self, path: Path, target: str, slots: int = 0) -> None:
        sms = torch.cuda.get_device_properties(0).multi_processor_count
        self.slots = slots or 2 * sms // HKV
        """Two CTAs an SM."""
        self.manifest = read_manifest(path)
        entry = self.manifest.targets[target]
        self.variants = Variants.of(entry.kernels)
        self.module = tvm_ffi.load_module(str(path / entry.library))
        shape = (POOL, HKV, PAGE, DIM)
        self.pools = {n: torch.randn(shape, device="cuda", dtype=torch.bfloat16) for n in ("k", "v")}
        self.fields = {
            f"field.{f.name}": torch.full((POOL, HKV, *f.tile), float("nan"), device="cuda", dtype=torch.bfloat16)
            for f in self.manifest.fields
        }

    def step(self, lengths: list[int], seed: int) -> dict[str, Any]:
        """The arguments of a step that decodes one token for each request."""
        slots = self.slots
        made = torch.Generator().manual_seed(seed)
        n = [-(-x // PAGE) for x in lengths]
        b, most = len(lengths), max(n)
        ids = torch.randperm(POOL, generator=made)[: sum(n)].int()
        table = torch.zeros(b, most, dtype=torch.int32)
        for r, part in enumerate(ids.split(n)):
            table[r, : n[r]] = part
        last = torch.tensor([int(table[r, (x - 1) // PAGE]) * PAGE + (x - 1) % PAGE for r, x in enumerate(lengths)])
        rows, kept = b * HKV, min(most, BUDGET.total(most))
        kernels = {k.kind: k for k in self.variants.pick(rows, most, kept)}
        words = max(k.page_words * most + k.row_words for k in kernels.values())
        partial = cast("int", kernels["attend"].schedule["partial_words"])
        random = lambda *s: torch.randn(*s, generator=made).bfloat16()  # noqa: E731
        cpu = {
            "q": random(b, HKV * GROUP, DIM), "k_new": random(b, HKV, DIM), "v_new": random(b, HKV, DIM), "loc": last,
            "row_offsets": torch.arange(b + 1, dtype=torch.int32), "lengths": torch.tensor(lengths, dtype=torch.int32),
            "page_table": table, "budget": torch.tensor(BUDGET.numbers(), dtype=torch.int32),
            "plan": torch.full((4, b), -9, dtype=torch.int32), "work": torch.zeros(2, 2 + b + slots, dtype=torch.int32),
            "arrivals": torch.zeros(rows, dtype=torch.int32), "lse": torch.full((b, HKV * GROUP), float("nan")),
            "partials": torch.full((b + slots, HKV, partial), float("nan")),
            "workspace": torch.full((rows, max(1, words)), float("nan")),
            "pages": torch.full((b, HKV, kept), -9, dtype=torch.int32), "counts": torch.full((b, HKV), -9).int(),
            "out": torch.full((b, HKV * GROUP, DIM), float("nan")).bfloat16(),
        }  # fmt: skip
        given = {**self.pools, **self.fields, "scale": DIM**-0.5, "layer": 0, "kernels": kernels}
        return {**{n: t.cuda() for n, t in cpu.items()}, **given}

    def run(self, kind: str, step: dict[str, Any]) -> None:
        k = step["kernels"][kind]
        self.module[k.symbol](*[step[a] for a in k.args])

    def layer(self, step: dict[str, Any]) -> None:
        for kind in ("append", "select", "attend"):
            self.run(kind, step)

    def select_bytes(self, step: dict[str, Any]) -> int:
        """Summaries read by ``select``."""
        per_page = sum(t[0, 0].numel() * t.element_size() for t in self.fields.values())
        return int(step["plan"][3].sum()) * HKV * per_page

    def attend_bytes(self, step: dict[str, Any]) -> int:
        return int(step["counts"].sum()) * PAGE * DIM * 2 * 2


def summarise(layer: Layer) -> None:
    """All summaries by torch, so that every page of the pool has one."""
    for name, t in layer.fields.items():
        for part in range(0, POOL, 8192):
            k = layer.pools["k"][part : part + 8192].float()
            made = {"field.lo": k.amin(2), "field.hi": k.amax(2)}.get(name, k.mean(2))
            t[part : part + 8192] = made.bfloat16()


def scores(layer: Layer, step: dict[str, Any], r: int, h: int) -> torch.Tensor:
    """fp32 scores of a row's candidates, by torch."""
    first, count = int(step["plan"][2, r]), int(step["plan"][3, r])
    at = step["page_table"][r, first : first + count].long()
    q = step["q"][r, h * GROUP : (h + 1) * GROUP].float()
    got = {n: t[at, h].float() for n, t in layer.fields.items()}
    if "field.lo" in got:
        lo, hi = got["field.lo"][:, None], got["field.hi"][:, None]
        return torch.maximum(q * lo, q * hi).sum(-1).amax(-1)
    (centroid,) = got.values()
    return centroid @ q.mean(0)


def check(layer: Layer, lengths: list[int], seed: int) -> list[str]:
    """What differs from torch after a prefill-like append and a whole step, if anything."""
    wrong: list[str] = []
    step = layer.step(lengths, seed)
    fill = {**step, "row_offsets": torch.tensor([0, *lengths]).cumsum(0).int().cuda()}
    fill["k_new"] = fill["v_new"] = torch.empty(0, HKV, DIM, device="cuda", dtype=torch.bfloat16)
    fill["loc"] = torch.empty(0, device="cuda", dtype=torch.int64)
    tiles = [step["page_table"][r, : n // PAGE].long() for r, n in enumerate(lengths)]
    at = torch.cat(tiles)
    k = layer.pools["k"][at].float()
    want = {"field.lo": k.amin(2), "field.hi": k.amax(2)}
    for t in layer.fields.values():
        t[at] = float("nan")
    layer.run("plan", fill)
    layer.run("append", fill)
    for name, t in layer.fields.items():
        good = want.get(name, k.mean(2)).bfloat16().float()
        if not torch.allclose(t[at].float(), good, rtol=2**-7, atol=1e-6):
            wrong.append(f"{name} after a prefill")
    for kind in ("plan", "append", "select", "attend"):
        layer.run(kind, step)
    torch.cuda.synchronize()
    if int(step["arrivals"].abs().sum()):
        wrong.append("arrivals are left set")
    for r, n in enumerate(lengths):
        pages = -(-n // PAGE)
        for h in range(HKV):
            got = step["pages"][r, h, : int(step["counts"][r, h])].tolist()
            wrong += judge(layer, step, r, h, pages, got)
            tokens = torch.tensor([p * PAGE + i for p in got for i in range(PAGE) if p * PAGE + i < n], device="cuda")
            where = step["page_table"][r, tokens // PAGE].long()
            kk, vv = (layer.pools[x][where, h, tokens % PAGE].float() for x in ("k", "v"))
            q = step["q"][r, h * GROUP : (h + 1) * GROUP].float()
            logits = q @ kk.T * step["scale"]
            right = logits.softmax(-1) @ vv
            mine = step["out"][r, h * GROUP : (h + 1) * GROUP].float()
            if not float((mine - right).norm() / right.norm()) < 1e-2:
                wrong.append(f"out of request {r}, head {h}")
    return wrong


def judge(layer: Layer, step: dict[str, Any], r: int, h: int, pages: int, got: list[int]) -> list[str]:
    """Whether a row's selection is right, pages whose scores differ by rounding aside."""
    if pages <= BUDGET.total(pages):
        return [] if got == list(range(pages)) else [f"request {r}, head {h} does not keep all"]
    s = scores(layer, step, r, h)
    best = set((s.topk(BUDGET.pages).indices + BUDGET.sink).tolist())
    want = {0, pages - 2, pages - 1} | best
    kth = float(s.topk(BUDGET.pages).values[-1])
    odd = [p for p in set(got) ^ want if abs(float(s[p - BUDGET.sink]) - kth) > 1e-4 * float(s.abs().max())]
    ok = not odd and got == sorted(set(got)) and len(got) == len(want)
    return [] if ok else [f"selection of request {r}, head {h}: {odd}"]


def timed(call: Callable[[dict[str, Any]], None], steps: list[dict[str, Any]], runs: int = 15) -> float:
    """Microseconds of a call in a CUDA graph that takes the steps in turn; median of the replays."""
    for s in steps:
        call(s)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for s in steps:
            call(s)
    times = []
    for _ in range(runs):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        graph.replay()
        after.record()
        torch.cuda.synchronize()
        times.append(before.elapsed_time(after) * 1e3 / len(steps))
    return sorted(times)[runs // 2]


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of an elementwise kernel over 4 GB."""
    a = torch.randn(1 << 29, device="cuda")
    b = torch.empty_like(a)
    return 8 * a.numel() / timed(lambda _: torch.add(a, 1.0, out=b), [{}] * 3) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", type=Path, nargs="+")
    parser.add_argument("--target", default="sm_90a")
    parser.add_argument("--slots", type=int, default=0, help="CTAs at work per KV head (default: two an SM in all)")
    parser.add_argument("--shapes", default="", help="requests x tokens, e.g. 1x32763,32x32763")
    parser.add_argument("--commit", default="")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    shapes = [(int(a), int(b)) for a, b in (x.split("x") for x in args.shapes.split(",") if x)] or SHAPES
    copy = copy_bandwidth()
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(), "date": time.strftime("%F %T"), "commit": args.commit,
        "command": " ".join(["python3", *sys.argv]), "copy_TBps": copy / 1e12, "checks": {}, "rows": [],
    }  # fmt: skip
    print(f"{found['device']}: copy {copy / 1e12:.2f} TB/s")
    for path in args.artifacts:
        layer = Layer(path, args.target, args.slots)
        name = path.stem
        summarise(layer)
        wrong = [w for i, lengths in enumerate(CHECKED) for w in check(layer, lengths, i)]
        found["checks"][name] = wrong
        print(f"{name}: {'right' if not wrong else wrong[:6]}", flush=True)
        for requests, tokens in shapes:
            first = layer.step([tokens] * requests, 100)
            layer.run("plan", first)
            layer.layer(first)
            sizes = layer.select_bytes(first), layer.attend_bytes(first)
            sets = max(2, min(8, -(-COLD // sum(sizes))))
            steps = [first, *(layer.step([tokens] * requests, 101 + i) for i in range(sets - 1))]
            for s in steps:
                layer.run("plan", s)
            row: dict[str, Any] = {"flow": name, "requests": requests, "tokens": tokens, "MB": [x / 1e6 for x in sizes]}
            for kind in ("plan", "append", "select", "attend"):
                row[f"{kind}_us"] = timed(bound(layer.run, kind), steps)
            row["layer_us"] = timed(layer.layer, steps)
            row["select_of_copy"] = sizes[0] / row["select_us"] * 1e6 / copy
            row["attend_of_copy"] = sizes[1] / row["attend_us"] * 1e6 / copy
            found["rows"].append(row)
            print("  ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
            args.out.write_text(json.dumps(found, indent=1) + "\n")
        del layer
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
