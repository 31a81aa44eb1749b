"""The scripts that complete command lines: bash runs its one, and so do zsh and fish where they are installed."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Vortex
from vortex.cli.completion import commands
from vortex.cli.main import COMMANDS, USER_ERROR


@pytest.fixture
def script(vortex: Vortex, tmp_path: Path) -> Path:
    (tmp_path / "vortex.bash").write_text(vortex("completion", "bash").out)
    return tmp_path / "vortex.bash"


def completed(script: Path, *lines: str) -> list[list[str]]:
    """What bash offers for each of ``lines``, whose last word is being typed."""
    asked = [f"COMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _vortex" for line in lines]
    shown = '; echo "${COMPREPLY[*]}"; '.join([*asked, ""])
    code = f"set -u; source {shlex.quote(str(script))}; {shown}"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert not done.stderr
    return [line.split() for line in done.stdout.split("\n")[:-1]]


def test_bash(script: Path) -> None:
    lines = [
        "vortex ''", "vortex comp", "vortex compile quest --head", "vortex compile quest --from ''",
        "vortex compile qu", "vortex db ''", "vortex db ls --j", "vortex db expo", "vortex completion f",
    ]  # fmt: skip
    every, begun, options, values, files, verbs, of_verb, verb, shell = completed(script, *lines)
    assert every == list(COMMANDS)
    assert begun == ["compile", "completion"]
    assert options == ["--heads", "--head-dim"]
    assert values == ["flow", "page", "tir", "src"]
    assert files == [], "bash completes files by itself"
    assert {"ls", "best", "merge", "pull"} <= set(verbs)
    assert of_verb == ["--json"]
    assert (verb, shell) == (["export"], ["fish"])


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
def test_zsh(vortex: Vortex, tmp_path: Path) -> None:
    """By zsh itself, its own functions for lists and files replaced by some that print."""
    (tmp_path / "_vortex").write_text(vortex("completion", "zsh").out)
    code = """
        _describe() { print -- "${(@P)2%%:*}" }
        _files() { print -- FILES }
        compdef() { print -- "compdef $@" }
        source ./_vortex
        try() { words=("$@"); CURRENT=$#; _vortex }
        try vortex comp; try vortex compile quest --from ''; try vortex compile quest --heads ''
        try vortex db ''; try vortex db ls --j; try vortex completion f; try vortex compile ''
    """
    done = subprocess.run(["zsh", "-f", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert not done.stderr
    loaded, every, values, heads, verbs, of_verb, shells, files = (line.split() for line in done.stdout.splitlines())
    assert loaded == ["compdef", "_vortex", "vortex"]
    assert every == list(COMMANDS)
    assert values == ["flow", "page", "tir", "src"]
    assert heads == files == ["FILES"]
    assert {"ls", "best", "merge", "pull"} <= set(verbs)
    assert {"--json", "--db"} <= set(of_verb)
    assert shells == ["bash", "zsh", "fish"]


@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish")
def test_fish(vortex: Vortex, tmp_path: Path) -> None:
    (tmp_path / "vortex.fish").write_text(vortex("completion", "fish").out)
    asked = ["vortex ", "vortex comp", "vortex compile quest --head", "vortex compile quest --from ", "vortex db expo",
             "vortex db ls --j", "vortex completion f"]  # fmt: skip
    code = "source vortex.fish; " + "; echo; ".join(f"complete -C '{line}'" for line in asked)
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(
        ["fish", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert not done.stderr
    every, begun, options, values, verb, of_verb, shell = (
        [line.partition("\t")[0] for line in part.splitlines()] for part in done.stdout.split("\n\n")
    )
    assert set(every) >= set(COMMANDS)
    assert begun == ["compile", "completion"]
    assert set(options) == {"--heads", "--head-dim"}
    assert set(values) == {"flow", "page", "tir", "src"}
    assert (verb, of_verb, shell) == (["export"], ["--json"], ["fish"])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_command_and_option_is_there(vortex: Vortex, shell: str) -> None:
    text = vortex("completion", shell).out
    for command in commands():
        assert command.name in text
        for c in (command, *command.verbs):
            for option in c.options:
                assert all((f"-l {n[2:]} " if n.startswith("--") else n[1:]) in text or n in text for n in option.names)


def test_an_unknown_shell(vortex: Vortex) -> None:
    found = vortex("completion", "tcsh")
    assert found.code == USER_ERROR and "error[VX7001]" in found.err
