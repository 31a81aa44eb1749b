"""Scores of pages in Triton, centroid and Quest: a program takes one chunk of a request's pages and some KV heads.

Scores are fp32 ``[B, Hkv, Pmax]``, -inf where a page is not a candidate, so that ``torch.topk`` may follow; the exact
selection of :mod:`triton_topk` reads the same array. With ``dot`` the products run on tensor cores: for Quest the bound
max(q lo, q hi) is max(q, 0) hi + min(q, 0) lo, two products of stored bf16 values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl


@triton.jit
def score_kernel(
    q, first_field, second_field, table, plan, scores, batch, columns,
    HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, PAD_D: tl.constexpr, QUEST: tl.constexpr,
    BLOCK: tl.constexpr, STEPS: tl.constexpr, TOGETHER: tl.constexpr, DOT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Fields are ``[P, HEADS, DIM]``: the mean, or the least and the greatest of a page's keys."""
    h0, c, b = tl.program_id(0) * TOGETHER, tl.program_id(1), tl.program_id(2)
    first, scored = tl.load(plan + 2 * batch + b), tl.load(plan + 3 * batch + b)
    table += b.to(tl.int64) * columns
    d = tl.arange(0, PAD_D)
    if DOT:  # one head; the group is padded to 16 columns
        tl.static_assert(TOGETHER == 1)
        g = tl.arange(0, 16 if GROUP <= 16 else GROUP)
        in_q = (g < GROUP)[None, :] & (d < DIM)[:, None]
        query = tl.load(q + ((b * HEADS + h0) * GROUP + g)[None, :] * DIM + d[:, None], mask=in_q, other=0.0)
        wide = query.to(tl.float32)
        up, down = tl.maximum(wide, 0.0).to(query.dtype), tl.minimum(wide, 0.0).to(query.dtype)
        for i in tl.range(0, STEPS, num_stages=STAGES):
            p = (c * STEPS + i) * BLOCK + tl.arange(0, BLOCK)
            live = (p >= first) & (p < first + scored)
            physical = tl.load(table + p, mask=live, other=0).to(tl.int64)
            at = (physical * HEADS + h0)[:, None] * DIM + d[None, :]
            wanted = live[:, None] & (d < DIM)[None, :]
            x = tl.load(first_field + at, mask=wanted, other=0.0)
            if QUEST:
                y = tl.load(second_field + at, mask=wanted, other=0.0)
                bound = tl.dot(y, up, tl.dot(x, down))
                score = tl.max(tl.where((g < GROUP)[None, :], bound, float("-inf")), 1)
            else:
                score = tl.sum(tl.dot(x, query), 1) / GROUP
            found = tl.where(live, score, float("-inf"))
            tl.store(scores + (b * HEADS + h0).to(tl.int64) * columns + p, found, mask=p < columns)
    else:
        h = h0 + tl.arange(0, TOGETHER)
        q_at = ((b * HEADS + h) * GROUP)[:, None] * DIM + d[None, :]
        in_q = (d < DIM)[None, :] & (h < HEADS)[:, None]
        mean = tl.zeros([TOGETHER, PAD_D], tl.float32)
        if not QUEST:
            for j in tl.static_range(GROUP):
                mean += tl.load(q + q_at + j * DIM, mask=in_q, other=0.0).to(tl.float32)
        for i in tl.range(0, STEPS, num_stages=STAGES):
            p = (c * STEPS + i) * BLOCK + tl.arange(0, BLOCK)
            live = (p >= first) & (p < first + scored)
            physical = tl.load(table + p, mask=live, other=0).to(tl.int64)
            at = ((physical * HEADS)[:, None] + h[None, :])[:, :, None] * DIM + d[None, None, :]
            wanted = (live[:, None] & (h < HEADS)[None, :])[:, :, None] & (d < DIM)[None, None, :]
            x = tl.load(first_field + at, mask=wanted, other=0.0).to(tl.float32)
            if QUEST:
                y = tl.load(second_field + at, mask=wanted, other=0.0).to(tl.float32)
                score = tl.full([BLOCK, TOGETHER], float("-inf"), tl.float32)
                for j in tl.static_range(GROUP):
                    one = tl.load(q + q_at + j * DIM, mask=in_q, other=0.0).to(tl.float32)[None, :, :]
                    bound = tl.sum(tl.maximum(one, 0.0) * y + tl.minimum(one, 0.0) * x, 2)
                    score = tl.maximum(score, bound)
            else:
                score = tl.sum(x * mean[None, :, :], 2) / GROUP
            found = tl.where(live[:, None], score, float("-inf"))
            out = scores + (b * HEADS + h).to(tl.int64)[None, :] * columns + p[:, None]
            tl.store(out, found, mask=(p < columns)[:, None] & (h < HEADS)[None, :])


