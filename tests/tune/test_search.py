"""Which points are proposed for a bundle."""

from __future__ import annotations

from vortex.schedules.space import Space, freeze
from vortex.tune.search import propose


def test_proposals() -> None:
    space = Space("t@1", tuple({"a": a, "b": b} for a in range(20) for b in range(20)), {"a": 0, "b": 0})
    first = propose(space, 10, lambda c: abs(c["a"] - 5) + abs(c["b"] - 5))
    assert len(first) == 10 and first[0] == space.default
    assert {"a": 5, "b": 5} in first
    known = {freeze({"a": 15, "b": 15}): 1.0, freeze(first[1]): 2.0}
    then = propose(space, 10, None, known)
    assert {"a": 15, "b": 16} in then and {"a": 14, "b": 15} in then
    assert first[1] not in then
    assert propose(space, 400) == list(space), "the default is the first of all"
    assert len(propose(space, 399, None, known)) == 398, "two are known"


def test_default_variants_are_built_too() -> None:
    points = tuple({"a": a, "b": b} for a in range(20) for b in range(20))
    space = Space("t@1", points, {"a": 0, "b": 0}, ({"a": 19, "b": 19},)).where({"a": [3]})
    found = propose(space, 10, lambda c: abs(c["b"] - 5))
    assert found[:2] == [space.default, *space.variants] and {"a": 3, "b": 5} in found
    assert propose(space, 2, lambda c: abs(c["b"] - 5)) == [space.default, {"a": 3, "b": 5}], "of two the model has one"
    known = {freeze(space.variants[0]): 1.0}
    assert space.variants[0] not in propose(space, 10, None, known)
