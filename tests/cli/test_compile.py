"""``vortex compile``: stages, dumps, resuming, and what goes wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Vortex
from vortex.cli.main import USER_ERROR
from vortex.install import databases

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def dump(compiled: Path, tmp_path: Path) -> Path:
    """A copy of the dumps of a whole compilation."""
    return Path(shutil.copytree(compiled / "dump", tmp_path / "dump"))


def entries() -> set[str]:
    return {p.name for p in Path().iterdir()}


# stages -------------------------------------------------------------------------------------------


def test_to_flow_prints_what_the_flow_passes_left(vortex: Vortex) -> None:
    found = vortex("compile", "quest", "--to", "flow", "--no-dump")
    assert found.out.startswith("// vortex-ir 1 | stage flow")
    assert found.err == ""
    assert entries() == set()


def test_what_a_flow_prints_goes_to_stderr(vortex: Vortex, flow_file: Path) -> None:
    text = flow_file.read_text().replace('return {"mean": page', "print('in cache', page.k); return {'mean': page")
    text = text.replace("return vortex.topk", "print('in index', q); return vortex.topk")
    flow_file.write_text(text + "\nprint('loaded')\n")
    found = vortex("compile", str(flow_file), "--to", "flow", "--no-dump")
    assert found.code == 0 and found.out.startswith("// vortex-ir 1 | stage flow")
    assert "loaded" in found.err and "in cache vTensor(" in found.err and "in index vTensor(" in found.err
    assert "loaded" not in found.out and "vTensor" not in found.out


def test_a_folder_named_like_a_shipped_flow_is_no_dump(vortex: Vortex) -> None:
    """An engine compiles where it was started, whatever lies there."""
    Path("quest").mkdir()
    found = vortex("compile", "quest", "--heads", "9/3", "--to", "flow", "--no-dump")
    assert found.code == 0 and found.out.startswith("// vortex-ir 1 | stage flow")


def test_to_page_writes_a_file_and_dumps(vortex: Vortex) -> None:
    found = vortex("compile", "quest", "--to", "page", "-o", "quest.page")
    assert (found.code, found.out) == (0, "")
    [folder] = Path("dumps").iterdir()
    assert folder.name.startswith("quest-")
    assert f"dumps in dumps/{folder.name}" in found.err
    [scheduled] = folder.glob("*-schedule.cpu.page")
    assert scheduled.read_text() == Path("quest.page").read_text()


def test_a_compilation_that_stops_early_leaves_the_dump_of_a_longer_one_alone(vortex: Vortex) -> None:
    assert vortex("compile", "quest", "--to", "src", "-o", "quest.ll").code == 0
    [long] = Path("dumps").iterdir()
    assert long.name.endswith("-src")
    before = {f.name: f.read_text() for f in long.iterdir()}
    assert {"attend.cpu.tir", "cpu.ll"} <= before.keys()
    for _ in range(2):  # the second replaces the first
        assert vortex("compile", "quest", "--to", "page", "-o", "quest.page").code == 0
    assert {f.name: f.read_text() for f in long.iterdir()} == before
    [short] = set(Path("dumps").iterdir()) - {long}
    assert short.name == long.name.removesuffix("src") + "page"
    assert not [f.name for f in short.iterdir() if f.suffix in (".tir", ".ll")]


def test_a_default_folder_is_of_what_was_asked_for(vortex: Vortex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VORTEX_DB", raising=False)
    asked = [
        ["--target", "cpu"],
        ["--target", "sm_90a"],
        ["--target", "cpu,sm_90a"],
        ["--page-size", "32"],
        ["--passes", "canonicalize"],
        ["--bisect-limit", "3"],
        ["--no-db"],
        ["--shape", "batch=8,kv_heads=8,tokens=32768,kept=30"],
        ["--shape", "batch=8,kv_heads=8,tokens=8192,kept=30"],
        ["--variants", "2"],
        ["--no-source"],
    ]

    def folder(flow: str, *options: str) -> Path:
        found = vortex("compile", flow, "--to", "page", "-o", "x.page", "--json", *options)
        return Path(json.loads(found.out)["dumps"])

    found = [folder("quest", *options) for options in asked]
    found.append(folder(str(found[0] / "00-trace.flow")))  # which it must not replace
    assert sorted(Path("dumps").iterdir()) == sorted(found)
    short = found[0].name.split("-")[1]
    targets = ("cpu", "sm_90a", "cpu-sm_90a")
    assert [f.name for f in found[:3]] == [f"quest-{short}-{names}-page" for names in targets]
    assert [folder("quest", *options) for options in asked] == found[:-1]
    assert folder(str(found[0] / "00-trace.flow")) == found[-1]
    assert sorted(Path("dumps").iterdir()) == sorted(found)


def test_dump_numbers_passes_and_keeps_unchanged_ones_in_the_manifest(dump: Path) -> None:
    manifest = json.loads((dump / "manifest.json").read_text())
    steps = manifest["steps"]
    assert manifest["status"] == "ok"
    assert manifest["flow"] == "quest"
    assert manifest["spec"]["head_dim"] == 64
    assert [s["step"] for s in steps] == list(range(len(steps)))
    assert any(not s["changed"] for s in steps)
    assert any(s["changed"] for s in steps)
    for s in steps:
        assert (s["file"] is not None) == s["changed"]
        assert s["file"] is None or s["file"].startswith(f"{s['step']:02}-{s['name'].partition('{')[0]}.")
    listed = {s["file"] for s in steps if s["file"]} | {k["file"] for k in manifest["kernels"]["cpu"]}
    assert {p.name for p in dump.iterdir()} == listed | {
        "manifest.json",
        "repro.sh",
        "cpu.ll",
        *manifest["sources"].values(),
    }


def test_every_step_can_be_reproduced(vortex: Vortex, dump: Path) -> None:
    manifest = json.loads((dump / "manifest.json").read_text())
    commands = [s for s in manifest["steps"] if "command" in s]
    assert {s["name"] for s in commands} >= {"outline", "fuse", "plan-memory", "schedule"}
    for s in commands:
        words = s["command"].split()
        words[2] = str(dump / words[2])
        assert vortex(*words[1:]).out == (dump / s["file"]).read_text(), s["name"]
    script = (dump / "repro.sh").read_text()
    assert all(s["command"] in script for s in commands)
    assert subprocess.run(["sh", "-n", dump / "repro.sh"], check=False).returncode == 0


def test_repro_says_what_came_from_databases(vortex: Vortex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VORTEX_DB", raising=False)
    monkeypatch.setattr(databases, "SHIPPED", ROOT / "vortex" / "tune" / "shipped")
    words = ["compile", "quest", "--target", "cpu,sm_90a", "--to", "page", "-o", "x.page", "--dump-dir"]
    assert vortex(*words, "dump").code == 0
    assert vortex(*words, "plain", "--no-db").code == 0
    told = {name: Path(name, "repro.sh").read_text().splitlines() for name in ("dump", "plain")}
    [asked] = [line for line in told["dump"] if "tuning databases" in line]
    assert asked.startswith("# ")
    assert "-schedule.sm_90a.page has schedules of" in asked
    assert not any("--passes=schedule --target sm_90a" in line for line in told["dump"])
    assert any("--passes=schedule --target sm_90a" in line for line in told["plain"])
    assert any("--passes=schedule --target cpu" in line for line in told["dump"])


def test_print_after(vortex: Vortex) -> None:
    found = vortex("compile", "quest", "--to", "page", "--print-after", "fuse", "--no-dump")
    assert found.err.count("// ---- after ") == 1
    assert "// ---- after fuse\n// vortex-ir 1 | stage page" in found.err
    found = vortex("compile", "quest", "--to", "page", "--print-after", "all", "--no-dump", "--no-locs")
    assert found.err.count("// ---- after ") > 8
    assert "// ---- after cse, unchanged\n// ----" in found.err
    assert "quest.py" not in found.err + found.out


def test_flow_passes_alone_keep_the_rest_of_the_pipeline(vortex: Vortex) -> None:
    found = vortex("compile", "quest", "--to", "page", "--passes", "cse", "--dump-dir", "d")
    assert found.code == 0
    names = [s["name"] for s in json.loads(Path("d/manifest.json").read_text())["steps"]]
    assert names[:3] == ["trace", "cse", "outline"]
    assert names[-1] == "schedule"


def test_gpu_targets_are_normalised_and_say_so(vortex: Vortex) -> None:
    found = vortex("compile", "quest", "--target", "sm_100", "--to", "tir", "--no-dump", "-o", "q.tir")
    assert found.code == 0
    assert "target sm_100: compiling for sm_100a" in found.err
    text = Path("q.tir").read_text()
    assert text.count("@T.prim_func") == 5, "plan, append, attend, and select with its variant for few rows"
    assert "T.ptx.mma" in text


@pytest.mark.full
def test_gpu_targets_stand_beside_the_cpu_in_one_artifact(vortex: Vortex) -> None:
    assert vortex("compile", "quest", "--target", "cpu,sm_90,sm_100", "--dump-dir", "d").code == 0
    assert {p.name for p in Path("quest.vxa").glob("*.so")} == {"lib.cpu.so", "lib.sm_90a.so", "lib.sm_100a.so"}
    assert {f"attend.sm_90a.{kind}" for kind in ("tir", "cu", "ptx")} <= {p.name for p in Path("d").iterdir()}
    found = vortex("info", "quest.vxa").out
    assert "CTAs an SM" in found
    rows = [line.split() for line in found.splitlines() if line.startswith("sm_") and "memory" in line]
    assert all(row[4] == "0" for row in rows), "spilled"


def test_several_targets_are_scheduled_one_by_one(vortex: Vortex) -> None:
    assert vortex("compile", "quest", "--target", "cpu,sm_90", "--to", "page", "--dump-dir", "d").code == 0
    texts = [next(Path("d").glob(f"*-schedule.{target}.page")).read_text() for target in ("cpu", "sm_90a")]
    assert ['target = "cpu"' in texts[0], 'target = "sm_90a"' in texts[1]] == [True, True]


def test_a_flow_of_ones_own(vortex: Vortex, flow_file: Path) -> None:
    shape = ("--heads", "6/2", "--head-dim", "32", "--page-size", "8", "--dtype", "f32")
    found = vortex("compile", f"{flow_file}:tiny_mean", *shape, "--to", "flow", "--no-dump")
    assert 'page_size = 8, head_dim = 32, group = 3, dtype = "f32"' in found.out
    assert "tiny.py" in found.out


# resuming -----------------------------------------------------------------------------------------


def test_from_flow_gives_what_the_whole_way_gives(vortex: Vortex, dump: Path) -> None:
    found = vortex("compile", "--from", "flow", str(dump / "00-trace.flow"), "--to", "page", "--no-dump")
    assert found.out == next(dump.glob("*-schedule.cpu.page")).read_text()


def test_from_page_continues(vortex: Vortex, dump: Path) -> None:
    outlined = str(next(dump.glob("*-outline.page")))
    found = vortex("compile", "--from", "page", outlined, "--to", "page", "--no-dump")
    assert found.out == next(dump.glob("*-schedule.cpu.page")).read_text()


def test_scheduled_page_is_taken_as_it_is(vortex: Vortex, dump: Path) -> None:
    edited = next(dump.glob("*-schedule.cpu.page")).read_text().replace("lanes = 16", "lanes = 8")
    Path("x.page").write_text(edited)
    assert vortex("compile", "x.page", "--to", "page", "--no-dump").out == edited


def test_scheduled_page_keeps_its_target(vortex: Vortex) -> None:
    vortex("compile", "quest", "--target", "sm_90a", "--to", "page", "-o", "x.page", "--no-dump")
    assert vortex("compile", "x.page", "--to", "page", "--no-dump").out == Path("x.page").read_text()
    found = vortex("compile", "x.page", "--target", "cpu", "--no-dump")
    assert found.code == USER_ERROR
    assert "--target cpu: the program was scheduled for sm_90a" in found.err


def test_edited_tir_changes_the_result_and_is_not_overwritten(vortex: Vortex, dump: Path) -> None:
    kernel = dump / "attend.cpu.tir"
    text = kernel.read_text()
    assert "* scale" in text
    kernel.write_text(text.replace("* scale", "* (scale * T.float32(0.5))"))
    found = vortex("compile", "--from", "tir", str(dump), "-o", "edited.vxa")
    assert found.code == 0, found.err
    assert Path("edited.vxa/ir/attend.cpu.tir").read_text() == kernel.read_text()
    found = vortex("run", "edited.vxa")
    assert found.code == 1
    assert "differs from its reference" in found.err
    found = vortex("compile", "quest", "--to", "page", "--dump-dir", str(dump))
    assert found.code == USER_ERROR
    assert "was edited since: attend.cpu.tir" in found.err
    assert "scale * T.float32(0.5)" in kernel.read_text()


def test_tir_that_does_not_parse(vortex: Vortex, dump: Path) -> None:
    (dump / "attend.cpu.tir").write_text("def attend(:\n")
    found = vortex("compile", "--from", "tir", str(dump), "-o", "x.vxa", "--no-dump")
    assert found.code == USER_ERROR
    assert "error[VX4004]" in found.err
    assert "attend" in found.err
    assert not Path("x.vxa").exists()


@pytest.mark.parametrize(
    "content", ["", "[]", '{"dump": 1}', '{"dump": 1, "files": {}, "programs": {}, "kernels": []}']
)
def test_damaged_dump(vortex: Vortex, dump: Path, content: str) -> None:
    (dump / "manifest.json").write_text(content)
    found = vortex("compile", "--from", "tir", str(dump), "-o", "x.vxa")
    assert found.code == USER_ERROR
    assert "error[VX7002]" in found.err


def test_wrong_stage_file(vortex: Vortex, dump: Path) -> None:
    found = vortex("compile", "--from", "page", str(dump / "00-trace.flow"))
    assert found.code == USER_ERROR
    assert "error[VX2009]" in found.err


# mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("qest",), "error[VX1018]"),
        (("nowhere.py",), "error[VX7002]"),
        (("quest", "--heads", "30/8"), "error[VX1021]: 30 query heads do not divide into 8 KV heads"),
        (("quest", "--heads", "many"), "error[VX1021]"),
        (("quest", "--page-size", "0"), "error[VX1021]"),
        (
            ("quest", "--page-size", "64", "--block-size", "24"),
            "error[VX1021]: block_size is 24; a divisor of the page",
        ),
        (("quest", "--dtype", "fp32"), "error[VX1021]: queries in fp32 are not supported; use bf16, f16 or f32"),
        (("quest", "--kv-dtype", "fp8"), "K and V in fp8 under queries in bf16: bf16 or fp8_e4m3 is supported"),
        (("latent_topk", "--latent", "576"), "error[VX1021]: latent '576' is not compressed KV + rotary key"),
        (("latent_topk", "--latent", "512+64", "--heads", "32/8"), "error[VX1021]"),
        (("latent_topk", "--latent", "512+64", "--head-dim", "128"), "error[VX7001]: --head-dim"),
        (("quest", "--latent", "512+64"), "error[VX1022]: page.k is read, but the model shape has MLA"),
        (("latent_topk",), "error[VX1022]: page.latent is read"),
        (("quest", "--target", "cpuu"), "error[VX4001]: no target 'cpuu', did you mean 'cpu'?"),
        (("quest", "--target", "cuda"), "error[VX4001]: no target 'cuda'; there are cpu, sm_90a, sm_100a\n"),
        (("quest", "--target", ","), "error[VX7001]"),
        (("quest", "--passes", "cse,fuss"), "did you mean 'fuse'?"),
        (("quest", "--to", "the-end"), "error[VX7001]: --to: invalid choice: 'the-end'"),
        (("quest", "--to", "page", "--print-after", "nothing", "--no-dump"), "error[VX7001]: --print-after"),
        (("quest", "--no-dump", "--dump-dir", "d"), "error[VX7001]: --no-dump"),
        (("quest", "--group", "4"), "--group: is not an option of 'vortex compile'\n"),
    ],
)
def test_mistakes_leave_nothing_behind(vortex: Vortex, args: tuple[str, ...], message: str) -> None:
    found = vortex("compile", *args)
    assert (found.code, found.out) == (USER_ERROR, "")
    assert message in found.err
    assert entries() == set()


def test_shape_options_do_not_fit_a_resumed_file(vortex: Vortex, dump: Path) -> None:
    found = vortex("compile", str(dump / "00-trace.flow"), "--head-dim", "32")
    assert found.code == USER_ERROR
    assert "--head-dim: is fixed by the flow file that is resumed" in found.err


def test_an_error_in_the_flow_points_at_its_line(vortex: Vortex, flow_file: Path) -> None:
    flow_file.write_text(flow_file.read_text().replace("cache.mean).sum(-1)", "cache.meen).sum(-1)"))
    found = vortex("compile", str(flow_file), "--to", "flow")
    assert found.code == USER_ERROR
    assert "tiny.py:14:" in found.err
    assert "^" in found.err


def test_foreign_files_are_not_deleted(vortex: Vortex) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years of work")
    found = vortex("compile", "quest", "--to", "page", "--dump-dir", "mine")
    assert found.code == USER_ERROR
    assert "thesis.txt" in found.err
    assert {p.name for p in Path("mine").iterdir()} == {"thesis.txt"}


def test_a_second_dump_replaces_the_first(vortex: Vortex) -> None:
    vortex("compile", "quest", "--to", "page", "--dump-dir", "d")
    assert vortex("compile", "quest", "--to", "flow", "--dump-dir", "d").code == 0
    assert not list(Path("d").glob("*.page"))


def test_default_dump_folder_steps_aside_for_an_edited_one(vortex: Vortex) -> None:
    vortex("compile", "quest", "--to", "flow")
    [first] = Path("dumps").iterdir()
    (first / "00-trace.flow").write_text("edited")
    found = vortex("compile", "quest", "--to", "flow")
    assert f"dumps in {first}-2" in found.err
    assert (first / "00-trace.flow").read_text() == "edited"


def test_a_foreign_folder_is_no_artifact_to_replace(vortex: Vortex, dump: Path) -> None:
    Path("mine.vxa").mkdir()
    Path("mine.vxa/thesis.txt").write_text("years of work")
    found = vortex("compile", "--from", "tir", str(dump), "-o", "mine.vxa", "--no-dump")
    assert found.code == USER_ERROR
    assert Path("mine.vxa/thesis.txt").read_text() == "years of work"


def test_a_failed_pass_names_the_dump(vortex: Vortex, monkeypatch: pytest.MonkeyPatch) -> None:
    from vortex.errors import NOT_EMITTABLE

    def refuse(*_: object) -> None:
        raise NOT_EMITTABLE.at(why="no", hint="none")

    monkeypatch.setattr("vortex.codegen.emit.emit_program", refuse)
    found = vortex("compile", "quest", "--to", "tir", "--dump-dir", "d")
    assert found.code == USER_ERROR
    assert "what came before is in d" in found.err
    assert json.loads(Path("d/manifest.json").read_text())["status"] == "failed"


def test_without_tvm_one_sentence(vortex: Vortex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vortex.driver.find_spec", lambda name: None)
    found = vortex("compile", "quest")
    assert found.code == USER_ERROR
    assert "error[VX4003]" in found.err
    assert "pip install 'vortex[compile]'" in found.err


def test_bisect_limit_still_reaches_page_ir(vortex: Vortex) -> None:
    """Quest's bound becomes two contractions in the third pass and the fourth."""
    made = {n: vortex("compile", "quest", "--to", "page", "--no-dump", "--bisect-limit", str(n)) for n in (2, 4, -1)}
    assert "flow.dot" not in made[2].out and "flow.dot" in made[4].out
    assert "pass 4 of 17: reassociate is left out" in made[2].err
    assert made[-1].out == vortex("compile", "quest", "--to", "page", "--no-dump").out
    Path("quest.page").write_text(made[-1].out)
    again = vortex("compile", "--from", "page", "quest.page", "--to", "page", "--no-dump", "--bisect-limit", "0")
    assert again.out == made[-1].out, "what was scheduled gets no pass"
    refused = vortex("compile", "--from", "tir", ".", "--bisect-limit", "1")
    assert refused.code == USER_ERROR
