"""An artifact for two GPUs: schedules of their own, nothing spills, what it keeps to look at."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from vortex.artifact.folder import read_manifest
from vortex.artifact.manifest import Manifest
from vortex.budget import Budget
from vortex.cli.cross import cross_compile
from vortex.cli.main import main
from vortex.codegen.build.resources import KernelResources
from vortex.compilation.kin import kin
from vortex.compilation.stored import read_stored
from vortex.driver import compile_flow
from vortex.schedules import cuda_attend as attend_knobs
from vortex.schedules import cuda_select as select_knobs
from vortex.schedules.check import described
from vortex.spec import Spec
from vortex.targets.gpu import B200, H200, MACHINES
from vortex.targets.target import TARGETS

pytestmark = pytest.mark.xdist_group("gpu artifact")
GPUS = ("sm_90a", "sm_100a")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The artifact and the dump of its compilation."""
    folder = tmp_path_factory.mktemp("gpus")
    targets = [TARGETS[name] for name in GPUS]
    compile_flow("quest", targets=targets, out=folder / "quest.vxa", dump=folder / "dump")
    return folder / "quest.vxa", folder / "dump"


@pytest.fixture
def manifest(made: tuple[Path, Path]) -> Manifest:
    return read_manifest(made[0])


def test_nothing_spills_and_knobs_differ(manifest: Manifest) -> None:
    knobs = {}
    for gpu in GPUS:
        for k in manifest.targets[gpu].kernels:
            assert k.resources["spills"] == 0, (gpu, k.name)
            knobs[gpu, k.kind] = k.schedule
    for kind, names in {"attend": ("stages", "warps"), "append": ("threads",)}.items():
        assert any(knobs[GPUS[0], kind][n] != knobs[GPUS[1], kind][n] for n in names), kind


def test_limiters(manifest: Manifest) -> None:
    for gpu in GPUS:
        found = {k.kind: k.resources for k in manifest.targets[gpu].kernels}
        assert found["attend"]["limiter"] == found["select"]["limiter"] == "memory"
        assert found["attend"]["needed"] == MACHINES[gpu].bytes_needed
        assert found["plan"]["limiter"] == "latency"


def test_a_dump_has_every_text(made: tuple[Path, Path]) -> None:
    for gpu in GPUS:
        for kernel in ("plan", "append", "select", "attend"):
            assert "__global__" in (made[1] / f"{kernel}.{gpu}.cu").read_text()
            assert f".target {gpu}" in (made[1] / f"{kernel}.{gpu}.ptx").read_text()
        said = (made[1] / f"{gpu}.resources.txt").read_text()
        assert "quest_attend" in said and "registers" in said
        assert (made[1] / f"select.{gpu}.sass").exists() != ("pip install triton" in said)


