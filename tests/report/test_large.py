"""The report of a flow of 5,000 ops: small, whole, and made in seconds."""

from __future__ import annotations

import time
from pathlib import Path

from tests.html_reader import Reader
from tests.ir.samples import head
from tests.report.test_page import VOID, packed
from vortex.compilation.stored import read_stored
from vortex.driver import compile_flow
from vortex.ir.parser import parse_module
from vortex.report.compilation import Request, describe
from vortex.report.model import Report
from vortex.report.page import html
from vortex.targets.target import TARGETS
from vortex.tune.layers import Layers
from vortex.tune.shapes import Shape

OPS = 5000
HANGS = 60
"""Seconds of the processor that say that something takes time with the square of the ops: all takes 6."""


def test_a_flow_of_5000_ops(tmp_path: Path) -> None:
    body = ["%m = flow.reduce_sum(%q) {axes = [0]} : f32[8]", '%s0 = flow.dot(%m, %c) {spec = "d,sd->s"} : f32[S]']
    for n in range(1, OPS):
        if n % 50:
            body.append(f"%s{n} = flow.{('exp', 'abs', 'neg')[n % 3]}(%s{n - 1}) : f32[S]")
        else:
            body.append(f"%f{n} = flow.reduce_max(%s{n - 1}) {{axes = [0]}} : f32[]")
            body.append(f"%s{n} = flow.sub(%s{n - 1}, %f{n}) : f32[S]")
    text = head("\n".join([*body, f"%best = flow.topk(%s{OPS - 1}) : selection", "flow.return(%best)"]), {"c": "bf16"})
    began = time.process_time()
    made = compile_flow(parse_module(text), targets=[TARGETS["cpu"]], to="page", dump=tmp_path / "dump")
    assert made.dumps is not None
    shape = Shape(batch=4, kv_heads=8, tokens=1024, kept=30)
    compilation = describe(read_stored(made.dumps), Request(shape, Layers({})))
    page = html(Report((compilation,)))
    assert time.process_time() - began < HANGS
    assert len(page.encode()) < 1_000_000
    assert not Reader(page, VOID).open
    assert [s.name for s in compilation.steps if s.name in ("outline", "fuse")] == ["outline", "fuse"]
    outlined, fused = (next(s for s in compilation.steps if s.name == name) for name in ("outline", "fuse"))
    assert outlined.ops > 3 * OPS, "each op has a kernel with a load and a store"
    assert OPS < fused.ops < 1.2 * OPS
    assert compilation.verdict
    [drawing, *_] = compilation.drawings
    assert drawing.svg.count('class="op ') < 300, "by lines, not op by op"
    found = packed(page)
    told = found["report"]["compilations"][0]
    assert len(told["texts"]) == len(compilation.texts)
    assert max(len(t.lines) for t in compilation.texts) > 3 * OPS
