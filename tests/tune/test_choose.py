"""What a compilation takes from a database, and that it takes nothing where there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vortex.driver import compile_flow
from vortex.ir.core import Module
from vortex.ir.printer import print_module
from vortex.passes.manager import Choice
from vortex.schedules.space import space_of
from vortex.spec import Spec
from vortex.targets.target import TARGETS
from vortex.tune.choose import Chooser
from vortex.tune.exchange import write_lines
from vortex.tune.keys import machine_key, queries, query_of
from vortex.tune.layers import Layers, Lines
from vortex.tune.record import Record, Sample
from vortex.tune.shapes import Shape

CPU = TARGETS["cpu"]
SMALL, LARGE, OTHER = Shape(1, 2, 500, 12), Shape(8, 8, 32768, 30), Shape(64, 8, 32768, 30)


def program(choose: object = None, target: str = "cpu", **more: object) -> Module:
    made = compile_flow("quest", spec=Spec(), targets=[TARGETS[target]], to="page", choose=choose, **more)  # type: ignore[arg-type]
    return made.programs[target]


@pytest.fixture(scope="module")
def plain() -> Module:
    return program()


def records(plain: Module, times: dict[Shape, dict[int, float]], target: str = "cpu") -> list[Record]:
    """Of ``select``: microseconds by shape and lanes."""
    found = []
    f = plain.functions["select"]
    for shape, by_lanes in times.items():
        query = query_of(plain, f, TARGETS[target], shape.bucket("select", 16))
        assert query is not None
        for lanes, us in by_lanes.items():
            config = {"lanes": lanes, "unroll": 4, "prefetch": 2}
            sample = Sample("ok", True, (us, us, us), 9)
            env = {"template": query.template}
            found.append(Record.make(query.key, query.target, env, query.measure, config, [sample]))
    return found


def chooser(tmp_path: Path, found: list[Record], shape: Shape | None = None) -> Chooser:
    path = tmp_path / "x.jsonl"
    path.write_bytes(write_lines(found))
    return Chooser(Layers({"project": Lines([path])}), shape)


def schedule(made: Module, kernel: str = "select") -> dict[str, object]:
    return dict(made.functions[kernel].attrs["schedule"])


def test_without_records_nothing_changes(plain: Module, tmp_path: Path) -> None:
    assert schedule(plain)["from"] == "heuristic"
    for choose in (Chooser(Layers({})), chooser(tmp_path, [])):
        assert print_module(program(choose)) == print_module(plain)


def test_the_best_of_a_shape(plain: Module, tmp_path: Path) -> None:
    found = records(plain, {SMALL: {8: 5.0, 4: 6.0}, LARGE: {8: 50.0, 4: 40.0}})
    for shape, lanes in ((SMALL, 8), (LARGE, 4), (OTHER, 4)):
        made = schedule(program(chooser(tmp_path, found, shape)))
        assert made["lanes"] == lanes, "OTHER has no records and falls back to LARGE"
        assert (made["unroll"], made["prefetch"]) == (4, 2)
        [mine] = [r for r in found if f"db:{r.id[:12]}" == made["from"]]
        assert dict(mine.config)["lanes"] == lanes
        assert schedule(program(chooser(tmp_path, found, shape)), "attend")["from"] == "heuristic"


def test_without_a_shape_a_compromise(plain: Module, tmp_path: Path) -> None:
    times = {SMALL: {8: 1.0, 4: 3.0, 16: 1.2}, LARGE: {8: 300.0, 4: 100.0, 16: 120.0, 32: 1.0}}
    assert schedule(program(chooser(tmp_path, records(plain, times))))["lanes"] == 16


@pytest.mark.parametrize("shape", [SMALL, None])
def test_noisy_records_yield_to_calm_ones(plain: Module, tmp_path: Path, shape: Shape | None) -> None:
    fast, slow = records(plain, {SMALL: {8: 1.0, 4: 3.0}})
    noisy = replace(fast, samples=(Sample("ok", True, (1.0, 1.0, 1.2), 9),))
    assert schedule(program(chooser(tmp_path, [noisy, slow], shape)))["lanes"] == 4
    assert schedule(program(chooser(tmp_path, [noisy], shape)))["lanes"] == 8
    assert schedule(program(chooser(tmp_path, [fast, slow], shape)))["lanes"] == 8


def test_points_outside_the_space_are_misses(plain: Module, tmp_path: Path) -> None:
    found = records(plain, {SMALL: {5: 1.0, 8: 2.0}})
    for shape in (SMALL, None):
        assert schedule(program(chooser(tmp_path, found, shape)))["lanes"] == 8
    assert schedule(program(chooser(tmp_path, found[:1], SMALL)))["from"] == "heuristic"


def test_options_go_before_records(plain: Module, tmp_path: Path) -> None:
    choose = chooser(tmp_path, records(plain, {SMALL: {8: 1.0}}), SMALL)
    made = schedule(program(choose, passes="outline,expand-softmax,fuse,plan-memory,schedule{knobs=select.lanes:4}"))
    assert (made["lanes"], made["from"], made["user"]) == (4, "heuristic", ("lanes",))


def test_other_templates_machines_and_kernels_do_not_match(plain: Module, tmp_path: Path) -> None:
    [r] = records(plain, {SMALL: {8: 1.0}})
    for odd in (
        replace(r, key=replace(r.key, ir="vx1:other")),
        replace(r, target=replace(r.target, sms=r.target.sms + 1)),
        replace(r, env=(("template", "cpu.select@999"),)),
        replace(r, samples=(Sample("ok", False, (1.0, 1.0, 1.0), 9),)),
        replace(r, samples=(Sample("crash"),)),
    ):
        assert schedule(program(chooser(tmp_path, [odd], SMALL)))["from"] == "heuristic"


@pytest.mark.parametrize(("kernel", "transferred"), [("plan", True), ("attend", False)])
def test_a_machine_nobody_measured(tmp_path: Path, kernel: str, transferred: bool) -> None:
    """It takes what another measured of kernels that both models give the same default; of others, its own model's."""
    pytest.importorskip("tvm")
    b200, h200 = TARGETS["sm_100a"], TARGETS["sm_90a"]
    made, there = program(target="sm_100a"), program(target="sm_90a")
    f = made.functions[kernel]
    space, theirs = space_of(made, f, b200), space_of(there, there.functions[kernel], h200)
    query = query_of(made, f, b200, LARGE.bucket(kernel, 16))
    assert space is not None and theirs is not None and query is not None
    assert (space.default == theirs.default) == transferred
    config = next(c for c in space if c not in (space.default, theirs.default))
    env = {"template": space.template}
    sample = Sample("ok", True, (5.0, 5.0, 5.0), 9)
    r = Record.make(query.key, machine_key(TARGETS["sm_90a"]), env, query.measure, config, [sample])
    asked = chooser(tmp_path, [r], LARGE)
    transfer = Choice(dict(config), f"transfer:{r.id[:12]}")
    assert asked(made, f, b200) == (transfer if transferred else None)
    assert asked(there, there.functions[kernel], h200) == Choice(dict(config), f"db:{r.id[:12]}")
    assert asked(made, made.functions["append"], b200) is None
    assert schedule(made)["from"] == schedule(made, "attend")["from"] == "model"


def test_keys_are_of_the_kernel_alone(plain: Module) -> None:
    other = compile_flow("block_topk", spec=Spec(), targets=[CPU], to="page").programs["cpu"]
    small = compile_flow("quest", spec=Spec(head_dim=64), targets=[CPU], to="page").programs["cpu"]
    keys = [{f.name: q.key.ir for f, q in queries(p, CPU, SMALL)} for p in (plain, other, small)]
    assert keys[0]["attend"] == keys[1]["attend"] != keys[2]["attend"]
    assert keys[0]["select"] != keys[1]["select"]
