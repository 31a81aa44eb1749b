"""``plan`` for GPUs under the emulator: rows as on the CPU, and work lists that cover every page once."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from tests.codegen.harness import part_pages
from tests.cuda.harness import Kernels, lower
from vortex.budget import Budget
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace
from vortex.ir.interpret_page import plan_row
from vortex.spec import Spec

SIZE = 8


@cache
def kernels() -> Kernels:
    flow = trace(find_flow("block_topk"), Spec(page_size=SIZE, head_dim=16, group=1))
    return Kernels.of({"p": lower(flow, plan={"threads": 64, "select_pages": 32, "attend_pages": 4})}, ["plan"])


def item_pages(pages: list[int], slots: int, slabs: bool) -> int:
    """A fair share of all pages, or so much more that the longest request divides into equal items."""
    quantum, few, busy = (32, 32, 32) if slabs else (1, 4, 16)
    total, longest = sum(pages), max(1, *pages)
    share = (total + slots - 1) // slots
    fair = (share + quantum - 1) // quantum * quantum
    fair = max(few, fair, few if slabs else min(busy, (2 * total + slots - 1) // slots))
    if slabs:
        return fair
    parts = max(1, (longest + fair - fair // 4 - 1) // fair)
    return max(fair, (longest + parts - 1) // parts)


@pytest.mark.parametrize(("requests", "slots"), [(1, 1), (1, 40), (7, 3), (130, 16), (300, 1)])
@pytest.mark.parametrize("budget", [Budget(4), Budget(0, ratio="1/3", sink=0, recent=1)], ids=["pages", "ratio"])
def test_rows_and_items(requests: int, slots: int, budget: Budget) -> None:
    rng = np.random.default_rng(requests)
    lengths = rng.choice([0, 1, 7, 8, 9, 100, 3000, 9999], requests).astype(np.int32)
    given = {
        "lengths": torch.from_numpy(lengths),
        "budget": torch.tensor(budget.numbers(), dtype=torch.int32),
        "plan": torch.full((4, requests), -7, dtype=torch.int32),
        "work": torch.full((2, 2 + requests + slots), -7, dtype=torch.int32),
        "arrivals": torch.full((requests * 3,), 5, dtype=torch.int32),
    }
    kernels().run("p", given, ["plan"], seed=requests)
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
