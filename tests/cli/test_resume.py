"""Resuming from what an earlier compilation dumped: what is built is what the files say, and the artifact says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Vortex
from vortex.artifact.resumed import Resumed
from vortex.cli.main import USER_ERROR, main


@pytest.fixture
def dump(compiled: Path, tmp_path: Path) -> Path:
    """A dump of ``quest`` for cpu that may be edited."""
    return Path(shutil.copytree(compiled / "dump", tmp_path / "dump"))


def resumed(dump: str) -> list[dict[str, object]]:
    """What the manifest of a dump says of where it came from."""
    found: list[dict[str, object]] = json.loads((Path(dump) / "manifest.json").read_text()).get("resumed", [])
    return found


def test_edited_llvm_is_what_runs(vortex: Vortex, dump: Path, compiled: Path) -> None:
    text = (dump / "cpu.ll").read_text()
    at = text.index("@__tvm_ffi_quest_attend(")
    (dump / "cpu.ll").write_text(text[:at] + text[at:].replace(" fmul ", " fadd "))
    found = vortex("compile", "--from", "src", str(dump), "-o", "edited.vxa", "--dump-dir", "again")
    assert found.code == 0, found.err
    found = vortex("run", "edited.vxa")
    assert found.code == 1
    assert "differs from its reference" in found.err
    said = "resumed   from src; edited since they were dumped: cpu.ll"
    assert said in vortex("info", "edited.vxa").out.splitlines()
    assert "resumed" not in vortex("info", str(compiled / "quest.vxa")).out
    provenance = json.loads(vortex("info", "edited.vxa", "--json").out)["provenance"]
    assert provenance["resumed"] == [{"stage": "src", "edited": ["cpu.ll"], "unknown": []}]
    assert Path("again/cpu.ll").read_text() == (dump / "cpu.ll").read_text()
    # whoever goes on from there is told of the edit as well
    assert vortex("compile", "--from", "tir", "again", "--to", "tir", "--dump-dir", "third").code == 0
    assert resumed("third") == [*provenance["resumed"], {"stage": "tir", "edited": [], "unknown": []}]


@pytest.mark.parametrize("kind", ["plan", "select", "attend"])
def test_an_artifact_has_a_kernel_for_each_call(vortex: Vortex, dump: Path, kind: str) -> None:
    [file] = dump.glob("*-schedule.cpu.page")
    head, kernels = file.read_text().split(f"  kernel @{kind}()")
    file.write_text(head + kernels.partition("\n  }\n")[2])
    found = vortex("compile", str(file), "-o", "partial.vxa", "--no-dump")
    assert found.code == USER_ERROR
    assert f"error[VX2008]: program @quest has no kernel for {kind}; an artifact has one for each of plan" in found.err
    assert vortex("compile", str(file), "--to", "tir", "-o", "x.tir", "--no-dump").code == 0


def test_untouched_llvm_gives_the_same_library(vortex: Vortex, dump: Path, compiled: Path) -> None:
    assert vortex("compile", "--from", "src", str(dump), "-o", "same.vxa", "--no-dump").code == 0
    library = Path("same.vxa/lib.cpu.so").read_bytes()
    assert library == (compiled / "quest.vxa" / "lib.cpu.so").read_bytes()
    assert "resumed   from src; nothing was edited" in vortex("info", "same.vxa").out


def test_mistakes_in_llvm_are_told_with_their_line(vortex: Vortex, dump: Path) -> None:
    lines = (dump / "cpu.ll").read_text().splitlines(keepends=True)
    second = [i for i, line in enumerate(lines) if line.startswith("; ModuleID")][1]
    at = next(i for i in range(second, len(lines)) if lines[i].startswith("  ret i32"))
    # the first function would take seconds
    (dump / "cpu.ll").write_text("".join(["\n"] * second + lines[second:at] + ["  return 0\n"] + lines[at + 1 :]))
    manifest = json.loads((dump / "manifest.json").read_text())
    first = manifest["kernels"]["cpu"].pop(0)["name"]
    (dump / "manifest.json").write_text(json.dumps(manifest))
    found = vortex("compile", "--from", "src", str(dump), "-o", "x.vxa", "--no-dump")
    assert found.code == USER_ERROR
    assert f"error[VX4004]: cpu.ll:{at + 1}:3: error: expected instruction opcode" in found.err
    assert first == "plan"
    assert not Path("x.vxa").exists()


def test_llvm_without_a_kernel_or_for_another_processor(vortex: Vortex, dump: Path) -> None:
    text = (dump / "cpu.ll").read_text()
    (dump / "cpu.ll").write_text(text.replace("@__tvm_ffi_quest_append(", "@mine("))
    found = vortex("compile", "--from", "src", str(dump), "-o", "x.vxa", "--no-dump")
    assert "error[VX4004]: kernel 'append' is gone: no function __tvm_ffi_quest_append is in cpu.ll" in found.err
    (dump / "cpu.ll").write_text(text.replace(r"\22mcpu\22:\22", r"\22mcpu\22:\22other-"))
    found = vortex("compile", "--from", "src", str(dump), "-o", "x.vxa", "--no-dump")
    assert "error[VX4004]: cpu.ll was made for other-" in found.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--to", "tir"), "error[VX7001]: --to: tir lies before src"),
        (("--passes", "cse"), "error[VX7001]: --passes: run before src, which is resumed"),
        (("--head-dim", "64"), "error[VX7001]: --head-dim: is fixed by the src file that is resumed"),
        (("--target", "sm_90a"), "error[VX5003]"),
        ((), "error[VX7001]: --from src: 'attend.cpu.tir' was edited, and what is built from is cpu.ll"),
    ],
)
def test_what_src_does_not_take(vortex: Vortex, dump: Path, args: tuple[str, ...], message: str) -> None:
    with (dump / "attend.cpu.tir").open("a") as file:
        file.write("# edited\n")
    found = vortex("compile", "--from", "src", str(dump), "--no-dump", *args)
    assert found.code == USER_ERROR
    assert message in found.err


def test_a_dump_that_lacks_its_sources(vortex: Vortex, dump: Path) -> None:
    (dump / "cpu.ll").unlink()
    found = vortex("compile", "--from", "src", str(dump), "--no-dump")
    assert "error[VX7002]" in found.err
    assert "cpu.ll" in found.err


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_dump_that_names_what_no_file_is_called(vortex: Vortex, dump: Path, name: str) -> None:
    manifest = json.loads((dump / "manifest.json").read_text())
    manifest["kernels"]["cpu"][0]["file"] = name
    (dump / "manifest.json").write_text(json.dumps(manifest))
    found = vortex("compile", "--from", "tir", str(dump), "--no-dump")
    assert found.code == USER_ERROR
    assert "is no name of a file" in found.err


def test_text_that_is_none_is_told_with_its_file(vortex: Vortex, dump: Path) -> None:
    (dump / "plan.cpu.tir").write_bytes(b"\xe9")
    found = vortex("compile", "--from", "tir", str(dump), "--no-dump")
    assert "plan.cpu.tir' is not text" in found.err


@pytest.mark.parametrize("stage", ["flow", "page"])
def test_ir_says_whether_it_was_edited(vortex: Vortex, dump: Path, stage: str) -> None:
    file = next(dump.glob(f"*.{stage}"))
    command = ("compile", "--from", stage, str(file), "--to", "page", "-o", "x.page", "--dump-dir")
    vortex(*command, "plain")
    assert resumed("plain") == [{"stage": stage, "edited": [], "unknown": []}]
    with file.open("a") as text:
        text.write("// edited\n")
    vortex(*command, "edited")
    assert resumed("edited") == [{"stage": stage, "edited": [file.name], "unknown": []}]
    (dump / "manifest.json").unlink()
    vortex(*command, "foreign")
    assert resumed("foreign") == [{"stage": stage, "edited": [], "unknown": [file.name]}]
    assert str(Resumed(stage, unknown=(file.name,))).endswith(f"is unknown, for no dump names them: {file.name}")
    vortex("compile", "quest", "--head-dim", "64", "--to", "page", "-o", "x.page", "--dump-dir", "first")
    assert resumed("first") == []


@pytest.mark.full
def test_edited_cuda_is_compiled(vortex: Vortex) -> None:
    gpu = ["compile", "gqa_block", "--head-dim", "64", "--target", "sm_90a", "-o", "gpu.vxa", "--dump-dir", "gpu"]
    assert main(gpu) == 0
    file = Path("gpu/append.sm_90a.cu")
    lines = file.read_text().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if "__global__" in line and line.rstrip().endswith("{"))
    lines.insert(at + 1, '  asm volatile("// a line of mine");\n')
    file.write_text("".join(lines))
    assert vortex("compile", "--from", "src", "gpu", "-o", "edited.vxa", "--no-dump").code == 0
    assert "resumed   from src; edited since they were dumped: append.sm_90a.cu" in vortex("info", "edited.vxa").out
    assert "// a line of mine" in vortex("info", "edited.vxa", "--kernel", "append", "--ptx").out
    assert "a line of mine" in vortex("info", "edited.vxa", "--kernel", "append", "--source").out
    for kernel in ("plan", "select", "attend"):
        texts = [vortex("info", x, "--kernel", kernel, "--ptx").out for x in ("gpu.vxa", "edited.vxa")]
        assert texts[0] == texts[1] != ""
    lines[at + 1] = "  a line of mine;\n"
    file.write_text("".join(lines))
    found = vortex("compile", "--from", "src", "gpu", "-o", "x.vxa", "--no-dump")
    assert found.code == USER_ERROR
    assert "error[VX4005]: nvcc failed" in found.err
    assert f"kernel.cu({at + 2}): error" in found.err
    assert "kernel.cu is the CUDA C++ of gqa_block_append" in found.err
