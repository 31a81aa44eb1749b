"""Selections of a CPU that depend on scores: shares of a mass, counts, unions. Data that fp32 holds exactly, or made to
be odd, so that pages agree exactly with the flow run eagerly.
"""

from __future__ import annotations

import math
import random
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import vortex
from vortex.budget import Budget
from vortex.driver import compile_flow
from vortex.flow import oracle
from vortex.ir.ranking import reaching
from vortex.runtime.decoder import Decoder, load
from vortex.runtime.paged_cache import PagedCache
from vortex.spec import Spec

SPEC = Spec(page_size=1, head_dim=16, group=1, dtype="f32")


class TwoNumbers(vortex.vFlow):
    """The first numbers of a page's first key."""

    def create_cache(self, spec: Any) -> Any:
        return {"a": vortex.Field(), "b": vortex.Field()}

    def forward_cache(self, page: Any) -> Any:
        return {"a": page.k[0, 0], "b": page.k[0, 1]}


class Share(TwoNumbers):
    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topp(cache.a, 0.5)


class AllMass(TwoNumbers):
    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topp(cache.a, 1.0, pages=40)


class Two(TwoNumbers):
    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.union(vortex.topk(-cache.a, pages=3), vortex.topp(cache.b, 0.75))


class Three(TwoNumbers):
    def forward_indexer(self, q: Any, cache: Any) -> Any:
        policy = vortex.topk(cache.b, count=cache.b.abs().amax(0) + 1, pages=6)
        return vortex.union(vortex.topp(cache.a, 0.5, pages=4), vortex.union(vortex.topp(cache.b, 0.75), policy))


class Counted(TwoNumbers):
    """As many pages as the mean of ``b`` says."""

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk(cache.a, count=cache.b.mean(0))


class PerLayer(TwoNumbers):
    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk(cache.a, count=vortex.page_count() // (vortex.layer() + 2))


class Fraction(TwoNumbers):
    """A share of the candidates, by the size of their axis: a traced number, and a Python one in an eager step."""

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        policy = vortex.topk(cache.b, count=cache.b.shape[0], pages=3)
        return vortex.union(vortex.topk(cache.a, count=cache.a.shape[0] // 4), policy)


class Own(TwoNumbers):
    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk(cache.a, pages=5)


class Late(TwoNumbers):
    """The count is known two passes after the scores."""

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        high = (cache.a > cache.a.mean(0)).sum(0)
        return vortex.topk(cache.a, count=high)


EVERYDAY = [Share, Three, Late]
REST = [AllMass, Two, Counted, PerLayer, Fraction, Own]


@cache
def made(flow: type[vortex.vFlow]) -> Any:
    return compile_flow(flow(), spec=SPEC, out=f"{SCRATCH}/{flow.__name__}.vxa").artifact


SCRATCH = ""


@pytest.fixture(scope="module", autouse=True)
def scratch(tmp_path_factory: pytest.TempPathFactory) -> None:
    global SCRATCH
    SCRATCH = str(tmp_path_factory.mktemp("selections"))


def selected(decoder: Decoder, a: list[float], b: list[float], budget: Budget, layer: int = 0) -> list[int]:
    """What the kernels keep of pages with these numbers; one token a page, so tokens are pages."""
    n = len(a)
    cache = PagedCache(n, 1, SPEC, decoder.fields)
    cache.add(0)
    loc, offsets = cache.extend_batch([0], [n])
    k = torch.randn(n, 1, 16)
    k[:, 0, 0], k[:, 0, 1] = torch.tensor(a), torch.tensor(b)
    decoder.budget = budget
    for other in range(4):
        decoder.bind(other, cache.k[0], cache.v[0], cache.fields[0])
    decoder.plan(cache.lengths([0]), cache.page_table([0]))
    decoder.append(layer, k, torch.zeros_like(k), loc, offsets)
    pages = torch.full((1, 1, decoder.capacity(n)), -7, dtype=torch.int32)
    counts = torch.full((1, 1), -7, dtype=torch.int32)
    decoder.select(layer, torch.zeros(1, 1, 16), pages=pages, counts=counts)
    return pages[0, 0, : int(counts)].tolist()


def right(flow: type[vortex.vFlow], a: list[float], b: list[float], budget: Budget, layer: int = 0) -> list[int]:
    n = len(a)
    if not oracle.cap(flow, SPEC).scored(budget, n):
        return list(range(n))
    seen = slice(budget.sink, n - budget.recent)
    fields = {"a": torch.tensor(a[seen]), "b": torch.tensor(b[seen])}
    chosen = oracle.selection(flow, SPEC, torch.zeros(1, 16), fields, layer, budget.sink)
    return oracle.select_pages(chosen, n, budget)


ODD = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3.4e38, -3.4e38, 1e-39, 2.0]


@pytest.mark.filterwarnings("ignore::vortex.errors.VortexWarning")
@pytest.mark.parametrize("flow", [*EVERYDAY, *(pytest.param(f, marks=pytest.mark.full) for f in REST)])
def test_pages_are_those_of_the_flow_run_eagerly(flow: type[vortex.vFlow]) -> None:
    decoder = load(made(flow), debug=True)
    draw = random.Random(1)
    for n in (1, 3, 4, 5, 17, 36, 300):
        for kind in ("odd", "whole", "even", "random"):
            if kind == "odd":
                a, b = ([draw.choice(ODD) for _ in range(n)] for _ in range(2))
            elif kind == "whole":
                a, b = ([float(draw.randint(-2, 8)) for _ in range(n)] for _ in range(2))
            elif kind == "even":
                a, b = [1 + 2.0**-23] * n, [4 + 2.0**-21] * n  # the last bit of a key decides
            else:
                a, b = ([draw.random() * 2.0 ** draw.randint(-40, 3) for _ in range(n)] for _ in range(2))
            if flow in (Counted, Late) and kind != "whole":
                continue  # the order of a sum of other numbers may decide
            for budget in (Budget(4), Budget(0, sink=0, recent=1), Budget(100), Budget(1, "1/3", sink=2, recent=1)):
                layer = draw.randint(0, 3)
                have = selected(decoder, a, b, budget, layer)
                assert have == right(flow, a, b, budget, layer), (kind, n, budget)


def test_a_share_is_reached_by_the_fewest() -> None:
    assert reaching(np.array([1, 1, 1, 1], np.float32), 2**23) == 2
    assert reaching(np.array([8, 1, 1, -4], np.float32), 2**23) == 1
    assert reaching(np.array([0, np.nan, -1], np.float32), 2**23) == 1
    assert reaching(np.array([1, 2, 3, 0], np.float32), 2**24) == 3


def test_the_capacity_is_the_sum_of_the_parts() -> None:
    decoder = load(made(Three), budget=Budget(4))
    assert decoder.capacity(1000) == 1 + 2 + 4 + 4 + 6
    assert decoder.capacity(5) == 5
