"""One layer of a flow on a GPU as a ``Decoder`` runs it: checked against torch, then timed.

Needs torch, apache-tvm-ffi and artifacts made for the GPU; no compiler. Page ids are random over a pool far larger
than L2. Quest, block_topk and mass are judged by torch, all rows of some batches; any other flow by the IR in its
artifact, some rows. What is timed is a CUDA graph of several steps in turn, each planned by a decoder of its
own, so that scratch, work lists and the choice of variants are those of a model's step: ``layer_us`` is ``decode`` with
the new tokens, ``apart_us`` the same with ``append`` in a launch of its own; plan, which a step does once for all
layers, is timed by itself, as the kernels are. From the repository's root, artifacts staged
in .gpu/ by

    vortex compile quest --target sm_90 -o .gpu/quest.vxa

    PYTHONPATH=. python3 bench/gpu_layer.py .gpu/quest.vxa .gpu/block_topk.vxa --out $OUT/layer.json

``--between 100`` also measures the layer where so many MB are read before each step (``between_us``, without what that
takes): in a model the weights of a layer go through L2 between two layers' attention, and then the instructions of
the kernels have to come from memory again. Nor does the layer begin before that kernel's end. ``--only select.2``
leaves a kernel's other variants out, so that every step runs this one; ``--device cpu`` tries the script where there is
no GPU, on artifacts that have a CPU library: few pages, and times of the wall clock.
``--budget 8`` keeps 8 pages beside the reserved ones, or blocks.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from layer_by_ir import ByIR

from vortex.budget import Budget
from vortex.flow.narrow import numbers
from vortex.ir.types import DTYPES
from vortex.runtime.decoder import Decoder
from vortex.runtime.library import Library, open_library
from vortex.runtime.tensors import TORCH

HKV, POOL = 8, 131072
"""KV heads, pages of the pool."""
BUDGET = Budget(27)
BY_TORCH = ("quest", "block_topk", "mass", "mass_fp8")
"""Flows that are judged here by torch, by the names of their fields."""
SHAPES = [(1, 32763), (4, 32763), (8, 32763), (16, 8187), (32, 8187), (32, 32763), (64, 32763), (128, 8187)]
"""Requests and their tokens; the last page is partial."""
CHECKED = [[1], [16, 17, 480, 500], [32763, 1, 900, 5000, 16384], [700] * 40, [262139, 60000]]
SMALL_POOL, SMALL_SHAPES, SMALL_CHECKED = 2048, [(1, 1019), (4, 1019)], [[1], [16, 17, 480, 500], [900, 1, 2000]]
"""The same where there is no GPU."""
WIDTH = 8192
"""Columns of the weights that are read between steps."""
COLD = 400 << 20
"""Bytes that the steps of a graph read together: more than any L2 cache has."""


def only(library: Library, names: Sequence[str]) -> Library:
    """``library`` without the other variants of these kernels: every step runs the named ones."""
    entry = library.target
    known = {k.name: k.variant_of for k in entry.kernels}
    if unknown := [n for n in names if n not in known]:
        raise SystemExit(f"there is no kernel {unknown[0]}; the artifact has {', '.join(known)}")
    forced = {known[n] for n in names}
    kernels = tuple(k for k in entry.kernels if k.name in names or k.variant_of not in forced)
    manifest = replace(library.manifest, targets={library.name: replace(entry, kernels=kernels)})
    return replace(library, manifest=manifest)


class Layer:
    """The memory of one layer, all pages of which are summarised, and a library that runs on it.

    ``ir`` judges the kernels where torch here does not know what the flow's fields are.
    """

    def __init__(
        self,
        library: Library,
        device: str,
        budget: Budget = BUDGET,
        ir: ByIR | None = None,
        *,
        deterministic: bool = False,
    ) -> None:
        self.library, self.device, self.budget, self.ir = library, torch.device(device), budget, ir
        self.deterministic = deterministic
        self.spec = library.manifest.spec
        self.pool = (POOL if self.device.type == "cuda" else SMALL_POOL) // self.spec.page_blocks
        shape = (self.pool, HKV, self.spec.page_size, self.spec.head_dim)
        self.k, self.v = (torch.randn(shape, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        self.fields = {
            f.name: torch.zeros((self.pool, HKV, *f.packed), device=self.device, dtype=TORCH[f.dtype])
            for f in library.manifest.fields
        }
        tokens = [f for f in library.manifest.fields if f.tile == (self.spec.page_size, self.spec.head_dim)]
        self.keys = tokens[0].name if tokens else ""
        """The field that has the keys of all tokens in a narrow type, in flows that estimate the mass of pages."""
        if self.keys:
            self.dtype = DTYPES[tokens[0].dtype]
        if self.keys or ir is not None:
            Step(self, [self.pool // 64 * self.spec.page_size] * 64, 0).fill()
            return
        for first in range(0, self.pool, 8192):
            pages = slice(first, first + 8192)
            for name, made in self.summaries(self.k[pages]).items():
                self.fields[name][pages] = made

    def summaries(self, k: torch.Tensor) -> dict[str, torch.Tensor]:
        """Of pages ``[n, Hkv, page, D]``, by torch: the extremes of Quest, the mean of the others."""
        k = k.float()
        known = {"lo": k.amin(2), "hi": k.amax(2)}
        return {name: known.get(name, k.mean(2)).bfloat16() for name in self.fields}

    def spoil(self, at: torch.Tensor) -> None:
        """Leave nothing of what is summarised of pages."""
        for t in self.fields.values():
            bytes_of = t.view(torch.uint8)
            bytes_of[at] = 0x7F

    def wrong_summaries(self, tables: list[torch.Tensor]) -> list[str]:
        """What is wrong with the fields of requests' full pages."""
        if self.ir is not None:
            return self.ir.wrong_summaries(self, [t.tolist() for t in tables])
        return [f"{name} after a prefill" for name in self._wrong_fields(torch.cat(tables))]

    def _wrong_fields(self, at: torch.Tensor) -> list[str]:
        """Which fields of pages are not those of their keys."""
        if not self.keys:
            made = self.summaries(self.k[at])
            close = {n: torch.allclose(t[at].float(), made[n].float(), rtol=2**-7) for n, t in self.fields.items()}
            return [name for name, right in close.items() if not right]
        for h in range(HKV):
            want, got = self.k[at, h].float(), self.stored_keys(at, h)
            # half a step of codes, or half a bit of fp8
            most = (
                want.abs().amax(-1, keepdim=True) / 13.5 if self.keys + "_scale" in self.fields else want.abs() / 15.5
            )
            if not ((got - want).abs() <= most + 2**-10).all():
                return [self.keys]
        return []

    def stored_keys(self, at: torch.Tensor, h: int) -> torch.Tensor:
        """The keys of pages ``[n, page, D]`` of a KV head, as the flow reads them."""
        kept = self.fields[self.keys].view(torch.uint8)[at, h]
        if self.dtype.is_float:
            return kept.view(TORCH[self.dtype.name]).float()
        return numbers(kept, self.dtype).float() * self.fields[self.keys + "_scale"][at, h].float()


