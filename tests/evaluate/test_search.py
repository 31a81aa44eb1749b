"""Which configurations a search asks for, and what it chooses, from figures that nobody measured."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from vortex.evaluate.agreement import Agreement, Configuration
from vortex.evaluate.search import STRIDE, Search

LAYERS = (0, 1, 2, 3, 5, 6, 7, 8, 9, 10)
"""Layer 4 has a sliding window."""
DENSE = 100.0
BYTES = {("quest", 4): 10.0, ("quest", 16): 30.0, ("mass", 4): 15.0, ("mass", 16): 36.0}
TOKENS = 1000


def figures(share: float, most: dict[int, float] | None = None) -> Agreement:
    """So much agrees; ``most`` mass that layers can hold, 1 where none is given."""
    held = np.array([[(most or {}).get(n, 1.0)] * 2 for n in LAYERS])
    return Agreement(TOKENS, round(share * TOKENS), -0.1, -2.0, held * 0.9, held)


def searched(
    given: Callable[[Configuration], Agreement], wanted: float = 0.9
) -> tuple[Search, list[list[Configuration]]]:
    """A search that is over, and its waves."""
    search, waves = Search(BYTES, DENSE, LAYERS, wanted), []
    while wave := search.next():
        waves.append(wave)
        search.measured |= {c: given(c) for c in wave}
    return search, waves


def test_the_fewest_bytes_at_what_is_wanted() -> None:
    shares = {("quest", 4): 0.5, ("quest", 16): 0.92, ("mass", 4): 0.91, ("mass", 16): 0.99}
    search, waves = searched(lambda c: figures(shares[c.flow, c.pages]))
    assert waves == [[Configuration(*at) for at in BYTES]]
    assert search.chosen() == Configuration("mass", 4) and search.bytes(Configuration("mass", 4)) == 150.0
    assert search.best() == Configuration("mass", 16)


def test_diffuse_layers_become_dense_worst_first() -> None:
    """Layers 5 and 2 hold little at any choice; both dense, everything agrees; the others change nothing."""
    most = {5: 0.3, 2: 0.5, 8: 0.75}

    def given(c: Configuration) -> Agreement:
        bought = {(): 0.0, (5,): 0.15, (2, 5): 0.35}.get(c.dense_layers, 0.35)
        return figures({"quest": 0.6, "mass": 0.3}[c.flow] + 0.02 * (c.pages > 4) + bought, most)

    search, waves = searched(given)
    tried = {c.dense_layers for c in waves[1] if c.lane == Configuration("quest", 4).lane}
    assert tried == {(5,), (2, 5), (2, 5, 8)}
    assert search.chosen() == Configuration("quest", 4, (2, 5))
    assert search.bytes(Configuration("quest", 4, (2, 5))) == 8 * 10.0 + 2 * DENSE
    assert search.diffuse(Configuration("mass", 4)) == [5, 2, 8]
    assert search.shown()[:2] == [Configuration("quest", 4), Configuration("quest", 4, (2, 5))]


def test_layers_stay_sparse_where_a_larger_budget_buys_more() -> None:
    """All layers are diffuse; a dense one buys nothing, so that the first ones are the last that are tried."""
    most = {n: 0.1 + 0.01 * n for n in LAYERS}
    shares = {4: 0.4, 16: 0.8}
    search, waves = searched(lambda c: figures(shares[c.pages], most))
    assert len(waves) == 2
    assert max(len(c.dense_layers) for c in waves[1]) == STRIDE
    assert search.chosen() is None and search.best() == Configuration("quest", 16)


def test_nothing_is_tried_that_costs_more_than_what_is_known() -> None:
    """`mass` at 16 reaches it for 360 bytes: `quest` at 4 has room for two dense layers, `mass` at 4 for two."""
    most = {n: 0.1 for n in LAYERS}
    shares = {("quest", 4): 0.5, ("quest", 16): 0.6, ("mass", 4): 0.5, ("mass", 16): 0.95}
    search, waves = searched(lambda c: figures(shares[c.flow, c.pages] + 0.05 * len(c.dense_layers), most))
    assert all(search.bytes(c) < 360.0 for c in waves[1])
    assert {(c.flow, c.pages, len(c.dense_layers)) for c in waves[1]} == {
        ("quest", 4, 1), ("quest", 4, 2), ("mass", 4, 1), ("mass", 4, 2),
    }  # fmt: skip
    assert search.chosen() == Configuration("mass", 16)


def test_dense_attention_is_cheaper() -> None:
    """A configuration that agrees and costs as much as dense attention is no advice."""
    search = Search({("quest", 64): 101.0, ("quest", 4): 10.0}, DENSE, LAYERS, 0.9)
    search.measured = {Configuration("quest", 64): figures(1.0), Configuration("quest", 4): figures(0.3)}
    assert search.chosen() is None and search.next() == []
    assert search.best() == Configuration("quest", 4)


def test_flows_that_fail_are_dropped() -> None:
    search = Search(BYTES, DENSE, LAYERS, 0.9)
    search.measured = {c: figures(0.95) for c in search.next()}
    search.drop(["quest"])
    assert {c.flow for c in search.measured} == {"mass"} and search.next() == []
    assert search.chosen() == Configuration("mass", 4)
    search.drop(["mass"])
    assert search.chosen() is None and search.best() is None and search.next() == []


def test_agreements_add_up_by_tokens() -> None:
    a, b = figures(0.5, {0: 0.2}), figures(1.0)
    both = a + Agreement(3 * TOKENS, 3 * TOKENS, -0.3, -5.0, b.mass, b.most)
    assert (both.tokens, both.agreed, both.worst) == (4000, 3500, -5.0)
    assert both.share == 0.875 and both.change == pytest.approx(-0.25)
    assert both.most[0] == pytest.approx([0.8, 0.8])
