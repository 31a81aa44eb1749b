"""Paged sparse GQA decode attention in Triton: split KV and a merge kernel, on the tensors of our calling convention.

A program takes one row (a request and a KV head) and one share of the row's selected pages. The group is padded to 16
rows because ``tl.dot`` asks for them; nothing more is read from memory for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

LN2 = tl.constexpr(0.6931471805599453)
LEAST = tl.constexpr(-1e30)


@triton.jit
def _look_up(pages, table, t, end, PAGE: tl.constexpr, BLOCK: tl.constexpr):
    """Positions in the request, physical pages and offsets in them of the BLOCK selected tokens at ``t``."""
    if PAGE % BLOCK == 0:  # one page holds them all: one look-up
        have = t < end
        logical = tl.load(pages + t // PAGE, mask=have, other=0)
        physical = tl.load(table + logical, mask=have, other=0).to(tl.int64)
        start = logical * PAGE + t % PAGE
    else:
        token = t + tl.arange(0, BLOCK)
        have = token < end
        logical = tl.load(pages + token // PAGE, mask=have, other=0)
        physical = tl.load(table + logical, mask=have, other=0).to(tl.int64)
        start = tl.where(have, logical * PAGE + token % PAGE, 1 << 30)
    return start, physical


@triton.jit(do_not_specialize=["columns", "capacity", "splits"])
def attend_kernel(
    q, k, v, table, pages, counts, lengths, out, lse, partials, stats, scale,
    kp, kh, kt, vp, vh, vt, columns, capacity, splits,
    HEADS: tl.constexpr, PAGE: tl.constexpr, DIM: tl.constexpr, GROUP: tl.constexpr, PAD_D: tl.constexpr,
    PAD_G: tl.constexpr, BLOCK: tl.constexpr, PREFETCH: tl.constexpr, SPLIT: tl.constexpr, LSE: tl.constexpr,
):  # fmt: skip
    """``scale`` is the softmax scale times log2 e; kp, kh, kt are strides of pages, heads and tokens."""
    h, s, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = b * HEADS + h
    count, length = tl.load(counts + row), tl.load(lengths + b)
    pages += row.to(tl.int64) * capacity
    table += b.to(tl.int64) * columns
    SHARE: tl.constexpr = 1 if PAGE % BLOCK == 0 else (BLOCK + PAGE - 1) // PAGE
    share = tl.cdiv(tl.cdiv(count, SHARE), splits) * SHARE
    begin, end = s * share * PAGE, tl.minimum((s + 1) * share, count) * PAGE
    g, d, n = tl.arange(0, PAD_G), tl.arange(0, PAD_D), tl.arange(0, BLOCK)
    in_q = (g < GROUP)[:, None] & (d < DIM)[None, :]
    at = (row * GROUP + g)[:, None] * DIM + d[None, :]
    query = tl.load(q + at, mask=in_q, other=0.0)
    top = tl.full([PAD_G], LEAST, tl.float32)
    total = tl.zeros([PAD_G], tl.float32)
    acc = tl.zeros([PAD_G, PAD_D], tl.float32)
    k += h.to(tl.int64) * kh
    v += h.to(tl.int64) * vh
    following, following_page = _look_up(pages, table, begin, end, PAGE, BLOCK)
    for t in range(begin, end, BLOCK):
        if PREFETCH:
            start, physical = following, following_page
            following, following_page = _look_up(pages, table, t + BLOCK, end, PAGE, BLOCK)
        else:
            start, physical = _look_up(pages, table, t, end, PAGE, BLOCK)
        if PAGE % BLOCK == 0:
            live = start + n < length
            k_at, v_at = (t % PAGE + n) * kt + physical * kp, (t % PAGE + n) * vt + physical * vp
        else:
            live = start < length
            k_at, v_at = ((t + n) % PAGE) * kt + physical * kp, ((t + n) % PAGE) * vt + physical * vp
        wanted = live[:, None] & (d < DIM)[None, :]
        keys = tl.load(k + k_at[:, None] + d[None, :], mask=wanted, other=0.0)
        values = tl.load(v + v_at[:, None] + d[None, :], mask=wanted, other=0.0)
        score = tl.where(live[None, :], tl.dot(query, tl.trans(keys)) * scale, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        weight = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(weight, 1)
        acc = tl.dot(weight.to(values.dtype), values, acc * shrink[:, None])
        top = higher
    if SPLIT:
        part = (row * splits + s) * GROUP + g
        tl.store(partials + part.to(tl.int64)[:, None] * DIM + d[None, :], acc, mask=in_q & (begin < end))
        tl.store(stats + part * 2, top, mask=g < GROUP)
        tl.store(stats + part * 2 + 1, total, mask=g < GROUP)
    else:
        some = tl.where(total > 0, total, 1.0)
        tl.store(out + at, (acc / some[:, None]).to(out.dtype.element_ty), mask=in_q)
        if LSE:
            found = tl.where(total > 0, (top + tl.log2(some)) * LN2, float("-inf"))
            tl.store(lse + row * GROUP + g, found, mask=g < GROUP)


@triton.jit(do_not_specialize=["splits"])
def merge_kernel(
    partials, stats, out, lse, splits,
    GROUP: tl.constexpr, DIM: tl.constexpr, PAD_D: tl.constexpr, PAD_S: tl.constexpr, LSE: tl.constexpr,
):  # fmt: skip
    """One query head's splits into its output."""
    head = tl.program_id(0)
    s, d = tl.arange(0, PAD_S), tl.arange(0, PAD_D)
    part = ((head // GROUP) * splits + s) * GROUP + head % GROUP
    top = tl.load(stats + part * 2, mask=s < splits, other=LEAST)
    total = tl.load(stats + part * 2 + 1, mask=s < splits, other=0.0)
    highest = tl.max(top, 0)
    weight = tl.where(total > 0, tl.exp2(top - highest), 0.0)
    found = tl.sum(weight * total, 0)
    some = tl.where(found > 0, found, 1.0)
    mask = (total > 0)[:, None] & (d < DIM)[None, :]
    acc = tl.load(partials + part.to(tl.int64)[:, None] * DIM + d[None, :], mask=mask, other=0.0)
    merged = tl.sum(acc * weight[:, None], 0) / some
    tl.store(out + head * DIM + d, merged.to(out.dtype.element_ty), mask=d < DIM)
    if LSE:
        tl.store(lse + head, tl.where(found > 0, (highest + tl.log2(some)) * LN2, float("-inf")))


@dataclass(frozen=True)
class Config:
    """``block`` tokens a step, ``stages`` in the pipeline; ``prefetch``: page ids are read a step ahead.

    Without ``prefetch`` Triton pipelines the two look-ups as well, which takes two of three stages from K and V.
    """

    block: int = 64
    warps: int = 4
    stages: int = 3
    prefetch: bool = False
    splits: int = 1

    def shared_bytes(self, dim: int) -> int:
        depth = self.stages - 1 if self.prefetch else -(-(self.stages - 2) // 3)
        return 2 * self.block * dim * 2 * max(1, depth)


def space(dim: int) -> list[Config]:
    """Code configurations that fit shared memory; splits are chosen apart."""
    ahead = {
        16: [(1, 5), (1, 9), (2, 5), (2, 9), (2, 13)],
        32: [(2, 3), (2, 5), (2, 7), (4, 4), (4, 7)],
        64: [(2, 3), (2, 4), (4, 3), (4, 4), (4, 6), (8, 4)],
        128: [(4, 2), (4, 3), (4, 4), (8, 3), (8, 4)],
    }
    plain = {16: [(1, 8), (2, 8), (2, 14)], 32: [(2, 8), (4, 8)], 64: [(4, 3), (4, 6), (4, 9)], 128: [(4, 6)]}
    found = [Config(n, w, s, True) for n, pairs in ahead.items() for w, s in pairs]
    found += [Config(n, w, s, False) for n, pairs in plain.items() for w, s in pairs]
    return [c for c in found if c.shared_bytes(dim) <= 220 << 10]


def splits_for(rows: int, tokens: int, block: int, sms: int = 132) -> list[int]:
    """Shares of a row worth trying: from one to about eight waves of small shares."""
    most = max(1, -(-tokens // block))
    return [s for s in (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128) if s == 1 or (s <= most and rows * s <= 16 * sms)]


class Attend:
    """One configuration bound to scratch; calling it launches on the current stream and allocates nothing."""

    def __init__(self, tensors: Mapping[str, Any], config: Config) -> None:
        q, k = tensors["q"], tensors["k"]
        self.config, (self.batch, query_heads, self.dim) = config, q.shape
        _, self.heads, self.page, _ = k.shape
        self.group = query_heads // self.heads
        rows, f32 = self.batch * self.heads, {"dtype": torch.float32, "device": q.device}
        kept = config.splits if config.splits > 1 else 0
        self.partials = torch.empty(rows * kept * self.group, self.dim, **f32)
        self.stats = torch.empty(rows * kept * self.group, 2, **f32)

    def arguments(self, tensors: Mapping[str, Any]) -> tuple[tuple[int, int, int], list[Any], dict[str, Any]]:
        """Grid, positional and keyword arguments of :func:`attend_kernel`."""
        c, t = self.config, tensors
        names = ("q", "k", "v", "page_table", "pages", "counts", "lengths", "out", "lse")
        given = [*(t[n] for n in names), self.partials, self.stats, t["scale"] * 1.4426950408889634]
        given += [*t["k"].stride()[:3], *t["v"].stride()[:3], t["page_table"].stride(0), t["pages"].stride(1), c.splits]
        pads = {"PAD_D": triton.next_power_of_2(self.dim), "PAD_G": max(16, triton.next_power_of_2(self.group))}
        fixed = {"HEADS": self.heads, "PAGE": self.page, "DIM": self.dim, "GROUP": self.group, **pads}
        fixed |= {"BLOCK": c.block, "PREFETCH": c.prefetch, "SPLIT": c.splits > 1, "LSE": t["lse"].numel() > 0}
        fixed |= {"num_warps": c.warps, "num_stages": c.stages}
        return (self.heads, c.splits, self.batch), given, fixed

    def merge_arguments(self, tensors: Mapping[str, Any]) -> tuple[tuple[int], list[Any], dict[str, Any]]:
        """Grid, positional and keyword arguments of :func:`merge_kernel`."""
        splits = self.config.splits
        given = [self.partials, self.stats, tensors["out"], tensors["lse"], splits]
        fixed = {"GROUP": self.group, "DIM": self.dim, "PAD_D": triton.next_power_of_2(self.dim)}
        fixed |= {"PAD_S": triton.next_power_of_2(splits), "LSE": tensors["lse"].numel() > 0}
        return (self.batch * self.heads * self.group,), given, fixed | {"num_warps": 2 if splits <= 16 else 4}

    def __call__(self, tensors: Mapping[str, Any]) -> None:
        grid, given, fixed = self.arguments(tensors)
        attend_kernel[grid](*given, **fixed)
        if self.config.splits > 1:
            grid_of_heads, given, fixed = self.merge_arguments(tensors)
            merge_kernel[grid_of_heads](*given, **fixed)
