"""What ptxas says of the plan, append and select kernels of shipped flows: nothing spills, on any GPU target."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cuda.harness import lower
from vortex.codegen.emit import emit_kernel, parse_tir
from vortex.codegen.nvcc import build_cuda
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace
from vortex.spec import Spec
from vortex.target import TARGETS

SHIPPED = ("block_topk", "quest", "gqa_block", "centered", "lserve", "lserve_centroid", "masked_quest", "venergy_gated")
SHAPES = (Spec(), Spec(page_size=64, head_dim=64, group=16), Spec(page_size=32, head_dim=96, group=5, dtype="f16"))


@pytest.mark.full
@pytest.mark.parametrize("arch", ["sm_90a", "sm_100a"])
def test_nothing_spills(arch: str, tmp_path: Path) -> None:
    """Quest alone: ``test_inspection``."""
    target = TARGETS[arch]
    functions = {}
    for name in SHIPPED:
        for n, spec in enumerate(SHAPES):
            program = lower(trace(find_flow(name), spec), target)
            for kernel in ("plan", "append", "select"):
                made = emit_kernel(program, program.functions[kernel], target)
                functions[f"{made.symbol}_{n}"] = parse_tir(made.text, kernel)
    build = build_cuda(functions, arch, tmp_path / "lib.so")
    assert set(build.resources) == set(functions)
    for name, used in build.resources.items():
        assert used.spills == 0, (name, used)


@pytest.mark.full
@pytest.mark.parametrize("heads", [20, 128])
@pytest.mark.parametrize("name", ["latent_topk", "latent_slim"])
def test_select_over_latent_summaries_does_not_spill(name: str, heads: int, tmp_path: Path) -> None:
    spec = Spec.of_latent("512+64", heads)
    for arch in ("sm_90a", "sm_100a"):
        program = lower(trace(find_flow(name), spec), TARGETS[arch])
        made = emit_kernel(program, program.functions["select"], TARGETS[arch])
        build = build_cuda({made.symbol: parse_tir(made.text, "select")}, arch, tmp_path / f"lib.{arch}.so")
        assert build.resources[made.symbol].spills == 0, (arch, build.resources)
