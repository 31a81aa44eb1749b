"""``attend`` over latent rows (MLA) on a GPU: checked in float64, then timed beside the copy bandwidth.

Needs torch, apache-tvm-ffi and what bench/stage_latent.py built; no compiler. Page ids are random over a pool far
larger than L2. With an artifact of an MLA flow, whole steps of its Decoder are checked as well.

    PYTHONPATH=.:bench python3 bench/gpu_latent.py --kernels .gpu/latent --artifact .gpu/latent_topk.vxa --out out.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tvm_ffi
from baselines.ceiling import copy_bandwidth, sets_needed, time_graph

SELECTED = 2048
"""Tokens of a row that are attended to."""
BATCHES = (8, 64, 128)
CONTEXT = 32763
CUTS = ((128, 256), (64, 64), (128, 128), (256, 512))
"""Fewest tokens worth a work item, and the same once every second slot has one: the first as ``plan`` has them."""
CHECKED = [[1], [16, 17, 480, 0, 500, 4099], [9001, 1, 65, 2048], [700] * 40]


class Kernel:
    """A staged function; ``about`` says what it is."""

    def __init__(self, name: str, about: dict[str, Any], module: Any) -> None:
        self.name, self.about, self.function = name, about, module[name]
        self.label = name
        self.page, self.heads, self.dim, self.v_dim = (about[n] for n in ("page", "heads", "dim", "v_dim"))
        self.bytes = int(about.get("bytes", 2))
        """Of a number of a row."""
        self.counters = int(about["knobs"]["row_counters"])
        self.blocks = int(about["knobs"].get("item_ctas", self.counters))

    @property
    def resident(self) -> int:
        """Work items that the device holds at a time."""
        return torch.cuda.get_device_properties(0).multi_processor_count * int(self.about["ctas"]) // self.blocks

    def arguments(self, pool: torch.Tensor, lengths: list[int], ids: list[torch.Tensor], kept: int, each: int,
                  seed: int) -> dict[str, Any]:  # fmt: skip
        """A call's arguments: of each row's pages ``ids``, ``kept`` random ones, the last among them; items of ``each``
        pages."""
        made = torch.Generator().manual_seed(seed)
        n = [len(x) for x in ids]
        b, columns, capacity = len(n), max(1, *n), max(1, min(kept, max(n)))
        table, pages = (torch.full((b, w), 1 << 28, dtype=torch.int32) for w in (columns, capacity))
        counts = torch.tensor([min(kept, m) for m in n], dtype=torch.int32)
        for r, m in enumerate(n):
            table[r, :m] = ids[r]
            if m:
                chosen = torch.randperm(m - 1, generator=made)[: counts[r] - 1]
                pages[r, : counts[r]] = torch.cat([chosen, torch.tensor([m - 1])]).sort().values.int()
        words = int(self.about["knobs"]["partial_words"])
        work = self.work(counts.tolist(), each)
        cuda = {
            "lengths": torch.tensor(lengths, dtype=torch.int32), "page_table": table,
            "pages": pages[:, None].contiguous(), "counts": counts[:, None].contiguous(), "work": work,
            "q": torch.randn(b, self.heads, self.dim, generator=made).bfloat16(),
            "arrivals": torch.zeros(b * self.counters, dtype=torch.int32),
        }  # fmt: skip
        given: dict[str, Any] = {name: x.cuda() for name, x in cuda.items()}
        nan = partial(torch.full, fill_value=float("nan"), device="cuda")
        given["out"] = nan((b, self.heads, self.v_dim), dtype=torch.bfloat16)
        given |= {"lse": nan((b, self.heads)), "partials": nan((work.shape[1] - 2, 1, words))}
        return {**given, "latent": pool, "scale": 192**-0.5, "latent_scale": UNIT if self.bytes == 1 else 1.0}

    def work(self, counts: list[int], each: int) -> torch.Tensor:
        """A work list as ``plan`` writes one."""
        items = [r << 16 | part for r, c in enumerate(counts) for part in range(max(1, -(-c // each)))]
        work = torch.full((2, 2 + len(items) + self.resident), 0x7FFF0001, dtype=torch.int32)
        work[1, :2] = torch.tensor([len(items), each], dtype=torch.int32)
        work[1, 2 : 2 + len(items)] = torch.tensor(items, dtype=torch.int32)
        return work

    def item(self, counts: list[int], cut: tuple[int, int]) -> int:
        """Pages of an item, as ``plan`` cuts a step."""
        least, busy = (max(1, tokens // self.page) for tokens in cut)
        slots, every, longest = max(1, self.resident), sum(counts), max(counts)
        fair = max(least, -(-every // slots), min(busy, (2 * every + slots - 1) // slots))
        equal_parts = max(1, (longest + fair - fair // 4 - 1) // fair)
        item = max(fair, -(-longest // equal_parts))
        whole = -(-longest // max(1, slots * longest // every))
        return max(item, whole) if len(counts) <= 32 and 2 * len(counts) <= slots else item

    def __call__(self, given: dict[str, Any]) -> None:
        self.function(*[given[a] for a in self.about["args"]])


def expected(given: dict[str, Any], page: int, v_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(q rows^T scale) values and its log-sum-exp in float64, row by row."""
    q, lengths = given["q"].double(), given["lengths"].tolist()
    out = torch.zeros(*q.shape[:2], v_dim, device="cuda", dtype=torch.float64)
    lse = torch.full(q.shape[:2], float("-inf"), device="cuda", dtype=torch.float64)
    for r, length in enumerate(lengths):
        ids = given["pages"][r, 0, : int(given["counts"][r, 0])].long()
        if len(ids):
            token = (ids[:, None] * page + torch.arange(page, device="cuda")).flatten()
            rows = given["latent"][given["page_table"][r, ids].long(), 0].flatten(0, 1)[token < length]
            rows = numbers_of(rows, given["latent_scale"])
            s = q[r] @ rows.T * given["scale"]
            out[r], lse[r] = s.softmax(-1) @ rows[:, :v_dim], s.logsumexp(-1)
    return out, lse


