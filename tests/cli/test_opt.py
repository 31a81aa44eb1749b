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
    found = vortex("opt", flow, "--no-locs", "--passes=cse,outline", "--print-after", "all")
    assert '@ "' not in found.err and "// ---- after cse (#1), unchanged\n// ---- after outline (#2)\n" in found.err


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


def test_print_changed_is_a_difference(vortex: Vortex, flow: str) -> None:
    found = vortex("opt", flow, "--passes=cse,outline", "--print-changed", "--no-locs")
    assert "// ---- after cse (#1), unchanged\n// ---- after outline (#2)\n@@ -1," in found.err
    assert "\n-// vortex-ir 1 | stage flow\n" in found.err and "\n+// vortex-ir 1 | stage page\n" in found.err
    assert found.out == vortex("opt", flow, "--passes=cse,outline", "--no-locs").out


def test_bisect_limit_leaves_the_first_passes_and_those_needed(vortex: Vortex, flow: str) -> None:
    passes = "--passes=canonicalize,outline,dce"
    found = vortex("opt", flow, passes, "--bisect-limit=0")
    assert found.err.splitlines() == [
        "pass 1 of 3: canonicalize is left out",
        "pass 2 of 3: outline runs, for nothing is compiled without it",
        "pass 3 of 3: dce is left out",
    ]
    assert found.out == vortex("opt", flow, "--passes=outline").out
    whole = vortex("opt", flow, passes, "--bisect-limit=-1")
    assert whole.out == vortex("opt", flow, passes).out and whole.err.count(" runs\n") == 3
    assert "error[VX7001]" in vortex("opt", flow, passes, "--bisect-limit=-2").err


PARTS = """\
flow.module @first {
  func @f(%x: f32[S]) {
    %a = flow.exp(%x) : f32[S]
    %b = flow.exp(%x) : f32[S]
    %c = flow.add(%a, %b) : f32[S]
    flow.return(%c)
  }
}
// -----
flow.module @second {
  func @f(%x: f32[S]) {
    // expected-error@+1 {{flow.reduse}}
    %m = flow.reduse(%x) : f32[S]
    flow.return(%m)
  }
}
"""


def test_parts_of_a_file_are_modules_of_their_own(vortex: Vortex) -> None:
    first, _ = PARTS.split("// -----\n")
    Path("two.flow").write_text(f"{first}// -----\n{first.replace('@first', '@other')}")
    Path("one.flow").write_text(first)
    found = vortex("opt", "two.flow", "--split-input-file", "--passes=cse")
    alone = vortex("opt", "one.flow", "--passes=cse").out
    assert alone.count("flow.exp") == 1
    assert found.out == f"{alone}\n// -----\n\n{alone.replace('@first', '@other')}"
    Path("bad.flow").write_text(PARTS)
    assert "--> bad.flow:13:" in vortex("opt", "bad.flow", "--split-input-file").err, "lines are those of the file"


def test_diagnostics_are_those_that_comments_expect(vortex: Vortex) -> None:
    check = ("opt", "parts.flow", "--split-input-file", "--verify-diagnostics", "--passes=cse")
    Path("parts.flow").write_text(PARTS)
    found = vortex(*check)
    assert (found.code, found.out, found.err) == (0, "", "")
    for before, after, wrong in (
        (
            "@+1",
            "@+2",
            ["parts.flow:12: no error at line 14 says 'flow.reduse'", "parts.flow:13: not expected:"],
        ),
        ("{{flow.reduse}}", "{{flow.other}}", ["parts.flow:12: no error at line 13 says 'flow.other'", "not expected"]),
        ("    // expected-error@+1 {{flow.reduse}}\n", "", ["parts.flow:12: not expected: error[VX2002]"]),
        ("flow.reduse(%x)", "flow.exp(%x)", ["parts.flow:12: no error at line 13 says"]),
    ):
        Path("parts.flow").write_text(PARTS.replace(before, after))
        found = vortex(*check)
        assert (found.code, found.out, len(found.err.splitlines())) == (1, "", len(wrong)), found.err
        for said, line in zip(wrong, found.err.splitlines(), strict=True):
            assert said in line
    Path("parts.flow").write_text(PARTS.replace("{{flow.reduse}}", "flow.reduse"))
    assert "parts.flow:12" in vortex(*check).err


def test_an_error_without_a_place_in_the_file(vortex: Vortex, flow: str) -> None:
    text = Path(flow).read_text()
    Path("fused.flow").write_text(f"// expected-error@unknown {{{{pass 'fuse' runs on page IR}}}}\n{text}")
    assert vortex("opt", "fused.flow", "--verify-diagnostics", "--passes=fuse").code == 0
    assert vortex("opt", "fused.flow", "--verify-diagnostics", "--passes=cse").code == 1
