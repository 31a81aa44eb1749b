"""``vortex run`` and ``info`` on artifacts."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Vortex
from vortex.cli import demo
from vortex.cli.main import USER_ERROR


@pytest.fixture
def artifact(compiled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(compiled / "quest.vxa", tmp_path / "quest.vxa"))


def test_run_agrees_with_the_interpreter(vortex: Vortex, artifact: Path) -> None:
    found = vortex("run", str(artifact), "--json")
    assert found.code == 0, found.err
    rows = json.loads(found.out)["requests"]
    assert [r["length"] for r in rows] == [9, 204, 1004]
    assert all(r["ok"] for r in rows)
    assert rows[-1]["selected"] < rows[-1]["pages"]


def test_run_prints_a_table(vortex: Vortex, artifact: Path) -> None:
    found = vortex("run", str(artifact), "--tokens", "40", "--steps", "1", "--kv-heads", "1")
    assert "mass kept: the share of dense attention's, on made-up numbers" in found.out
    assert found.out.splitlines()[0].split()[:3] == ["request", "tokens", "pages"]
    assert found.out.splitlines()[1].split()[:2] == ["r0", "41"]


@pytest.mark.parametrize("args", [("--tokens", "0"), ("--tokens", "x"), ("--steps", "0"), ("--require-digest", "ab")])
def test_run_mistakes(vortex: Vortex, artifact: Path, args: tuple[str, ...]) -> None:
    assert vortex("run", str(artifact), *args).code == USER_ERROR


def test_info_never_loads_the_library(vortex: Vortex, artifact: Path) -> None:
    (artifact / "lib.cpu.so").write_bytes(b"this would crash")
    found = vortex("info", str(artifact))
    assert found.code == 0
    assert "flow      quest" in found.out
    assert "field     lo: bf16[64] per page and KV head" in found.out
    assert "attend" in found.out
    assert json.loads(vortex("info", str(artifact), "--json").out)["spec"]["head_dim"] == 64
    found = vortex("info", str(artifact), "--verify")
    assert found.code == USER_ERROR
    assert "error[VX5002]" in found.err
    assert vortex("run", str(artifact)).code == USER_ERROR


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            "latent_topk --latent 48+16 --heads 4",
            "latent 48+16, 4 query heads, bf16, latent rows in fp8_e4m3 with a scale",
        ),
        pytest.param("quest --heads 8/2", "bf16, K and V in fp8_e4m3 with scales", marks=pytest.mark.full),
    ],
)
def test_info_says_what_pools_in_fp8_hold(vortex: Vortex, tmp_path: Path, words: str, says: str) -> None:
    made = str(tmp_path / "narrow.vxa")
    assert vortex("compile", *words.split(), "--kv-dtype", "fp8_e4m3", "-o", made).code == 0
    assert says in vortex("info", made).out


def test_info_of_no_artifact(vortex: Vortex, tmp_path: Path) -> None:
    assert "error[VX5001]" in vortex("info", str(tmp_path)).err
    assert "did you mean 'passes'?" in vortex("info", "pases").err


def test_demo_in_small(vortex: Vortex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "LENGTHS", {"a": 900, "b": 1200, "c": 100})
    monkeypatch.setattr(demo, "JOINS", {0: "ab", 20: "c"})
    monkeypatch.setattr(demo, "LEAVES", {40: "b"})
    monkeypatch.setattr("vortex.codegen.build.toolkit._candidates", lambda home, path: iter(()))
    monkeypatch.setenv("PATH", os.environ["PATH"] + ":")  # toolkits are remembered by PATH
    found = vortex("demo", "--steps", "4", "--dump-dir", "d")
    assert found.code == 0, found.err
    assert "not compiled for sm_100a: no nvcc here; pip install 'vortex[cuda]'" in found.err
    assert found.out.rstrip().endswith("every stage's text is in d")
    assert [line.split()[0] for line in found.out.splitlines()[3:6]] == ["c", "a", "b"]
    assert Path("d/manifest.json").exists()