@dataclass(frozen=True)
class Config:
    """``block`` pages a step, ``steps`` a program with ``stages`` in flight, ``together`` KV heads at once."""

    block: int = 64
    steps: int = 1
    together: int = 1
    warps: int = 4
    stages: int = 2
    dot: bool = False


def space(quest: bool, heads: int) -> list[Config]:
    """With and without tensor cores, from many small programs to few long ones."""
    found = []
    for block, steps, warps, stages in (
        (32, 1, 4, 1), (64, 1, 4, 1), (128, 1, 4, 1), (64, 4, 4, 3), (64, 8, 4, 4), (128, 4, 4, 3), (64, 16, 4, 4),
        (128, 8, 8, 3), (32, 8, 2, 4),
    ):  # fmt: skip
        found.append(Config(block, steps, 1, warps, stages, True))
    for block, steps, together, warps, stages in (
        (16, 1, 1, 4, 1), (32, 1, 1, 4, 1), (64, 1, 1, 8, 1), (8, 1, 8, 4, 1), (16, 1, 8, 8, 1), (4, 4, 8, 4, 3),
        (8, 8, 8, 8, 3), (32, 4, 1, 4, 3), (16, 8, 1, 2, 4), (32, 8, 1, 4, 4), (16, 4, 2, 4, 3),
    ):  # fmt: skip
        if together <= heads:
            found.append(Config(block, steps, together, warps, stages, False))
    return found


class Score:
    """One configuration; ``tensors`` hold q, field.*, page_table, plan and ``scores`` f32 ``[B, Hkv, Pmax]``."""

    def __init__(self, kind: str, config: Config) -> None:
        self.quest, self.config = kind == "quest", config
        self.fields = ("field.lo", "field.hi") if self.quest else ("field.mean", "field.mean")

    def arguments(self, tensors: Mapping[str, Any]) -> tuple[tuple[int, int, int], list[Any], dict[str, Any]]:
        """Grid, positional and keyword arguments of :func:`score_kernel`."""
        c, q, fields = self.config, tensors["q"], [tensors[n] for n in self.fields]
        _, heads, dim = fields[0].shape
        batch, columns = tensors["page_table"].shape
        together = min(c.together, triton.next_power_of_2(heads))
        given = [q, *fields, tensors["page_table"], tensors["plan"], tensors["scores"], batch, columns]
        fixed = {"HEADS": heads, "GROUP": q.shape[1] // heads, "DIM": dim, "PAD_D": triton.next_power_of_2(dim)}
        fixed |= {"QUEST": self.quest, "BLOCK": c.block, "STEPS": c.steps, "TOGETHER": together, "DOT": c.dot}
        fixed |= {"STAGES": c.stages, "num_warps": c.warps}
        return (triton.cdiv(heads, together), triton.cdiv(columns, c.block * c.steps), batch), given, fixed

    def __call__(self, tensors: Mapping[str, Any]) -> None:
        grid, given, fixed = self.arguments(tensors)
        score_kernel[grid](*given, **fixed)


def torch_scores(kind: str, tensors: Mapping[str, Any], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """What :class:`Score` should write, in plain torch."""
    table, plan = tensors["page_table"].long(), tensors["plan"].long()
    field = tensors["field.lo" if kind == "quest" else "field.mean"]
    batch, columns = table.shape
    heads, dim = field.shape[1:]
    q = tensors["q"].to(dtype).view(batch, 1, heads, -1, dim)
    p = torch.arange(columns, device=table.device)
    live = (p >= plan[2, :, None]) & (p < (plan[2] + plan[3])[:, None])
    where = table.masked_fill(~live, 0)
    if kind == "quest":
        lo, hi = (tensors[n][where].to(dtype)[:, :, :, None] for n in ("field.lo", "field.hi"))
        scores = torch.maximum(q * lo, q * hi).sum(-1).amax(-1)
    else:
        scores = (q.mean(3) * field[where].to(dtype)).sum(-1)
    return scores.masked_fill(~live[:, :, None], float("-inf")).transpose(1, 2)
