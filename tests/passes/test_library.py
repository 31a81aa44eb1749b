"""The shipped flows, all the way to page IR: text, meaning, one kernel, one read."""

from __future__ import annotations

import functools

import pytest

from tests.batches import batch, copy, oracle_selection, summarise
from vortex.errors import VortexError
from vortex.flow.flow import find_flow, library_names
from vortex.flow.trace import trace
from vortex.ir.core import Module
from vortex.ir.dialects import page
from vortex.ir.interpret_page import run_program
from vortex.ir.parser import parse_module
from vortex.ir.printer import print_module
from vortex.passes.manager import DEFAULT_PIPELINE, PassContext, run_pipeline
from vortex.spec import Spec

PIPELINE = ",".join(DEFAULT_PIPELINE.values())
LENGTHS = [1, 31, 32, 33, 96, 200, 490]
FLOWS = library_names()


@functools.cache
def traced(name: str) -> Module:
    rank = 12 if name.startswith("latent_") else 0
    return trace(find_flow(name), Spec(page_size=32, head_dim=16, group=4, kv_lora_rank=rank))


@functools.cache
def compiled(name: str) -> Module:
    return run_pipeline(traced(name), PIPELINE, PassContext())


@pytest.mark.parametrize("name", FLOWS)
def test_text_survives_at_both_stages(name: str) -> None:
    for m in (traced(name), compiled(name)):
        text = print_module(m)
        assert print_module(parse_module(text)) == text


def truncated(m: Module, step: int) -> None:
    text = print_module(m)
    for end in range(0, len(text) - 2, step):
        with pytest.raises(VortexError):
            parse_module(text[:end])


@pytest.mark.parametrize("name", FLOWS)
def test_truncations_are_errors(name: str) -> None:
    truncated(traced(name), 1 if name == "quest" else 11)
    truncated(compiled(name), 37)


@pytest.mark.full
@pytest.mark.parametrize("name", FLOWS)
def test_every_truncation_is_an_error(name: str) -> None:
    truncated(traced(name), 1)
    truncated(compiled(name), 1)


@pytest.mark.parametrize("passes", ["outline", PIPELINE], ids=["outlined", "default"])
@pytest.mark.parametrize("name", FLOWS)
def test_selects_as_the_flow_says(name: str, passes: str) -> None:
    """On small integers and on numbers whose scores lie apart: the same pages, ties included."""
    flow = traced(name)
    program = run_pipeline(flow, passes, PassContext())
    b = batch(flow, LENGTHS, integers=name not in ("venergy_gated",), seed=5)
    run_program(program, b)
    want = copy(b)
    summarise(flow, want)
    for r, h in b.rows():
        assert b.pages[r, h, : b.counts[r, h]].tolist() == oracle_selection(flow, want, r, h)


@pytest.mark.parametrize("name", FLOWS)
def test_one_kernel_of_each_kind_and_one_read_of_each_page(name: str) -> None:
    flow, program = traced(name), compiled(name)
    assert [f.attrs["kind"] for f in program.functions.values()] == ["plan", "append", "select", "attend"]
    assert not [d.name for d in program.declared("buffer") if d.attrs["role"] == "workspace"]
    b = batch(flow, LENGTHS, seed=5)
    counts = run_program(program, b)
    filled = sum(n // 32 for n in LENGTHS) * b.heads
    scored = sum(int(n) for n in b.plan[3]) * b.heads
    for pool in (d.name for d in program.declared("buffer") if d.attrs["role"] == "pool"):
        used = any(isinstance(o, page.Load) and o.buffer == pool for o in program.functions["append"].ops)
        assert counts.of("append", pool).read == used * filled * 32 * 16 * 2
    for d in program.declared("buffer"):
        if d.attrs["role"] == "field":
            size = d.type.numel * d.type.dtype.bits // 8  # type: ignore[union-attr]
            assert counts.of("select", d.name).read == scored * size
