"""A GPU that nobody has here: what is built for it, and that nothing says it was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vortex.artifact.folder import read_manifest
from vortex.cli.main import main
from vortex.targets.target import TARGETS
from vortex.tune import worker
from vortex.tune.bundle import Bundle, Candidate, read_bundle
from vortex.tune.keys import machine_key
from vortex.tune.measure import command
from vortex.tune.record import Key, Measure, Record, Sample
from vortex.tune.shapes import Shape

SHAPE = Shape(2, 2, 500, 12)
ATTEND = Candidate("quest", "attend", "attend", "vx1:0", ("bf16",), "cuda.attend@1", {"warps": 4}, "c/x.vxa", "x")


def fake(path: Path, target: str) -> Bundle:
    path.mkdir(parents=True, exist_ok=True)
    made = Bundle(path, target, {"vortex": "1"}, (SHAPE,), (ATTEND,))
    made.write()
    return made


@pytest.mark.parametrize(
    ("here", "where"), [((), "there is no CUDA device here"), (("sm_90", "sm_100"), "the CUDA device here is sm_90")]
)
def test_a_bundle_is_measured_on_its_own_machine_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: tuple[str, ...], where: str
) -> None:
    fake(tmp_path, "sm_100a")
    monkeypatch.setattr("vortex.runtime.device.architectures_here", lambda: here)
    said: list[tuple[str, int, str]] = []
    line = type("Line", (), {"send": lambda _, message: said.append(message)})()
    worker.main(line, str(tmp_path))
    [(what, _, why)] = said
    assert what == "refused" and where in why and "sm_100a" in why


def test_a_missing_gpu_is_said_before_anything_is_built(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vortex.runtime.device.architectures_here", lambda: ("sm_100",))
    monkeypatch.delattr("vortex.tune.tuner.Tuner.bundle")
    assert main(["tune", "quest", "--target", "sm_90"]) == 2
    said = capsys.readouterr().err
    assert "VX8009" in said and "the CUDA device here is sm_100" in said and "--bundle" in said


def test_no_more_pages_are_kept_than_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Shape(2, 2, 2000, 9999).within(16) == Shape(2, 2, 2000, 125)
    assert SHAPE.within(16) == SHAPE
    monkeypatch.setattr("vortex.runtime.device.architectures_here", lambda: ())
    assert main(["tune", "quest", "--target", "sm_90", "--shapes", "batch=2,kv_heads=2,tokens=2000,kept=9999"]) == 2
    assert "a request has 125 pages of 16 tokens, so 125 are kept" in capsys.readouterr().err


@pytest.mark.full
def test_a_bundle_for_a_b200(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Built without one; what is known of an H200 is taken over and called so; here nothing is measured."""
    monkeypatch.chdir(tmp_path)
    words = ["tune", "quest", "--target", "sm_100", "--shapes", "batch=2,kv_heads=2,tokens=500,kept=12"]
    words += ["--kinds", "plan", "--candidates", "2", "--bundle", "b200.vxb", "--jobs", "1"]
    assert main(words) == 0
    bundle = read_bundle("b200.vxb")
    default, other = bundle.candidates
    assert bundle.target == "sm_100a" and default.symbol and other.symbol
    base = read_manifest(bundle.base("quest")).targets
    assert list(base) == ["sm_100a"]
    assert {k.schedule["from"] for k in base["sm_100a"].kernels if k.kind != "plan"} == {"model"}
    built = read_manifest(bundle.path / other.artifact).targets["sm_100a"]
    assert built.kernels[0].schedule["from"] == "tune"
    capsys.readouterr()
    assert command(["b200.vxb", "-o", "results.jsonl"]) == 2
    assert "VX8009" in capsys.readouterr().err
    assert Path("results.jsonl").read_text() == ""

    sample = Sample("ok", True, (5.0, 5.0, 5.0), 9)
    key = Key("plan", other.ir, SHAPE.bucket("plan", 16), other.dtypes)
    measure = Measure("cudagraph", "cold")
    here = machine_key(TARGETS["sm_90a"])
    measured = Record.make(key, here, {"template": other.template}, measure, other.config, [sample])
    Path("h200.jsonl").write_text(measured.to_line() + "\n")
    assert main(["db", "import", "h200.jsonl", "--db", "t.db"]) == 0
    capsys.readouterr()
    assert main(["compile", "quest", "--target", "sm_100", "--db", "t.db", "--to", "page", "--no-dump"]) == 0
    said = capsys.readouterr().out
    assert f'from = "transfer:{measured.id[:12]}"' in said and 'from = "db:' not in said
    assert main(["db", "ls", "--db", "t.db", "--target", "sm_100", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
