"""The scripts that carry a benchmark session to a GPU machine: parts, their limits, what comes back."""

from __future__ import annotations

import os
import subprocess
import tarfile
from importlib import import_module
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


def test_an_archive_may_have_come_in_a_call_before(tmp_path: Path) -> None:
    gpu, name = tmp_path / ".gpu", f"archive-{os.getpid()}"
    ask = f"source {ROOT}/bench/parts/serve.sh; GPU={gpu}; carried {name}"
    beside, before = Path(f"{gpu}-{name}", f"{name}.txz"), Path("/tmp", f"{name}.txz")

    def found() -> str:
        return subprocess.run(["bash", "-uc", ask], capture_output=True, text=True).stdout.strip()

    assert found() == ""
    before.touch()
    try:
        assert found() == str(before)
        beside.parent.mkdir()
        beside.touch()
        assert found() == str(beside)
    finally:
        before.unlink()


def test_a_server_of_flashinfer_imports_what_was_carried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    servers = import_module("serving.servers")
    assert servers.environment_of("figures-8b-flashinfer_tc") == {"SGLANG_FLASHINFER_USE_TENSOR_CORE": "true"}
    assert all(servers.environment_of(f"figures-{name}") == {} for name in ("flashinfer", "quest-fa3", "fa3"))
    told = servers.flashinfer_environment(Path("/carried"), Path("/scratch"), "/stubs")
    assert told["PYTHONPATH"].split(os.pathsep) == ["/carried", "/stubs"]
    assert told["FLASHINFER_DISABLE_JIT"] == "1"
    assert servers.flashinfer_environment(None, Path("/scratch"), "/stubs")["PYTHONPATH"] == "/stubs"
