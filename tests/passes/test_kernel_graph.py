"""Groups of kernels against networkx, on programs at random of which two groups after another become one."""

from __future__ import annotations

import random
from itertools import combinations

import networkx as nx
import pytest

from vortex.ir.core import Function
from vortex.ir.dialects import page
from vortex.ir.types import TensorType, f32
from vortex.passes.kernel_graph import KernelGraph, reads, stores

NUMBER = TensorType(f32, ())


def kernels(seed: int, size: int) -> list[Function]:
    """Each reads what some before it wrote, and some a state that others write."""
    rng = random.Random(seed)
    made = []
    for n in range(size):
        f = Function("kernel", f"k{n}")
        f.append(page.Load("given", NUMBER))
        for m in rng.sample(range(n), min(n, rng.randrange(3))):
            f.append(page.Load(f"b{m}", NUMBER))
        if rng.random() < 0.2:
            f.append(page.Load("state", NUMBER))
        f.append(page.Store(f.ops[0].value, f"b{n}"))
        if rng.random() < 0.1:
            f.append(page.Store(f.ops[0].value, "state"))
        made.append(f)
    return made


@pytest.mark.parametrize("seed", range(20))
def test_merged_groups_run_in_the_order_that_networkx_finds(seed: int) -> None:
    made = kernels(seed, 14)
    graph, owner, rng = KernelGraph(made), list(range(14)), random.Random(seed)
    while True:
        right = nx.DiGraph()
        right.add_nodes_from(graph.members)
        for a, b in combinations(range(14), 2):
            f, g = made[a], made[b]
            if owner[a] != owner[b] and (stores(f) & (reads(g) | stores(g)) or reads(f) & stores(g)):
                right.add_edge(owner[a], owner[b])
        assert graph.order() == list(nx.lexicographical_topological_sort(right))
        free = []
        for a, b in combinations(sorted(graph.members), 2):
            around = {n for x, y in ((a, b), (b, a)) for n in nx.descendants(right, x) & nx.ancestors(right, y)}
            between = graph.between(a, b)
            assert bool(between) == bool(around)
            assert set(between) <= {n for n in range(14) if owner[n] in around}
            free += [] if around else [(a, b)]
        if not free:
            return
        a, b = rng.choice(free)
        graph.merge(a, b)
        owner = [a if n == b else n for n in owner]
        assert graph.members == {n: [m for m in range(14) if owner[m] == n] for n in sorted({*owner})}
