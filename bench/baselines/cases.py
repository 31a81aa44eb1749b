"""Pools and batches for the baselines, as tensors under the names of our calling convention."""

from __future__ import annotations

from typing import Any

import torch

Tensors = dict[str, Any]
FAR = 1 << 28  # a page id that no table holds


def fill(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> torch.Tensor:
    """Random numbers, part by part: no second copy of a large pool."""
    pool = torch.empty(shape, dtype=dtype, device=device)
    for part in pool.split(max(1, shape[0] // 64)):
        part.normal_()
    return pool


def kv_pools(
    pages: int, heads: int, page: int, dim: int, *, nhd: bool = False, dtype: torch.dtype = torch.bfloat16,
    device: str = "cuda",
) -> Tensors:  # fmt: skip
    """K and V ``[P, Hkv, page, D]``; with ``nhd`` as views of ``[P, page, Hkv, D]``."""
    shape = (pages, page, heads, dim) if nhd else (pages, heads, page, dim)
    k, v = fill(shape, dtype, device), fill(shape, dtype, device)
    return {"k": k.transpose(1, 2) if nhd else k, "v": v.transpose(1, 2) if nhd else v}


def summary_pools(pages: int, heads: int, dim: int, *, device: str = "cuda") -> Tensors:
    """Fields ``[P, Hkv, D]`` of both scorers: mean (a view of hi) and lo <= hi."""
    x, y = (fill((pages, heads, dim), torch.bfloat16, device) for _ in range(2))
    lo = torch.minimum(x, y)
    torch.maximum(x, y, out=y)
    return {"field.lo": lo, "field.hi": y, "field.mean": y}


def attend_batch(pools: Tensors, group: int, lengths: torch.Tensor, kept: int, seed: int) -> Tensors:
    """Random physical pages; of each row's pages ``kept`` random ones, the last among them, in ascending order."""
    k = pools["k"]
    device, (pool, heads, page, dim) = k.device, k.shape
    g = torch.Generator(device=device).manual_seed(seed)
    batch, n = len(lengths), ((lengths + page - 1) // page).to(device)
    columns = max(1, int(n.max()))
    table = torch.randint(pool, (batch, columns), device=device, dtype=torch.int32, generator=g)
    keys = torch.rand(batch, heads, columns, device=device, generator=g)
    logical = torch.arange(columns, device=device)
    keys.masked_fill_(logical >= n[:, None, None], -1.0).masked_fill_(logical == n[:, None, None] - 1, 2.0)
    capacity = min(kept, columns)
    counts = n.clamp(max=capacity)[:, None].expand(batch, heads).int().contiguous()
    listed = torch.arange(capacity, device=device) < counts[..., None]
    pages = torch.where(listed, keys.topk(capacity, -1).indices, FAR).sort(-1).values.int().contiguous()
    q = torch.randn(batch, heads * group, dim, device=device, generator=g).to(k.dtype)
    return {
        **pools, "q": q, "lengths": lengths.int().to(device), "page_table": table, "pages": pages, "counts": counts,
        "scale": dim**-0.5, "out": torch.full_like(q, float("nan")),
        "lse": torch.full((batch, heads * group), float("nan"), device=device),
    }  # fmt: skip


def attend_bytes(t: Tensors) -> int:
    """Of the K and V pages that are read."""
    return int(t["counts"].sum()) * t["k"].shape[2] * t["k"].shape[3] * 2 * t["k"].element_size()


def attend_reference(t: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and log-sum-exp in float64, row by row."""
    heads, page = t["k"].shape[1:3]
    group = t["q"].shape[1] // heads
    out, lse = t["q"].double() * 0, t["lse"].double().fill_(float("-inf"))
    for r, length in enumerate(t["lengths"].tolist()):
        for h in range(heads if length else 0):
            ids = t["pages"][r, h, : int(t["counts"][r, h])].long()
            token = (ids[:, None] * page + torch.arange(page, device=ids.device)).flatten()
            physical, mine = t["page_table"][r, ids].long(), slice(h * group, (h + 1) * group)
            k, v = (t[name][physical, h].flatten(0, 1)[token < length].double() for name in ("k", "v"))
            s = t["q"][r, mine].double() @ k.T * t["scale"]
            out[r, mine], lse[r, mine] = s.softmax(-1) @ v, s.logsumexp(-1)
    return out, lse


def sampled_reference(t: Tensors, most: int = 3) -> tuple[list[int], torch.Tensor]:
    """Some requests, the first and the last among them, and their output in float64."""
    batch = len(t["lengths"])
    chosen = sorted({0, batch // 2, batch - 1})[-most:]
    some = {n: t[n][chosen] for n in ("q", "lengths", "page_table", "pages", "counts")}
    some |= {n: t[n] for n in ("k", "v", "scale")} | {"lse": t["q"].new_zeros(some["q"].shape[:2], dtype=torch.float32)}
    return chosen, attend_reference(some)[0]


def select_batch(
    pools: Tensors, group: int, lengths: torch.Tensor, page: int, kept: int, seed: int, *, sink: int = 1,
    recent: int = 2,
) -> Tensors:  # fmt: skip
    """A query, a table of random pages, the plan for ``kept`` pages a row, poisoned scores and lists."""
    field = pools["field.mean"]
    device, (pool, heads, dim) = field.device, field.shape
    g = torch.Generator(device=device).manual_seed(seed)
    batch, n = len(lengths), (lengths + page - 1) // page
    scored = torch.where(n > kept, n - sink - recent, 0)
    plan = torch.stack([n, n.clamp(max=kept), torch.full_like(n, sink), scored]).int().to(device)
    columns = max(1, int(n.max()))
    q = torch.randn(batch, heads * group, dim, device=device, generator=g).to(field.dtype)
    table = torch.randint(pool, (batch, columns), device=device, dtype=torch.int32, generator=g)
    return {
        **pools, "q": q, "page_table": table, "plan": plan, "lengths": lengths.int().to(device),
        "scores": torch.full((batch, heads, columns), float("nan"), device=device),
        "pages": torch.full((batch, heads, kept), FAR, device=device, dtype=torch.int32),
        "counts": torch.full((batch, heads), -1, device=device, dtype=torch.int32),
    }  # fmt: skip


def select_bytes(t: Tensors, kind: str) -> int:
    """Of the summaries that are read."""
    field = t["field.mean"]
    return int(t["plan"][3].sum()) * field.shape[1] * field.shape[2] * 2 * (2 if kind == "quest" else 1)