class Step:
    """A step that decodes one token of each request, planned by a decoder of its own."""

    def __init__(self, layer: Layer, lengths: list[int], seed: int) -> None:
        spec, pool = layer.spec, layer.pool
        made, page = torch.Generator().manual_seed(seed), spec.page_size
        n = [-(-x // page) for x in lengths]
        self.layer, self.lengths, self.requests = layer, lengths, len(lengths)
        table = torch.zeros(self.requests, max(n), dtype=torch.int32)
        for r, ids in enumerate(torch.randperm(pool, generator=made)[: sum(n)].int().split(n)):
            table[r, : n[r]] = ids
        last = [int(table[r, (x - 1) // page]) * page + (x - 1) % page for r, x in enumerate(lengths)]
        random = lambda *s: torch.randn(*s, generator=made).bfloat16().to(layer.device)  # noqa: E731
        heads, dim = HKV * spec.group, spec.head_dim
        self.q, self.k, self.v = (random(self.requests, h, dim) for h in (heads, HKV, HKV))
        self.table, self.loc = table.to(layer.device), torch.tensor(last, device=layer.device)
        self.tokens = torch.tensor(lengths, dtype=torch.int32, device=layer.device)
        self.offsets = torch.arange(self.requests + 1, dtype=torch.int32, device=layer.device)
        self.out = torch.full_like(self.q, float("nan"))
        self.lse = torch.full((self.requests, heads), float("nan"), device=layer.device)
        self.decoder = Decoder(layer.library, budget=layer.budget, deterministic=layer.deterministic)
        self.decoder.bind(0, layer.k, layer.v, layer.fields)
        self.decoder.reserve(self.requests, max(n))
        self.plan()

    def plan(self) -> None:
        self.decoder.plan(self.tokens, self.table)

    def append(self) -> None:
        self.decoder.append(0, self.k, self.v, self.loc, self.offsets)

    def fill(self) -> None:
        """Summarise all whole pages, as after a prefill whose tokens the engine has stored."""
        ends = torch.tensor([0, *self.lengths]).cumsum(0).int().to(self.layer.device)
        self.decoder.append(0, None, None, None, ends)

    def select(self) -> None:
        self.decoder.select(0, self.q, pages=self.pages, counts=self.counts)

    def attend(self) -> None:
        self.decoder.attend(0, self.q, self.pages, self.counts, out=self.out, lse=self.lse)

    def run(self) -> None:
        """The layer, as engines call it: ``select`` takes in the new tokens where it can."""
        self.decoder.decode(0, self.q, out=self.out, lse=self.lse, new=(self.k, self.v, self.loc, self.offsets))

    def run_apart(self) -> None:
        """The layer: append, select and attend."""
        self.append()
        self.select()
        self.attend()

    @property
    def pages(self) -> torch.Tensor:
        assert self.decoder.pages is not None
        return self.decoder.pages

    @property
    def counts(self) -> torch.Tensor:
        assert self.decoder.counts is not None
        return self.decoder.counts

    def bytes(self) -> dict[str, float]:
        """What kernels move: ``select`` of summaries, ``attend`` of K and V of the selected pages; by the IR, if that
        judges the flow, all that they read and write, ``append`` too.
        """
        layer, spec = self.layer, self.layer.spec
        if layer.ir is not None:
            (tokens,) = set(self.lengths)
            rows = self.requests * HKV
            return {k: rows * x for k, x in layer.ir.bytes(layer.library, layer.budget, tokens).items() if k != "plan"}
        tile = sum(t[0, 0].numel() * t.element_size() for t in layer.fields.values())
        attended = int(self.counts.sum()) * spec.page_size * spec.head_dim * 2 * 2
        return {"select": self._scored() * HKV * tile, "attend": attended}

    def _scored(self) -> int:
        """Candidates of all requests, for one KV head."""
        n = [-(-x // self.layer.spec.page_size) for x in self.lengths]
        budget = self.layer.budget
        return sum(x - budget.sink - budget.recent for x in n if x > budget.total(x))

    def scores(self, r: int, h: int) -> torch.Tensor:
        """fp32 scores of a row's candidates, by torch."""
        budget = self.layer.budget
        first, end = budget.sink, -(-self.lengths[r] // self.layer.spec.page_size) - budget.recent
        at, group = self.table[r, first:end].long(), self.layer.spec.group
        q = self.q[r, h * group : (h + 1) * group].float()
        if self.layer.keys:
            logits = q @ self.layer.stored_keys(at, h).mT * self.layer.spec.head_dim**-0.5
            return logits.logsumexp(-1).softmax(0).sum(-1)
        got = {n: t[at, h].float() for n, t in self.layer.fields.items()}
        if "lo" in got:
            return torch.maximum(q * got["lo"][:, None], q * got["hi"][:, None]).sum(-1).amax(-1)
        (centroid,) = got.values()
        return centroid @ q.mean(0)

    def wrong_selections(self) -> list[str]:
        """What is wrong with the selections of all rows, or of some where IR judges them."""
        if self.layer.ir is not None:
            return self.layer.ir.wrong_selections(self)
        return [w for r in range(self.requests) for h in range(HKV) for w in self._wrong_selection(r, h)]

    def _wrong_selection(self, r: int, h: int) -> list[str]:
        """What is wrong with a row's selection, pages whose scores differ by rounding aside."""
        pages, budget = -(-self.lengths[r] // self.layer.spec.page_size), self.layer.budget
        got = self.pages[r, h, : int(self.counts[r, h])].tolist()
        if pages <= budget.total(pages):
            return [] if got == list(range(pages)) else [f"request {r}, head {h} does not keep all"]
        s = self.scores(r, h)
        best = s.topk(budget.pages)
        want = {0, pages - 2, pages - 1} | {int(i) + budget.sink for i in best.indices}
        kth = float(best.values[-1])
        slack = 1e-4 * (kth if self.layer.keys else float(s.abs().max()))
        ranked = dict(enumerate(s.tolist(), budget.sink))
        odd = [p for p in set(got) ^ want if not abs(ranked.get(p, float("inf")) - kth) <= slack]
        ok = not odd and got == sorted(set(got)) and len(got) == len(want)
        return [] if ok else [f"selection of request {r}, head {h}: {odd}"]

    def wrong_output(self, r: int, h: int) -> list[str]:
        """What is wrong with a row's output, given its selection."""
        page, group, block = self.layer.spec.page_size, self.layer.spec.group, self.layer.spec.block_size
        got = self.pages[r, h, : int(self.counts[r, h])].tolist()
        at = [p * block + i for p in got for i in range(block) if p * block + i < self.lengths[r]]
        tokens = torch.tensor(at, device=self.layer.device)
        where = self.table[r, tokens // page].long()
        k, v = (x[where, h, tokens % page].float() for x in (self.layer.k, self.layer.v))
        q = self.q[r, h * group : (h + 1) * group].float()
        right = (q @ k.T * self.layer.spec.head_dim**-0.5).softmax(-1) @ v
        mine = self.out[r, h * group : (h + 1) * group].float()
        return [] if float((mine - right).norm() / right.norm()) < 1e-2 else [f"out of request {r}, head {h}"]


def check(layer: Layer, lengths: list[int], seed: int) -> list[str]:
    """What differs from torch after a prefill's append and a whole step, if anything. A second run gives equal bits,
    and so does one with ``append`` in a launch of its own.
    """
    wrong: list[str] = []
    step, page = Step(layer, lengths, seed), layer.spec.page_size
    tables = [step.table[r, : n // page].long() for r, n in enumerate(lengths)]
    layer.spoil(torch.cat(tables))
    step.fill()
    wrong += layer.wrong_summaries(tables)
    step.run()
    first = [x.clone() for x in (step.pages, step.counts, step.out, step.lse)]
    wrong += step.wrong_selections()
    wrong += [w for r in range(len(lengths)) for h in range(HKV) for w in step.wrong_output(r, h)]
    for what, run in (("a second run of the step", step.run), ("a step of three launches", step.run_apart)):
        step.out.fill_(float("nan"))
        run()
        kept = torch.arange(step.pages.shape[2], device=layer.device) < step.counts[..., None]
        again = [torch.where(kept, step.pages, first[0]), step.counts, step.out, step.lse]
        if not all(torch.equal(x, y) for x, y in zip(again, first, strict=True)):
            wrong.append(f"{what} differs")
    return wrong


@contextmanager
def recording(device: torch.device) -> Iterator[Any]:
    """A CUDA graph of what is launched inside; None on a CPU."""
    if device.type != "cuda":
        yield None
        return
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        yield graph


def timed(calls: Sequence[Callable[[], object]], device: torch.device) -> float:
    """Microseconds of a call, of those in turn that one CUDA graph holds; median of the replays."""
    for call in calls:
        call()
    with recording(device) as graph:
        for call in calls:
            call()
    times, runs = [], 15 if graph else 3
    for _ in range(runs):
        if graph is None:
            began = time.perf_counter()
            for call in calls:
                call()
            times.append((time.perf_counter() - began) * 1e6 / len(calls))
            continue
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        graph.replay()
        after.record()
        torch.cuda.synchronize()
        times.append(before.elapsed_time(after) * 1e3 / len(calls))
    return sorted(times)[runs // 2]


def timed_between(calls: Sequence[Callable[[], object]], megabytes: int, device: torch.device) -> float:
    """Microseconds of a call, before each of which so much is read as a layer's weights are, without the time that this
    takes.
    """
    weights = torch.zeros(megabytes * 10**6 // (2 * WIDTH), WIDTH, dtype=torch.bfloat16, device=device)
    x, product = weights.new_zeros(WIDTH), weights.new_zeros(len(weights))

    def read() -> None:
        torch.mv(weights, x, out=product)

    both = timed([do for call in calls for do in (read, call)], device)
    return 2 * both - timed([read] * len(calls), device)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of an elementwise kernel over 4 GB."""
    a = torch.randn(1 << 29 if device.type == "cuda" else 1 << 22, device=device)
    b = torch.empty_like(a)
    return 8 * a.numel() / timed([lambda: torch.add(a, 1.0, out=b)] * 3, device) * 1e6


def measured(layer: Layer, requests: int, tokens: int, copy: float, between: int = 0) -> dict[str, Any]:
    """Times of a shape, of as many steps that no cache holds their pages; one more with ``between`` MB read before
    each step.
    """
    first = Step(layer, [tokens] * requests, 100)
    first.run()
    sizes = first.bytes()
    read = sizes["select"] + sizes["attend"]
    sets = max(2, min(8, -(-COLD // max(1, int(read))))) if layer.device.type == "cuda" else 2
    steps = [first, *(Step(layer, [tokens] * requests, 101 + i) for i in range(sets - 1))]
    row: dict[str, Any] = {"requests": requests, "tokens": tokens, "MB": [sizes[k] / 1e6 for k in ("select", "attend")]}
    row["kernels"] = list(first.decoder.kernels)
    for kind in ("plan", "append", "select", "attend"):
        row[f"{kind}_us"] = timed([getattr(s, kind) for s in steps], layer.device)
    row["layer_us"] = timed([s.run for s in steps], layer.device)
    row["apart_us"] = timed([s.run_apart for s in steps], layer.device)
    if between:
        row["between_MB"], row["between_us"] = between, timed_between([s.run for s in steps], between, layer.device)
    for kind in ("select", "attend"):
        row[f"{kind}_of_copy"] = sizes[kind] / row[f"{kind}_us"] * 1e6 / copy
    if layer.ir is not None:
        row["append_MB"] = sizes["append"] / 1e6
        row["bytes_us"] = sum(sizes.values()) / copy * 1e6
        row["wrong"] = layer.ir.wrong_selections(first)
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", type=Path, nargs="+")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", nargs="*", default=[], metavar="KERNEL", help="run these and not their variants")
    parser.add_argument("--deterministic", action="store_true", help="decoders whose bits do not depend on the batch")
    parser.add_argument("--shapes", default="", help="requests x tokens, e.g. 1x32763,32x32763")
    parser.add_argument(
        "--budget", type=int, default=BUDGET.pages, help="pages kept beside the reserved ones, or blocks"
    )
    parser.add_argument("--between", type=int, default=0, metavar="MB", help="measure behind so many read MB, too")
    parser.add_argument("--commit", default="")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    gpu, device = args.device == "cuda", torch.device(args.device)
    shapes = [(int(a), int(b)) for a, b in (x.split("x") for x in args.shapes.split(",") if x)]
    shapes = shapes or (SHAPES if gpu else SMALL_SHAPES)
    copy = copy_bandwidth(device)
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if gpu else "cpu", "date": time.strftime("%F %T"),
        "commit": args.commit, "command": " ".join(["python3", *sys.argv]), "torch": torch.__version__,
        "copy_TBps": copy / 1e12, "checks": {}, "rows": [],
    }  # fmt: skip
    print(f"{found['device']}: copy {copy / 1e12:.2f} TB/s")
    for path in args.artifacts:
        library = only(open_library(path, None if gpu else "cpu"), args.only)
        ir = None if library.manifest.flow in BY_TORCH else ByIR.of(path, library)
        layer = Layer(library, args.device, Budget(args.budget), ir, deterministic=args.deterministic)
        wrong = [w for i, lengths in enumerate(CHECKED if gpu else SMALL_CHECKED) for w in check(layer, lengths, i)]
        found["checks"][path.stem] = wrong
        print(f"{path.stem}: {'right' if not wrong else wrong[:6]}", flush=True)
        for requests, tokens in shapes:
            row = {"flow": path.stem, **measured(layer, requests, tokens, copy, args.between)}
            found["rows"].append(row)
            wrong += row.get("wrong", [])
            print("  ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
            args.out.write_text(json.dumps(found, indent=1) + "\n")
        del layer
        if gpu:
            torch.cuda.empty_cache()
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    return int(any(found["checks"].values()))


if __name__ == "__main__":
    sys.exit(main())
