"""The whole way on a CPU: a bundle is built, measured in workers, merged and compiled from; bad candidates included."""

from __future__ import annotations

import fcntl
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vortex.artifact.folder import read_manifest, write_artifact
from vortex.cli.main import main
from vortex.codegen.build.link import find_c_compiler
from vortex.runtime.library import open_library
from vortex.tune import measure
from vortex.tune.bench_setup import Stage
from vortex.tune.bundle import Bundle, Candidate, read_bundle
from vortex.tune.exchange import read_file
from vortex.tune.measure import Session, command
from vortex.tune.record import Record
from vortex.tune.shapes import Shape
from vortex.tune.worker import Task

pytest.importorskip("tvm")

MODEL = ("--heads", "4/2", "--head-dim", "64")
SHAPE = "batch=2,kv_heads=2,tokens=500,kept=12"
BAD = """
#include <stdlib.h>
#include <unistd.h>
#define BAD(name, body) int __tvm_ffi_##name(void *s, const void *a, int n, void *r) {{ body; return 0; }}
BAD(crashes, abort())
BAD(hangs, for (;;) pause())
BAD(idles, )
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "out.vxb"
    words = ["tune", "quest", *MODEL, "--shapes", SHAPE, "--candidates", "2", "--bundle", str(path), "--jobs", "2"]
    assert main(words) == 0
    return path


def planted(bundle: Bundle) -> Bundle:
    """``bundle`` with candidates of ``attend`` that crash, hang and do nothing."""
    model = next(c for c in bundle.candidates if c.kind == "attend")
    artifact = read_manifest(bundle.path / model.artifact)
    entry = artifact.targets["cpu"]
    source, library = bundle.path / "bad.c", bundle.path / "bad.so"
    source.write_text(BAD.replace("{{", "{").replace("}}", "}"))
    subprocess.run([*find_c_compiler(), "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    names = ("crashes", "hangs", "idles")
    kernels = tuple(replace(entry.kernels[0], name=n, symbol=n) for n in names)
    made = replace(artifact, targets={"cpu": replace(entry, kernels=kernels)}, files={})
    write_artifact(bundle.path / "candidates" / "bad.vxa", made, {entry.library: library})
    bad = [
        replace(model, artifact="candidates/bad.vxa", symbol=n, config={"lanes": 100 + i, "unroll": 1, "prefetch": 8})
        for i, n in enumerate(names)
    ]
    failed = Candidate(
        model.flow, "attend", "attend", model.ir, model.dtypes, model.template, {"lanes": 99}, error="nvcc said no"
    )
    return replace(bundle, candidates=(*bad[:2], *bundle.candidates, bad[2], failed))


def test_the_whole_way(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VORTEX_DB", str(tmp_path / "tune.db"))
    planted(read_bundle(bundle)).write()
    assert command([str(bundle), "-o", "results.jsonl", "--timeout", "15", "--rounds", "2"]) == 0
    found = read_file(Path("results.jsonl"))
    status = {(r.key.kind, *(dict(r.config)[k] for k in ("lanes",))): r.status for r in found}
    assert status["attend", 100] == "crash"
    assert status["attend", 101] == "timeout"
    assert status["attend", 102] == "wrong"
    assert status["attend", 99] == "build"
    fine = [r for r in found if r.us is not None]
    assert sorted(r.key.kind for r in fine) == ["attend", "attend", "select", "select"], "the others were measured"
    assert all(r.samples[0].checked and dict(r.samples[0].by)["tool"] for r in fine)
    size = Path("results.jsonl").stat().st_size
    assert command([str(bundle), "-o", "results.jsonl"]) == 0
    assert Path("results.jsonl").stat().st_size == size, "what is known is not measured again"

    assert main(["db", "check", "results.jsonl"]) == 0
    assert main(["db", "merge", "results.jsonl"]) == 0
    assert main(["compile", "quest", *MODEL, "--no-dump", "-o", "tuned.vxa"]) == 0
    best = {k: min((r for r in fine if r.key.kind == k), key=lambda r: (r.noisy, r.us)) for k in ("select", "attend")}
    for k in read_manifest("tuned.vxa").targets["cpu"].kernels:
        wanted = f"db:{best[k.kind].id[:12]}" if k.kind in best else "heuristic"
        assert k.kind == "plan" or k.schedule["from"] == wanted
    assert main(["compile", "quest", *MODEL, "--no-dump", "--no-db", "-o", "plain.vxa"]) == 0
    assert {k.schedule.get("from") for k in read_manifest("plain.vxa").targets["cpu"].kernels} == {None, "heuristic"}
    assert main(["run", "tuned.vxa", "--tokens", "5,300", "--steps", "1"]) == 0


def test_one_kind_does_not_spoil_the_memory_of_another(bundle: Path) -> None:
    base = open_library(read_bundle(bundle).base("quest"), "cpu")
    stage = Stage(base, Shape(5, 2, 512, 12))
    decoder = stage.decoder(base)
    for kind in ("append", "select", "attend", "plan"):
        call = stage.call(kind, decoder)
        for layer in range(stage.layers):
            call(layer)
        assert stage.wrong(kind, call) == "", kind


def test_one_bundle_is_built_by_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (tmp_path / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert main(["tune", "quest", "--bundle", str(tmp_path)]) == 2
    assert "VX8010" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]


def test_of_a_knob_only_some_values(tmp_path: Path) -> None:
    path = tmp_path / "out.vxb"
    words = ["tune", "quest", *MODEL, "--shapes", SHAPE, "--kinds", "select", "--bundle", str(path), "--jobs", "1"]
    assert main([*words, "--where", "lanes=16", "--where", "unroll=8,4", "--where", "prefetch=0"]) == 0
    default, *others = read_bundle(path).candidates
    assert default.config == {"lanes": 16, "unroll": 8, "prefetch": 8}, "it is always among them"
    assert [(c.config["lanes"], c.config["unroll"], c.config["prefetch"]) for c in others] == [(16, 4, 0), (16, 8, 0)]


def test_a_bundle_is_not_built_twice(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in (bundle / "candidates").glob("*.json")}
    assert len(before) == 2
    words = ["tune", "quest", *MODEL, "--shapes", SHAPE, "--candidates", "2", "--bundle", str(bundle), "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["candidates"] == 4
    assert {p: p.stat().st_mtime_ns for p in (bundle / "candidates").glob("*.json")} == before


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["quest", "--budget", "soon"], "VX7001"),
        (["quest", "--shapes", "huge"], "VX8007"),
        (["quest", "--kinds", "atend"], "VX7003"),
        (["quest", "--target", "cpu,sm_90"], "VX7001"),
        (["quest", "--candidates", "0"], "VX7001"),
        (["quest", "--where", "lanes"], "VX7001"),
        (["quest", "--where", "warps=2"], "VX7003"),
    ],
)
def test_mistakes(words: list[str], code: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", *words]) == 2
    assert code in capsys.readouterr().err


@pytest.mark.parametrize("text", [None, "{}", "[", '{"format": "vortex-bundle", "version": 1, "target": "x"}'])
def test_what_is_no_bundle(tmp_path: Path, text: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    if text is not None:
        (tmp_path / "bundle.json").write_text(text)
    assert command([str(tmp_path), "-o", str(tmp_path / "r.jsonl")]) == 2
    assert "VX8008" in capsys.readouterr().err


def test_the_best_that_is_told_is_the_one_that_is_chosen(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A faster candidate whose times scatter is passed over, here and by the database."""
    machine = {"machine": {"arch": "x86", "sms": 2, "smem": 0}, "by": {}}
    times = {0: (8.0, 9.0, 12.0, 5), 1: (9.9, 10.0, 10.1, 5)}

    class Worker:
        """Measures as it is told."""

        def __init__(self, path: Path) -> None:
            self.said: list[tuple[str, int, Any]] = [("ready", -1, machine)]

        def send(self, task: Task) -> None:
            self.said = [("times", i, {"none": times[n]}) for n, i in enumerate(task.candidates)] + [("end", -1, None)]

        def listen(self, seconds: float) -> tuple[str, int, Any]:
            return self.said.pop(0)

        def stop(self) -> None:
            """Nothing runs."""

    monkeypatch.setattr(measure, "_Process", Worker)
    told, kept = list[str](), list[Record]()
    whole = read_bundle(bundle)
    two = [c for c in whole.candidates if c.kind == "attend"][:2]
    Session(replace(whole, candidates=(*two,)), kept.append, told.append).run()
    assert [r.noisy for r in kept] == [True, False]
    assert any("best 10.00 us (" in line for line in told), told
