"""Defaults that differ with the shape: kernels of which a cluster shares more than a sweep have one in clusters for
steps of few rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import vortex
from vortex.driver import compile_flow
from vortex.kinds.buckets import bucket_of, buckets_of, serving
from vortex.schedules.cuda_select import LONG_LIST
from vortex.spec import Spec
from vortex.targets.target import TARGETS
from vortex.tune.choose import Chooser
from vortex.tune.layers import Layers
from vortex.tune.shapes import Shape

ROOT = Path(__file__).resolve().parents[2]
TWO_STEPS = str(ROOT / "examples" / "quest_then_mass.py")
LONG = f"{ROOT / 'bench' / 'language_flows.py'}:bounds_then_mass_408"


def schedule(flow: str, shape: Shape | None = None, most: int = 4, target: str = "sm_90a") -> dict[str, Any]:
    choose = Chooser(Layers({}), shape, most)
    made = compile_flow(flow, spec=Spec(), targets=[TARGETS[target]], to="page", choose=choose)
    return dict(made.programs[target].functions["select"].attrs["schedule"])


def picked(schedule: dict[str, Any], rows: int, columns: int, kept: int) -> int:
    """CTAs of a row in a step."""
    lines = [(line, buckets_of(line)) for line in (schedule, *schedule["variants"])]
    return int(serving(bucket_of("select", rows, columns, kept), lines)["cluster"])


@pytest.mark.parametrize(("flow", "by_rows"), [
    (TWO_STEPS, {1: 8, 2: 8, 8: 8, 16: 1, 32: 1, 64: 1, 256: 1, 4096: 1}),
    (LONG, {1: 8, 8: 8, 16: 2, 32: 2, 64: 2, 128: 1, 256: 1, 4096: 1}),
])  # fmt: skip
def test_rows_decide_at_any_length_and_budget(flow: str, by_rows: dict[int, int]) -> None:
    made = schedule(flow)
    assert LONG_LIST == 256
    for rows, ctas in by_rows.items():
        for columns in (1 << n for n in range(9, 17)):
            for kept in (8, 32, 128, 1024):
                assert picked(made, rows, columns, kept) == ctas, (rows, columns, kept)


def test_each_says_where_it_comes_from() -> None:
    for target, origin in (("sm_90a", "heuristic"), ("sm_100a", "model")):
        made = schedule(TWO_STEPS, target=target)
        assert {made["from"], *(v["from"] for v in made["variants"])} == {origin}


def test_a_shape_has_the_kernel_for_it_alone() -> None:
    for batch, ctas in ((1, 8), (8, 1)):
        made = schedule(TWO_STEPS, Shape(batch, 8, 32763, 11))
        assert (made["cluster"], "variants" in made, "serves" in made) == (ctas, False, False)


def test_fewer_kernels_are_the_default_alone() -> None:
    made = schedule(TWO_STEPS, most=1)
    assert (made["cluster"], "variants" in made) == (1, False)


COLUMNS = tuple(1 << n for n in range(9, 17))


def test_a_cluster_chooses_few_pages_of_a_row_that_is_not_very_long() -> None:
    """Behind one sweep it shares the choice; few pages of very long rows one CTA chooses sooner."""
    made = schedule("quest")
    assert [v["cluster"] for v in made["variants"]] == [8]
    for columns in COLUMNS:
        for kept in (8, 16, 32, 64):
            for rows in (1, 8):
                assert picked(made, rows, columns, kept) == (1 if columns >= 16384 else 8), (rows, columns, kept)
        for kept in (512, 1024, 2048):
            assert picked(made, 8, columns, kept) == 8, (columns, kept)
        for rows in (16, 64, 2048):
            assert picked(made, rows, columns, 32) == 1, (rows, columns)


def test_where_a_page_has_a_few_bytes_the_choice_is_most_of_the_work() -> None:
    made = schedule(str(ROOT / "bench" / "ready_scores.py"))
    assert [v["cluster"] for v in made["variants"]] == [2, 8]
    for columns in COLUMNS:
        for kept in (8, 64, 512, 2048):
            for rows in (1, 8, 16):
                assert picked(made, rows, columns, kept) == 8, (rows, columns, kept)
            for rows in (64, 128):
                if columns != 4096 and not (columns == 2048 and kept == 2048):
                    assert picked(made, rows, columns, kept) == (2 if columns > 4096 else 1), (rows, columns, kept)
            for rows in (256, 512, 4096):
                assert picked(made, rows, columns, kept) == 1, (rows, columns, kept)


def test_what_a_cluster_cannot_share_has_one_default() -> None:
    """Two parts, a share of the mass, and a number of pages that is counted are the first CTA's work."""
    assert "variants" in schedule("mass"), "a second sweep divides by the sum of the first"
    assert "variants" not in schedule(f"{__file__}:two_parts")
    choose = Chooser(Layers({}))
    program = compile_flow(TWO_STEPS, spec=Spec(), targets=[TARGETS["cpu"]], to="page", choose=choose).programs["cpu"]
    assert "variants" not in program.functions["select"].attrs["schedule"]


@vortex.register("two_parts")
class TwoParts(vortex.vFlow):
    """The best by two scores of one sweep."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"mean": vortex.Field(spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": page.k.mean(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.union(vortex.topk(cache.mean @ q[0], pages=3), vortex.topk(cache.mean @ q[1]))
