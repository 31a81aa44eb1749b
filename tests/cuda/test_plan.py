"""``plan`` for GPUs under the emulator: rows as on the CPU, and work lists that cover every page once."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from tests.codegen.harness import part_pages
from tests.cuda.harness import Kernels, lower
from vortex.budget import Budget
from vortex.codegen.cuda.plan import table_of
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace
from vortex.ir.interpret_page import plan_row
from vortex.kinds.buckets import Bucket, bucket_of, fallbacks
from vortex.schedules.cuda_plan import PlanKnobs
from vortex.spec import Spec

SIZE = 8


@cache
def kernels() -> Kernels:
    """With few warps, and with several for each list of few requests."""
    flow = trace(find_flow("block_topk"), Spec(page_size=SIZE, head_dim=16, group=1))
    small = {"select_pages": 32, "attend_pages": 4}
    return Kernels.of({f"p{n}": lower(flow, plan={"threads": n, **small}) for n in (64, 256)}, ["plan"])


def item_pages(
    pages: list[int], slots: int, slabs: bool, select_pages: int = 32, attend_pages: int = 4, attend_busy: int = 16
) -> int:
    """A fair share of all pages, or so much more that the longest request divides into equal items."""
    quantum, few, busy = (32, select_pages, select_pages) if slabs else (1, attend_pages, attend_busy)
    total, longest = sum(pages), max(1, *pages)
    share = (total + slots - 1) // slots
    fair = (share + quantum - 1) // quantum * quantum
    fair = max(few, fair, few if slabs else min(busy, (2 * total + slots - 1) // slots))
    if slabs:
        items = sum(max(1, -(-n // part_pages(n, fair))) for n in pages)
        larger = (fair * items + slots - 1) // slots
        return (larger + 31) // 32 * 32 if len(pages) <= 32 and items > slots >= 2 * len(pages) else fair
    parts = max(1, (longest + fair - fair // 4 - 1) // fair)
    return max(fair, (longest + parts - 1) // parts)


TABLE: tuple[dict[str, Any], ...] = (
    {"select_pages": 64, "attend_pages": 2, "attend_busy": 2, "serves": ((4, 16, 8), (4, 64, 8))},
    {"select_pages": 96, "attend_pages": 8, "attend_busy": 32, "serves": ((512, 512, 8),)},
    {"select_pages": 128, "attend_pages": 16, "attend_busy": 16, "serves": ((4, 2048, 8), (512, 1024, 512))},
)


@cache
def kernels_with_table() -> Kernels:
    flow = trace(find_flow("block_topk"), Spec(page_size=SIZE, head_dim=16, group=1))
    plan = {"threads": 64, "select_pages": 32, "attend_pages": 4, "table": TABLE}
    return Kernels.of({"p": lower(flow, plan=plan)}, ["plan"])


def looked_up(rows: int, columns: int, kept: int) -> dict[str, int]:
    """The knobs of a step, by the rule that the host has."""
    known = {Bucket(*numbers): line for line in TABLE for numbers in line["serves"]}
    near = fallbacks(bucket_of("plan", rows, columns, kept), known)
    names = ("select_pages", "attend_pages", "attend_busy")
    return {n: known[near[0][1]][n] for n in names} if near else {"select_pages": 32, "attend_pages": 4}


@pytest.mark.parametrize("requests", [1, 2, 130])
@pytest.mark.parametrize("longest", [1, 40, 100, 300, 500, 2100, 4096, 9000, 16000, 70000])
def test_a_table_is_looked_into_at_each_step(requests: int, longest: int) -> None:
    """One kernel, as one captured graph has it: the knobs follow the lengths."""
    budget, heads, slots = Budget(5), 3, 16
    lengths = np.random.default_rng(longest).integers(0, longest + 1, requests).astype(np.int32)
    lengths[requests // 2] = longest
    given = {
        "lengths": torch.from_numpy(lengths),
        "budget": torch.tensor((*budget.numbers(), 0, 0), dtype=torch.int32),
        "plan": torch.full((4, requests), -7, dtype=torch.int32),
        "work": torch.full((2, 2 + requests + slots), -7, dtype=torch.int32),
        "arrivals": torch.full((requests * heads,), 5, dtype=torch.int32),
    }
    kernels_with_table().run("p", given, ["plan"], seed=longest)
    rows = [plan_row(int(n), SIZE, budget.numbers()) for n in lengths]
    knobs = looked_up(requests * heads, max(r[0] for r in rows), max(r[1] for r in rows))
    for work, column in zip(given["work"].tolist(), (3, 1), strict=True):
        assert work[1] == item_pages([row[column] for row in rows], slots, column == 3, **knobs)


@pytest.mark.parametrize(
    ("requests", "pages", "slots", "item"),
    # by a fair share alone there would be 17 items of 125 pages for each of 8 requests, and 3 of 40; half as many
    # requests as slots keep theirs
    [(8, 2048, 132, 128), (8, 100, 20, 50), (8, 128, 132, 16), (1, 128, 132, 8), (12, 100, 20, 60)],
)
def test_items_of_latent_rows_are_one_wave(requests: int, pages: int, slots: int, item: int) -> None:
    flow = trace(find_flow("latent_topk"), Spec.of_latent("64+64", 4, page_size=16))
    made = Kernels.of({"p": lower(flow, plan={"threads": 64, "select_pages": 32})}, ["plan"])
    for fixed in (0, 24):
        given = {
            "lengths": torch.full((requests,), pages * 16, dtype=torch.int32),
            "budget": torch.tensor((*Budget(1 << 20).numbers(), fixed, 0), dtype=torch.int32),
            "plan": torch.full((4, requests), -7, dtype=torch.int32),
            "work": torch.full((2, 2 + requests + slots + (requests * pages if fixed else 0)), -7, dtype=torch.int32),
            "arrivals": torch.full((requests,), 5, dtype=torch.int32),
        }
        if fixed:
            given["budget"][6] = slots
        made.run("p", given, ["plan"], seed=requests)
        items, each = given["work"][1, :2].tolist()
        assert each == (fixed or item)
        assert items == requests * -(-pages // each)
        assert fixed or items <= max(slots, 2 * requests)


def test_a_table_is_at_most_one_entry_a_lane() -> None:
    lines = [{"select_pages": 64, "serves": [[1 << i % 10, 1 << i // 10, 8]], "from": "db:1"} for i in range(100)]
    found = table_of({"table": tuple(lines), **PlanKnobs(attend_pages=4).attrs()})
    assert len(found) == len(set(found)) == 32
    assert [e.bucket for e in found] == sorted((e.bucket for e in found), reverse=True)
    assert {(e.knobs.select_pages, e.knobs.attend_pages) for e in found} == {(64, 4)}
    assert table_of({}) == ()


@pytest.mark.parametrize(
    ("requests", "slots"), [(1, 1), (1, 40), (2, 33), (3, 17), (7, 3), (32, 9), (33, 9), (130, 16), (300, 1)]
)
@pytest.mark.parametrize("budget", [Budget(4), Budget(0, ratio="1/3", sink=0, recent=1)], ids=["pages", "ratio"])
@pytest.mark.parametrize("threads", [64, 256])
def test_rows_and_items(requests: int, slots: int, budget: Budget, threads: int) -> None:
    rng = np.random.default_rng(requests)
    lengths = rng.choice([0, 1, 7, 8, 9, 100, 3000, 9999], requests).astype(np.int32)
    given = {
        "lengths": torch.from_numpy(lengths),
        "budget": torch.tensor((*budget.numbers(), 0, 0), dtype=torch.int32),
        "plan": torch.full((4, requests), -7, dtype=torch.int32),
        "work": torch.full((2, 2 + requests + slots), -7, dtype=torch.int32),
        "arrivals": torch.full((requests * 3,), 5, dtype=torch.int32),
    }
    kernels().run(f"p{threads}", given, ["plan"], seed=requests)
    rows = [plan_row(int(n), SIZE, budget.numbers()) for n in lengths]
    have = given["plan"].T.tolist()
    assert [(n, kept, scored) for n, kept, _, scored in have] == [(n, kept, scored) for n, kept, _, scored in rows]
    assert all(mine[2] == row[2] for mine, row in zip(have, rows, strict=True) if row[3])
    assert not given["arrivals"].any()
    for work, column, least in zip(given["work"].tolist(), (3, 1), (32, 4), strict=True):
        count, pages = work[:2]
        each = [part_pages(row[3], pages) if column == 3 else pages for row in rows]
        parts = [max(1, -(-row[column] // size)) for row, size in zip(rows, each, strict=True)]
        assert pages >= least
        assert pages == item_pages([row[column] for row in rows], slots, column == 3)
        assert work[2 : 2 + count] == [r << 16 | part for r, n in enumerate(parts) for part in range(n)]
        assert count <= requests + slots
