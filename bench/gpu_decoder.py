"""``Decoder`` on a GPU: whole steps of artifacts against torch, CUDA graphs, streams, bad input, what a step costs.

Needs torch, apache-tvm-ffi and artifacts made for the GPU; no compiler. From the repository's root:

    vortex compile quest --target sm_90 -o .gpu/quest.vxa

    PYTHONPATH=. python3 bench/gpu_decoder.py .gpu/quest.vxa .gpu/block_topk.vxa --out $OUT/decoder.json

Every artifact decodes a changing batch; the first one does the rest. Exits with 1 when something is wrong.
``--device cpu`` tries the script where there is no GPU, on artifacts that have a CPU library: steps and debug only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from checks import Checks, Wrong, refuses

from vortex.budget import Budget
from vortex.check.reference import Reference, differing, eager
from vortex.errors import VortexError
from vortex.flow.flow import find_flow
from vortex.runtime.decoder import Decoder, load
from vortex.runtime.paged_cache import PagedCache
from vortex.runtime.tensors import TORCH

HKV = 4
BUDGET = Budget(8, "1/16")
I32 = torch.int32
TOLERANCE = 1e-2
"""Norm of the difference over the norm of what is right: bf16 weights and outputs."""
FAR = "heads beyond 2^31"


def heads_apart(pool: torch.Tensor | None) -> torch.Tensor:
    """A pool of the same shape, ``[Hkv, P, page, D]`` in memory, whose heads lie more than 2^31 elements apart."""
    assert pool is not None
    pages, heads, page, dim = pool.shape
    step = 2**31 + 2**12
    memory = torch.empty((heads - 1) * step + pages * page * dim, dtype=pool.dtype, device=pool.device)
    return memory.as_strided(pool.shape, (page * dim, step, dim, 1))


def relative(mine: torch.Tensor, right: torch.Tensor) -> float:
    mine, right = mine.float().cpu(), right.float().cpu()
    return float((mine - right).norm() / right.norm().clamp_min(1e-9))


class Steps:
    """A changing batch in a cache that was NaN before."""

    def __init__(self, path: Path, device: str, layout: Any) -> None:
        target = "cpu" if device == "cpu" else None
        self.decoder = load(path, target=target, budget=BUDGET, dense=True, debug=True)
        self.spec, self.device = self.decoder.spec, torch.device(device)
        self.latent = bool(self.spec.kv_lora_rank)
        self.heads = 1 if self.latent else HKV
        self.right = eager(find_flow(self.decoder.library.manifest.flow), self.spec)
        kept = "HND" if layout == FAR else layout
        self.cache = PagedCache(900, self.heads, self.spec, self.decoder.fields, layout=kept, device=device)
        if layout == FAR:
            self.cache.k[0], self.cache.v[0] = heads_apart(self.cache.k[0]), heads_apart(self.cache.v[0])
        for pool in (self.cache.k[0], self.cache.v[0], *self.cache.fields[0].values()):
            if pool is not None:
                pool.fill_(float("nan"))
        self.decoder.bind(0, self.cache.k[0], self.cache.v[0], self.cache.fields[0])
        self.said: dict[int, torch.Tensor] = {}
        self.random = torch.Generator().manual_seed(0)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.random).to(TORCH[self.spec.dtype])

    def step(self, new: dict[int, int], padded: int = 0) -> Wrong:
        """One step, the last ``padded`` rows of which are padding; what differs from torch."""
        dim, requests, batch = self.spec.head_dim, list(new), len(new) + padded
        for r in new.keys() - self.said.keys():
            self.cache.add(r)
            self.said[r] = self.normal(0, 2, self.heads, dim)
        loc, offsets = self.cache.extend_batch(requests, list(new.values()))
        kv = self.normal(len(loc) + padded, 2, self.heads, dim)
        lengths = torch.zeros(batch, dtype=I32, device=self.device)
        lengths[: len(new)] = self.cache.lengths(requests)
        table = torch.full((batch, 256), 1 << 28, dtype=I32, device=self.device)
        for row, r in enumerate(requests):
            pages = self.cache.pages(r)
            table[row, : len(pages)] = torch.tensor(pages, device=self.device)
        ends = offsets[-1] + torch.arange(1, padded + 1, device=self.device, dtype=I32)
        k, v = kv.to(self.device).transpose(0, 1).contiguous()
        q = self.normal(batch, self.heads * self.spec.group, dim).to(self.device)
        sparse, dense = (q.new_full((*q.shape[:2], self.spec.v_dim), float("nan")) for _ in range(2))
        self.decoder.plan(lengths, table)
        nowhere = torch.full((padded,), -1, device=self.device)
        self.decoder.append(0, k, None if self.latent else v, torch.cat([loc, nowhere]), torch.cat([offsets, ends]))
        self.decoder.decode(0, q, out=sparse, scale=dim**-0.5)
        self.decoder.attend_all(0, q, out=dense, scale=dim**-0.5)
        wrong = [f"padded rows of {n}" for n, x in (("decode", sparse), ("attend_all", dense)) if x[len(new) :].any()]
        for row, r in enumerate(requests):
            first, last = offsets[row : row + 2].tolist()
            self.said[r] = torch.cat([self.said[r], kv[first:last]])
            wrong += [f"request {r} of {len(self.said[r])} tokens: {w}" for w in self.judge(row, r, q, sparse, dense)]
        return wrong

    def judge(self, row: int, r: int, q: torch.Tensor, sparse: torch.Tensor, dense: torch.Tensor) -> Wrong:
        assert self.decoder.pages is not None
        assert self.decoder.counts is not None
        k, v = (x.float() for x in self.said[r].unbind(1))
        query, pages, counts = q[row].float().cpu(), self.decoder.pages[row].cpu(), self.decoder.counts[row].tolist()
        right, wrong = self.right(query, k, None if self.latent else v, BUDGET), []
        v = k[..., : self.spec.v_dim] if self.latent else v
        for h in range(self.heads):
            if odd := differing(pages[h, : counts[h]].tolist(), right, h, BUDGET):
                wrong.append(f"{odd} pages of head {h}")
        for name, mine, want in (
            ("out", sparse, attention(self, query, k, v, [pages[h, : counts[h]].tolist() for h in range(self.heads)])),
            ("all pages", dense, attention(self, query, k, v, None)),
        ):
            if not (error := relative(mine[row], want)) < TOLERANCE:
                wrong.append(f"{name} by {error:.1e}")
        return wrong


def attention(s: Steps, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, pages: list[list[int]] | None) -> Any:
    """fp32, over the tokens of each head's pages, or over all."""
    size, outs = s.spec.page_size, []
    for h in range(s.heads):
        at = torch.arange(len(k))
        if pages is not None:
            at = at[torch.isin(at // size, torch.tensor(pages[h]))]
        group = q[h * s.spec.group : (h + 1) * s.spec.group]
        outs.append((group @ k[at, h].T * s.spec.head_dim**-0.5).softmax(-1) @ v[at, h])
    return torch.cat(outs)


def changing_batch(path: Path, device: str) -> Wrong:
    """Joins, leaves, one-token and one-page requests, prefill chunks and padded rows; NHD and HND in turn, then heads
    far apart, for which an H200 has the memory (13 GB a pool of bf16).
    """
    wrong: Wrong = []
    for layout, sizes in (("HND", (2000, 300)), ("NHD", (1024, 17)), (FAR, (700, 130))):
        if layout == FAR and (device == "cpu" or "latent" in path.stem):
            continue
        s = Steps(path, device, layout)
        page = s.spec.page_size
        for i, (new, padded) in enumerate([
            ({0: sizes[0], 1: 1}, 1), ({0: 1, 1: 1, 2: sizes[1]}, 3), ({2: 1, 0: 500, 1: page - 2}, 0), ({1: 1}, 0),
        ]):  # fmt: skip
            wrong += [f"{layout}, step {i}: {w}" for w in s.step(new, padded)]
        s.cache.free(0)
        del s.said[0]
        wrong += [f"{layout}, after one left: {w}" for w in s.step({2: 1, 3: 900, 1: 1}, 1)]
    return wrong


class Pools:
    """Memory of one layer, all of its pages summarised, for any number of decoders."""

    def __init__(self, path: Path, pages: int = 8192, device: str = "cuda") -> None:
        self.path, self.pages, self.device = path, pages, device
        first = self.decoder(budget=Budget(1))
        self.spec = first.spec
        shape = (pages, HKV, self.spec.page_size, self.spec.head_dim)
        self.k, self.v = (torch.randn(shape, device=device).to(TORCH[self.spec.dtype]) for _ in range(2))
        self.fields = {
            f.name: torch.full((pages, HKV, *f.tile), float("nan"), device=device).to(TORCH[f.dtype])
            for f in first.fields
        }
        self.bind(first)
        tokens = pages * self.spec.page_size
        table = torch.arange(pages, dtype=I32, device=device)[None]
        first.plan(torch.tensor([tokens], dtype=I32, device=device), table)
        hint = torch.empty(tokens, dtype=torch.int64, device=device)
        first.append(0, None, None, hint, torch.tensor([0, tokens], dtype=I32, device=device))

    def decoder(self, **options: Any) -> Decoder:
        return load(self.path, **options)

    def bind(self, decoder: Decoder) -> Decoder:
        decoder.bind(0, self.k, self.v, self.fields)
        return decoder

    def ready(self, batch: int, columns: int = 256, **options: Any) -> Decoder:
        made = self.bind(self.decoder(budget=BUDGET, dense=True, **options))
        made.reserve(batch, columns, capacity=64)
        return made


class Rows:
    """Static tensors of a decode step of ``batch`` rows."""

    def __init__(self, pools: Pools, batch: int, columns: int = 256) -> None:
        spec, device = pools.spec, pools.device
        self.pools, self.batch, self.columns = pools, batch, columns
        self.lengths = torch.ones(batch, dtype=I32, device=device)
        self.table = torch.zeros(batch, columns, dtype=I32, device=device)
        self.q = torch.zeros(batch, HKV * spec.group, spec.head_dim, device=device, dtype=TORCH[spec.dtype])
        self.k, self.v = (torch.zeros(batch, HKV, spec.head_dim, device=device).to(self.q.dtype) for _ in range(2))
        self.loc = torch.zeros(batch, dtype=torch.int64, device=device)
        self.offsets = torch.arange(batch + 1, dtype=I32, device=device)
        self.outs = [torch.empty_like(self.q), torch.empty_like(self.q)]

    def fill(self, lengths: list[int], seed: int) -> Rows:
        """New numbers in the same tensors, from the same ``seed`` the same numbers."""
        made, page = torch.Generator().manual_seed(seed), self.pools.spec.page_size
        order = torch.randperm(self.pools.pages, generator=made)
        table, loc = torch.full((self.batch, self.columns), 1 << 28, dtype=I32), []
        for row, n in enumerate(lengths):
            pages = -(-n // page)
            table[row, :pages], order = order[:pages], order[pages:]
            loc.append(int(table[row, (n - 1) // page]) * page + (n - 1) % page if n else -1)
        for mine, new in (
            (self.lengths, torch.tensor(lengths)), (self.table, table), (self.loc, torch.tensor(loc)),
            *((x, torch.randn(x.shape, generator=made)) for x in (self.q, self.k, self.v)),
        ):  # fmt: skip
            mine.copy_(new)
        for out in self.outs:
            out.fill_(float("nan"))
        return self

    def run(self, decoder: Decoder) -> None:
        decoder.plan(self.lengths, self.table)
        decoder.decode(0, self.q, out=self.outs[0], new=(self.k, self.v, self.loc, self.offsets))
        decoder.attend_all(0, self.q, out=self.outs[1])

    def request(self, row: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A row's queries ``[Hq, D]``, and its K and V ``[len, Hkv, D]``, fp32 on the CPU."""
        page, at = self.pools.spec.page_size, torch.arange(int(self.lengths[row]), device=self.pools.device)
        where = self.table[row, at // page].long()
        k, v = (pool[where, :, at % page].float().cpu() for pool in (self.pools.k, self.pools.v))
        return self.q[row].float().cpu(), k, v

    def right(self, row: int) -> bool:
        """Whether a row's dense output is torch's."""
        n, spec = int(self.lengths[row]), self.pools.spec
        if not n:
            return not self.outs[1][row].any()
        at = torch.arange(n, device=self.pools.device)
        page = self.table[row, at // spec.page_size].long()
        k, v = (x[page, :, at % spec.page_size].transpose(0, 1).float() for x in (self.pools.k, self.pools.v))
        q = self.q[row].float().view(HKV, spec.group, -1)
        want = (q @ k.mT * spec.head_dim**-0.5).softmax(-1) @ v
        return relative(self.outs[1][row].view_as(want), want) < TOLERANCE


def captured(rows: Rows, decoder: Decoder) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    rows.run(decoder)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        rows.run(decoder)
    return graph


@dataclass(frozen=True)
class Result:
    """What a step of some rows gave, and the kernels that it ran."""

    kernels: tuple[str, ...]
    outs: tuple[torch.Tensor, ...]
    """Sparse and dense."""
    pages: tuple[tuple[tuple[int, ...], ...], ...]
    """Of each row and KV head."""

    @classmethod
    def of(cls, rows: Rows, kernels: tuple[str, ...], pages: torch.Tensor, counts: torch.Tensor) -> Result:
        listed = zip(pages.tolist(), counts.tolist(), strict=True)
        kept = tuple(tuple(tuple(p[:n]) for p, n in zip(*row, strict=True)) for row in listed)
        return cls(kernels, tuple(x.clone() for x in rows.outs), kept)

    def differs(self, other: Result, rows: Rows, budget: Budget, right: Reference) -> Wrong:
        """What breaks the promise: the same kernels give the same bits. A captured graph keeps the variants of the
        budget that it was captured with, a step without one takes those of the present budget; other variants give
        the same selection (pages that score alike aside) and an output equal within rounding.
        """
        if self.kernels == other.kernels:
            named = zip(("sparse", "dense"), self.outs, other.outs, strict=True)
            wrong = [f"{name} has other bits, from the same kernels" for name, x, y in named if not torch.equal(x, y)]
            return wrong + ["pages are others, from the same kernels"] * (self.pages != other.pages)
        wrong = []
        for r, (mine, its) in enumerate(zip(self.pages, other.pages, strict=True)):
            alike = [mine == its, True]
            if mine != its:
                judged = right(*rows.request(r), budget)
                odd = [differing(list(p), judged, h, budget) for one in (mine, its) for h, p in enumerate(one)]
                wrong += [f"row {r}: another variant selects {sum(odd)} other pages"] * bool(sum(odd))
            for name, same, x, y in zip(("sparse", "dense"), alike, self.outs, other.outs, strict=True):
                if same and not relative(x[r], y[r]) < TOLERANCE:
                    wrong.append(f"row {r}: {name} of another variant by {relative(x[r], y[r]):.1e}")
        return wrong


def graphs(pools: Pools, found: dict[str, Any]) -> Wrong:
    """Three batch sizes in one scratch: lengths 1, most, 1, tables and budgets that change, against steps of another
    decoder; scratch of the caller's; memory that stays as it is.
    """
    wrong: Wrong = []
    decoder, twin = pools.ready(16), pools.ready(16)
    right = eager(find_flow(decoder.library.manifest.flow), pools.spec)
    block = torch.full((decoder.workspace_bytes(16, 256, capacity=64),), 0xFF, dtype=torch.uint8, device="cuda")
    decoder.set_workspace(block)
    decoder.reserve(16, 256, capacity=64)
    sizes = (1, 5, 16)
    mine, others = [Rows(pools, b) for b in sizes], [Rows(pools, b) for b in sizes]
    recorded = []
    for rows in mine:
        graph = captured(rows, decoder)
        assert decoder.pages is not None
        assert decoder.counts is not None
        recorded.append((graph, decoder.kernels, decoder.pages, decoder.counts))
    most = 256 * pools.spec.page_size
    for rows in others:
        rows.run(twin)
        rows.right(0)  # torch's matrix products take a workspace of their own, once
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    ragged = [most, 1, 0, 700, most - 1, 17, 0, 3000, 2, 33, most, 900, 16, 15, 2500, 0]
    compared = {"same kernels": 0, "other variants": 0}
    for i, (lengths, budget) in enumerate((
        ([1] * 16, BUDGET), ([most] * 16, BUDGET), ([1] * 16, BUDGET), (ragged, Budget(60)),
        (ragged, Budget(0, sink=0)), ([0] * 16, BUDGET), (ragged[::-1], BUDGET), ([1] * 16, Budget(3)),
    )):  # fmt: skip
        decoder.budget = twin.budget = budget
        for rows, other, (graph, kernels, pages, counts) in zip(mine, others, recorded, strict=True):
            own = lengths[: rows.batch]
            rows.fill(own, i)
            graph.replay()
            a = Result.of(rows, kernels, pages, counts)
            other.fill(own, i).run(twin)
            assert twin.pages is not None
            assert twin.counts is not None
            b = Result.of(other, twin.kernels, twin.pages, twin.counts)
            compared["same kernels" if a.kernels == b.kernels else "other variants"] += 1
            where = f"round {i}, {rows.batch} rows"
            wrong += [f"{where}: a graph and a step without one: {w}" for w in a.differs(b, rows, budget, right)]
            if budget == BUDGET and a.kernels != b.kernels:
                wrong.append(f"{where}: the budget is as it was captured, but other variants run")
            wrong += [f"{where}: row {r} is not torch's" for r in (0, rows.batch - 1) if not rows.right(r)]
            del a, b
    found["graphs_compared"] = compared
    if torch.cuda.memory_allocated() != before:
        wrong.append(f"memory went from {before} to {torch.cuda.memory_allocated()} bytes")
    rows = mine[2].fill([3000] * 16, 0)
    times = []
    for _ in range(20):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        recorded[2][0].replay()
        ended.record()
        torch.cuda.synchronize()
        times.append(began.elapsed_time(ended) * 1e3)
    found["graph_step_us"] = {"rows": 16, "tokens": 3000, "median": statistics.median(times)}
    found["scratch_bytes"] = block.numel()
    wrong += refuses("a larger step after a capture", "VX6010", lambda: decoder.reserve(17, 256))
    wrong += refuses("a wider step after a capture", "VX6010", lambda: Rows(pools, 1, 300).run(decoder))
    wrong += refuses("a budget beyond captured selections", "VX6006", lambda: setattr(decoder, "budget", Budget(99)))
    return wrong


def streams(pools: Pools) -> Wrong:
    """A step runs in the current stream and nowhere else; two decoders in two streams do not disturb each other."""
    wrong: Wrong = []
    decoder, lengths = pools.ready(8), [3000, 1, 17, 900, 4000, 5, 2000, 64]
    rows = Rows(pools, 8).fill(lengths, 0)
    rows.run(decoder)
    torch.cuda.synchronize()
    want = [x.clone() for x in rows.outs]
    rows.fill(lengths, 0)
    torch.cuda.synchronize()
    side, done = torch.cuda.Stream(), torch.cuda.Event()
    with torch.cuda.stream(side):
        torch.cuda._sleep(500_000_000)
        rows.run(decoder)
        done.record()
    if done.query() or not rows.outs[0].isnan().all():
        wrong.append("a step did not wait for its stream")
    side.synchronize()
    if not all(torch.equal(x, y) for x, y in zip(rows.outs, want, strict=True)):
        wrong.append("a step in another stream differs")
    both = [(pools.ready(8), Rows(pools, 8).fill(lengths, 0), torch.cuda.Stream()) for _ in range(2)]
    torch.cuda.synchronize()
    for _ in range(50):
        for one, its, stream in both:
            with torch.cuda.stream(stream):
                its.run(one)
    torch.cuda.synchronize()
    for _, its, _ in both:
        if not all(torch.equal(x, y) for x, y in zip(its.outs, want, strict=True)):
            wrong.append("two decoders in two streams disturb each other")
    if torch.cuda.device_count() > 1:
        far = Pools(pools.path, 1024, "cuda:1")  # while the current device is cuda:0
        its = Rows(far, 2).fill([700, 3000], 0)
        its.run(far.ready(2))
        torch.cuda.synchronize(1)
        wrong += [f"row {r} on cuda:1 is not torch's" for r in range(2) if not its.right(r)]
    return wrong


def deterministic(pools: Pools) -> Wrong:
    """With ``deterministic`` a request has the same bits alone, in a batch and from a graph, whose table is wider."""
    decoder, wrong = pools.ready(16, deterministic=True), []
    lengths = [4000, 17, 700, 3000, 1, 2500, 2049, 33] * 2
    batch, graphed = Rows(pools, 16).fill(lengths, 3), Rows(pools, 16)
    batch.run(decoder)
    want = [x.clone() for x in batch.outs]
    graph = captured(graphed, decoder)
    graphed.fill(lengths, 3)
    graph.replay()
    torch.cuda.synchronize()
    for name, x, y in zip(("sparse", "dense"), graphed.outs, want, strict=True):
        wrong += [f"{name} of a graph has other bits"] * (not torch.equal(x, y))
    for size in (1, 3):
        other = Rows(pools, size, 251)
        for first in range(0, 16 - size + 1, size):
            rows = slice(first, first + size)
            for mine, its in ((other.lengths, batch.lengths), (other.q, batch.q), (other.loc, batch.loc),
                              (other.k, batch.k), (other.v, batch.v), (other.table, batch.table[:, :251])):  # fmt: skip
                mine.copy_(its[rows])
            other.run(decoder)
            for name, x, y in zip(("sparse", "dense"), other.outs, want, strict=True):
                wrong += [f"{name} of rows {first} to {first + size - 1}: other bits"] * (not torch.equal(x, y[rows]))
    return wrong + [f"row {r} is not torch's" for r in (0, 3) if not batch.right(r)]


def bad_input(pools: Pools, path: Path) -> Wrong:
    """Everything is refused with its code before a launch, under capture too; nothing breaks what comes after."""
    decoder, rows = pools.ready(4), Rows(pools, 4).fill([100] * 4, 0)
    rows.run(decoder)
    q, out = rows.q, rows.outs[0]
    odd = torch.empty(q.numel() + 1, device="cuda", dtype=q.dtype)[1:].view(q.shape)
    wrong = refuses("lengths on the CPU", "VX6002", lambda: decoder.plan(rows.lengths.cpu(), rows.table))
    wrong += refuses("a table on the CPU", "VX6002", lambda: decoder.plan(rows.lengths, rows.table.cpu()))
    decoder.plan(rows.lengths, rows.table)
    for what, code, call in (
        ("q on the CPU", "VX6002", lambda: decoder.decode(0, q.cpu(), out=out)),
        ("out on the CPU", "VX6002", lambda: decoder.decode(0, q, out=out.cpu())),
        ("q of another view", "VX6002", lambda: decoder.decode(0, q.mT.contiguous().mT, out=out)),
        ("q at an odd address", "VX6002", lambda: decoder.attend_all(0, odd, out=out)),
        ("a pool on the CPU", "VX6002", lambda: decoder.bind(1, pools.k[:2].cpu(), pools.v[:2].cpu())),
        ("another architecture", "VX6009", lambda: load(path, target="sm_100")),
    ):
        if code != "VX6009" or "sm_100a" in decoder.library.manifest.targets:
            wrong += refuses(what, code, call)
    fresh = pools.bind(pools.decoder(budget=BUDGET, debug=True))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        wrong += refuses("scratch under capture", "VX6010", lambda: fresh.plan(rows.lengths, rows.table))
        wrong += refuses("a budget under capture", "VX6011", lambda: setattr(fresh, "budget", Budget(1)))
    fresh.reserve(4, 256)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        wrong += refuses("debug under capture", "VX6011", lambda: fresh.plan(rows.lengths, rows.table))
    rows.run(decoder)
    torch.cuda.synchronize()
    return wrong + [f"row {r} is not torch's afterwards" for r in range(4) if not rows.right(r)]


def debug_reports(pools: Pools) -> Wrong:
    """The first bad number is named, with its row and column."""
    wrong: Wrong = []
    decoder, rows = pools.ready(4, debug=True), Rows(pools, 4)

    def says(text: str) -> None:
        try:
            rows.run(decoder)
            wrong.append(f"nothing is said of {text}")
        except VortexError as error:
            if text not in error.render():
                wrong.append(f"'{text}' is not in: {error.message}")
        rows.fill([100, 0, 33, 4000], 1)

    rows.fill([100, 0, 33, 4000], 1)
    rows.run(decoder)
    rows.table[2, 1] = pools.pages
    rows.table[3, 0] = -1
    says(f"[2, 1] is {pools.pages}")
    rows.lengths[3] = 4097
    says("lengths[3]")
    rows.loc[2] += 1
    says("loc[2]")
    rows.offsets[3] += 3
    says("row_offsets[3:5]")
    rows.offsets[3] -= 3
    rows.run(decoder)
    assert decoder.pages is not None
    assert decoder.counts is not None
    pages, counts = decoder.pages.clone(), decoder.counts.clone()
    pages[3, 2, 4] = pages[3, 2, 3]
    try:
        decoder.attend(0, rows.q, pages, counts, out=rows.outs[0])
        wrong.append("nothing is said of a page that is listed twice")
    except VortexError as error:
        if "pages[3, 2]" not in error.render():
            wrong.append(f"'pages[3, 2]' is not in: {error.message}")
    return wrong


def edges(pools: Pools) -> Wrong:
    """No request, padded rows only, one token, everything kept; a step waits for nothing."""
    decoder, wrong = pools.ready(8), []
    Rows(pools, 0).fill([], 0).run(decoder)
    for lengths in ([0] * 8, [1] * 8, [16 * 11] * 8):
        rows = Rows(pools, 8).fill(lengths, 2)
        decoder.plan(rows.lengths, rows.table)
        torch.cuda.set_sync_debug_mode("error")
        try:
            rows.run(decoder)
        except RuntimeError as error:
            wrong.append(f"a step waits for the device: {error}")
        finally:
            torch.cuda.set_sync_debug_mode("default")
        wrong += [f"{lengths[0]} tokens: row {r} is not torch's" for r in range(8) if not rows.right(r)]
        if not relative(rows.outs[0], rows.outs[1]) < TOLERANCE and lengths[0]:
            wrong.append(f"{lengths[0]} tokens: all pages are kept, but sparse and dense differ")
    return wrong


def host_time(pools: Pools) -> dict[str, float]:
    """Microseconds of Python and launches in a call, the GPU's work left out: median over batches of 50 calls."""
    decoder, rows, found = pools.ready(8), Rows(pools, 8).fill([500] * 8, 0), {}
    rows.run(decoder)
    for name, call in (
        ("plan", lambda: decoder.plan(rows.lengths, rows.table)),
        ("append", lambda: decoder.append(0, rows.k, rows.v, rows.loc, rows.offsets)),
        ("decode", lambda: decoder.decode(0, rows.q, out=rows.outs[0])),
        ("attend_all", lambda: decoder.attend_all(0, rows.q, out=rows.outs[1])),
    ):
        times = []
        for _ in range(21):
            torch.cuda.synchronize()
            began = time.perf_counter()
            for _ in range(50):
                call()
            times.append((time.perf_counter() - began) / 50 * 1e6)
        found[name] = statistics.median(times)
    torch.cuda.synchronize()
    return found


def launches(pools: Pools) -> dict[str, int] | str:
    """Kernels of one step by name, as the profiler saw them."""
    decoder, rows = pools.ready(8), Rows(pools, 8).fill([500] * 8, 0)
    rows.run(decoder)
    torch.cuda.synchronize()
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            rows.run(decoder)
            torch.cuda.synchronize()
    except (RuntimeError, AssertionError) as error:
        return f"the profiler does not work here: {error}"
    return {e.key[:60]: e.count for e in profile.key_averages()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", type=Path, nargs="+")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--commit", default="")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    gpu = args.device == "cuda"
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if gpu else "cpu", "date": time.strftime("%F %T"),
        "commit": args.commit, "command": " ".join(["python3", *sys.argv]), "torch": torch.__version__, "wrong": {},
    }  # fmt: skip
    began = time.time()
    checks = Checks(found, args.out)

    for path in args.artifacts:
        checks.run(f"steps of {path.stem}", lambda p=path: changing_batch(p, args.device))
    if gpu:
        pools = Pools(args.artifacts[0])
        checks.run("graphs", lambda: graphs(pools, found))
        checks.run("streams", lambda: streams(pools))
        checks.run("deterministic", lambda: deterministic(pools))
        checks.run("bad input", lambda: bad_input(pools, args.artifacts[0]))
        checks.run("debug reports", lambda: debug_reports(pools))
        checks.run("edges", lambda: edges(pools))
        found["host_us"] = host_time(pools)
        found["launches_of_a_step"] = launches(pools)
        shown = ("host_us", "launches_of_a_step", "graphs_compared", "graph_step_us")
        print(json.dumps({n: found.get(n) for n in shown}), flush=True)
    found["seconds"] = time.time() - began
    checks.write()
    return int(any(found["wrong"].values()))


if __name__ == "__main__":
    sys.exit(main())
