"""What ptxas says of kernels of shipped flows, as defaults and as shipped tuning results choose: nothing spills."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cuda.harness import lower
from vortex.artifact.folder import read_manifest
from vortex.codegen.build.nvcc import build_cuda
from vortex.codegen.emit import emit_kernel
from vortex.driver import compile_flow
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace
from vortex.passes.manager import DEFAULT_PIPELINE, PassContext, run_pipeline
from vortex.schedules.variants import variants_of
from vortex.spec import Spec
from vortex.targets.target import TARGETS
from vortex.tune import layers
from vortex.tune.choose import Chooser
from vortex.tune.layers import Layers, Lines

SHIPPED = ("block_topk", "quest", "gqa_block", "centered", "lserve", "lserve_centroid", "masked_quest", "venergy_gated")
SHAPES = (Spec(), Spec(page_size=64, head_dim=64, group=16), Spec(page_size=32, head_dim=96, group=5, dtype="f16"))


@pytest.mark.full
@pytest.mark.parametrize("arch", ["sm_90a", pytest.param("sm_100a", marks=pytest.mark.release)])
def test_nothing_spills(arch: str, tmp_path: Path) -> None:
    """Each flow in the usual shape and in one other. Quest alone: ``test_inspection``."""
    target = TARGETS[arch]
    functions, seen = {}, set[str]()
    for i, name in enumerate(SHIPPED):
        for n in (0, 1 + i % 2):
            spec = SHAPES[n]
            program = lower(trace(find_flow(name), spec), target)
            for kernel in ("plan", "append", "select"):
                made = emit_kernel(program, program.functions[kernel], target)
                text = made.text.replace(made.symbol, "kernel")
                if text not in seen:  # plan is the same for all flows
                    functions[f"{made.symbol}_{n}"] = made.function
                    seen.add(text)
    build = build_cuda(functions, arch, tmp_path / "lib.so")
    assert set(build.resources) == set(functions)
    for name, used in build.resources.items():
        assert used.spills == 0, (name, used)


@pytest.mark.full
@pytest.mark.parametrize("heads", [20, pytest.param(128, marks=pytest.mark.release)])
@pytest.mark.parametrize("name", ["latent_topk", "latent_slim"])
def test_select_over_latent_summaries_does_not_spill(name: str, heads: int, tmp_path: Path) -> None:
    spec = Spec.of_latent("512+64", heads)
    for arch in ("sm_90a", "sm_100a"):
        program = lower(trace(find_flow(name), spec), TARGETS[arch])
        made = emit_kernel(program, program.functions["select"], TARGETS[arch])
        build = build_cuda({made.symbol: made.function}, arch, tmp_path / f"lib.{arch}.so")
        assert build.resources[made.symbol].spills == 0, (arch, build.resources)


EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
STEPS = (Spec(), Spec(page_size=64, head_dim=64, group=16), Spec(page_size=64, block_size=16))


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "arch"),
    [
        ("quest_then_mass", "sm_90a"),
        ("quest_then_mass", "sm_100a"),
        ("quest_then_exact", "sm_90a"),
        ("pyramid", "sm_100a"),
    ],
)
def test_select_in_two_steps_does_not_spill(name: str, arch: str, tmp_path: Path) -> None:
    functions = {}
    for n, spec in enumerate(STEPS[2:] if name == "pyramid" else STEPS):
        module = trace(find_flow(str(EXAMPLES / f"{name}.py")), spec)
        # the first with its variants, of which one is for few rows
        context = PassContext(TARGETS[arch], None if n else Chooser(Layers({}), most=4))
        passes = f"{DEFAULT_PIPELINE['flow']},{DEFAULT_PIPELINE['page']}"
        program = run_pipeline(module, passes, context)
        for f in variants_of(program.functions["select"]):
            made = emit_kernel(program, f, TARGETS[arch])
            functions[f"{made.symbol}_{n}"] = made.function
    assert any("_v1_" in symbol for symbol in functions)
    build = build_cuda(functions, arch, tmp_path / "lib.so")
    assert {symbol: used.spills for symbol, used in build.resources.items()} == dict.fromkeys(functions, 0)


FP8 = (
    Spec(kv_dtype="fp8_e4m3"),
    Spec(page_size=32, head_dim=256, group=8, kv_dtype="fp8_e4m3"),
    Spec(page_size=64, group=8, dtype="f16", kv_dtype="fp8_e4m3"),
    Spec(page_size=128, head_dim=64, group=5, kv_dtype="fp8_e4m3"),
)


@pytest.mark.full
@pytest.mark.parametrize("arch", ["sm_90a", "sm_100a"])
def test_attend_over_fp8_does_not_spill(arch: str, tmp_path: Path) -> None:
    functions = {}
    for n, spec in enumerate(FP8):
        program = lower(trace(find_flow("quest"), spec), TARGETS[arch])
        for kernel in ("append", "attend"):
            made = emit_kernel(program, program.functions[kernel], TARGETS[arch])
            functions[f"{made.symbol}_{n}"] = made.function
    build = build_cuda(functions, arch, tmp_path / "lib.so")
    assert {name: used.spills for name, used in build.resources.items()} == dict.fromkeys(functions, 0)


@pytest.mark.full
@pytest.mark.parametrize(("arch", "most"), [("sm_90a", 0), ("sm_100a", 32)])
def test_the_largest_accumulators_over_fp8_spill_little(arch: str, most: int, tmp_path: Path) -> None:
    """16 heads of 256 leave no register over: ptxas puts a few words aside for sm_100a, whatever the ring."""
    spec = Spec(page_size=32, head_dim=256, group=16, kv_dtype="fp8_e4m3")
    program = lower(trace(find_flow("quest"), spec), TARGETS[arch])
    made = emit_kernel(program, program.functions["attend"], TARGETS[arch])
    build = build_cuda({made.symbol: made.function}, arch, tmp_path / "lib.so")
    assert build.resources[made.symbol].spills <= most


@pytest.mark.full
@pytest.mark.parametrize("flow", ["quest", pytest.param("block_topk", marks=pytest.mark.release)])
def test_what_shipped_results_choose_does_not_spill(flow: str, tmp_path: Path) -> None:
    file = Path(layers.__file__).with_name("shipped") / "h200.jsonl"
    choose = Chooser(Layers({"shipped": Lines([file])}), None, 4)
    compile_flow(flow, spec=Spec(), targets=[TARGETS["sm_90a"]], out=tmp_path / "x.vxa", choose=choose)
    kernels = read_manifest(tmp_path / "x.vxa").targets["sm_90a"].kernels
    assert len(kernels) > 4, "variants"
    assert {k.name: k.resources["spills"] for k in kernels} == {k.name: 0 for k in kernels}
