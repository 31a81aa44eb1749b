"""Tests that are commands: a shell's, whose exit code counts, or one of ours in this process, whose error counts."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vortex.errors import VortexError

PLACE = "{}"
"""Stands for the candidate's file in a command; without it the file comes last."""


@dataclass(frozen=True, slots=True)
class ShellTest:
    """Holds of a text where ``command`` exits with 0 for the file that has it."""

    command: str
    file: Path

    def __call__(self, text: str, seconds: float | None) -> bool:
        return self.run(text, seconds)[0] == 0

    def run(self, text: str, seconds: float | None = None) -> tuple[int, str]:
        """Exit code and output of the command; TimeoutError when it takes longer, and it and what it started end."""
        self.file.write_text(text, encoding="utf-8")
        name = shlex.quote(str(self.file))
        line = self.command.replace(PLACE, name) if PLACE in self.command else f"{self.command} {name}"
        with subprocess.Popen(
            ["/bin/sh", "-c", line],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process:
            try:
                said, _ = process.communicate(timeout=seconds)
            except BaseException as e:
                os.killpg(process.pid, signal.SIGKILL)
                if isinstance(e, subprocess.TimeoutExpired):
                    raise TimeoutError from None
                raise
        return process.returncode, said.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class ErrorTest:
    """Holds of a text where ``run`` ends in ``error`` for the arguments with its file among them: the code of a mistake
    in the catalogue, or the class of an exception that is a mistake of ours.
    """

    run: Callable[[list[str]], object]
    arguments: Sequence[str]
    error: str
    file: Path

    def __call__(self, text: str, seconds: float | None) -> bool:
        return self.outcome(text) == self.error

    def outcome(self, text: str) -> str:
        """The error that the command ends in; empty for none."""
        self.file.write_text(text, encoding="utf-8")
        name = str(self.file)
        filled = [a.replace(PLACE, name) for a in self.arguments]
        try:
            self.run(filled if filled != list(self.arguments) else [*filled, name])
        except VortexError as e:
            return e.code
        except Exception as e:  # whatever a mistake of ours raises
            return type(e).__name__
        return ""
