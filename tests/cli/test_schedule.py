"""Knobs at the command line: dumps that are edited and resumed, --where, the listing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Vortex
from vortex.cli.main import USER_ERROR
from vortex.schedules.template import listing


def edited(target: str, before: str, after: str, flow: str = "quest") -> str:
    """The dump after ``schedule`` with one edit in its ``attend`` kernel or, with no such text there, elsewhere."""
    text = next(Path("d").glob(f"*-schedule.{target}.page")).read_text()
    at = text.index(before, text.index("kernel @attend") if before in text[text.index("kernel @attend") :] else 0)
    Path("x.page").write_text(text[:at] + after + text[at + len(before) :])
    return "x.page"


def dumped(vortex: Vortex, target: str) -> None:
    assert vortex("compile", "quest", "--target", target, "--to", "page", "--no-db", "--dump-dir", "d").code == 0


@pytest.mark.parametrize(
    ("target", "before", "after"),
    [
        ("sm_90a", "warps = 4", "warps = 2"),
        ("sm_100a", "stages = ", 'stages = 2, user = ["stages"], from = "user"} // '),
        ("cpu", "unroll = 8", "unroll = 1"),
        ("sm_90a", "keys = 8", "keys = 4"),
        ("sm_90a", "attend_busy = 16", "attend_busy = 8"),
    ],
)
def test_an_edited_knob_changes_the_kernel(vortex: Vortex, target: str, before: str, after: str) -> None:
    dumped(vortex, target)
    text = next(Path("d").glob(f"*-schedule.{target}.page")).read_text()
    if "//" in after:  # whatever the number is
        number = text[text.index(before) + len(before) :].split(",")[0].split("}")[0]
        before, after = f"{before}{number}", f"{before}{2 if int(number) != 2 else 3}"
    Path("same.page").write_text(text)
    was = vortex("compile", "same.page", "--to", "tir", "--no-dump")
    now = vortex("compile", edited(target, before, after), "--to", "tir", "--no-dump")
    assert (was.code, now.code) == (0, 0), was.err + now.err
    assert was.out == vortex("compile", "quest", "--target", target, "--to", "tir", "--no-db", "--no-dump").out
    assert was.out != now.out


@pytest.mark.parametrize(
    ("before", "after", "code", "says"),
    [
        ("residents = 1", "resident = 1", "VX2010", "did you mean 'residents'"),
        ("threads = 256", "threads = 100", "VX2010", "a multiple of 32 from 32 to 1024"),
        ("threads = 256", "threads = 4096", "VX2010", "a multiple of 32 from 32 to 1024"),
        ("threads = 256, ", "", "VX2010", "does not say threads"),
        ("residents = 1", "residents = 30", "VX4006", "an SM holds"),
        ("stages = 3", "stages = 2.5", "VX2010", "stages is 2.5"),
        ("stages = 3", 'stages = "3"', "VX2010", "stages is '3'"),
    ],
)
@pytest.mark.parametrize("stage", ["page", "tir"])
def test_an_edit_that_is_wrong(vortex: Vortex, before: str, after: str, code: str, says: str, stage: str) -> None:
    dumped(vortex, "sm_90a")
    found = vortex("compile", edited("sm_90a", before, after), "--to", stage, "--no-dump")
    assert found.code == USER_ERROR
    assert code in found.err
    assert says in found.err


def test_a_knob_in_a_dump_of_before_schedule(vortex: Vortex) -> None:
    dumped(vortex, "sm_90a")
    text = next(Path("d").glob("*-plan-memory.*page")).read_text()
    Path("x.page").write_text(text.replace('kind = "attend"', 'kind = "attend", schedule = {warps = 2}'))
    found = vortex("compile", "x.page", "--target", "sm_90a", "--to", "page", "--no-db", "--no-dump")
    assert found.code == 0, found.err
    attend = found.out[found.out.index("kernel @attend") :]
    assert "warps = 2" in attend
    assert 'from = "heuristic", user = ["warps"]' in attend


def test_from_tir_takes_the_targets_of_the_dump(vortex: Vortex) -> None:
    assert vortex("compile", "quest", "--target", "sm_90a", "--to", "tir", "--no-db", "--dump-dir", "d").code == 0
    found = vortex("compile", "--from", "tir", "d", "--to", "tir", "--no-dump")
    assert found.code == 0, found.err
    assert found.out == "\n".join(Path(f"d/{k}.sm_90a.tir").read_text() for k in ("plan", "append", "select", "attend"))
    other = vortex("compile", "--from", "tir", "d", "--target", "cpu", "--to", "tir", "--no-dump")
    assert "VX5003" in other.err


@pytest.mark.parametrize(
    ("where", "code", "says"),
    [
        ("resident=1", "VX7003", "did you mean 'residents'"),
        ("residents=9", "VX7001", "is tried with residents=9"),
        ("threads=128,100", "VX7001", "threads is one of 128, 256, 512"),
    ],
)
def test_where_names_knobs_and_values_there_are(vortex: Vortex, where: str, code: str, says: str) -> None:
    found = vortex("tune", "quest", "--target", "sm_90a", "--where", where, "--bundle", "b.vxb")
    assert found.code == USER_ERROR
    assert code in found.err
    assert says in found.err


def test_knobs_are_listed_with_the_pass(vortex: Vortex) -> None:
    text = vortex("passes", "schedule").out
    assert "knobs of attend (latent rows) on sm_90a, sm_100a" in text
    assert all(row["meaning"] in text and row["values"] in text for row in listing())
    assert json.loads(vortex("passes", "schedule", "--json").out)["knobs"] == listing()
    assert "knobs" not in json.loads(vortex("passes", "fuse", "--json").out)
