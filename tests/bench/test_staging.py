"""The scripts that carry a benchmark session to a GPU machine: parts, their limits, what comes back."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = sorted((ROOT / "bench" / "parts").glob("*.sh"))


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    """A .gpu folder as ``stage_all.sh`` leaves it, without parts."""
    gpu = tmp_path / ".gpu"
    (gpu / "src" / "bench" / "parts").mkdir(parents=True)
    (gpu / "wheels").mkdir()
    (gpu / "commit").write_text("abc\n")
    (gpu / "run_all.sh").write_text((ROOT / "bench" / "run_all.sh").read_text())
    return gpu


def run(gpu: Path, *parts: str, seconds: int = 60) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OUT": str(gpu / "out"), "SECONDS_LEFT": str(seconds)}
    return subprocess.run(["bash", str(gpu / "run_all.sh"), *parts], env=env, capture_output=True, text=True)


def part(gpu: Path, name: str, body: str, seconds: int = 10) -> None:
    (gpu / "src" / "bench" / "parts" / f"{name}.sh").write_text(f"seconds={seconds}\nrun() {{\n{body}\n}}\n")


@pytest.mark.parametrize("file", PARTS, ids=lambda p: p.stem)
def test_parts_say_how_long_they_may_take(file: Path) -> None:
    said = f"source {file}; [ $seconds -gt 0 ] && [ $seconds -le 570 ] && declare -F run"
    assert subprocess.run(["bash", "-euc", said], capture_output=True, text=True).stdout.strip() == "run"


def test_a_part_that_hangs_or_fails_stops_no_other(staged: Path) -> None:
    part(staged, "hangs", "echo '{}' > $OUT/hangs.json; sleep 60")
    part(staged, "fails", "echo trouble; return 3")
    part(staged, "works", "echo $COMMIT $LIMIT > $OUT/works.json")
    done = run(staged, "hangs=1", "fails", "missing", "works")
    assert done.returncode == 1
    out = staged / "out"
    assert (out / "hangs.json").exists(), "what it wrote before"
    assert (out / "works.json").read_text() == "abc 10\n"
    log = (out / "log.txt").read_text()
    assert "hangs: exit 124" in log and "trouble" in log and "fails: exit 3" in log and "missing: there is no" in log


def test_nothing_begins_when_the_time_is_over(staged: Path) -> None:
    part(staged, "late", "touch $OUT/late.json")
    assert "skipped" in run(staged, seconds=10).stdout
    assert not (staged / "out" / "late.json").exists()


def test_few_files_come_back(staged: Path) -> None:
    part(staged, "many", "for i in 1 2 3 4 5 6 7 8 9; do echo $i > $OUT/$i.json; done")
    assert run(staged).returncode == 0
    out = staged / "out"
    assert len(list(out.iterdir())) <= 8
    with tarfile.open(out / "more.tar") as tar:
        kept = {f.stem for f in out.glob("*.json")} | {Path(n).stem for n in tar.getnames()}
    assert kept == set("123456789")
