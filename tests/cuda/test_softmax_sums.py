"""Softmax over the pages of a row in two sweeps, under the emulator: sums of page tiles that have a largest of their
own, and what must not be lost of it.
"""

from __future__ import annotations

import math
import re
from functools import cache
from typing import Any

import pytest
import torch

import vortex
from tests.batches import batch, require_selections, summarise
from tests.cuda.harness import Kernels, fails, lower, tensors
from vortex.budget import Budget
from vortex.flow.trace import trace
from vortex.ir.core import Module
from vortex.ir.dialects import flow
from vortex.spec import Spec

SIZE, KINDS = 8, ("plan", "select")
GROUPS = (1, 2, 3, 4, 5)
CHOSEN = 10
"""Pages from which on they are the only ones that are not at -inf, in some flows."""
ENOUGH = 0.08
"""Share of all, of a page that counts in the flow ``large``."""


def flow_class(mask: str) -> type[vortex.vFlow]:
    class Shares(vortex.vFlow):
        def create_cache(self, spec: Spec) -> dict[str, vortex.Field]:
            return {"mean": vortex.Field(spec.head_dim)}

        def forward_cache(self, page: Any) -> dict[str, Any]:
            return {"mean": page.k.mean(0)}

        def forward_indexer(self, q: Any, cache: Any) -> Any:
            logits = torch.einsum("gd,sd->sg", q, cache.mean)
            at = vortex.page_index()[:, None]
            if mask == "far":
                # page tiles of nothing but -inf, and some of a few numbers
                logits = torch.where(at % 64 < CHOSEN, logits, -math.inf)
            elif mask == "all":
                logits = torch.where(at < 0, logits, -math.inf)
            elif mask in ("uneven", "large"):
                # the largest of page tiles is far below that of the first, but in one head alone
                logits = torch.cat([logits[:, :1] - 30.0 * (at >= 32), logits[:, 1:]], 1)
            share = logits.softmax(0).sum(-1)
            if mask == "large":
                # by what shares are, and not by their order alone: the first of the pages that have enough
                share = torch.where(share > ENOUGH, 1.0, 0.0)
            return vortex.topk(share)

    return Shares


@cache
def flow_of(mask: str, group: int) -> Module:
    return trace(flow_class(mask), Spec(page_size=SIZE, head_dim=32, group=group))


@cache
def kernels(mask: str, group: int, chip_words: int) -> Kernels:
    knobs = {"threads": 64, "chip_words": chip_words}
    program = lower(flow_of(mask, group), plan={"threads": 64, "select_pages": 32}, select=knobs)
    (sums,) = (o for o in program.functions["select"].ops if isinstance(o, flow.SoftmaxSum))
    assert program.functions["select"].attrs["page_words"] == group + 1
    assert sums.value.type.numel == group  # type: ignore[union-attr]
    return Kernels.of({mask: program}, KINDS)


LENGTHS = (SIZE * 150 + 3, 0, SIZE * 40, 5)
LONG = (SIZE * 1200 + 3,)
"""More page tiles than a warp has lanes."""


def check(built: Kernels, mask: str, group: int, lengths: tuple[int, ...] = LENGTHS) -> None:
    heads = 1 if lengths == LONG else 2
    for seed in (1,) if lengths == LONG else (1, 3):
        b = batch(flow_of(mask, group), lengths, heads=heads, budget=Budget(4), stored=True, seed=seed, integers=False)
        summarise(flow_of(mask, group), b)
        given = tensors(built, mask, b, slots=1 + 7 * (seed == 3))
        built.run(mask, given, KINDS, seed=seed)
        require_selections(flow_of(mask, group), b, given, mask, group, seed)


@pytest.mark.parametrize("chip_words", [0, 2048], ids=["in the workspace", "on chip"])
@pytest.mark.parametrize("group", GROUPS)
def test_selection_equals_the_interpreter(group: int, chip_words: int) -> None:
    check(kernels("", group, chip_words), "", group)


@pytest.mark.parametrize("mask", ["far", "all", "uneven"])
def test_numbers_that_are_infinite_or_far_apart(mask: str) -> None:
    check(kernels(mask, 2, 2048), mask, 2)


@pytest.mark.parametrize("mask", ["uneven", "large"])
def test_more_page_tiles_than_lanes(mask: str) -> None:
    check(kernels(mask, 2, 2048), mask, 2, LONG)


FAULTS = {
    "NaN where a page tile has nothing": ("far", r"\(top(\w*) == -CUDART_INF_F\) \? 0x0p\+0f/\*\S*\*/ : ", ""),
    "what was added up by another largest": ("uneven", r"= \(total_ptr\[0\] \* power_ptr\w*\[0\]\)", "= total_ptr[0]"),
    "the sum of a lane's second page tile, by its own largest": (
        "large",
        r"\(left_(\d)_ptr\[1\] \* power_ptr_\d+\[0\]\)",
        r"left_\1_ptr[1]",
    ),
    "another head's": ("", r"(top_\d+ = __shfl_sync\(\(uint\)4294967295, \w+), 16,", r"\1, 0,"),
    "pages of the first page tiles": ("", r"expf\(\(logits_1_ptr", "expf((logits_0_ptr"),
}
"""A mask of the flow, what is found in the kernel's text, and what stands in each place instead."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault: str) -> None:
    mask, found, instead = FAULTS[fault]
    built = kernels(mask, 2, 2048)
    symbol = built.sources[mask, "select"].symbol
    text, count = re.subn(found, instead, built.texts[symbol])
    assert count, "the pattern no longer finds its place"
    assert fails(check, built.mutated(symbol, text), mask, 2, LONG if mask == "large" else LENGTHS), fault
