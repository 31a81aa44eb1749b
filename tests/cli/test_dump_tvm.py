"""``vortex compile --dump=tvm``: TVM's own passes in a dump."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.conftest import Vortex
from vortex.artifact.folder import read_manifest
from vortex.codegen.build.tvm_passes import TvmPass
from vortex.compilation import tvm_dump
from vortex.compilation.dump import DumpDir
from vortex.compilation.tvm_dump import TvmDump

LISTED = re.compile(r"  (\d\d) ([\w.]+)(?: +(?:(\S+) )?-> (\S+))?")


def test_passes_of_tvm_are_listed_and_what_they_changed_is_there(vortex: Vortex, flow_file: Path) -> None:
    """And the artifact is the same as without."""
    plain = ("compile", str(flow_file), "--head-dim", "16", "--heads", "2/1")
    assert vortex(*plain, "--dump=tvm", "--dump-dir", "d", "-o", "a.vxa").code == 0
    assert vortex(*plain, "--no-dump", "-o", "b.vxa").code == 0
    a, b = (read_manifest(p).targets["cpu"].kernels for p in ("a.vxa", "b.vxa"))
    assert [k.digest for k in a] == [k.digest for k in b]
    folder, files, kernels = Path("d"), set[str](), set[str]()
    kernel, number = "", 0
    for line in (folder / "cpu.tvm.txt").read_text().splitlines()[2:]:
        if not line.startswith("  "):
            kernel, number = line or kernel, 0
            kernels.add(kernel)
            continue
        found = LISTED.fullmatch(line)
        assert found and int(found[1]) == number, line
        number += 1
        if found[4]:
            files |= {f for f in (found[3], found[4]) if f}
            assert found[4].startswith(f"{kernel}.cpu.{found[1]}-")
        if found[3]:
            assert (folder / found[3]).read_text() != (folder / found[4]).read_text()
    assert kernels == {"plan", "append", "select", "attend"}
    assert files == {f.name for f in folder.glob("*.tvm")}
    assert any("MakePackedAPI" in f for f in files)
    assert vortex("compile", "--from", "tir", "d", "-o", "c.vxa", "--dump-dir", "again").code == 0, "it is a dump still"


def test_of_gpus_host_and_device_are_told_apart(vortex: Vortex, flow_file: Path) -> None:
    pytest.importorskip("tvm")
    from vortex.codegen.build.nvcc import emit_cuda
    from vortex.codegen.build.tvm_passes import watched
    from vortex.codegen.emit import parse_tir
    from vortex.driver import compile_flow
    from vortex.targets.target import TARGETS

    [low] = compile_flow(str(flow_file), targets=[TARGETS["sm_90a"]], to="tir").lowered
    k, ran = low.kernels["select"], list[TvmPass]()
    function = parse_tir(k.text, k.name)
    with watched([k.symbol], ran.append):
        source = emit_cuda(k.symbol, function, "sm_90a")  # type: ignore[arg-type]
    assert source == emit_cuda(k.symbol, function, "sm_90a")  # type: ignore[arg-type]
    assert {r.symbol for r in ran} == {k.symbol}
    assert not [r for r in ran if r.name.startswith("vortex.") or "sequential" in r.name]
    host, device = [r for r in ran if r.name == "tirx.Filter"]
    assert host.before == device.before
    assert f"{k.symbol}_kernel" in device.after and f"def {k.symbol}_kernel" not in host.after


def test_texts_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tvm_dump, "MOST", 50)
    dump = TvmDump(DumpDir.open(tmp_path / "d"), "cpu", {"f_select": "select"})
    for before, after in (("a" * 20, "b" * 20), ("b" * 20, "c" * 20), ("c" * 20, "c" * 20)):
        dump.add(TvmPass("f_select", "tirx.Some", before, after))
    dump.close()
    text = (tmp_path / "d" / "cpu.tvm.txt").read_text()
    assert "01 tirx.Some" in text
    assert "select.cpu.00-start.tvm -> select.cpu.01-Some.tvm" in text
    assert (
        "02 tirx.Some                              select.cpu.01-Some.tvm -> (not written: the texts of select" in text
    )
    assert text.rstrip().endswith("03 tirx.Some")
    assert len(list((tmp_path / "d").glob("*.tvm"))) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--no-dump",), "contradicts --dump=tvm"),
        (("--to", "tir"), "TVM's passes run after tir"),
        (("--from", "src"), "no pass of TVM runs on src"),
    ],
)
def test_where_no_pass_of_tvm_runs_that_is_said(vortex: Vortex, arguments: tuple[str, ...], says: str) -> None:
    found = vortex("compile", "quest", "--dump=tvm", *arguments)
    assert found.code == 2
    assert says in found.err
