"""Loops that seldom have a second turn stay loops, so that code that is not run does not lie between what is."""

from __future__ import annotations

import re

from tests.cuda.harness import H200, cuda_source, lower
from vortex.codegen.emit import emit_kernel
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace
from vortex.spec import Spec

ROLLED = ("sink_round", "recent_round", "p_round", "copy_round", "listed_round", "tile_round")
LOOP = re.compile(r"(#pragma unroll 1\s+)?for \(int (\w+?)(?:_\d+)? = 0; \w+ < (\d+)?")


def test_shares_of_unknown_counts_are_not_written_out() -> None:
    program = lower(trace(find_flow("quest"), Spec()))
    text = cuda_source(emit_kernel(program, program.functions["select"], H200))
    loops = [(name, bool(stays)) for stays, name, turns in LOOP.findall(text) if not turns]
    for name in ROLLED:
        assert (name, True) in loops and (name, False) not in loops, name
    # keys beyond those in registers are read in as many turns as there are, with loads of several on their way
    assert ("far_round", False) in loops and ("far_round", True) not in loops
