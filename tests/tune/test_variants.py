"""Variants of a kernel for different shapes: chosen from records, written into the IR, built, run; all on a CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.tune.test_choose import CPU, records, schedule
from vortex.artifact.folder import read_manifest
from vortex.artifact.manifest import KernelEntry
from vortex.budget import Budget
from vortex.check.reference import interpreted
from vortex.check.synthetic_batch import Trial
from vortex.cli.main import main
from vortex.codegen.emit import emit_kernel
from vortex.driver import compile_flow
from vortex.ir.core import Module
from vortex.ir.parser import parse_module
from vortex.ir.printer import print_module
from vortex.kinds.buckets import Bucket
from vortex.runtime.decoder import Decoder
from vortex.runtime.library import open_library
from vortex.schedules.space import space_of
from vortex.schedules.variants import variants_of
from vortex.spec import Spec
from vortex.targets.target import TARGETS
from vortex.tune.choose import Chooser, Served, cover
from vortex.tune.exchange import write_lines
from vortex.tune.keys import query_of
from vortex.tune.layers import Layers, Lines
from vortex.tune.record import Record, Sample
from vortex.tune.shapes import Shape

if TYPE_CHECKING:
    from vortex.tune.choose import Group

HERE = Spec(head_dim=64, group=2)
ONE, MANY = Shape(1, 2, 500, 12), Shape(16, 2, 500, 12)
TIMES = {ONE: {8: 10.0, 4: 20.0}, MANY: {8: 90.0, 4: 50.0}}


def plain(to: str = "page") -> Module:
    return compile_flow("quest", spec=HERE, targets=[CPU], to=to).programs["cpu"]


def chooser(path: Path, found: list[Record], most: int = 4) -> Chooser:
    path.write_bytes(write_lines(found))
    return Chooser(Layers({"project": Lines([path])}), None, most)


def groups(times: dict[int, dict[int, float]]) -> dict[Bucket, Group]:
    """Microseconds by rows and lanes."""
    program = plain()
    found: dict[Bucket, Group] = {}
    for rows, by_lanes in times.items():
        mine = records(program, {Shape(rows, 1, 500, 12): by_lanes})
        found[mine[0].key.bucket] = {r.config: r for r in mine}
    return found


def lanes(found: list[Served]) -> list[tuple[int, list[int]]]:
    return [(dict(x.record.config)["lanes"], [b.rows for b in x.buckets]) for x in found]


def test_as_many_as_bring_something() -> None:
    times = {1: {4: 10.0, 8: 11.0}, 8: {4: 10.0, 8: 10.1}, 64: {4: 20.0, 8: 10.0, 16: 9.9}, 512: {8: 30.0, 32: 15.0}}
    found = groups(times)
    assert lanes(cover(found, 1)) == [(8, [])]
    assert lanes(cover(found, 2)) == [(8, [1, 8, 64]), (32, [512])]
    assert lanes(cover(found, 4)) == [(8, [64]), (32, [512]), (4, [1, 8])], "16 lanes save one percent: not worth it"
    assert cover({}, 4) == []


def test_one_that_serves_nothing_is_not_built() -> None:
    times = {1: {4: 10.0, 8: 11.0}, 64: {16: 10.0, 8: 11.0}}
    assert lanes(cover(groups(times), 3)) in ([(4, [1]), (16, [64])], [(16, [64]), (4, [1])])


def test_a_record_is_of_a_bucket_that_it_serves() -> None:
    found = cover(groups({1: {4: 10.0, 8: 20.0}, 64: {8: 10.0, 4: 20.0}}), 2)
    assert all(x.record.key.bucket in x.buckets for x in found)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Record]]:
    path = tmp_path_factory.mktemp("variants")
    found = records(plain(), TIMES)
    choose = chooser(path / "x.jsonl", found)
    made = compile_flow("quest", spec=HERE, targets=[CPU], out=path / "x.vxa", choose=choose, dump=path / "dump")
    assert made.artifact is not None
    return path, found


def test_the_ir_says_what_each_is_for(tuned: tuple[Path, list[Record]], tmp_path: Path) -> None:
    _, found = tuned
    made = compile_flow("quest", spec=HERE, targets=[CPU], to="page", choose=chooser(tmp_path / "x.jsonl", found))
    program = made.programs["cpu"]
    origins = {dict(r.config)["lanes"]: f"db:{r.id[:12]}" for r in found if r.us in (10.0, 50.0)}
    own = schedule(program)
    [other] = own.pop("variants")  # type: ignore[misc]
    assert {own["from"]: own["serves"], other["from"]: other["serves"]} == {
        origins[8]: ((2, 32, 16),),
        origins[4]: ((32, 32, 16),),
    }
    again = parse_module(print_module(program))
    assert print_module(again) == print_module(program)
    assert schedule(again) == schedule(program)


def test_an_artifact_has_both_and_runs_the_right_one(tuned: tuple[Path, list[Record]]) -> None:
    path, found = tuned
    library = open_library(path / "x.vxa", "cpu")
    entries = {k.name: k for k in library.target.kernels}
    assert [n for n in entries if n.startswith("select")] == ["select", "select_v1"]
    by_rows = {k.serves[0].rows: k for k in entries.values() if k.serves}
    assert {rows: k.schedule["lanes"] for rows, k in by_rows.items()} == {2: 8, 32: 4}
    ids = {f"db:{r.id[:12]}" for r in found}
    assert {k.schedule["from"] for k in by_rows.values()} <= ids

    called: list[str] = []

    def heard(symbol: str):  # type: ignore[no-untyped-def]
        def run(*arguments: object) -> None:
            called.append(symbol)
            library.functions[symbol](*arguments)

        return run

    functions = {k.symbol: heard(k.symbol) for k in library.target.kernels}
    decoder = Decoder(type(library)(library.manifest, "cpu", functions, library.constants), budget=Budget(9))
    trial = Trial(decoder, 2, 1000)
    judge = interpreted(compile_flow("quest", spec=HERE, to="flow").flow, HERE)  # type: ignore[arg-type]
    for count, rows in ((1, 2), (16, 32)):
        for i in range(len(trial.requests), count):
            trial.join(f"r{i}", 300 + 7 * i)
        called.clear()
        trial.step()
        assert [s for s in called if "select" in s] == [by_rows[rows].symbol]
        for name in (trial.requests[0], trial.requests[-1]):
            seen = trial.check(name, judge)
            assert (seen.differing, seen.error < 2e-2) == (0, True)


def test_a_dump_is_resumed_with_its_variants(
    tuned: tuple[Path, list[Record]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = tuned
    monkeypatch.chdir(tmp_path)
    assert (path / "dump" / "select_v1.cpu.tir").exists()
    wanted = {k.name: (k.serves, k.variant_of) for k in read_manifest(path / "x.vxa").targets["cpu"].kernels}
    assert main(["compile", "--from", "tir", str(path / "dump"), "--target", "cpu", "--no-dump", "-o", "a.vxa"]) == 0
    page = next((path / "dump").glob("*schedule*.page"))
    assert main(["compile", "--from", "page", str(page), "--target", "cpu", "--no-dump", "-o", "b.vxa"]) == 0
    for name in ("a.vxa", "b.vxa"):
        assert {k.name: (k.serves, k.variant_of) for k in read_manifest(name).targets["cpu"].kernels} == wanted


def test_plan_gets_a_table_and_no_variants(tmp_path: Path) -> None:
    """Its knobs shape the work of other kernels, and what a step is only the device knows."""
    gpu = TARGETS["sm_90a"]
    program = compile_flow("quest", spec=HERE, targets=[gpu], to="page").programs["sm_90a"]
    plan = program.functions["plan"]
    space = space_of(program, plan, gpu)
    assert space is not None
    points = [dict(p) for p in space][:2]
    found = []
    for shape, fast in ((ONE, 0), (MANY, 1)):
        query = query_of(program, plan, gpu, shape.bucket("plan", 16))
        assert query is not None
        for i, config in enumerate(points):
            us = 10.0 if i == fast else 20.0
            env = {"template": query.template}
            sample = Sample("ok", True, (us, us, us), 9)
            found.append(Record.make(query.key, query.target, env, query.measure, config, [sample]))
    made = compile_flow("quest", spec=HERE, targets=[gpu], to="page", choose=chooser(tmp_path / "x.jsonl", found))
    tuned = made.programs["sm_90a"].functions["plan"]
    own = dict(tuned.attrs["schedule"])
    lines = own.pop("table")
    assert own.keys() == {*points[0], "from"}
    assert {x["serves"]: {n: x[n] for n in points[0]} for x in lines} == {
        ((2, 32, 16),): points[0],
        ((32, 32, 16),): points[1],
    }
    assert {x["from"] for x in lines} == {f"db:{r.id[:12]}" for r in found if r.us == 10.0}
    [kernel] = variants_of(tuned)
    source = emit_kernel(made.programs["sm_90a"], kernel, gpu)
    entry = KernelEntry("plan", "plan", "p", source.args, schedule=source.schedule)
    assert sorted(entry.table) == sorted((x["from"], tuple(Bucket(*b) for b in x["serves"])) for x in lines)
    one = chooser(tmp_path / "x.jsonl", found, most=1)
    made = compile_flow("quest", spec=HERE, targets=[gpu], to="page", choose=one)
    assert "table" not in made.programs["sm_90a"].functions["plan"].attrs["schedule"]


@pytest.mark.full
def test_a_library_for_a_gpu_has_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Built without one; that emulated steps run the right ones is tests/cuda/test_decoder.py's."""
    gpu = TARGETS["sm_90a"]
    program = compile_flow("quest", spec=HERE, targets=[gpu], to="page").programs["sm_90a"]
    f = program.functions["attend"]
    space = space_of(program, f, gpu)
    assert space is not None
    points = [space.default, next(p for p in space if p["warps"] == 1)]
    found = []
    for shape, fast in ((ONE, 0), (MANY, 1)):
        query = query_of(program, f, gpu, shape.bucket("attend", 16))
        assert query is not None
        for i, config in enumerate(points):
            sample = Sample("ok", True, (us := 10.0 if i == fast else 20.0, us, us), 9)
            env = {"template": query.template}
            found.append(Record.make(query.key, query.target, env, query.measure, config, [sample]))
    choose = chooser(tmp_path / "x.jsonl", found)
    out = tmp_path / "x.vxa"
    made = compile_flow("quest", spec=HERE, targets=[gpu], out=out, choose=choose)
    assert made.manifest is not None
    mine = [k for k in made.manifest.targets["sm_90a"].kernels if k.kind == "attend"]
    assert [k.name for k in mine] == ["attend", "attend_v1"]
    assert {k.schedule["warps"]: k.serves for k in mine} == {
        points[0]["warps"]: (Bucket(2, 0, 16),),
        1: (Bucket(32, 0, 16),),
    }
    assert {k.resources["threads"] for k in mine} == {32 * points[0]["warps"], 32}
    assert main(["info", str(out), "--kernel", "attend_v1", "--target", "sm_90a", "--ptx"]) == 0
    assert "quest_attend_v1_kernel" in capsys.readouterr().out


