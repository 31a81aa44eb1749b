"""Random flows with state over several steps: page programs, and kernels, against the flow interpreter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings

from tests.batches import batch
from tests.strategies import flows
from vortex.budget import Budget
from vortex.driver import compile_flow
from vortex.ir.core import Module
from vortex.ir.interpret import began, run_function
from vortex.ir.interpret_page import Batch, plan_row, run_program
from vortex.ir.parser import parse_module
from vortex.passes.manager import PassContext, run_pipeline
from vortex.runtime.decoder import load

PIPELINES = (
    "outline,expand-softmax,fuse,plan-memory,schedule",
    "outline,expand-softmax,fuse{max-live=0},plan-memory,schedule",
    "outline,expand-softmax,canonicalize,cse,dce,fuse{max-live=4},plan-memory,schedule",
)
LENGTHS = [3, 9, 13, 17, 41, 130]
STEPS = 3
ONCE = settings(
    deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True, phases=(Phase.generate,)
)


def later(b: Batch, seed: int) -> Batch:
    """The same requests with other queries and no new tokens."""
    q = np.random.default_rng(seed).integers(-3, 4, b.q.shape).astype(np.float32)
    none = {n: x[:0] for n, x in b.tokens.items()}
    return replace(
        b, q=q, tokens=none, loc=b.loc[:0], row_offsets=np.zeros_like(b.row_offsets), pages=None, counts=None
    )


def expected(flow: Module, b: Batch, kept: dict[tuple[int, int], dict[str, Any]]) -> None:
    """Move the state of all rows on by a step."""
    index, size = flow.functions["index"], int(flow.attrs["page_size"])
    group = b.q.shape[1] // b.heads
    decls = [d for d in flow.declared("field") if "state" in d.attrs]
    for (r, h), mine in kept.items():
        _, _, first, scored = plan_row(int(b.lengths[r]), size, b.budget)
        if not scored:
            continue
        at = slice(first, first + scored)
        fields = {n: x[b.page_table[r, at], h] for n, x in b.paged.items()}
        seen = {d.name: mine[d.name][at] if d.attrs["state"] == "page" else mine[d.name] for d in decls}
        given = [{**fields, **seen}[a.name] for a in index.args[1:]]
        q = b.q[r, h * group : (h + 1) * group]
        _, *new = run_function(index, [q, *given], flow, layer=b.layer, head=b.head_offset + h, first=first)
        for d, x in zip(decls, new, strict=True):
            if d.attrs["state"] == "page":
                mine[d.name] = np.concatenate([mine[d.name][:first], x, mine[d.name][first + scored :]])
            else:
                mine[d.name] = x


def begun(flow: Module, b: Batch) -> dict[tuple[int, int], dict[str, Any]]:
    pages = {r: int(n) // int(flow.attrs["page_size"]) for r, n in enumerate(b.lengths)}
    decls = [d for d in flow.declared("field") if "state" in d.attrs]
    return {(r, h): {d.name: began(d, pages[r]) for d in decls} for r in pages for h in range(b.heads)}


def compare(
    b: Batch, state: dict[str, Any], kept: dict[tuple[int, int], dict[str, Any]], text: str, rtol: float
) -> None:
    for (r, h), mine in kept.items():
        for name, want in mine.items():
            have = np.asarray(state[name])[b.slots[r], h]
            have = have[: len(want)] if have.ndim and name != "r" else have
            largest = float(np.abs(want[np.isfinite(want)]).max(initial=0.0))
            np.testing.assert_allclose(have, want, rtol=rtol, atol=rtol * largest, err_msg=f"{name} {r} {h}\n{text}")


@settings(ONCE, max_examples=12)
@given(flows(ranked=True, state=True))
def test_random_programs(text: str) -> None:
    flow = parse_module(text)
    for passes in PIPELINES:
        program = run_pipeline(flow, passes, PassContext(None))
        b = batch(flow, LENGTHS, budget=Budget(1))
        kept = begun(flow, b)
        for step in range(STEPS):
            run_program(program, b)
            expected(flow, b, kept)
            compare(b, b.state, kept, text, 0.0)
            b = later(b, step)


@pytest.mark.parametrize("examples", [2, pytest.param(25, marks=pytest.mark.full)])
def test_random_kernels(examples: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    @settings(ONCE, max_examples=examples)
    @given(flows(ranked=True, state=True, polynomial=True))
    def check(text: str) -> None:
        flow = parse_module(text)
        made = compile_flow(flow, out=tmp_path_factory.mktemp("random") / "flow.vxa")
        assert made.artifact is not None
        decoder = load(made.artifact, budget=Budget(1))
        b = batch(flow, LENGTHS, budget=Budget(1))
        kept = begun(flow, b)
        k, v = (torch.from_numpy(b.paged[n]).bfloat16() for n in "kv")
        fields = {f.name: torch.from_numpy(b.paged[f.name]) for f in decoder.fields}
        state = {name: torch.from_numpy(x) for name, x in b.state.items()}
        decoder.bind(0, k, v, fields, state=state)
        run_program(made.programs["cpu"], replace(b, state={n: x.copy() for n, x in b.state.items()}))
        for step in range(STEPS):
            decoder.plan(*(torch.from_numpy(x) for x in (b.lengths, b.page_table, b.slots)))
            new = (torch.from_numpy(b.tokens[n]).bfloat16() for n in ("k_new", "v_new"))
            decoder.append(0, *new, torch.from_numpy(b.loc), torch.from_numpy(b.row_offsets))
            q = torch.from_numpy(b.q).bfloat16()
            decoder.decode(0, q, out=torch.empty_like(q))
            expected(flow, b, kept)
            compare(b, {n: x.numpy() for n, x in state.items()}, kept, text, 1e-5)
            b = later(b, step)

    check()
