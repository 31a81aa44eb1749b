"""The model that ranks configurations, where CTAs of a cluster share a row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from vortex.driver import compile_flow
from vortex.schedules.cuda_select import CudaSelect
from vortex.schedules.later_sweeps import LaterSweeps
from vortex.targets.target import TARGETS
from vortex.tune.predict import predictor
from vortex.tune.shapes import Shape

ROOT = Path(__file__).resolve().parents[2]
SM_90A = TARGETS["sm_90a"]


def seconds(flow: str, shape: Shape) -> tuple[float, float]:
    """Of the default of ``select``, and of the same threads in clusters of 8."""
    program = compile_flow(flow, targets=[SM_90A], to="page").programs["sm_90a"]
    f = program.functions["select"]
    predict = predictor(program, f, SM_90A, [shape])
    assert predict is not None
    default: Mapping[str, int] = CudaSelect().choose(program, f, SM_90A, {}).attrs()
    return predict(dict(default)), predict({**default, "cluster": 8})


@pytest.mark.parametrize(
    ("flow", "batch", "gains"),
    [
        ("bench/language_flows.py:bounds_then_mass_408", 1, True),
        ("bench/language_flows.py:bounds_then_mass_408", 32, False),
        ("examples/quest_then_mass.py", 32, False),
    ],
)
def test_clusters_rank_first_where_rows_are_few_and_lists_are_long(flow: str, batch: int, gains: bool) -> None:
    alone, together = seconds(str(ROOT / flow), Shape(batch, 8, 32763, 11))
    assert (together < alone) is gains


def test_later_sweeps_by_hand() -> None:
    """A list of 408 pages in page tiles of 32, of which four scores and a key are kept where candidates' are."""
    program = compile_flow(
        f"{ROOT}/bench/language_flows.py:bounds_then_mass_408", targets=[SM_90A], to="page"
    ).programs["sm_90a"]
    f = program.functions["select"]
    assert LaterSweeps.of(program, f, 2000, 1, 2048) == LaterSweeps(1, 408, 2000 + 4 * 408, 0, 0, 0, 1)
    assert LaterSweeps.of(program, f, 2000, 8, 2048) == LaterSweeps(1, 2 * 32, 2000 + 4 * 408, 0, 0, 2, 1)
    # fewer candidates than the list has room for; more CTAs than page tiles
    assert LaterSweeps.of(program, f, 100, 16, 2048) == LaterSweeps(1, 32, 100 + 4 * 100, 0, 0, 2, 1)
    mass = compile_flow("mass", targets=[SM_90A], to="page").programs["sm_90a"]
    made = LaterSweeps.of(mass, mass.functions["select"], 2000, 8, 1024)
    assert made == LaterSweeps(0, 0, 2000, 0, 4 * 2000 / 8, 2, 1)


def test_a_cluster_chooses_together_from_rows_that_one_cta_has_no_registers_for() -> None:
    quest = compile_flow("quest", targets=[SM_90A], to="page").programs["sm_90a"]
    f = quest.functions["select"]
    assert LaterSweeps.of(quest, f, 4096, 8, 4096) == LaterSweeps(0, 0, 4096, 0, 0, 1, 1)
    assert LaterSweeps.of(quest, f, 4096, 8, 2048) == LaterSweeps(0, 0, 512, 0, 0, 3, 8)
    assert LaterSweeps.of(quest, f, 40960, 1, 2048) == LaterSweeps(0, 0, 8192, 40960 - 8192, 0, 0, 1)
