"""What is installed: the wheel, the links at the top, the extras."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from vortex.evaluate.packages import DATA

ROOT = Path(__file__).resolve().parents[2]
LINKS = ("ir", "passes", "codegen", "runtime")


@pytest.mark.parametrize("name", LINKS)
def test_a_link_at_the_top_is_no_package(name: str) -> None:
    assert (ROOT / name).is_symlink()
    assert (ROOT / name).resolve() == ROOT / "vortex" / name
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert f"ImportError: import vortex.{name}: the folder {name}/ at the top is a link" in done.stderr


def test_wheel_holds_what_git_tracks(tmp_path: Path) -> None:
    def run(*command: object, cwd: Path = tmp_path) -> str:
        words = [str(c) for c in command]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
        done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    run("git", "clone", "--quiet", "--no-hardlinks", f"file://{ROOT}", "clone")
    clone = tmp_path / "clone"
    tracked = set(run("git", "ls-files", "vortex", cwd=clone).splitlines())
    code = "from setuptools.build_meta import build_wheel; build_wheel('.')"
    run(sys.executable, "-c", code, cwd=clone)
    [wheel] = clone.glob("*.whl")
    with zipfile.ZipFile(wheel) as z:
        names = set(z.namelist())
    info = {n for n in names if ".dist-info/" in n}
    assert names - info == tracked
    assert any(n.endswith("LICENSE") for n in info)


def test_metadata() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {d.split(">")[0] for d in project["dependencies"]} == {"torch", "numpy", "apache-tvm-ffi"}
    assert project["requires-python"] == ">=3.11"
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    extras = project["optional-dependencies"]
    of_models = {re.split("[>=]", d)[0] for d in extras["eval"]} | {d.split("==")[0] for d in DATA.split() if "==" in d}
    assert {pin for pin in pins if pin.split("==")[0] not in of_models} <= set(extras["compile"])


def test_version_is_the_same_everywhere() -> None:
    import vortex

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert vortex.__version__ == project["version"]


def test_make_help_lists_the_commands() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [f"make {name}" in done.stdout for name in ("demo", "test", "test-full", "lint", "bench", "clean")] == [
        True
    ] * 6
