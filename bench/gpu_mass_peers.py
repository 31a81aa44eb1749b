"""One layer of our flows that estimate the mass of pages beside one of AMASS and LOCKS, at equally many pages kept.

In one process on one GPU, over the same K, V, queries and page tables: random pages of a pool far larger than L2,
several steps in turn in a CUDA graph. What we keep and what they keep is compared with what attention really gives,
and every output with torch over the pages that were chosen. ``layer_us`` is ``decode`` of ours with the new tokens, and
scoring, choice and attention of theirs: storing K and V is the engine's there, and the summaries of a page that has
become full (``update_us``, all requests at once, eager, once in 16 steps) are made outside of a step. From the
repository's root, artifacts and extensions staged in .gpu/ by the part ``mass_peers``:

    PYTHONPATH=.:bench python3 bench/gpu_mass_peers.py .gpu/mass_int4.vxa --peers amass_clse,locks \\
        --wheels .gpu/mass_peers --kept 105:1x32763,8x32763 --out $OUT/mass_peers.json

An artifact named ``FLOW@KEPT.vxa`` runs where so many pages are kept, others everywhere.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from baselines.mass_peers import PEERS, Plugged, switched
from baselines.peer_packages import prebuilt, unpacked
from gpu_layer import COLD, HKV, copy_bandwidth, recording

from vortex.budget import Budget
from vortex.runtime.decoder import Decoder
from vortex.runtime.library import Library, open_library
from vortex.runtime.tensors import TORCH

PAGE, DIM, GROUP = 16, 128, 4
RESERVED = 3
"""Pages that ours keep besides those by score: the first and the last two."""
RUNS = 15
SHARP = 3.0
"""What queries are multiplied with: of normal q and k all pages would have much the same mass."""
ROWS = [(0, 0), (0, 5), (-1, 7)]
"""Requests and KV heads that are looked at."""


class Steps:
    """What steps of one shape decode: queries, new keys and values, and where pages of the pool stand."""

    def __init__(self, requests: int, tokens: int, pool: int, count: int, device: torch.device) -> None:
        self.requests, self.tokens, self.pages = requests, tokens, -(-tokens // PAGE)
        made = torch.Generator().manual_seed(1)
        random = lambda *s: torch.randn(*s, generator=made).bfloat16().to(device)  # noqa: E731
        heads = HKV * GROUP
        self.q = [SHARP * random(requests, heads, DIM) for _ in range(count)]
        self.new = [(random(requests, HKV, DIM), random(requests, HKV, DIM)) for _ in range(count)]
        wanted = requests * self.pages
        self.tables = [
            torch.randperm(pool, generator=made)[:wanted].int().view(requests, self.pages).to(device)
            for _ in range(count)
        ]
        at = (tokens - 1) // PAGE
        self.slots = [t[:, at].long() * PAGE + (tokens - 1) % PAGE for t in self.tables]
        self.lengths = torch.full((requests,), tokens, dtype=torch.int32, device=device)
        self.offsets = torch.arange(requests + 1, dtype=torch.int32, device=device)
        self.out = [torch.full_like(q, float("nan")) for q in self.q]


class Memory:
    """A library and one layer of its fields over ``k`` and ``v``, all pages of which its ``append`` has summarised."""

    def __init__(self, library: Library, k: torch.Tensor, v: torch.Tensor) -> None:
        self.library, self.k, self.v = library, k, v
        pool = len(k)
        self.fields = {
            f.name: torch.zeros((pool, HKV, *f.packed), device=k.device, dtype=TORCH[f.dtype])
            for f in library.manifest.fields
        }
        decoder = Decoder(library, budget=Budget(1))
        decoder.bind(0, k, v, self.fields)
        table = torch.arange(pool, dtype=torch.int32, device=k.device).view(min(64, pool), -1)
        lengths = torch.full((len(table),), table.shape[1] * PAGE, dtype=torch.int32, device=k.device)
        decoder.reserve(*table.shape)
        decoder.plan(lengths, table)
        ends = torch.arange(len(table) + 1, dtype=torch.int32, device=k.device) * table.shape[1] * PAGE
        decoder.append(0, None, None, None, ends)


class Ours:
    """A flow, with a decoder for each step."""

    def __init__(self, name: str, memory: Memory, steps: Steps, kept: int) -> None:
        self.name, self.memory, self.steps = name, memory, steps
        self.decoders = []
        for table in steps.tables:
            decoder = Decoder(memory.library, budget=Budget(kept - RESERVED))
            decoder.bind(0, memory.k, memory.v, memory.fields)
            decoder.reserve(steps.requests, steps.pages)
            decoder.plan(steps.lengths, table)
            self.decoders.append(decoder)

    def parts(self) -> dict[str, Callable[[int], object]]:
        return {"plan": self.plan, "append": self.append, "select": self.select, "attend": self.attend}

    def plan(self, i: int) -> None:
        self.decoders[i].plan(self.steps.lengths, self.steps.tables[i])

    def append(self, i: int) -> None:
        self.decoders[i].append(0, *self.steps.new[i], self.steps.slots[i], self.steps.offsets)

    def select(self, i: int) -> None:
        decoder = self.decoders[i]
        decoder.select(0, self.steps.q[i], pages=decoder.pages, counts=decoder.counts)

    def attend(self, i: int) -> None:
        decoder = self.decoders[i]
        assert decoder.pages is not None and decoder.counts is not None
        decoder.attend(0, self.steps.q[i], decoder.pages, decoder.counts, out=self.steps.out[i])

    def layer(self, i: int) -> None:
        new = (*self.steps.new[i], self.steps.slots[i], self.steps.offsets)
        self.decoders[i].decode(0, self.steps.q[i], out=self.steps.out[i], new=new)

    def selected(self, i: int, r: int, h: int) -> list[int]:
        pages, counts = self.decoders[i].pages, self.decoders[i].counts
        assert pages is not None and counts is not None
        return pages[r, h, : int(counts[r, h])].tolist()

    def about(self) -> dict[str, Any]:
        per_page = sum(t[0, 0].numel() * t.element_size() for t in self.memory.fields.values())
        return {"kernels": list(self.decoders[0].kernels), "summary_bytes_a_page": per_page}


class Theirs:
    """A peer on the same memory; of the new token nothing is stored, which their engine does."""

    def __init__(self, peer: Plugged, steps: Steps) -> None:
        self.name, self.peer, self.steps = peer.peer.name, peer, steps

    def parts(self) -> dict[str, Callable[[int], object]]:
        return {"plan": self.plan, "select": self.select, "attend": self.attend}

    def plan(self, i: int) -> None:
        self.peer.plan()

    def select(self, i: int) -> None:
        self.peer.select(i, self.steps.q[i])

    def attend(self, i: int) -> None:
        self.peer.attend(i, self.steps.q[i], self.steps.out[i])

    def layer(self, i: int) -> None:
        self.select(i)
        self.attend(i)

    def selected(self, i: int, r: int, h: int) -> list[int]:
        return self.peer.selected(r, h)

    def about(self) -> dict[str, Any]:
        return {"kernels": self.peer.kernels(), "summary_bytes_a_page": self.peer.page_bytes()}


def timed(call: Callable[[int], object], count: int, device: torch.device) -> tuple[float, float, str]:
    """Microseconds of a call, the median of RUNS replays of a graph that holds one of each step; how far the middle
    half of them lies apart; and ``graph``, or why they were launched one by one.
    """
    how = "graph" if device.type == "cuda" else "cpu"

    def all_steps() -> None:
        for i in range(count):
            call(i)

    all_steps()
    run = all_steps
    if how == "graph":
        try:
            with recording(device) as graph:
                all_steps()
            run = graph.replay
        except RuntimeError as error:
            how = f"eager: {str(error)[:80]}"
            torch.cuda.synchronize()
    times = []
    for _ in range(RUNS):
        if device.type != "cuda":
            began = time.perf_counter()
            run()
            times.append((time.perf_counter() - began) * 1e6 / count)
            continue
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        run()
        after.record()
        torch.cuda.synchronize()
        times.append(before.elapsed_time(after) * 1e3 / count)
    times.sort()
    return times[RUNS // 2], times[3 * RUNS // 4] - times[RUNS // 4], how


def quality(mine: Ours | Theirs, k: torch.Tensor, v: torch.Tensor) -> dict[str, Any]:
    """Of some rows of the first step: the share of attention's mass on the pages kept, on the best as many, and on
    random ones, the ends among them every time; and how far the output lies from torch's over the pages kept.
    """
    steps = mine.steps
    steps.out[0].fill_(float("nan"))
    mine.layer(0)
    table, shares, far, counts = steps.tables[0], [], [], []
    for r, h in ROWS:
        r %= steps.requests
        q = steps.q[0][r, h * GROUP : (h + 1) * GROUP].float()
        keys, values = (x[table[r].long(), h].float().flatten(0, 1)[: steps.tokens] for x in (k, v))
        logits = q @ keys.T * DIM**-0.5
        padded = torch.nn.functional.pad(logits.softmax(-1), (0, steps.pages * PAGE - steps.tokens))
        mass = padded.view(GROUP, steps.pages, PAGE).sum(-1).mean(0)
        kept = mine.selected(0, r, h)
        counts.append(len(kept))
        ends = [0, steps.pages - 2, steps.pages - 1]
        inner = mass.clone()
        inner[ends] = -1
        free = len(kept) - len(ends)
        best = float(mass[inner.topk(free).indices].sum() + mass[ends].sum())
        chance = torch.randperm(steps.pages - 3, generator=torch.Generator().manual_seed(r + h))[:free] + 1
        random = float(mass[chance.to(mass.device)].sum() + mass[ends].sum())
        shares.append((float(mass[kept].sum()), best, random))
        at = torch.tensor([p * PAGE + i for p in kept for i in range(PAGE) if p * PAGE + i < steps.tokens])
        at = at.to(mass.device)
        right = logits[:, at].softmax(-1) @ values[at]
        got = steps.out[0][r, h * GROUP : (h + 1) * GROUP].float()
        far.append(float((got - right).norm() / right.norm()))
    mean = [sum(x) / len(ROWS) for x in zip(*shares, strict=True)]
    return {
        "pages_kept": sorted(set(counts)), "mass_kept": mean[0], "mass_best": mean[1], "mass_random": mean[2],
        "output_error": max(far), "right": max(far) < 1e-2 and mean[2] < mean[0] < mean[1] * (1 + 1e-3),
    }  # fmt: skip


def measured(mine: Ours | Theirs, k: torch.Tensor, v: torch.Tensor) -> dict[str, Any]:
    """Checks and times of one implementation at one shape."""
    device, count = k.device, len(mine.steps.tables)
    mine.parts()["plan"](0)
    row: dict[str, Any] = {"name": mine.name, "requests": mine.steps.requests, "tokens": mine.steps.tokens}
    row |= quality(mine, k, v)
    for kind, call in {**mine.parts(), "layer": mine.layer}.items():
        row[f"{kind}_us"], row[f"{kind}_spread_us"], row[f"{kind}_run"] = timed(call, count, device)
    return row | mine.about()


def updated(peer: Plugged, device: torch.device) -> float:
    """Microseconds on the wall in which the page that each request has filled is summarised, launches included."""
    times = []
    for i in (0, 0, 0, 0):
        began = time.perf_counter()
        peer.update(i)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append((time.perf_counter() - began) * 1e6)
    return min(times)


def sets(requests: int, tokens: int, device: torch.device) -> int:
    """Steps in a graph: as many as read more than L2 holds at 300 bytes a page and KV head, of no more than 16."""
    if device.type != "cuda":
        return 2
    return max(2, min(16, -(-COLD // (requests * (tokens // PAGE) * HKV * 300))))


def shapes(text: str) -> list[tuple[int, int, int]]:
    """(kept, requests, tokens) of ``KEPT:BxT,BxT KEPT:BxT``."""
    found = []
    for part in text.split():
        kept, _, those = part.partition(":")
        found += [(int(kept), *(int(x) for x in one.split("x"))) for one in those.split(",")]
    return found


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At each shape, the fastest of ours and of theirs, and how many times as long theirs takes."""
    found = []
    for kept, requests, tokens in dict.fromkeys((r["kept"], r["requests"], r["tokens"]) for r in rows):
        here = [r for r in rows if (r["kept"], r["requests"], r["tokens"]) == (kept, requests, tokens)]
        ours, theirs = ([r for r in here if r["ours"] is x] for x in (True, False))
        if ours and theirs:
            mine, other = (min(x, key=lambda r: float(r["layer_us"])) for x in (ours, theirs))
            about: dict[str, Any] = {"kept": kept, "requests": requests, "tokens": tokens}
            about |= {"ours": mine["name"], "theirs": other["name"], "ratio": other["layer_us"] / mine["layer_us"]}
            about["of"] = {row["name"]: row["layer_us"] / mine["layer_us"] for row in here}
            found.append(about)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", type=Path, nargs="*")
    parser.add_argument("--peers", default="", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--wheels", type=Path, help="where their wheels and compiled extensions lie")
    parser.add_argument("--kept", default="105:1x32763,8x32763,32x32763 412:1x131067,8x131067 11:1x32763,32x32763")
    parser.add_argument("--pool", type=int, default=131072)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--commit", default="")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    device = torch.device(args.device)
    copy = copy_bandwidth(device)
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu", "date": time.strftime("%F %T"),
        "commit": args.commit, "command": " ".join(["python3", *sys.argv]), "torch": torch.__version__,
        "switches": switched(), "copy_TBps": copy / 1e12, "ratios": [], "rows": [],
    }  # fmt: skip
    print(f"{found['device']}: copy {copy / 1e12:.2f} TB/s", flush=True)
    made = torch.Generator(device).manual_seed(0)
    shape = (args.pool, HKV, PAGE, DIM)
    k, v = (torch.randn(shape, device=device, generator=made, dtype=torch.bfloat16) for _ in range(2))

    def keep(row: dict[str, Any], kept: int, ours: bool) -> None:
        row |= {"kept": kept, "ours": ours}
        found["rows"].append(row)
        found["ratios"] = ratios(found["rows"])
        args.out.write_text(json.dumps(found, indent=1) + "\n")
        print("  ".join(f"{n} {x:.3f}" if isinstance(x, float) else f"{n} {x}" for n, x in row.items()), flush=True)

    for path in args.artifacts:
        memory = Memory(open_library(path, None if device.type == "cuda" else "cpu"), k, v)
        name, _, only = path.stem.partition("@")
        for kept, requests, tokens in shapes(args.kept):
            if not only or int(only) == kept:
                steps = Steps(requests, tokens, args.pool, sets(requests, tokens, device), device)
                keep(measured(Ours(name, memory, steps, kept), k, v), kept, True)
        del memory
    with tempfile.TemporaryDirectory() as folder:
        if args.peers:
            prebuilt(args.wheels)
            kv = torch.stack([k.transpose(1, 2), v.transpose(1, 2)], 1).contiguous()
        for name in args.peers.split(",") if args.peers else ():
            peer = PEERS[name]
            unpacked(peer.package, args.wheels, Path(folder))
            before: Plugged | None = None
            for kept, requests, tokens in shapes(args.kept):
                steps = Steps(requests, tokens, args.pool, sets(requests, tokens, device), device)
                plugged = Plugged(peer, kv, GROUP, steps.tables, tokens, kept)
                plugged.summarise(before)
                before = plugged
                row = measured(Theirs(plugged, steps), k, v)
                row["update_us"] = updated(plugged, device)
                row["name"] = "_".join(x for x in (row["name"], switched()) if x)
                keep(row, kept, False)
    return int(not all(row["right"] for row in found["rows"]))


if __name__ == "__main__":
    sys.exit(main())
