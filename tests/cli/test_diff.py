"""``vortex diff``: what two compilations differ in, told by what they mean."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import vortex as vortex_package
from tests.cli.conftest import Vortex
from vortex.artifact.folder import read_manifest, write_artifact
from vortex.cli.diff import MOST
from vortex.cli.main import USER_ERROR, main
from vortex.ir.parser import parse_module
from vortex.ir.printer import print_module

PASSES = "canonicalize,cse,split-bound,reassociate,move-scales,drop-monotone,canonicalize,cse,dce,outline"
PASSES += ",expand-softmax,fuse,cse,dce,softmax-sums,plan-memory,schedule"


@pytest.fixture(scope="module")
def other(compiled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what ``compiled`` has, of a flow with other variables and one knob set by hand."""
    from vortex.flow.flow import _REGISTRY

    folder = tmp_path_factory.mktemp("other")
    text = (Path(vortex_package.__file__).parent / "flow/library/quest.py").read_text()
    (folder / "flow.py").write_text(
        text.replace("        bound = ", "\n\n        highest = ").replace("bound.", "highest.")
    )
    with pytest.MonkeyPatch.context() as m:
        m.chdir(folder)
        m.delitem(_REGISTRY, "quest", raising=False)
        words = ["-o", "quest.vxa", "--dump-dir", "dump", "--passes", f"{PASSES}{{knobs=select.lanes:8}}"]
        assert main(["compile", "flow.py", "--head-dim", "64", *words]) == 0
    return folder


def test_names_of_variables_make_no_difference(vortex: Vortex, compiled: Path, other: Path) -> None:
    for stage in ("trace.flow", "reassociate.flow", "outline.page"):
        a, b = (str(next((x / "dump").glob(f"*-{stage}"))) for x in (compiled, other))
        assert Path(a).read_text() != Path(b).read_text()
        found = vortex("diff", a, b, "--exit-code")
        assert (found.code, found.out) == (0, "no difference\n"), stage


def test_a_knob_of_two_artifacts(vortex: Vortex, compiled: Path, other: Path) -> None:
    found = vortex("diff", str(compiled / "quest.vxa"), str(other / "quest.vxa"), "--exit-code")
    assert found.code == 1
    assert found.out.startswith("manifest: 1 library; cpu: 1 kernel differs: select (1 knob)\n")
    assert "  ~ lanes 16 -> 8 (heuristic -> user)\n" in found.out
    hashes = [read_manifest(x / "quest.vxa").files["lib.cpu.so"].sha256[:16] for x in (compiled, other)]
    assert f"  ~ library cpu {hashes[0]} for" in found.out and f"-> {hashes[1]} for" in found.out
    assert len(found.out.splitlines()) == 9


def test_the_pass_after_which_dumps_diverge(vortex: Vortex, compiled: Path, other: Path, tmp_path: Path) -> None:
    found = vortex("diff", str(compiled / "dump"), str(other / "dump"))
    assert "  ~ pass schedule for cpu schedule -> schedule{knobs=select.lanes:8}\n" in found.out
    assert "\ndiverge first after schedule for cpu (step 17 of 17)\n\nkernel @select (1 knob)\n" in found.out
    broken = Path(shutil.copytree(other / "dump", tmp_path / "broken"))
    outline = next(broken.glob("*-outline.page"))
    outline.write_text(outline.read_text().replace("flow.reduce_max(%k)", "flow.reduce_min(%k)"))
    found = vortex("diff", str(compiled / "dump"), str(broken))
    assert (
        "diverge first after outline (step 10 of 17): 1 kernel differs: append_hi (1 op)" in found.out.splitlines()[0]
    )


def test_a_kernel_edited_by_hand(vortex: Vortex, compiled: Path, tmp_path: Path) -> None:
    dump = Path(shutil.copytree(compiled / "dump", tmp_path / "edited"))
    tir = dump / "attend.cpu.tir"
    tir.write_text(tir.read_text().replace("row", "line"))
    assert vortex("diff", str(compiled / "dump"), str(dump)).out == "no difference\n", "names of variables"
    tir.write_text(tir.read_text().replace("* scale", "* scale * T.float32(2)"))
    lines = len(tir.read_text().splitlines())
    found = vortex("diff", str(compiled / "dump"), str(dump))
    assert found.out.startswith("cpu: 1 kernel differs: attend (1 text)\n")
    assert f"  ~ text tir {lines} lines -> {lines} lines\n" in found.out


def test_shape_and_constants_of_artifacts(vortex: Vortex, compiled: Path, tmp_path: Path) -> None:
    a = compiled / "quest.vxa"
    m = read_manifest(a)
    files = {name: a / name for name in m.files if name != "ir/quest.trace.flow"}
    write_artifact(
        tmp_path / "b.vxa", replace(m, spec=replace(m.spec, group=8), toolchain={**m.toolchain, "torch": "1"}), files
    )
    found = vortex("diff", str(a), "b.vxa")
    assert "  ~ group 4 -> 8\n" in found.out
    assert "-> 1\n" in next(f"{x}\n" for x in found.out.splitlines() if "version torch" in x)
    assert len(found.out.splitlines()) == 5


