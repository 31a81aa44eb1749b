"""The scripts that complete command lines: bash runs its one."""

from __future__ import annotations

import shlex
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