def test_info_shows_them(tuned: tuple[Path, list[Record]], capsys: pytest.CaptureFixture[str]) -> None:
    path, found = tuned
    assert main(["info", str(path / "x.vxa")]) == 0
    said = capsys.readouterr().out
    for r in found:
        if r.us in (10.0, 50.0):
            assert f"db:{r.id[:12]}" in said and f"rows<={r.key.bucket.rows} " in said
    assert main(["info", str(path / "x.vxa"), "--json"]) == 0
    kernels = json.loads(capsys.readouterr().out)["targets"]["cpu"]["kernels"]
    assert sum("serves" in k["schedule"] for k in kernels) == 2


def test_the_command_line_bounds_their_number(
    tuned: tuple[Path, list[Record]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, _ = tuned
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VORTEX_DB", str(tmp_path / "t.db"))
    assert main(["db", "import", str(path / "x.jsonl")]) == 0
    words = ["compile", "quest", "--heads", "4/2", "--head-dim", "64", "--to", "page", "--no-dump"]
    capsys.readouterr()
    assert main(words) == 0
    assert "variants = " in capsys.readouterr().out
    assert main([*words, "--variants", "1"]) == 0
    assert "variants = " not in capsys.readouterr().out
    assert main([*words, "--variants", "0"]) == 2
    assert "VX7001" in capsys.readouterr().err
