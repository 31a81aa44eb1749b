"""Flows that the generator found to be computed wrongly, made small."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import vortex
from tests.generated.program import Line, Program, Var
from tests.generated.stages import PIPELINES, Stage, agree, interpreted, on_cpu, on_gpu
from vortex.errors import VortexError
from vortex.flow.trace import trace
from vortex.passes.manager import PassContext, run_pipeline
from vortex.targets.target import TARGETS

SPEC = vortex.Spec(page_size=4, head_dim=16, group=2)
MOST = Var("c0", (16,))
UNFUSED = 2
"""A seed for which on_cpu makes a kernel of each op."""


def flow(*lines: tuple[str, str], seed: int = 0, spec: vortex.Spec = SPEC) -> Program:
    """The flow of these lines of forward_indexer, given with the names they make; ``cache.f0`` is the largest key."""
    index = tuple(Line(Var(name), text) for name, text in lines)
    cache = (Line(MOST, "page.k.amax(0)"),)
    budget = vortex.Budget(2, sink=1, recent=1)
    return Program(seed, spec, budget, (), {"f0": "vortex.Field(16)"}, cache, {"f0": MOST}, index, index[-1].var)


def test_bools_between_kernels() -> None:
    """They are words of the workspace there; reading them died in the emitter."""
    program = flow(
        ("x0", "cache.f0.amax(-1) > q.amax()"), ("x1", "q.sum() > 0"),
        ("x2", "vortex.topk((x0 & x1).float() + cache.f0[:, 0])"), seed=UNFUSED,
    )  # fmt: skip
    agree([program], interpreted, on_cpu)


@pytest.mark.parametrize("stage", [on_cpu, on_gpu])
def test_constants_that_are_stored(stage: Stage) -> None:
    """TVM's CUDA C++ takes the address of a number to round it, which no compiler allows."""
    program = flow(
        ("x0", "cache.f0[:, 0] + cache.f1[:, 1] + cache.f2[:, 1] + cache.f3[:, 3]"),
        ("x1", "torch.full((), 3.3)"), ("x2", "vortex.topk(x0 + cache.s0)"),
    )  # fmt: skip
    made = {"f1": ("torch.full((2,), 2.7)", 'dtype="fp8_e4m3"'), "f2": ("torch.full((2,), 3).int()", 'dtype="int4"')}
    made["f3"] = ("torch.full((4,), -0.3)", 'dtype="bf16"')
    fields, lines, written = dict(program.fields), list(program.cache), dict(program.written)
    for name, (text, how) in made.items():
        v = Var(f"c{len(lines)}", (4 if name == "f3" else 2,))
        lines.append(Line(v, text))
        written[name], fields[name] = v, f"vortex.Field({v.shape[0]}, {how})"
    fields["s0"] = 'vortex.Field(dtype="fp8_e4m3", state="request", init=1)'
    state = {"s0": program.index[1].var}
    agree([replace(program, fields=fields, cache=tuple(lines), written=written, state=state)], stage)


def test_state_that_is_a_half_beside_three_heads() -> None:
    """A variable of the kernel was called half, and from there on a cast to that type was none."""
    program = flow(("x0", "vortex.topk((cache.f0 @ q.T).sum(-1))"), spec=replace(SPEC, group=3))
    fields = {"f0": 'vortex.Field(16, dtype="int8", scale=())', "s0": 'vortex.Field(16, dtype="f16", state="page")'}
    agree([replace(program, fields=fields, state={"s0": Var("cache.f0", ("S", 16))})], on_gpu)


def test_what_another_kernel_reads_of_state_that_is_written() -> None:
    """Its copy stood after the write of it where other state is made later in the kernel."""
    program = flow(
        ("x0", "F.pad(cache.s0[None], (1, 1)).unfold(-1, 3, 1)[0]"), ("x1", "vortex.shortlist(x0.sum(1), pages=17)"),
        ("x2", "(q.amax(0) + cache.s1).round()"), ("x3", "vortex.topk(x0[x1].amax(-1))"), seed=1,
    )  # fmt: skip
    fields = {n: f'vortex.Field({d}dtype="bf16", state="{per}", init=-2)'
              for n, d, per in (("s0", "", "page"), ("s1", "16, ", "request"))}  # fmt: skip
    state = {"s0": Var("cache.s0", ("S",)), "s1": Var("x2", (16,))}
    agree([replace(program, fields=fields, cache=(), written={}, state=state)], interpreted)


def test_latent_rows_that_no_gpu_kernel_takes() -> None:
    """The error advised to leave knobs out where none were given."""

    class Rows(vortex.vFlow):
        def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
            return {"top": vortex.Field(spec.head_dim)}

        def forward_cache(self, page: Any) -> dict[str, Any]:
            return {"top": page.latent.amax(0)}

        def forward_indexer(self, q: Any, cache: Any) -> Any:
            return vortex.topk((cache.top * q[0]).sum(-1))

    module = trace(Rows, vortex.Spec.of_latent("8+8", 2, page_size=4))
    with pytest.raises(VortexError, match=r"(?s)VX4006.*rows of 16 numbers.*multiples of 64.*compile for the CPU"):
        run_pipeline(module, PIPELINES[0], PassContext(TARGETS["sm_90a"]))
