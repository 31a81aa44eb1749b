"""Exact, deterministic top-k of pages in Triton: one program a row, the row's keys in registers.

Scores become keys whose unsigned order is ours (+inf > finite > -inf > NaN, -0 equals 0); pages that are no candidate
but belong to the request come before all. Four histograms of eight bits find the last key that is kept; of pages that
tie with it the lower ones are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl


@triton.jit
def topk_kernel(scores, plan, pages, counts, batch, columns, capacity, HEADS: tl.constexpr, PAD: tl.constexpr):
    row = tl.program_id(0)
    b = row // HEADS
    n, kept = tl.load(plan + b), tl.load(plan + batch + b)
    first, scored = tl.load(plan + 2 * batch + b), tl.load(plan + 3 * batch + b)
    p = tl.arange(0, PAD)
    candidate = (p >= first) & (p < first + scored)
    x = tl.load(scores + row.to(tl.int64) * columns + p, mask=candidate, other=0.0)
    bits = tl.where(x == 0.0, 0.0, x).to(tl.uint32, bitcast=True)
    key = tl.where(bits >> 31 != 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)
    key = tl.where(x != x, 0, key)
    key = tl.where(candidate, key, 0xFFFFFFFF)
    there = p < n
    least = tl.zeros([], tl.uint32)
    left = kept  # to be taken of the keys that share the digits found so far
    live = there
    digits = tl.arange(0, 256)
    for shift in tl.static_range(24, -1, -8):
        digit = ((key >> shift) & 0xFF).to(tl.int32)
        of_digit = tl.histogram(digit, 256, mask=live)
        above = tl.sum(of_digit, 0) - tl.cumsum(of_digit, 0)  # keys of a greater digit
        found = tl.sum((above >= left).to(tl.int32), 0)
        left -= tl.sum(tl.where(digits == found, above, 0), 0)
        live = live & (digit == found)
        least |= found.to(tl.uint32) << shift
    ties = live & (tl.cumsum(live.to(tl.int32), 0) <= left)
    chosen = (there & (key > least)) | ties
    place = tl.cumsum(chosen.to(tl.int32), 0) - 1
    tl.store(pages + row.to(tl.int64) * capacity + place, p, mask=chosen & (place < capacity))
    tl.store(counts + row, tl.minimum(kept, n))


def warps_for(columns: int) -> int:
    return 4 if columns <= 1024 else 8 if columns <= 2048 else 16 if columns <= 4096 else 32


def arguments(tensors: Mapping[str, Any], warps: int = 0) -> tuple[tuple[int], list[Any], dict[str, Any]]:
    """Grid, positional and keyword arguments of :func:`topk_kernel`."""
    batch, heads, columns = tensors["scores"].shape
    given = [tensors[n] for n in ("scores", "plan", "pages", "counts")] + [batch, columns, tensors["pages"].shape[-1]]
    fixed = {"HEADS": heads, "PAD": triton.next_power_of_2(columns), "num_warps": warps or warps_for(columns)}
    return (batch * heads,), given, fixed


def topk(tensors: Mapping[str, Any], warps: int = 0) -> None:
    """Scores and plan into ``pages`` (ascending) and ``counts``; allocates nothing."""
    grid, given, fixed = arguments(tensors, warps)
    topk_kernel[grid](*given, **fixed)


def torch_topk(tensors: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by a stable sort: pages (filled up with -1) and counts."""
    scores, plan = tensors["scores"], tensors["plan"].long()
    p = torch.arange(scores.shape[-1], device=scores.device)
    pages, counts = torch.full_like(tensors["pages"], -1), torch.zeros_like(tensors["counts"])
    for b, (n, kept, first, scored) in enumerate(plan.T.tolist()):
        for h in range(scores.shape[1]):
            ranks = scores[b, h].double().nan_to_num(nan=-float("inf"), posinf=1e300, neginf=-1e300)
            ranks = ranks.masked_fill((p < first) | (p >= first + scored), float("inf"))[:n]
            found = torch.sort(ranks, descending=True, stable=True).indices[: min(n, kept)].sort().values
            pages[b, h, : len(found)], counts[b, h] = found.int(), len(found)
    return pages, counts
