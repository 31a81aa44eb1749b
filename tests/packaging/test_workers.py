"""How tests are dealt out to pytest's workers."""

from __future__ import annotations

import pytest


@pytest.mark.xdist_group("workers")
def test_a_group_has_one_worker(request: pytest.FixtureRequest) -> None:
    """pytest 9.2 does not see what pytest-xdist 3.8 calls the tests of a group, and a group then shares nothing."""
    if not request.config.getoption("loadgroup", False):
        pytest.skip("not a worker of --dist loadgroup")
    assert request.node.nodeid.endswith("@workers")
