"""Dispatch, exit codes, crash reports, and what is not imported."""

from __future__ import annotations

import argparse
import ast
import importlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Vortex
from vortex.cli.main import COMMANDS, INTERNAL_ERROR, USER_ERROR, Parser, main, module_of

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


def test_options_tell_their_defaults() -> None:
    def told(parser: argparse.ArgumentParser) -> Iterator[str]:
        for a in parser._actions:
            if isinstance(a, argparse._SubParsersAction):
                for verb in a.choices.values():
                    yield from told(verb)
            elif a.dest != "help" and a.option_strings and str(a.default or "") not in str(a.help):
                yield f"{parser.prog} {a.option_strings[0]}: {a.help}"

    def parser_of(name: str) -> Parser:
        command = importlib.import_module(module_of(name))
        parser = Parser(name, command.__doc__ or "")
        command.add_arguments(parser)
        return parser

    assert [line for name in COMMANDS for line in told(parser_of(name))] == []


# encodings ----------------------------------------------------------------------------------------------

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""A locale that has no letters but ASCII's, and no help of Python's."""


def process(*words: str | bytes, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """``vortex`` in a process of its own, without what this one says of encodings."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON"))}
    command = [sys.executable, "-m", "vortex", *words]
    return subprocess.run(
        command, capture_output=True, env={**kept, "PYTHONPATH": str(ROOT), **environment}, check=False
    )


def test_texts_are_utf8_in_any_locale(flow_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flow_file.write_text(flow_file.read_text().replace("Mean key", "Größe: mean key"), encoding="utf-8")
    made = process("compile", "tiny.py", "--dump-dir", "dump", "-o", "tiny.vxa", **ASCII)
    assert (made.returncode, made.stderr) == (0, b"wrote tiny.vxa\ndumps in dump\n")
    assert "Größe" in Path("dump/tiny.py").read_text(encoding="utf-8")
    assert process("compile", "--from", "tir", "dump", "--to", "src", "-o", "x", "--no-dump", **ASCII).returncode == 0
    assert process("report", "dump", "-o", "report.html", **ASCII).returncode == 0


def test_stdout_of_few_signs_shows_numbers_of_others(tmp_path: Path) -> None:
    for name, text in (("a.txt", "größe"), ("b.txt", "breite")):
        (tmp_path / name).write_text(text + "\n", encoding="utf-8")
    found = process("diff", str(tmp_path / "a.txt"), str(tmp_path / "b.txt"), PYTHONUTF8="1", PYTHONIOENCODING="ascii")
    assert (found.returncode, found.stderr) == (0, b"")
    assert rb"-gr\xf6\xdfe" in found.stdout


def test_a_flow_file_whose_name_is_no_text(flow_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(os.fsdecode(b"bad\xff.py")).write_text(flow_file.read_text())
    found = process("compile", b"bad\xff.py", "--to", "flow", "--no-dump", PYTHONUTF8="1")
    assert found.returncode == USER_ERROR
    assert rb"error[VX7002]: 'bad\udcff.py' has a name that is not UTF-8" in found.stderr


def test_a_dump_and_a_reproducer_keep_names_that_are_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bad = os.fsdecode(b"bad\xff")
    assert main(["compile", "quest", "--to", "page", "-o", bad, "--dump-dir", f"{bad}.dump"]) == 0
    assert b"-o 'bad\xff'" in Path(f"{bad}.dump/repro.sh").read_bytes()
    again = ["compile", "quest", "--to", "page", "-o", bad, "--dump-dir", f"{bad}.dump"]
    assert main(again) == 0  # the files are what was written: nobody edited them

    def broken(*_: object) -> None:
        raise RuntimeError("the injected bug")

    monkeypatch.setattr("vortex.ir.parser.parse_module", broken)
    assert main(["opt", bad]) == INTERNAL_ERROR
    [folder] = Path().glob("vortex-crash-*")
    assert b"bad\xff" in (folder / "repro.sh").read_bytes()


def test_every_text_file_says_its_encoding() -> None:
    """The default is the locale's, in which another person's files are no text."""
    unsaid = []
    for file in (ROOT / "vortex").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            named = {k.arg for k in node.keywords}
            given = {"read_text": len(node.args) > 0, "write_text": len(node.args) > 1}.get(node.func.attr)
            if given is False and "encoding" not in named:
                unsaid.append(f"{file.relative_to(ROOT)}:{node.lineno}")
            if any(k.arg == "text" for k in node.keywords) and "errors" not in named and node.func.attr == "run":
                unsaid.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert unsaid == []


# names and numbers that are none -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compile", "quest", "--heads", f"{'9' * 5000}/1"], "error[VX1021]: heads '999"),
        (["compile", "quest", "--latent", f"{'9' * 5000}+64"], "error[VX1021]: latent '999"),
        (
            ["compile", "quest", "--heads", "1000000/1"],
            "error[VX1021]: group is 1000000, a positive integer of at",
        ),
        (["compile", "quest", "--head-dim", "100000000"], "error[VX1021]: head_dim is 100000000, a positive"),
        (["compile", "quest", "--page-size", "0"], "error[VX1021]: page_size is 0, a positive"),
        (["compile", "quest", "--shape", f"batch={'9' * 200}"], "error[VX8007]: "),
        (["run", "quest", "--tokens", "9" * 5000], "error[VX7001]: --tokens: '999"),
        (["run", "quest", "--seed", "9" * 20], "error[VX7001]: --seed: is 999"),
        (["run", "quest", "--kv-heads", "100000"], "error[VX7001]: --kv-heads: is 100000\n   = help: at most 1024"),
        (["run", "quest", "--kv-heads", "0"], "error[VX7001]: --kv-heads: is 0\n   = help: at least 1"),
        (["demo", "--steps", "0"], "error[VX7001]: --steps: is 0\n   = help: at least 1"),
        (["capture", "-o", "x", "--index", "-1"], "error[VX7001]: --index: is -1\n   = help: at least 0"),
        (["tune", "quest", "--kinds", "foo"], "error[VX7003]: no kernel kind named 'foo'; there are plan"),
        (["db", "ls", "foo"], "error[VX7003]: no kernel kind named 'foo'; there are plan"),
        (["check", "quest", "--pages", "-1"], "error[VX1020]: it has neither pages, 0 or more, nor a table"),
        (["compile", "quest", "--target", ""], "error[VX7001]: --target: names no target"),
        (["opt", "x.flow", "--target", ""], "error[VX7001]: --target: names no target"),
        (["explain", "quest", "--target", ""], "error[VX7001]: --target: names no target"),
        (["explain-cache", "quest", "--target", ""], "error[VX7001]: --target: names no target"),
        (["db", "ls", "--target", ""], "error[VX7001]: --target: names no target"),
        (["db", "explain", "quest", "--target", ""], "error[VX7001]: --target: names no target"),
        (["compile", ""], "error[VX1018]: no flow named ''"),
        (["compile", "no.py:x"], "error[VX7002]: 'no.py' does not exist"),
        (["compile", "no/no.py"], "error[VX7002]: 'no/no.py' does not exist"),
    ],
)
def test_what_is_no_number_or_name(vortex: Vortex, words: list[str], said: str) -> None:
    found = vortex(*words)
    assert (found.code, found.out) == (USER_ERROR, "")
    assert found.err.startswith(said)


def test_a_flow_that_a_file_lacks(vortex: Vortex, flow_file: Path) -> None:
    found = vortex("compile", f"{flow_file}:nothing_alike")
    assert f"no flow named 'nothing_alike' in {flow_file}; there are tiny_mean" in found.err
