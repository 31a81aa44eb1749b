"""Dispatch, exit codes, crash reports, and what is not imported."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Vortex
from vortex.cli.main import COMMANDS, INTERNAL_ERROR, USER_ERROR, Parser, module_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("args", [(), ("--help",), ("-h",), ("help",)])
def test_help_lists_every_command(vortex: Vortex, args: tuple[str, ...]) -> None:
    found = vortex(*args)
    assert found.code == 0
    assert all(f"  {name}" in found.out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples(vortex: Vortex, name: str) -> None:
    found = vortex(name, "--help")
    assert found.code == 0
    assert f"vortex {name}" in found.out.partition("examples:")[2]


def test_version(vortex: Vortex) -> None:
    assert vortex("--version").out.startswith("vortex ")


def test_unknown_command_names_the_nearest(vortex: Vortex) -> None:
    found = vortex("compil")
    assert found.code == USER_ERROR
    assert found.out == ""
    assert "error[VX7003]: no command named 'compil', did you mean 'compile'?" in found.err


def test_unknown_option_names_the_nearest(vortex: Vortex) -> None:
    found = vortex("compile", "quest", "--traget", "cpu")
    assert found.code == USER_ERROR
    assert "--traget" in found.err
    assert "did you mean '--target'?" in found.err


@pytest.mark.parametrize("args", [("compile",), ("compile", "quest", "--head-dim", "many"), ("diff", "a", "b", "c")])
def test_argument_mistakes_are_user_errors(vortex: Vortex, args: tuple[str, ...]) -> None:
    found = vortex(*args)
    assert found.code == USER_ERROR
    assert found.err.startswith("error[VX7001]: ")


def test_missing_file(vortex: Vortex) -> None:
    found = vortex("opt", "nowhere.flow")
    assert (found.code, found.out) == (USER_ERROR, "")
    assert "error[VX7002]: 'nowhere.flow' does not exist" in found.err


@pytest.mark.parametrize("words", [("report",), ("explain",), ("diff", "x"), ("opt",)])
def test_a_name_that_no_file_can_have(vortex: Vortex, words: tuple[str, ...]) -> None:
    done = vortex(*words, "a" * 5000)
    assert done.code == USER_ERROR
    assert "VX7002" in done.err


def test_internal_error_writes_a_reproducer(vortex: Vortex, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the injected bug")

    monkeypatch.setattr("vortex.passes.manager.run_pipeline", broken)
    (tmp_path / "x.flow").write_text("flow.module @x {\n}\n")
    found = vortex("opt", "x.flow", "--passes=cse")
    assert (found.code, found.out) == (INTERNAL_ERROR, "")
    assert "internal error: " in found.err


def test_reproducer_holds_everything(vortex: Vortex, compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = next((compiled / "dump").glob("00-*.flow"))

    def broken(*_: object) -> None:
        raise RuntimeError("the injected bug")

    with monkeypatch.context() as m:
        m.setattr("vortex.passes.manager.run_pipeline", broken)
        found = vortex("opt", str(flow), "--passes=cse")
    assert (found.code, found.out) == (INTERNAL_ERROR, "")
    assert "internal error: RuntimeError: the injected bug" in found.err
    [folder] = Path().glob("vortex-crash-*")
    assert "the injected bug" in (folder / "traceback.txt").read_text()
    assert (folder / "inputs" / flow.name).read_text() == flow.read_text()
    report = json.loads((folder / "report.json").read_text())
    assert report["argv"] == ["opt", str(flow), "--passes=cse"]
    assert report["versions"]["python"]
    # the bug was injected here alone, so the reproducer works in a process without it
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["sh", folder / "repro.sh"], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("// vortex-ir")


def test_reproducer_keeps_standard_input(vortex: Vortex, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the injected bug")

    monkeypatch.setattr("vortex.ir.parser.parse_module", broken)
    monkeypatch.setattr(sys, "stdin", io.StringIO("some text"))
    assert vortex("opt", "-").code == INTERNAL_ERROR
    [folder] = Path().glob("vortex-crash-*")
    assert (folder / "inputs" / "stdin").read_text() == "some text"
    assert "inputs/stdin" in (folder / "repro.sh").read_text()


def test_a_reader_that_goes_away_is_no_error(compiled: Path) -> None:
    command = f"{sys.executable} -m vortex opt {compiled}/dump/*-plan-memory.*page | head -n 1"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, env=environment, check=False)
    assert done.returncode == 0
    assert done.stderr == b""


@pytest.mark.parametrize(
    "args", [["--help"], ["opt", "{}", "--passes=cse"], ["errors"], ["targets"], ["info"], ["compile", "--help"]]
)
def test_nothing_heavy_is_imported(args: list[str], compiled: Path) -> None:
    flow = next((compiled / "dump").glob("00-*.flow"))
    args = [a.format(flow) for a in args]
    code = (
        "import sys; from vortex.cli.main import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'tvm', 'tvm_ffi', 'rich'} & set(sys.modules); "
        "print(heavy, file=sys.stderr); sys.exit(code or bool(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_of_the_help_parse(name: str) -> None:
    command = importlib.import_module(module_of(name))
    parser = Parser(name, command.__doc__ or "")
    command.add_arguments(parser)
    lines = re.findall(r"^  vortex (\S+) ?(.*)$", (command.__doc__ or "").partition("examples:")[2], re.MULTILINE)
    assert lines
    for other, rest in lines:
        assert other == name
        parser.parse_args(shlex.split(rest.partition(" < ")[0]))
