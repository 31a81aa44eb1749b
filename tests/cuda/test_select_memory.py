"""The shared memory that the schedule of ``select`` counts on, beside what the emitter takes; MLA in two steps."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import vortex
from tests.cuda.harness import H200, lower
from tests.cuda.test_append import Gathered
from tests.flow.pages_and_blocks import FLOWS
from tests.flow.shortlists import Latent, ThreeSteps, TwoSteps
from tests.narrow_flows import FLOWS as NARROW
from vortex.codegen.cuda.storage import Arena
from vortex.codegen.emit import emit_kernel
from vortex.errors import VortexError
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace
from vortex.ir.core import Function, Module
from vortex.ir.dialects.flow import Selection, Shortlist
from vortex.schedules.cuda_append import shared_words
from vortex.schedules.cuda_select import lane_groups_of
from vortex.schedules.matrices import matrices_of
from vortex.schedules.select_memory import SelectMemory
from vortex.spec import Spec

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SLACK = 1024
"""Bytes by which the count may be too high; it is never too low."""
CHOICE = 8 << 10
"""Those of a kernel that only scores: room for the choice is counted all the same."""


class Exact(vortex.vFlow):
    """The best token of each of 64 pages whose mean row is best, for any head."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"mean": vortex.Field(spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": page.latent.mean(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        near = vortex.shortlist(cache.mean @ q.mean(0), pages=64)
        return vortex.topk((cache.latent[near] @ q.T).amax((1, 2)))


class BoundThenMass(Exact):
    """Quest's bound for every head, and then the mass of 64 pages by their rows, of scaled queries."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"lo": vortex.Field(spec.head_dim), "hi": vortex.Field(spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"lo": page.latent.amin(0), "hi": page.latent.amax(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        bound = torch.maximum(q * cache.lo[:, None], q * cache.hi[:, None]).sum(-1)
        near = vortex.shortlist(bound.amax(-1), pages=64)
        scaled = q * q.shape[-1] ** -0.5
        logits = torch.einsum("spd,gd->spg", cache.latent[near], scaled)
        return vortex.topk(torch.logsumexp(logits, 1).softmax(0).sum(-1))


def taken(program: Module, name: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes that the emitter hands out."""
    found: list[int] = []
    opened = Arena.open

    def open(self: Arena, *words: Any) -> None:
        found.append(4 * self.words)
        opened(self, *words)

    with monkeypatch.context() as patch:
        patch.setattr(Arena, "open", open)
        emit_kernel(program, program.functions[name], H200)
    return found[0]


def counted(program: Module, name: str) -> int:
    """Bytes that the schedule counts on."""
    f = program.functions[name]
    memory = SelectMemory.of(program, f, lane_groups_of(program, f), matrices_of(program, f))
    knobs = f.attrs["schedule"]
    return 4 * memory.words(int(knobs["threads"]), int(knobs["chip_words"]))


BLOCKS = Spec(page_size=64, block_size=16)
LARGER: list[tuple[str | type[vortex.vFlow], Spec, dict[str, int]]] = [
    ("block_topk", Spec(page_size=64), {"chip_words": 0}),
    ("quest", Spec(page_size=128, head_dim=256, group=1), {"chip_words": 0}),
]
"""Of pages whose rows, which ``append`` has in shared memory, are more than all else that ``select`` has there."""
CASES: list[tuple[str | type[vortex.vFlow], Spec, dict[str, int]]] = [
    ("quest", Spec(), {}),
    ("quest", Spec(head_dim=80, group=7, page_size=8, dtype="f16"), {"threads": 96}),
    ("mass", Spec(), {}),
    ("mass_lowrank", Spec(group=8), {"threads": 128}),
    ("masked_quest", Spec(kv_dtype="fp8_e4m3"), {}),
    ("latent_topk", Spec.of_latent(heads=20), {}),
    ("latent_quest", Spec.of_latent(heads=128, page_size=64), {"threads": 512, "residents": 1}),
    (str(EXAMPLES / "quest_then_mass.py"), Spec(), {}),
    (str(EXAMPLES / "pyramid.py"), BLOCKS, {}),
    (str(EXAMPLES / "twilight.py"), BLOCKS, {"chip_words": 0}),
    (TwoSteps, Spec(head_dim=32), {"threads": 1024, "residents": 1}),
    (ThreeSteps, Spec(page_size=4, head_dim=16, group=1, dtype="f32"), {"threads": 32}),
    (Latent, Spec.of_latent("64+64", 4, page_size=4), {}),
    (Exact, Spec.of_latent(heads=16), {}),
    *LARGER,
]


@pytest.mark.parametrize(("flow", "spec", "knobs"), CASES)
def test_what_is_counted_is_taken(
    flow: str | type[vortex.vFlow], spec: Spec, knobs: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = lower(trace(find_flow(flow) if isinstance(flow, str) else flow, spec), H200)
    kernels = [f for f in program.functions.values() if f.attrs["kind"] == "select"]
    for f in kernels:
        f.attrs["schedule"] = {**f.attrs["schedule"], **knobs}
        over = counted(program, f.name) - taken(program, f.name, monkeypatch)
        chooses = any(isinstance(o, Selection | Shortlist) for o in f.ops)
        assert 0 <= over <= (SLACK if chooses else CHOICE)


def own(program: Module, f: Function) -> SelectMemory:
    """The memory of a ``select`` that takes in no tokens."""
    return replace(SelectMemory.of(program, f, lane_groups_of(program, f), matrices_of(program, f)), appended=0)


@pytest.mark.parametrize(("flow", "spec", "knobs"), LARGER)
def test_rows_of_a_page_may_be_what_a_cta_needs_most_room_for(
    flow: str, spec: Spec, knobs: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is counted is then what is taken, to the word."""
    program = lower(trace(find_flow(flow), spec), H200)
    f = program.functions["select"]
    f.attrs["schedule"] = {**f.attrs["schedule"], **knobs}
    appended = 4 * shared_words(program, program.functions["append"])
    assert counted(program, "select") == taken(program, "select", monkeypatch) == appended
    assert 4 * own(program, f).words(int(f.attrs["schedule"]["threads"]), 0) < appended


@pytest.mark.parametrize(
    ("flow", "spec"),
    [
        ("quest", Spec()),
        ("quest", Spec(kv_dtype="fp8_e4m3", page_size=64)),
        ("venergy_gated", Spec(head_dim=80, dtype="f16")),
        ("gqa_block", Spec(dtype="f32", page_size=4, head_dim=16)),
        ("latent_topk", Spec.of_latent(heads=20, page_size=64)),
        ("masked_quest", BLOCKS),
        (str(EXAMPLES / "pyramid.py"), BLOCKS),
        (str(EXAMPLES / "twilight.py"), BLOCKS),
        (str(EXAMPLES / "quest_then_mass.py"), Spec()),
        (Gathered, Spec(page_size=8, head_dim=64)),
        *((f, Spec(page_size=16, head_dim=64)) for f in NARROW.values()),
        *((f, Spec(page_size=32, block_size=16, head_dim=64)) for f in FLOWS.values()),
    ],
)
def test_rows_of_pages_that_append_reads_are_counted(
    flow: str | type[vortex.vFlow], spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a page, of a block, and of both; values of them that need a tile."""
    program = lower(trace(find_flow(flow) if isinstance(flow, str) else flow, spec), H200)
    f = program.functions["append"]
    assert 4 * shared_words(program, f) == taken(program, f.name, monkeypatch)


@pytest.mark.parametrize(("flow", "heads"), [(Exact, 16), (Exact, 20), (BoundThenMass, 16)])
def test_mla_in_two_steps_fits(flow: type[vortex.vFlow], heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of a row's pages gives way to the row's own numbers, which 16 and 20 heads have many of."""
    program = lower(trace(flow, Spec.of_latent(heads=heads)), H200)
    assert taken(program, "select", monkeypatch) <= 232448


@pytest.mark.parametrize(
    ("flow", "heads", "page", "line", "way"),
    [
        (Exact, 128, 64, "amax((1, 2))", "[64, 128] numbers of each of 8 pages are kept here"),
        (BoundThenMass, 20, 64, "scaled =", "[20, 576] numbers of the row are kept here: scale products rather"),
        (BoundThenMass, 128, 16, "scaled =", "[128, 576] numbers of the row are kept here: scale products rather"),
    ],
)
def test_mla_in_two_steps_that_no_cta_has_room_for(
    flow: type[vortex.vFlow], heads: int, page: int, line: str, way: str
) -> None:
    program = lower(trace(flow, Spec.of_latent(heads=heads, page_size=page)), H200)
    with pytest.raises(VortexError, match="VX4006") as found:
        emit_kernel(program, program.functions["select"], H200)
    assert way in str(found.value)
    lines, first = inspect.getsourcelines(flow)
    assert found.value.loc is not None
    assert line in lines[found.value.loc.line - first]
