"""``vortex opt``: passes over IR text."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Vortex
from vortex.cli.main import USER_ERROR


@pytest.fixture
def flow(compiled: Path) -> str:
    return str(next((compiled / "dump").glob("00-*.flow")))


def test_without_passes_the_text_comes_back(vortex: Vortex, flow: str) -> None:
    assert vortex("opt", flow).out == Path(flow).read_text()


def test_standard_input_and_output_file(vortex: Vortex, flow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(Path(flow).read_text()))
    assert vortex("opt", "-", "--passes", "cse", "-o", "x.flow").out == ""
    assert Path("x.flow").read_text() == vortex("opt", flow, "--passes=cse").out


def test_print_after_and_time_go_to_stderr(vortex: Vortex, flow: str) -> None:
    plain = vortex("opt", flow, "--passes=cse,outline")
    found = vortex("opt", flow, "--passes=cse,outline", "--print-after", "outline", "--time")
    assert found.out == plain.out
    assert found.out in found.err
    assert " ms  outline" in found.err


def test_no_locs(vortex: Vortex, flow: str) -> None:
    assert '@ "' in vortex("opt", flow).out
    assert '@ "' not in vortex("opt", flow, "--no-locs").out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--passes=csee",), "error[VX3001]: no pass 'csee', did you mean 'cse'?"),
        (("--passes=cse,",), "error[VX3003]"),
        (("--passes=fuse",), "error[VX3004]"),
        (("--passes=cse{depth=3}",), "error[VX3002]"),
        (("--passes=cse", "--print-after=fuse"), "error[VX7001]: --print-after: no pass 'fuse' runs here"),
        (("--target=gpu",), "error[VX4001]"),
        (("--target=cpu,sm_90",), "error[VX7001]"),
    ],
)
def test_mistakes(vortex: Vortex, flow: str, args: tuple[str, ...], message: str) -> None:
    found = vortex("opt", flow, *args)
    assert (found.code, found.out) == (USER_ERROR, "")
    assert message in found.err


def test_malformed_text_points_into_the_file(vortex: Vortex, flow: str) -> None:
    Path("bad.flow").write_text(Path(flow).read_text().replace("flow.reduce", "flow.reduse", 1))
    found = vortex("opt", "bad.flow")
    assert found.code == USER_ERROR
    assert "error[VX2002]" in found.err
    assert "--> bad.flow:" in found.err
    assert "^^^" in found.err


def test_bytes_that_are_no_text(vortex: Vortex) -> None:
    Path("bad.flow").write_bytes(b"\xff\xfe\x00")
    assert "error[VX2001]" in vortex("opt", "bad.flow").err
