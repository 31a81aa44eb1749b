"""Warnings: said once, as errors are, and nothing stops."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from vortex.errors import ErrorKind, Loc, VortexWarning, warn

ROOT = Path(__file__).resolve().parents[2]
ODD = ErrorKind("VX0000", "odd", "{what} is odd", "make it even", "warning")


def test_a_warning_has_place_and_way_out() -> None:
    with pytest.warns(VortexWarning) as said:
        warn(ODD.at(Loc(__file__, 1, 1, 4), what="three"))
    (one,) = said
    assert (one.filename, one.lineno) == (__file__, 1)
    assert isinstance(one.message, VortexWarning)
    assert one.message.mistake.code == "VX0000"
    assert str(one.message).splitlines()[0] == "warning[VX0000]: three is odd"
    assert str(one.message).splitlines()[-1] == "   = help: make it even"


def test_it_is_an_error_for_whoever_wants_that() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", VortexWarning)
        with pytest.raises(VortexWarning, match="five is odd"):
            warn(ODD.at(what="five"))


def test_the_command_line_shows_each_once() -> None:
    code = (
        "from vortex.cli import kinds, main; from vortex.errors import ErrorKind, warn; "
        "odd = ErrorKind('VX0000', 'odd', 'it is odd', 'make it even', 'warning'); "
        "kinds.run = lambda args: [warn(odd.at()) for _ in range(3)] and 0; raise SystemExit(main.main(['kinds']))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (found.returncode, found.stdout) == (0, "")
    assert found.stderr == "warning[VX0000]: it is odd\n   = help: make it even\n"
