"""What becomes one kernel: the same as by asking for two of all kernels again and again, in far fewer steps."""

from __future__ import annotations

import random
from itertools import combinations

import networkx as nx
import pytest

from tests.ir.samples import head
from vortex.ir.core import Module
from vortex.ir.parser import parse_module
from vortex.ir.staging import Stager, stage
from vortex.kinds.kind import KINDS
from vortex.passes.fuse import Fuse, _join
from vortex.passes.kernel_graph import reads, stores
from vortex.passes.manager import PassContext, run_pipeline

CONTEXT = PassContext()


def pages(body: list[str]) -> Module:
    """One kernel for each op."""
    flow = head("\n".join(body), {"c": "bf16"})
    return run_pipeline(parse_module(flow), "outline", CONTEXT)


def made_up(seed: int, size: int) -> Module:
    """Scores of values of all numbers for a page, whose folds over pages make them be kept."""
    rng = random.Random(seed)
    body = ['%m = flow.reduce_sum(%q) {axes = [0]} : f32[8]', '%v0 = flow.mul(%c, %m) : f32[S, 8]',
            '%s0 = flow.dot(%m, %c) {spec = "d,sd->s"} : f32[S]']  # fmt: skip
    wide, scores, folds = ["v0"], ["s0"], []
    for n in range(1, size):
        kind = rng.choice(["wide", "narrow", "score", "score", "fold", "folded"])
        if kind == "wide":
            body.append(f"%v{n} = flow.{rng.choice(['exp', 'abs'])}(%{rng.choice(wide)}) : f32[S, 8]")
            wide.append(f"v{n}")
        elif kind == "narrow":
            body.append(f"%s{n} = flow.reduce_max(%{rng.choice(wide)}) {{axes = [1]}} : f32[S]")
            scores.append(f"s{n}")
        elif kind == "score":
            body.append(f"%s{n} = flow.add(%{rng.choice(scores)}, %{rng.choice(scores)}) : f32[S]")
            scores.append(f"s{n}")
        elif kind == "fold":
            body.append(f"%f{n} = flow.reduce_max(%{rng.choice(scores)}) {{axes = [0]}} : f32[]")
            folds.append(f"f{n}")
        elif folds:
            body.append(f"%s{n} = flow.sub(%{rng.choice(scores)}, %{rng.choice(folds)}) : f32[S]")
            scores.append(f"s{n}")
    total = scores[0]
    for n, other in enumerate([s for s in scores if s != total]):
        body.append(f"%t{n} = flow.maximum(%{total}, %{other}) : f32[S]")
        total = f"t{n}"
    return pages([*body, f"%best = flow.topk(%{total}) : selection", "flow.return(%best)"])


def by_asking_again(module: Module, most: int) -> list[list[str]]:
    """The definition: the first two kernels that may be one become one; then from the beginning."""
    kernels = list(module.functions.values())
    inside = {d.name for d in module.declared("buffer") if d.attrs["role"] == "workspace"}
    groups = [[n] for n in range(len(kernels))]

    def keeps(parts: list[int]) -> int:
        made = [kernels[n] for n in parts]
        if KINDS[str(made[0].attrs["kind"])].fusion != "bounded":
            return 0
        kept = stage(_join("one", made, {name for f in made for name in stores(f)} & inside)).kept
        return sum(v.type.numel for v in kept)

    def may_be_one(a: list[int], b: list[int]) -> bool:
        kinds = {str(kernels[n].attrs["kind"]) for n in (*a, *b)}
        if len(kinds) > 1 or KINDS[kinds.pop()].fusion == "never" or keeps(sorted(a + b)) > most:
            return False
        owner = {n: i for i, group in enumerate([a, b, *(g for g in groups if g not in (a, b))]) for n in group}
        graph = nx.DiGraph()
        graph.add_edge(0, 0)
        graph.add_edge(1, 1)
        for x, y in combinations(range(len(kernels)), 2):
            f, g = kernels[x], kernels[y]
            if stores(f) & (reads(g) | stores(g)) or reads(f) & stores(g):
                graph.add_edge(owner[x], owner[y])
        graph.remove_edges_from([(0, 1), (1, 0)])
        return not (nx.has_path(graph, 0, 1) or nx.has_path(graph, 1, 0))

    while pair := next((p for p in combinations(sorted(groups), 2) if may_be_one(*p)), None):
        groups = [g for g in groups if g not in pair] + [sorted(pair[0] + pair[1])]
    return sorted([kernels[n].name for n in group] for group in groups)


def test_groups_are_those_of_asking_again() -> None:
    limited = 0
    for seed in range(10):
        module, counts = made_up(seed, 12), set()
        for most in (256, 24, 9, 1):
            decided = Fuse(most).decide(module)
            found = sorted([f.name for f in group] for group in decided.groups.values())
            assert found == by_asking_again(module, most)
            counts.add(len(found))
        limited += len(counts) > 1
    assert limited > 5, "flows in which the limit matters"


@pytest.mark.parametrize("most", [256, 40])
def test_twice_the_ops_take_twice_the_steps(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0
    add = Stager.add

    def counted(self: Stager, o: object) -> None:
        nonlocal steps
        steps += 1
        add(self, o)  # type: ignore[arg-type]

    monkeypatch.setattr(Stager, "add", counted)
    taken = []
    for size in (100, 200):
        chain = ["%m = flow.reduce_sum(%q) {axes = [0]} : f32[8]", '%s0 = flow.dot(%m, %c) {spec = "d,sd->s"} : f32[S]']
        chain += [f"%s{n} = flow.exp(%s{n - 1}) : f32[S]" for n in range(1, size)]
        module = pages([*chain, f"%best = flow.topk(%s{size - 1}) : selection", "flow.return(%best)"])
        steps = 0
        assert "select" in Fuse(most).decide(module).groups, "one kernel"
        taken.append(steps)
    assert taken[1] < 2.2 * taken[0]
