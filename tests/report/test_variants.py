"""A report's costs at a shape are those of the kernels that such a step runs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.report.conftest import SHAPE
from vortex.check.explanation import NotTaken
from vortex.compilation.stored import Stored
from vortex.report.assessment import assess


@pytest.mark.parametrize("batch", [1, 64])
def test_of_variants_the_one_for_the_shape_is_predicted(stored: Stored, batch: int) -> None:
    own = next(k for k in stored.kernels if (k.target, k.name) == ("sm_90a", "select"))
    took = {"threads": 256, "warps": 16, "ctas": 2, "spills": 0}
    many = replace(own, schedule={**own.schedule, "serves": ((256, 64, 8),)}, resources=took)
    serves = {"variant_of": "select", "serves": ((4, 64, 8),)}
    few = replace(own, name="select_v1", schedule={**own.schedule, **serves, "cluster": 8}, resources=took)
    kernels = (*(k for k in stored.kernels if k is not own), few, many)
    shape = replace(SHAPE, batch=batch, kv_heads=4)
    told = assess(
        replace(stored, kernels=kernels), "sm_90a", stored.programs["sm_90a"], shape, lambda program, f, t: NotTaken()
    )
    assert not told.failed
    assert ("in clusters" in told.costs["select"].worth["H200"]) is (batch == 1)
