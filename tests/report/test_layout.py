"""Drawings of graphs: edges lead down, boxes keep apart, and large programs stay small."""

from __future__ import annotations

import random
import time
from itertools import combinations, pairwise

import pytest

from vortex.errors import Loc
from vortex.ir.core import Function, Module
from vortex.ir.dialects import flow, page
from vortex.ir.types import TensorType, bf16
from vortex.report.graph import draw
from vortex.report.layout import Box, lay_out
from vortex.report.places import Places


@pytest.mark.parametrize("seed", range(6))
def test_edges_lead_down_and_boxes_keep_apart(seed: int) -> None:
    draws = random.Random(seed)
    boxes = [Box(draws.uniform(40, 160), band=n // 12, late=draws.random() < 0.2) for n in range(40)]
    edges = [(a, b) for b in range(1, 40) for a in draws.sample(range(b), min(b, 2))]
    found = lay_out(boxes, edges)
    for (a, b), route in found.routes.items():
        assert found.centres[a][1] < found.centres[b][1]
        assert all(p[1] < q[1] for p, q in pairwise(route))
    for a, b in combinations(range(40), 2):
        (x, y), (u, v) = found.centres[a], found.centres[b]
        assert y != v or abs(x - u) >= (boxes[a].width + boxes[b].width) / 2
    for low, high in combinations(sorted(found.bands), 2):
        assert found.bands[low][1] < found.bands[high][0]
    assert min(x - b.width / 2 for (x, _), b in zip(found.centres, boxes, strict=True)) > -1e-6


def chain(count: int) -> Module:
    """A program of one kernel with so many ops, each from a line of its own."""
    f = Function("kernel", "select", attrs={"kind": "select", "domain": "rows"})
    x = f.add(page.Load("q", TensorType(bf16, (4, 128))), "q")
    for n in range(count):
        o = flow.Exp(x)
        o.loc, o.value.name = Loc("long.py", n + 1, 5, 9), f"x{n}"
        f.ops.append(o)  # Function.add looks at all names each time
        x = o.value
    module = Module("page", "long")
    module.define(f)
    return module


def test_a_program_of_5000_ops_is_drawn_at_once_and_small() -> None:
    module = chain(5000)
    begin = time.process_time()
    [drawing] = draw(module, "", Places())
    assert time.process_time() - begin < 3
    assert drawing.svg.count('class="op ') < 130
    assert len(drawing.svg) < 300_000


def test_a_small_program_is_drawn_op_by_op_too() -> None:
    ops, lines = draw(chain(40), "", Places())
    assert ops.svg.count('class="op ') == 41
    assert lines.svg.count('class="op ') == 41, "each op has a line of its own"