def say(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = main(["info", *args])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_texts_of_a_kernel(made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = str(made[0])
    assert say(capsys, path, "--kernel", "plan")[1] == (made[1] / "plan.sm_100a.cu").read_text()
    ptx = say(capsys, path, "--kernel", "select", "--target", "sm_90", "--ptx")[1]
    assert ptx == (made[1] / "select.sm_90a.ptx").read_text()


def test_machine_code(
    made: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "cuobjdump"
    functions = "".join(
        f"Fatbin elf code:\n====\n\t\tFunction : quest_{k}_kernel\n\t{k} code\n" for k in ("plan", "append")
    )
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{functions}END\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    code, said, _ = say(capsys, str(made[0]), "--kernel", "plan", "--sass")
    assert (code, said) == (0, "\t\tFunction : quest_plan_kernel\n\tplan code\n")
    code, _, error = say(capsys, str(made[0]), "--kernel", "attend", "--sass")
    assert code and "VX4005" in error and "no function quest_attend_kernel" in error


def test_no_inspector_says_how_to_get_one(
    made: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vortex.codegen.build.toolkit.find_inspector", lambda name: None)
    code, _, error = say(capsys, str(made[0]), "--kernel", "attend", "--sass")
    assert code and "VX4008" in error and "pip install triton" in error


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--kernel", "atend"), "did you mean 'attend'"),
        (("--ptx",), "a kernel must be named"),
        (("--kernel", "plan", "--target", "cpu"), "no such target"),
    ],
)
def test_mistakes(
    made: tuple[Path, Path], capsys: pytest.CaptureFixture[str], args: tuple[str, ...], words: str
) -> None:
    code, _, error = say(capsys, str(made[0]), *args)
    assert code and "VX7001" in error and words in error


def test_info_names_what_memory_does_not_limit(made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    said = say(capsys, str(made[0]))[1]
    line = next(x for x in said.splitlines() if x.startswith("predicted to wait"))
    assert "plan on sm_90a (latency)" in line and "attend" not in line


def test_explain_says_the_same_of_a_dump_and_an_artifact(
    made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for path in made:
        assert main(["explain", str(path), "--json"]) == 0
        said.append(json.loads(capsys.readouterr().out))
    assert said[0] == said[1]
    assert [e["target"] for e in said[0]] == list(GPUS)
    for e in said[0]:
        by_rule = {(r["rule"], r["kernel"]): r for r in e["remarks"]}
        assert by_rule["tensor-cores", "select"]["sort"] == "passed"
        assert by_rule["tensor-cores", "select"]["file"].endswith("quest.py")
        assert by_rule["limiter", "select"]["message"].startswith("select waits for memory, ")
        assert by_rule["fusion", "append"]["message"].startswith("3 kernels became append: ")
        assert "from a tuning database: there is no database" in by_rule["knobs", "attend"]["message"]
        assert e["no_resources"] == ""
    assert main(["explain", str(made[0]), "--kernel", "attend", "--target", "sm_90"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("quest for sm_90a: attend\n") and "[tensor-cores]" not in out


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("--kernel", "atend"), "VX7001", "did you mean 'attend'"),
        (("--target", "cpu"), "VX7001", "has nothing for cpu"),
        (("--page-size", "32"), "VX7001", "is fixed by"),
    ],
)
def test_what_explain_refuses(
    made: tuple[Path, Path], capsys: pytest.CaptureFixture[str], args: tuple[str, ...], code: str, words: str
) -> None:
    assert main(["explain", str(made[0]), *args]) == 2
    error = capsys.readouterr().err
    assert code in error and words in error


def test_costs_at_a_shape(made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """By hand: 1020 of 1023 pages are scored, of two summaries of 128 bf16, by 4 heads of each of 16 rows."""
    at = ("--shape", "batch=2,tokens=16368,kept=30")
    found = json.loads(say(capsys, str(made[0]), *at, "--json")[1])
    assert found["shape"] == {"batch": 2, "kv_heads": 8, "tokens": 16368, "kept": 30}
    kernels = {k["kernel"]: k for k in found["targets"]["sm_90a"]["kernels"]}
    assert found["targets"]["sm_100a"]["gpu"] == "B200"
    # queries and the plan of a row are read as well
    assert kernels["select"]["read"] == pytest.approx(16 * (1020 * 512 + 4 * 256), rel=1e-3)
    assert kernels["select"]["flops"] == 16 * (1020 * (2 * 2 * 4 * 128 + 2 * 4) + 2 * 4 * 128)
    assert kernels["attend"]["flops"] == 16 * 30 * 16 * 2 * 4 * 256
    assert 5 < kernels["attend"]["microseconds"] < kernels["select"]["microseconds"] < 12
    assert kernels["attend"]["limiter"] in ("memory", "latency")
    assert "committed measurements of select" in kernels["select"]["worth"]
    assert kernels["plan"]["worth"] == ""
    layer = sum(kernels[k]["microseconds"] for k in ("append", "select", "attend")) - 3
    assert found["targets"]["sm_90a"]["microseconds"] == pytest.approx(layer, abs=0.02), "append has no launch"
    assert all(k["off"] == (k["kernel"] != "plan") for k in found["targets"]["sm_100a"]["kernels"])
    text = say(capsys, str(made[0]), *at, "--target", "sm_90", "--gpu", "B200")[1]
    assert "select (unsure): no prediction for B200 was ever held against a measurement" in text
    assert "quest for sm_90a on B200, predicted: batch=2,kv_heads=8,tokens=16368,kept=30" in text
    assert "append has no launch of its own, for select takes it in" in text


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--shape", "batch=2"), "it lacks 'tokens'"),
        (("--shape", "batch=0,tokens=8"), "batch"),
        (("--shape", "batch=2,tokens=8", "--gpu", "A100"), "'A100' is no GPU that is known"),
        (("--shape", "batch=2,tokens=8", "--target", "cpu"), "has no kernels for cpu"),
        (("--gpu", "B200"), "is what --shape predicts for"),
        (("--shape", "batch=2,tokens=8", "--ptx"), "prints no text of a kernel"),
    ],
)
def test_costs_that_cannot_be_told(
    made: tuple[Path, Path], capsys: pytest.CaptureFixture[str], args: tuple[str, ...], words: str
) -> None:
    code, _, error = say(capsys, str(made[0]), *args)
    assert code == 2 and words in error


def test_what_the_demo_says_of_a_gpu(made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    budget = Budget(pages=29)
    lengths = [16 * 1000, 16 * 1000 + 1, 100]
    cross_compile("quest", Spec(), "sm_100a", kv_heads=8, budget=budget, lengths=lengths)
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line}
    # 997 and 998 pages are scored, of 2 summaries of 128 bf16; 32 and 32 and 7 are read, K and V of 16 tokens
    assert float(rows["select"][-2]) == pytest.approx(8 * (997 + 998) * 512 / 1e6, abs=0.01)
    assert float(rows["attend"][-2]) == pytest.approx(8 * 71 * 8192 / 1e6, abs=0.01)
    assert float(rows["attend"][-1]) == pytest.approx(8 * 71 * 8192 / 8e6, abs=0.01)


@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
def test_rings_cover_the_latency(dim: int) -> None:
    for page in (8, 16, 64):
        shape = attend_knobs.AttendShape(4, dim, dim, page)
        for machine in (H200, B200):
            knobs = attend_knobs.choose(shape, {}, machine)
            assert knobs.fits(shape)
            assert knobs.of_sm(shape, machine) >= machine.cover * machine.bytes_needed
        assert attend_knobs.choose(shape, {"warps": 4, "stages": 2}, B200).stages == 2


def test_select_loads_further_ahead_where_registers_are_left() -> None:
    for words in (1, 3):
        h200, b200 = (select_knobs.default(words, m) for m in (H200, B200))
        assert b200.residents * b200.in_flight_bytes(matrices=False) >= B200.bytes_needed
        assert b200.unpacked == 2 * h200.unpacked
        assert select_knobs.default(words, B200, roomy=False) == h200


@pytest.mark.parametrize(("heads", "limiter"), [(20, "memory"), (128, "compute")])
def test_many_heads_over_latent_rows_wait_for_the_tensor_cores(heads: int, limiter: str) -> None:
    spec = Spec.of_latent("512+64", heads)
    target = TARGETS["sm_100a"]
    program = compile_flow("latent_topk", spec=spec, targets=[target], to="page").programs[target.name]
    f = program.functions["attend"]
    schedule = described(program, f, target)
    flight = schedule["bytes_in_flight"]
    assert isinstance(flight, int)
    used = KernelResources("sm_100a", 128, 0, 0, 0, 60 << 10, 128)
    assert used.report({**schedule, "bytes_in_flight": 2 * flight})["limiter"] == limiter


def test_threads_of_append_follow_the_machine() -> None:
    made = compile_flow("quest", targets=[TARGETS["sm_90a"], TARGETS["sm_100a"]], to="page").programs
    h200, b200 = (made[t].functions["append"].attrs["schedule"]["threads"] for t in ("sm_90a", "sm_100a"))
    assert h200 < b200


def test_ptx_and_machine_code_lead_back_to_the_flow(made: tuple[Path, Path]) -> None:
    stored = read_stored(made[0])
    [select] = [k for k in stored.kernels if (k.name, k.target) == ("select", "sm_90a")]
    found = kin(stored, select)
    assert {("source", "mma"), ("ptx", "mma.sync")} <= {(what, word) for what, word in _MULTIPLY if what in found.texts}
    for what, word in _MULTIPLY:
        if what not in found.texts:
            assert what == "sass" and "nvdisasm" in found.unknown[what]
            continue
        lines = zip(found.texts[what].text.splitlines(), found.texts[what].values, strict=True)
        assert {v for text, v in lines if word in text and (what != "source" or ";  //" in text)} == {
            ("bound_a",),
            ("bound_b",),
        }, what


def test_ptx_with_lines_of_the_flow_in_a_terminal(made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    info = ["info", str(made[0]), "--kernel", "select", "--target", "sm_90a"]
    assert main([*info, "--ptx", "--locs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    said = {line.partition("  // ")[2] for line in lines if "mma.sync" in line}
    assert len(said) == 2 and all(re.fullmatch(r"%bound_[ab] @ quest\.py:\d+", x) for x in said), said
    assert main([*info, "--ptx"]) == 0
    plain = capsys.readouterr().out.splitlines()
    assert [line.partition("  // %")[0] for line in lines] == plain
    assert main([*info, "--locs"]) == 2
    assert "VX7001" in capsys.readouterr().err


_MULTIPLY = (("source", "mma"), ("ptx", "mma.sync"), ("sass", "HMMA"))
"""What multiplies on tensor cores, by text."""