def test_long_differences_are_cut(vortex: Vortex, tmp_path: Path) -> None:
    text = (
        'flow.module @x {page_size = 4, head_dim = 4, group = 2, dtype = "bf16"} {\n  func @index(%q: bf16[2, 4]) {\n'
    )
    lines = "".join(f"    %v{i} = flow.constant() {{number = {i}.0}} : f32[]\n" for i in range(40))
    (tmp_path / "a.flow").write_text(f"{text}    flow.return(%q)\n  }}\n}}\n")
    (tmp_path / "b.flow").write_text(f"{text}{lines}    flow.return(%q)\n  }}\n}}\n")
    found = vortex("diff", "a.flow", "b.flow").out.splitlines()
    assert found[0] == "1 function differs: index (40 ops)"
    assert found[-1] == f"  ... {40 - MOST} more lines (--all)"
    assert len(vortex("diff", "a.flow", "b.flow", "--all").out.splitlines()) == 43


def test_json_has_the_documented_schema(vortex: Vortex, compiled: Path, other: Path) -> None:
    a, b = str(compiled / "quest.vxa"), str(other / "quest.vxa")
    found = json.loads(vortex("diff", a, b, "--json").out)
    assert list(found) == ["a", "b", "differ", "summary", "parts"]
    assert (found["a"], found["b"], found["differ"]) == (a, b, True)
    manifest, cpu = found["parts"]
    assert (manifest["title"], cpu["title"]) == ("manifest", "cpu")
    [kernel] = cpu["functions"]
    assert {k: v for k, v in kernel.items() if k != "changes"} == {"sign": "~", "keyword": "kernel", "name": "select"}
    assert kernel["changes"] == [
        {
            "sign": "~", "what": "knob", "name": "lanes", "before": "16", "after": "8",
            "loc": None, "origin": "heuristic -> user",
        }
    ]  # fmt: skip
    assert json.loads(vortex("diff", a, a, "--json").out)["parts"] == []


def test_line_by_line(vortex: Vortex, compiled: Path, tmp_path: Path) -> None:
    a, b = (str(next((compiled / "dump").glob(f"*-{name}*.page"))) for name in ("outline", "fuse"))
    assert "+  kernel @select(" in vortex("diff", a, b, "--text").out
    assert vortex("diff", a, a, "--text", "--exit-code").code == 0
    module = parse_module(Path(a).read_text())
    (tmp_path / "plain.page").write_text(print_module(module, locs=False))
    assert vortex("diff", a, "plain.page", "--text", "--no-locs").out == ""
    assert vortex("diff", a, "plain.page", "--text").out
    assert json.loads(vortex("diff", a, "plain.page", "--text", "--json").out)["differ"]


def test_folders_file_by_file(vortex: Vortex, compiled: Path, tmp_path: Path) -> None:
    artifact = Path(shutil.copytree(compiled / "quest.vxa", tmp_path / "quest.vxa"))
    words = ("diff", str(artifact), str(compiled / "quest.vxa"), "--text", "--exit-code")
    assert vortex(*words).out == ""
    tir = artifact / "ir" / "attend.cpu.tir"
    tir.write_text(tir.read_text().replace("scale", "factor"))
    (artifact / "lib.cpu.so").write_bytes(b"other")
    found = vortex(*words)
    assert found.code == 1
    assert "-" in found.out and "lib.cpu.so" in found.out


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda x: (x / "lib.cpu.so").write_bytes(b"short"), "VX5002"),
        (lambda x: (x / "lib.cpu.so").unlink(), "VX5002"),
        (lambda x: (x / "ir/quest.cpu.page").write_text("page.program @"), "VX"),
        (lambda x: (x / "manifest.json").write_text("{"), "VX5001"),
        (lambda x: (x / "manifest.json").unlink(), "VX5001"),
    ],
)
def test_damaged_artifacts(vortex: Vortex, compiled: Path, tmp_path: Path, damage, code: str) -> None:  # type: ignore[no-untyped-def]
    artifact = Path(shutil.copytree(compiled / "quest.vxa", tmp_path / "quest.vxa"))
    damage(artifact)
    found = vortex("diff", str(compiled / "quest.vxa"), str(artifact))
    assert (found.code, found.out) == (USER_ERROR, "")
    assert f"error[{code}" in found.err


def test_what_is_not_alike(vortex: Vortex, compiled: Path, tmp_path: Path) -> None:
    page = str(next((compiled / "dump").glob("*-outline*.page")))
    assert "compare like with like" in vortex("diff", page, str(compiled / "dump")).err
    (tmp_path / "empty").mkdir()
    assert "VX5001" in vortex("diff", "empty", str(compiled / "dump")).err
    assert "VX7002" in vortex("diff", "nowhere.flow", page).err
    (tmp_path / "broken.page").write_text(Path(page).read_text()[:900])
    assert "error[VX2001]" in vortex("diff", page, "broken.page").err
