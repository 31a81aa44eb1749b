"""What is shipped: records of an H200 that today's kernels find, and what the report on them claims."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vortex.driver import compile_flow
from vortex.ir.core import Function, Module
from vortex.kinds.buckets import Bucket
from vortex.schedules.space import Space, space_of
from vortex.spec import Spec
from vortex.targets.target import TARGETS
from vortex.tune import layers
from vortex.tune.choose import Chooser
from vortex.tune.exchange import read_lines, write_lines
from vortex.tune.keys import query_of
from vortex.tune.layers import Layers, Lines, Query
from vortex.tune.record import Record, merge
from vortex.tune.shapes import PRESETS
from vortex.tune.store import Store

GPU = TARGETS["sm_90a"]
FILE = Path(layers.__file__).with_name("shipped") / "h200.jsonl"
REPORT = Path(__file__).resolve().parents[2] / "bench" / "results" / "h200" / "tune.json"
FLOWS = ("quest", "block_topk")
LONG = 100_000
"""Tokens from which ``plan`` has no records: with a table of choices it takes 3 us more of every step, and they would
save at most 4 % of the kernels that walk its lists."""


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return read_lines(FILE.read_bytes()).records


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(REPORT.read_text())
    return found


def program(flow: str, choose: Chooser | None = None) -> Module:
    return compile_flow(flow, spec=Spec(), targets=[GPU], to="page", choose=choose).programs[GPU.name]


def spaces() -> Iterator[tuple[Module, Function, Space]]:
    for flow in FLOWS:
        made = program(flow)
        for f in made.functions.values():
            if (space := space_of(made, f, GPU)) is not None:
                yield made, f, space


def _is_left_out(query: Query) -> bool:
    return query.key.kind == "plan" and query.key.bucket.columns > LONG // 16


def test_the_file_is_canonical(records: list[Record]) -> None:
    found = read_lines(FILE.read_bytes())
    assert not found.problems
    assert write_lines(records) == FILE.read_bytes()
    assert all(r.us is not None and r.measure.l2 == "cold" for r in records)
    assert {dict(s.by)["gpu"] for r in records for s in r.samples} == {"NVIDIA H200"}


def test_the_benchmark_shapes_are_served_by_points_of_todays_spaces(records: list[Record]) -> None:
    """Fails when a kernel's IR or its template's version changed: then tune again, or take the records out."""
    shipped = Layers({"shipped": Lines([FILE])})
    used: set[str] = set()
    for made, f, space in spaces():
        for shape in PRESETS["bench"]:
            query = query_of(made, f, GPU, shape.bucket(str(f.attrs["kind"]), 16))
            assert query is not None
            hit = shipped.find(query, space)
            if _is_left_out(query):
                continue
            assert hit is not None and hit.steps == 0, f"{f.name} at {shape}"
            mine = [r for r in records if r.lookup == query.lookup]
            assert all(dict(r.point) in space for r in mine)
            assert dict(space.default) in [dict(r.point) for r in mine], "the default is there to compare with"
            used |= {r.id for r in mine}
    assert used == {r.id for r in records}, "nothing else is in the file"


@pytest.mark.parametrize("flow", FLOWS)
def test_a_compile_takes_them(flow: str, records: list[Record]) -> None:
    ids = {f"db:{r.id[:12]}" for r in records}
    made = program(flow, Chooser(Layers({"shipped": Lines([FILE])}), None, 4))
    for f in made.functions.values():
        schedule = f.attrs["schedule"]
        lines = [schedule, *schedule.get("variants", ()), *schedule.get("table", ())]
        assert {x["from"] for x in lines} <= ids
        served = [b for x in lines for b in x.get("serves", ())]
        assert len(set(served)) == len(served)
    assert len(made.functions["select"].attrs["schedule"]["variants"]) in (1, 2, 3)


def test_databases_of_different_shapes_merge_and_both_are_served(records: list[Record], tmp_path: Path) -> None:
    small = [r for r in records if r.key.bucket.rows <= 64]
    large = [r for r in records if r.key.bucket.rows > 64]
    assert small and large
    with Store(tmp_path / "t.db") as store:
        for part in (small, large):
            store.put(part)
        assert list(store.records()) == merge(large, small)
        found = Layers({"user": store})
        for made, f, space in spaces():
            for shape in PRESETS["bench"]:
                query = query_of(made, f, GPU, shape.bucket(str(f.attrs["kind"]), 16))
                hit = found.find(query, space) if query else None
                if query is not None and _is_left_out(query):
                    continue
                assert hit is not None and hit.steps == 0
                assert hit.record in (small if hit.record.key.bucket.rows <= 64 else large)


def test_defaults_and_choices_are_as_good_as_promised(report: dict[str, Any]) -> None:
    """The default is within 10 % of the best at the median and 25 % everywhere; no choice is slower than 0.99 x it."""
    assert len(report["rows"]) >= 30
    for kind, found in report["kernels"].items():
        mine = [r for r in report["rows"] if r["kernel"] == kind]
        far = sorted(r["default_us"] / min(t[-1] for t in r["times"]) for r in mine)
        assert far[len(far) // 2] <= 1.10, kind
        assert far[-1] <= 1.25, kind
        assert found["default_over_best"]["largest"] == pytest.approx(far[-1], abs=1e-3)
        gains = [r["default_us"] / r["chosen_us"] for r in mine]
        assert min(gains) >= 0.99, kind
        assert found["gain"]["least"] == pytest.approx(min(gains), abs=1e-3)


def test_the_report_and_the_records_agree(report: dict[str, Any], records: list[Record]) -> None:
    times: dict[tuple[str, str, tuple[int, ...]], set[float]] = {}
    for row in report["rows"]:
        for *values, us in row["times"]:
            times.setdefault((row["kernel"], row["bucket"], tuple(values)), set()).add(us)
    for r in records:
        assert r.us in times[r.key.kind, str(r.key.bucket), tuple(v for _, v in r.config)]


def test_buckets_are_the_presets(records: list[Record]) -> None:
    for kind in ("plan", "append", "select", "attend"):
        wanted: set[Bucket] = {s.bucket(kind, 16) for s in PRESETS["bench"] if kind != "plan" or s.tokens < LONG}
        assert {r.key.bucket for r in records if r.key.kind == kind} == wanted
