"""What a report says of a compilation, held to its IR and to sums by hand."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest

from tests.report.conftest import EINSUM, FLOW, SHAPE, Made
from vortex.compilation.stored import Stored, read_stored
from vortex.ir.core import Module
from vortex.ir.parser import parse_module
from vortex.ir.printer import print_module
from vortex.report.compilation import Request, describe
from vortex.report.model import Compilation
from vortex.tune.layers import Layers

ROWS, PAGES = SHAPE.batch * SHAPE.kv_heads, SHAPE.tokens // 16


def ops(module: Module) -> int:
    return sum(len(f.ops) for f in module.functions.values())


def test_steps_are_those_of_the_dump(stored: Stored, compilation: Compilation) -> None:
    assert [s.name for s in compilation.steps] == [s.name for s in stored.steps]
    assert [s.changed for s in compilation.steps] == [s.changed for s in stored.steps]
    for told, s in zip(compilation.steps, stored.steps, strict=True):
        if s.changed:
            module = parse_module(s.text, s.name)
            assert told.ops == ops(module), s.name
            # the text is the IR without its locations, lines of heads aside, which are wrapped
            mine = "".join(compilation.texts[told.text].lines).replace(" ", "")
            assert mine == print_module(module, locs=False).replace("\n", "").replace(" ", "")
    outline = next(s for s in compilation.steps if s.name == "outline")
    assert outline.added["page.attend"] == 1
    assert outline.removed == {"flow.return": 2}


def test_a_step_that_changed_nothing_shows_what_was_before(compilation: Compilation) -> None:
    for before, after in zip(compilation.steps, compilation.steps[1:], strict=False):
        if not after.changed and before.target == after.target:
            assert after.text == before.text
            assert not after.added
            assert not after.removed


def test_every_op_has_its_line_of_the_flow(stored: Stored, compilation: Compilation) -> None:
    for told, s in zip(compilation.steps, stored.steps, strict=True):
        if not s.changed:
            continue
        text = compilation.texts[told.text]
        located = [o.loc for f in parse_module(s.text, s.name).functions.values() for o in f.ops if o.loc]
        spans = {(p.line, p.col, p.end, p.call) for n in text.places for p in map(compilation.places.__getitem__, n)}
        assert spans >= {(loc.line, loc.col, loc.end, loc.call) for loc in located}, s.name
    last = compilation.texts[compilation.steps[-1].text]
    line = next(n for n, x in enumerate(last.lines) if "flow.dot" in x)
    [place] = last.places[line]
    assert compilation.places[place].line == EINSUM
    load = next(n for n, x in enumerate(last.lines) if 'page.load() {buffer = "kq"}' in x)
    assert last.places[load] == last.places[line], "a load is there for what takes it"


def test_the_source_is_the_flow(compilation: Compilation) -> None:
    [source] = compilation.sources
    assert source.lines == tuple(FLOW.splitlines())


def test_kernels_texts_know_their_lines(compilation: Compilation) -> None:
    select = next(k for k in compilation.kernels if k.name == "select" and k.target == "sm_90a")
    text = compilation.texts[select.texts[0]]
    assert text.language == "tir"
    of = {compilation.places[p].line for line in text.places for p in line}
    assert EINSUM in of
    attend = next(k for k in compilation.kernels if k.name == "attend" and k.target == "sm_90a")
    assert not any(compilation.texts[attend.texts[0]].places)


def test_bytes_and_arithmetic_are_those_counted_by_hand(compilation: Compilation) -> None:
    cost = next(k.cost for k in compilation.kernels if k.name == "select" and k.target == "sm_90a")
    assert cost
    scored = PAGES - 3
    assert cost.buffers["kq"] == ROWS * scored * 16 * 128
    assert cost.buffers["q"] == ROWS * 4 * 128 * 2
    contraction = 2.0 * 16 * 128 * 4 * scored * ROWS
    assert contraction <= cost.flops <= 1.05 * contraction
    attend = next(k.cost for k in compilation.kernels if k.name == "attend" and k.target == "sm_90a")
    assert attend
    assert attend.buffers["k"] == attend.buffers["v"] == ROWS * SHAPE.kept * 16 * 128 * 2
    assert attend.flops == ROWS * 4.0 * SHAPE.kept * 16 * 128 * 4
    assert cost.microseconds["B200"] < cost.microseconds["H200"]
    assert cost.off == {"H200": False, "B200": True}
    assert "committed measurements of select of little work" in cost.worth["H200"]
    assert cost.worth["B200"] == "no prediction for B200 was ever held against a measurement"


def test_what_ran_on_scalar_units_is_told_with_its_line(stored: Stored, compilation: Compilation) -> None:
    """As mass_fp8 compiled on 26 November: a kernel without mma that spills and is alone on its SM."""
    assert not [r for r in compilation.remarks if r.rule == "tensor-cores" and r.sort == "missed"]
    took = {
        "registers": 128, "spills": 236, "static_shared": 0, "dynamic_shared": 140672, "threads": 256, "ctas": 1,
        "warps": 8, "bound_by": "shared memory", "occupancy": 0.125, "in_flight": 16384, "needed": 29090,
        "limiter": "latency",
    }  # fmt: skip
    kernels = tuple(
        replace(k, texts={"source": "__global__ void select() {}"}, resources=took)
        if (k.name, k.target) == ("select", "sm_90a")
        else k
        for k in stored.kernels
    )
    told = describe(replace(stored, kernels=kernels), Request(SHAPE, Layers({})))
    first, beside, change = told.verdict[:3]
    assert f"script>.py line {EINSUM}" in first
    assert "logits = torch.einsum" in first
    assert "scalar units" in first
    assert "236 bytes" in beside
    assert "shared memory" in beside
    assert "the choice of scalar units has to change" in change
    cost = next(k.cost for k in told.kernels if k.name == "select" and k.target == "sm_90a")
    assert cost and cost.limiter["H200"] == "scalar arithmetic" and cost.off["H200"]
    assert "very shape" not in cost.worth["H200"]


def test_a_measurement_of_the_reports_shape_is_told_without_a_file(stored: Stored) -> None:
    """Of kernels that no flow has a part in, and that have no instruction of tensor cores."""
    at = replace(SHAPE, batch=32, tokens=32768)
    plain = {"texts": {"source": "__global__ void k() {}"}, "resources": {"ctas": 2}}
    kernels = tuple(replace(k, **plain) for k in stored.kernels)  # type: ignore[arg-type]
    told = describe(replace(stored, kernels=kernels), Request(at, Layers({})))
    cost = next(k.cost for k in told.kernels if k.name == "attend" and k.target == "sm_90a")
    assert cost and cost.worth["H200"].startswith("measured at this very shape")


def test_an_artifact_says_what_its_dump_says(made: Made, compilation: Compilation) -> None:
    told = describe(read_stored(made.artifact), Request(SHAPE, Layers({})))
    assert told.identity["artifact"] == read_stored(made.artifact).digest
    assert told.identity["flow IR"] == compilation.identity["flow IR"]
    assert told.sources == compilation.sources
    assert not told.steps
    mine, its = (next(k.cost for k in c.kernels if k.name == "select") for c in (told, compilation))
    assert mine == its


def test_a_failed_compilation_tells_what_there_was(stored: Stored) -> None:
    partial = replace(
        stored, steps=stored.steps[:12], programs={}, kernels=(), status="failed", error="error[VX4006]: too large"
    )
    told = describe(partial, Request(SHAPE, Layers({})))
    assert told.verdict == ("The compilation failed: error[VX4006]: too large",)
    assert told.drawings, "the last page IR is drawn"
    assert not told.kernels


@pytest.mark.parametrize("cut", range(0, 13, 4))
def test_any_number_of_steps_is_enough(stored: Stored, cut: int) -> None:
    partial = replace(stored, flow="", steps=stored.steps[:cut], programs={}, kernels=(), status="running")
    assert len(describe(partial, Request(SHAPE, Layers({}))).steps) == cut


def test_a_program_that_cannot_be_assessed_is_not_called_fast(stored: Stored) -> None:
    kernels = tuple(replace(k, schedule={}) for k in stored.kernels)
    program = stored.programs["sm_90a"]
    for f in (broken := deepcopy(program)).functions.values():
        f.attrs["schedule"] = {}
    partial = replace(stored, kernels=kernels, programs={"sm_90a": broken})
    told = describe(partial, Request(SHAPE, Layers({}))).verdict
    assert told[0].startswith("Nothing is known of the speed of what is for sm_90a: kernel @")