def numbers_of(rows: torch.Tensor, unit: float) -> torch.Tensor:
    """The numbers of stored rows in float64."""
    return (rows.view(torch.float8_e4m3fn).float() if rows.dtype == torch.uint8 else rows).double() * unit


def check(kernel: Kernel, lengths: list[int], seed: int) -> str:
    """Largest relative error of a row's output and absolute error of lse; or what is wrong."""
    page, made = kernel.page, torch.Generator().manual_seed(seed)
    n = [-(-x // page) for x in lengths]
    ids = list(torch.randperm(sum(n) + 5, generator=made)[: sum(n)].int().split(n))
    dtype, unit = (torch.bfloat16, 1.0) if kernel.bytes == 2 else (torch.float8_e4m3fn, UNIT)
    pool = torch.full((sum(n) + 5, 1, page, kernel.dim), float("nan")).to("cuda", dtype)
    for r, length in enumerate(lengths):
        for i, physical in enumerate(ids[r].tolist()):
            held = min(page, length - i * page)
            pool[physical, 0, :held] = (torch.randn(held, kernel.dim, generator=made) / unit).to("cuda", dtype)
    pool = pool.view(torch.uint8) if kernel.bytes == 1 else pool
    worst = [0.0, 0.0]
    for kept, each in ((1 << 20, 1), (1 << 20, -(-sum(n) // 7)), (9, 2), (128, 1 << 20)):
        given = kernel.arguments(pool, lengths, ids, kept, each, seed)
        right, right_lse = expected(given, page, kernel.v_dim)
        for _ in range(2):
            for name in ("out", "lse", "partials"):
                given[name].fill_(float("nan"))
            kernel(given)
            torch.cuda.synchronize()
            if int(given["arrivals"].abs().sum()):
                return "arrivals are left set"
            held = right.flatten(1).norm(dim=1) > 0
            error = (given["out"].double() - right).flatten(1).norm(dim=1)[held] / right.flatten(1).norm(dim=1)[held]
            lse = (given["lse"] - right_lse)[right_lse.isfinite()].abs()
            empty = given["out"][~held].abs().sum() == 0 and bool((given["lse"][right_lse.isinf()] < 0).all())
            if not (bool((error < 1e-2).all()) and bool((lse < 1e-3).all()) and empty):
                return f"wrong at {kept} pages, items of {each}: out {error.tolist()[:8]}, lse {lse.max()}"
            worst = [max(a, float(x.max())) for a, x in zip(worst, (error, lse), strict=True)]
    return f"right: out {worst[0]:.1e}, lse {worst[1]:.1e}"


def timing(
    kernel: Kernel, batch: int, kept: int, cut: tuple[int, int], copy: float, pages_of_pool: int
) -> dict[str, Any]:
    """One shape, page ids random over the pool."""
    size = batch * kept * kernel.page * kernel.dim * kernel.bytes
    n = -(-CONTEXT // kernel.page)
    steps = []
    for seed in range(sets_needed(size)):
        made = torch.Generator().manual_seed(seed)
        ids = list(torch.randint(pages_of_pool, (batch, n), generator=made, dtype=torch.int32))
        each = kernel.item([kept] * batch, cut)
        steps.append(kernel.arguments(POOL[kernel.page, kernel.bytes], [CONTEXT] * batch, ids, kept, each, seed))
    found = time_graph([partial(kernel, s) for s in steps])
    flops = batch * kept * kernel.page * kernel.heads * 2 * (kernel.dim + kernel.v_dim)
    about = {"kernel": kernel.label, "heads": kernel.heads, "page": kernel.page, "B": batch, "k": kept}
    about |= {"cut": list(cut), "item": each, "splits": -(-kept // each)}
    return {**about, **found.row(size, copy), "TFLOPs": round(flops / found.us / 1e6, 1)}


def load_kernels(folder: Path, prefix: str) -> tuple[dict[str, Any], list[Kernel]]:
    """What bench/stage_latent.py staged there, and its kernels."""
    staged = json.loads((folder / "kernels.json").read_text())
    module = tvm_ffi.load_module(str(folder / staged["library"]))
    kernels = [Kernel(name, about, module) for name, about in staged["kernels"].items()]
    for kernel in kernels:
        kernel.about["main"] = kernel.about["main"] and not prefix
        kernel.label = prefix + kernel.name
    return staged, kernels


POOL: dict[tuple[int, int], torch.Tensor] = {}
"""The same memory as pages of each size, of numbers of so many bytes."""
UNIT = 1 / 64
"""What numbers in fp8 are multiples of."""


def decodes(path: Path) -> str:
    """Steps of an artifact's Decoder against its flow: prefill, then a token for each request, all in float64."""
    from vortex.budget import Budget
    from vortex.runtime.decoder import NewTokens, load
    from vortex.runtime.paged_cache import PagedCache

    budget = Budget(5, sink=1, recent=2)
    decoder = load(path, target="sm_90a", budget=budget)
    spec, lengths = decoder.spec, [1, 16, 17, 480, 3001, 900]
    cache = PagedCache(sum(-(-(n + 1) // spec.page_size) for n in lengths) + 3, 1, spec, decoder.fields, device="cuda")
    for pool in (cache.k[0], *cache.fields[0].values()):
        pool.fill_(float("nan"))
    unit = UNIT if spec.scaled else 1.0
    decoder.bind(0, cache.k[0], cache.v[0], cache.fields[0], unit)
    made, requests = torch.Generator().manual_seed(5), list(range(len(lengths)))
    for r in requests:
        cache.add(r)
    rows = [torch.randn(n + 1, 1, spec.head_dim, generator=made).bfloat16() for n in lengths]

    def planned(begin: list[int], end: list[int]) -> NewTokens:
        loc, offsets = cache.extend_batch(requests, [b - a for a, b in zip(begin, end, strict=True)])
        new = torch.cat([x[a:b] for x, a, b in zip(rows, begin, end, strict=True)]).cuda()
        decoder.plan(cache.lengths(requests).cuda(), cache.page_table(requests).cuda())
        return new, None, loc.cuda(), offsets.cuda()

    decoder.append(0, *planned([0] * len(lengths), lengths))
    taken = planned(lengths, [n + 1 for n in lengths])
    if spec.scaled:
        rows = [(x.float() / unit).to(torch.float8_e4m3fn).float() * unit for x in rows]
    q = torch.randn(len(lengths), spec.group, spec.head_dim, generator=made).bfloat16().cuda()
    out = torch.full((*q.shape[:2], spec.v_dim), float("nan"), device="cuda", dtype=torch.bfloat16)
    decoder.decode(0, q, out=out, scale=192**-0.5, new=taken)
    torch.cuda.synchronize()
    assert decoder.pages is not None and decoder.counts is not None
    worst = 0.0
    for r, length in enumerate(lengths):
        pages = decoder.pages[r, 0, : int(decoder.counts[r, 0])].tolist()
        n = -(-(length + 1) // spec.page_size)
        if len(pages) != min(n, budget.total(n)) or pages != sorted(set(pages)) or pages[-1] != n - 1:
            return f"selection of request {r}: {pages} of {n}"
        tokens = torch.cat([torch.arange(p * spec.page_size, min((p + 1) * spec.page_size, length + 1)) for p in pages])
        if n > budget.total(n):
            means = rows[r][: length // spec.page_size * spec.page_size, 0].view(-1, spec.page_size, spec.head_dim)
            scores = means.float().mean(1).bfloat16().double() @ q[r].double().mean(0).cpu()
            best = scores[1 : n - 2].topk(5)
            odd = set(pages[1:-2]) ^ set((best.indices + 1).tolist())
            if any(abs(float(scores[p] - best.values[-1])) > 1e-2 for p in odd):
                return f"selection of request {r}: {pages}"
        keys = rows[r][tokens, 0].double().cuda()
        right = (q[r].double() @ keys.T * 192**-0.5).softmax(-1) @ keys[:, : spec.v_dim]
        worst = max(worst, float((out[r].double() - right).norm() / right.norm()))
    return f"right: out {worst:.1e}" if worst < 1e-2 else f"out is off by {worst}"


def steps_of(name: str, path: Path, batch: int, copy: float) -> dict[str, Any]:
    """``attend`` of the layers of a step, planned once, as a model's step runs them: a layer's pool for each."""
    from vortex.budget import Budget
    from vortex.runtime.decoder import load
    from vortex.runtime.tensors import TORCH

    spec = load(path, target="sm_90a").spec
    size, width = spec.page_size, 1 if spec.scaled else 2
    kept = SELECTED // size
    decoder = load(path, target="sm_90a", budget=Budget(kept - 3, sink=1, recent=2))
    moved = batch * SELECTED * decoder.spec.head_dim * width
    layers = sets_needed(moved)
    pool = POOL[size, width]
    each, n = len(pool) // layers, -(-CONTEXT // size)
    made = torch.Generator().manual_seed(1)
    table = torch.randint(each, (batch, n), generator=made, dtype=torch.int32).cuda()
    chosen = [
        torch.cat([torch.randperm(n - 1, generator=made)[: kept - 1], torch.tensor([n - 1])]) for _ in range(batch)
    ]
    pages = torch.stack([c.sort().values.int() for c in chosen])[:, None].cuda()
    counts = torch.full((batch, 1), kept, dtype=torch.int32, device="cuda")
    lengths = torch.full((batch,), CONTEXT, dtype=torch.int32, device="cuda")
    fields = {f.name: torch.zeros((each, 1, *f.packed), device="cuda", dtype=TORCH[f.dtype]) for f in decoder.fields}
    q = torch.randn(batch, decoder.spec.group, decoder.spec.head_dim, device="cuda").bfloat16()
    out = torch.empty(batch, decoder.spec.group, decoder.spec.v_dim, device="cuda", dtype=torch.bfloat16)
    for layer in range(layers):
        decoder.bind(layer, pool[layer * each : (layer + 1) * each], None, fields)
    decoder.plan(lengths, table)
    run = [partial(decoder.attend, i, q, pages, counts, out=out, scale=192**-0.5) for i in range(layers)]
    found = time_graph(run)
    ids = table.gather(1, pages[:, 0].long()).long()
    held = SELECTED - size + (CONTEXT - 1) % size + 1  # the last page is partial
    rows = pool[(layers - 1) * each :][ids.flatten(), 0].view(batch, SELECTED, -1)[:, :held]
    rows = numbers_of(rows, 1.0)
    right = (q.double() @ rows.mT * 192**-0.5).softmax(-1) @ rows[..., : decoder.spec.v_dim]
    error = float((out.double() - right).norm() / right.norm())
    assert error < 1e-2, error
    return {"decoder": name, "page": size, "B": batch, "error": round(error, 5), **found.row(moved, copy)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", type=Path, default=Path(".gpu/latent"))
    parser.add_argument("--artifact", type=Path, help="of latent_topk, compiled for sm_90")
    parser.add_argument("--fp8", type=Path, help="the same over rows in fp8")
    parser.add_argument(
        "--before", type=Path, help="a folder with kernels and an artifact of another commit, to compare"
    )
    parser.add_argument("--seconds", type=float, default=150, help="no new row is begun after that many (default: 150)")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    start = time.time()
    staged, kernels = load_kernels(args.kernels, "")
    if args.before:
        kernels += load_kernels(args.before, "before_")[1]
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(), "date": time.strftime("%F %T"), "commit": staged["commit"],
        "command": " ".join(["python3", *sys.argv]), "checks": {}, "rows": [],
    }  # fmt: skip

    def write() -> None:
        args.out.write_text(json.dumps(found, indent=1) + "\n")

    for kernel in kernels:
        said = [check(kernel, lengths, i) for i, lengths in enumerate(CHECKED)]
        found["checks"][kernel.label] = said
        print(kernel.label, said if any(not s.startswith("right") for s in said) else said[-1], flush=True)
    if args.artifact:
        found["checks"]["decoder"] = decodes(args.artifact)
        print("decoder", found["checks"]["decoder"], flush=True)
    if args.fp8:
        found["checks"]["decoder_fp8"] = decodes(args.fp8)
        print("decoder of fp8", found["checks"]["decoder_fp8"], flush=True)
    copy = found["copy_TBps"] = copy_bandwidth()
    found["copy_TBps"] /= 1e12
    print(f"{found['device']}: copy {copy / 1e12:.2f} TB/s")
    pages = 1 << 19  # of 16 tokens: 9.7 GB
    whole = torch.empty(pages * 16 * 576, device="cuda", dtype=torch.bfloat16)
    for part in whole.split(1 << 28):
        part.normal_()
    narrow = (whole[: whole.numel() // 2] * 64).to(torch.float8_e4m3fn).view(torch.uint8)
    for page in (16, 32, 64):
        POOL[page, 2], POOL[page, 1] = (x.view(-1, 1, page, 576) for x in (whole, narrow))
    write()
    if args.artifact:
        artifacts = {"now": args.artifact}
        if args.fp8:
            artifacts["fp8"] = args.fp8
        if args.before:
            artifacts["before"] = args.before / args.artifact.name
        for batch in BATCHES:
            for name, path in artifacts.items():
                row = steps_of(name, path, batch, copy)
                found["rows"].append(row)
                print("  ".join(f"{k} {v}" for k, v in row.items()), flush=True)
                write()
    todo = [(k, b, SELECTED // k.page, cut) for k in kernels for b in BATCHES for cut in CUTS]
    # those whose items are of one size are one
    todo = list(
        {(k.label, b, k.item([kept] * b, cut)): (k, b, kept, cut) for k, b, kept, cut in reversed(todo)}.values()
    )
    # the shapes of the target first, each with the items of plan
    todo.sort(key=lambda t: (CUTS.index(t[3]), t[0].heads != 20, t[1] == 64))
    todo += [(k, 8, -(-CONTEXT // k.page), CUTS[0]) for k in kernels if k.page == 16 and k.heads == 20]
    for kernel, batch, kept, cut in todo:
        if time.time() - start > args.seconds:
            print("out of time")
            break
        row = timing(kernel, batch, kept, cut, copy, len(POOL[kernel.page, kernel.bytes]))
        found["rows"].append(row)
        print("  ".join(f"{k} {v}" for k, v in row.items() if k not in ("low", "high", "least", "runs")), flush=True)
        write()


if __name__ == "__main__":
    main()
