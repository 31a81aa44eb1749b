"""The environment for an engine's start: made whole or not at all, and used when it is of this version.

Its Python is a shell script that writes down what it is asked; nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import sys
import sysconfig
from pathlib import Path

import pytest

import vortex as package
from tests.cli.conftest import Vortex
from vortex.cli.main import USER_ERROR
from vortex.install import toolchain
from vortex.runtime.compiled import COMPILER, compiler

PYTHON = """\
#!/bin/sh
echo "$@" >>{log}
case "$*" in
  "-m venv"*) mkdir -p "$4/bin" && cp "$0" "$4/bin/python";;
  *"{fails}"*) echo "no matching distribution" >&2; exit 1;;
  *"import tvm"*) echo {version};;
esac
"""


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(COMPILER, raising=False)
    return tmp_path


def fake(home: Path, version: str = package.__version__, fails: str = "nothing fails") -> str:
    """A Python that makes environments of ``version``, unless its words hold ``fails``."""
    path = home / "python"
    path.write_text(PYTHON.format(log=home / "log", version=version, fails=fails))
    path.chmod(0o755)
    return str(path)


def test_it_is_made_once_and_found(vortex: Vortex, home: Path) -> None:
    python, where = fake(home), home / "cache" / "vortex" / "toolchain"
    found = vortex("toolchain", "install", "--python", python)
    assert found.code == 0, found.err
    assert "installing vortex[compile,cuda]" in found.err
    assert compiler() == [str(where / "bin" / "python")]
    assert json.loads((where / "vortex.json").read_text())["vortex"] == package.__version__
    words = (home / "log").read_text().splitlines()
    assert words[0] == f"-m venv --clear {where}"
    assert len(words) == 3
    again = vortex("toolchain", "install", "--python", python)
    assert "has it already" in again.err
    assert len((home / "log").read_text().splitlines()) == 3
    vortex("toolchain", "install", "--python", python, "--force")
    assert len((home / "log").read_text().splitlines()) == 6
    assert str(where / "bin" / "python") in vortex("toolchain", "show").out


def test_what_fails_leaves_nothing(vortex: Vortex, home: Path) -> None:
    found = vortex("toolchain", "install", "--python", fake(home, fails="pip install"))
    assert found.code == USER_ERROR
    assert "error[VX9006]: installing vortex[compile,cuda]" in found.err
    assert "no matching distribution" in found.err
    assert "pip install" in found.err.partition("the command was")[2]
    assert not toolchain.folder().exists()
    assert compiler() == [sys.executable]
    missing = vortex("toolchain", "install", "--python", str(home / "none"))
    assert "No such file" in missing.err
    assert "--python" in missing.err


def test_another_version_is_not_used(vortex: Vortex, home: Path) -> None:
    found = vortex("toolchain", "install", "--python", fake(home, version="0.0.1"))
    assert found.code == USER_ERROR
    assert f"it has vortex 0.0.1, and {package.__version__} asks for it" in found.err
    assert not toolchain.folder().exists()
    vortex("toolchain", "install", "--python", fake(home))
    stamp = toolchain.folder() / "vortex.json"
    stamp.write_text(json.dumps({"vortex": "0.0.1"}))  # as one that an older vortex left
    assert compiler() == [sys.executable]
    assert "0.0.1" in vortex("toolchain", "show").out
    stamp.unlink()  # as one whose installation was killed
    assert compiler() == [sys.executable]


def test_where_vortex_comes_from(vortex: Vortex, home: Path) -> None:
    wheel = home / "vortex.whl"
    wheel.touch()
    dry = vortex("toolchain", "install", "--dry-run", "--no-cuda", "--from", str(wheel)).out
    assert f"'vortex[compile] @ file://{wheel}'" in dry
    assert not toolchain.folder().exists()
    shared = vortex("toolchain", "install", "--dry-run", "--share-torch").out
    assert "parent.pth" in shared
    assert sysconfig.get_path("purelib") in shared
    assert "parent.pth" not in dry
    missing = vortex("toolchain", "install", "--from", "nowhere.whl")
    assert "error[VX7002]" in missing.err
    assert "did you mean 'install'" in vortex("toolchain", "instal").err


def test_a_package_index_gives_this_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "_origin", lambda: None)
    assert toolchain.requirement() == f"vortex[compile,cuda]=={package.__version__}"


def test_this_processs_packages_are_not_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "here")
    assert "PYTHONPATH" not in toolchain.clean_environment()
    assert os.environ.items() >= toolchain.clean_environment().items()
