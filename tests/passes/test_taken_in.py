"""Whether ``select`` takes in new tokens is decided by ``schedule`` alone, and the page program says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vortex.codegen.emit import emit_program
from vortex.driver import compile_flow
from vortex.errors import VortexError
from vortex.ir import digest
from vortex.ir.core import Attr, Module
from vortex.ir.parser import parse_module
from vortex.ir.printer import print_module
from vortex.schedules.check import check_program
from vortex.schedules.taken_in import takes_in_tokens
from vortex.targets.target import TARGETS

GPU = TARGETS["sm_90a"]
EMA = str(Path(__file__).resolve().parents[2] / "examples" / "query_ema.py")
SPLIT = "outline,expand-softmax,fuse{max-live=0},cse,dce,plan-memory,schedule"


def scheduled(flow: str = "quest", target: str = GPU.name, passes: str | None = None) -> Module:
    return compile_flow(flow, targets=[TARGETS[target]], passes=passes, to="page").programs[target]


def said(program: Module) -> dict[str, Attr]:
    """What each kernel takes in, of those that take in anything."""
    return {f.name: f.attrs["takes_in"] for f in program.functions.values() if "takes_in" in f.attrs}


def test_the_program_says_it_and_the_kernel_has_the_arguments() -> None:
    program = scheduled()
    assert said(program) == {"select": "append"} and takes_in_tokens(program)
    kernels = emit_program(program, GPU.name)
    assert {"k_new", "v_new", "loc", "row_offsets"} <= set(kernels["select"].args)
    assert print_module(parse_module(print_module(program))) == print_module(program)


def test_without_it_append_is_launched() -> None:
    program = scheduled()
    del program.functions["select"].attrs["takes_in"]
    program = parse_module(print_module(program))
    assert not takes_in_tokens(program)
    kernels = emit_program(program, GPU.name)
    assert "row_offsets" in kernels["append"].args
    assert not {"k_new", "v_new", "loc", "row_offsets"} & set(kernels["select"].args)
    assert digest.structural(program) == digest.structural(scheduled())
    assert digest.schedule(program) != digest.schedule(scheduled())


def test_of_several_kernels_that_score_the_first_takes_them_in() -> None:
    program = scheduled("mass", passes=SPLIT)
    selects = [f.name for f in program.functions.values() if f.attrs["kind"] == "select"]
    assert len(selects) > 1 and said(program) == {selects[0]: "append"}
    program.functions[selects[1]].attrs["takes_in"] = "append"
    with pytest.raises(VortexError, match="takes_in is 'append'; none is needed") as e:
        check_program(parse_module(print_module(program)), GPU)
    assert e.value.code == "VX2005"


@pytest.mark.parametrize(("flow", "target"), [(EMA, GPU.name), ("quest", "cpu")])
def test_state_and_cpus_take_in_nothing(flow: str, target: str) -> None:
    program = scheduled(flow, target)
    assert said(program) == {}
    for f in program.functions.values():
        if f.attrs["kind"] == "select":
            f.attrs["takes_in"] = "append"
    with pytest.raises(VortexError, match="none is needed"):
        check_program(program, TARGETS[target])


@pytest.mark.parametrize(
    ("kernel", "name", "why"),
    [
        ("select", "attend", "'attend', which is no kernel of kind 'append'"),
        ("select", "nobody", "'nobody', which is no kernel of kind 'append'"),
        ("select", 1, "1, which is no kernel of kind 'append'"),
        ("attend", "append", "a kernel of kind 'attend' takes in nothing"),
    ],
)
def test_what_is_wrong_is_refused(kernel: str, name: Attr, why: str) -> None:
    program = scheduled()
    program.functions[kernel].attrs["takes_in"] = name
    with pytest.raises(VortexError) as e:
        parse_module(print_module(program))
    assert e.value.code == "VX2008" and why in str(e.value)
