"""The selection itself, on scores made to order: NaN, infinities, zeros of both signs, ties, every k."""

from __future__ import annotations

import math
import random

import pytest
import torch

import vortex
from vortex.budget import Budget
from vortex.driver import compile_flow
from vortex.flow import oracle
from vortex.runtime.decoder import Decoder, load
from vortex.runtime.paged_cache import PagedCache
from vortex.spec import Spec

SPEC = Spec(page_size=1, head_dim=16, group=1, dtype="f32")


class FirstNumber(vortex.vFlow):
    """The score of a page is the first number of its first key."""

    def create_cache(self, spec):
        return {"s": vortex.Field()}

    def forward_cache(self, page):
        return {"s": page.k[0, 0]}

    def forward_indexer(self, q, cache):
        return vortex.topk(cache.s)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    made = compile_flow(FirstNumber(), spec=SPEC, out=tmp_path_factory.mktemp("topk") / "first.vxa")
    assert made.artifact is not None
    return load(made.artifact, budget=Budget(1), debug=True)


def selected(decoder: Decoder, scores: list[float], budget: Budget) -> list[int]:
    """What the kernels keep of pages with these scores; one token a page, so tokens are pages."""
    n = len(scores)
    cache = PagedCache(n, 1, SPEC, decoder.fields)
    cache.add(0)
    loc, offsets = cache.extend_batch([0], [n])
    k = torch.randn(n, 1, 16)
    k[:, 0, 0] = torch.tensor(scores)
    decoder.budget = budget
    decoder.bind(0, cache.k[0], cache.v[0], cache.fields[0])
    decoder.plan(cache.lengths([0]), cache.page_table([0]))
    decoder.append(0, k, torch.zeros_like(k), loc, offsets)
    pages = torch.full((1, 1, max(1, min(n, budget.total(n)))), -7, dtype=torch.int32)
    counts = torch.full((1, 1), -7, dtype=torch.int32)
    decoder.select(0, torch.zeros(1, 1, 16), pages=pages, counts=counts)
    return pages[0, 0, : int(counts)].tolist()


def check(decoder: Decoder, scores: list[float], budget: Budget) -> None:
    candidates = torch.tensor(scores[budget.sink : len(scores) - budget.recent])
    assert selected(decoder, scores, budget) == oracle.select_pages(candidates, len(scores), budget)


ODD = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3.4e38, -3.4e38]


@pytest.mark.parametrize("k", [0, 1, 2, 5, 11, 30, 100])
def test_odd_scores(decoder: Decoder, k: int) -> None:
    draw = random.Random(k)
    for n in (3, 4, 17, 64, 200):
        check(decoder, [draw.choice(ODD) for _ in range(n)], Budget(k, sink=1, recent=1))


@pytest.mark.parametrize("value", [math.nan, -math.inf, 0.0, 2.5])
def test_ties_go_to_the_lower_page(decoder: Decoder, value: float) -> None:
    assert selected(decoder, [value] * 40, Budget(5, sink=2, recent=3)) == [0, 1, 2, 3, 4, 5, 6, 37, 38, 39]


def test_nan_loses_to_everything(decoder: Decoder) -> None:
    scores = [math.nan] * 10 + [-math.inf] + [math.nan] * 10
    assert selected(decoder, scores, Budget(1, sink=0, recent=1)) == [10, 20]


@pytest.mark.parametrize("seed", range(8))
def test_random_scores(decoder: Decoder, seed: int) -> None:
    draw = random.Random(seed)
    n = draw.choice([33, 500, 5000])
    coarse = draw.choice([True, False])
    scores = [float(draw.randint(-5, 5)) if coarse else draw.gauss(0, 1) for _ in range(n)]
    check(decoder, scores, Budget(draw.choice([1, 7, 64, 2048]), "1/50", draw.randint(0, 3), draw.randint(1, 3)))


@pytest.mark.full
def test_a_long_row(decoder: Decoder) -> None:
    draw = random.Random(0)
    check(decoder, [draw.gauss(0, 1) for _ in range(65536)], Budget(2045))


def test_more_pages_asked_for_than_there_are(decoder: Decoder) -> None:
    assert selected(decoder, [1.0, 2.0, 3.0], Budget(100)) == [0, 1, 2]
