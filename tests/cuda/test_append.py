"""``append`` for GPUs under the emulator: pools and summaries are those of the page interpreter, byte for byte."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import vortex
from tests.batches import batch, copy
from tests.cuda.harness import Kernels, dtype_of, loaded, lower, tensors
from vortex.codegen.tiles import NESTS
from vortex.flow import oracle
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace
from vortex.ir.core import Module, Value
from vortex.ir.dialects import flow
from vortex.ir.interpret_page import Batch, run_program
from vortex.spec import Spec


class Gathered(vortex.vFlow):
    """Rows and channels of a page at listed places, and at places that the page's own numbers tell."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        self.rows = torch.tensor([5, 0, 5, 2])
        return {
            "rows": vortex.Field(4, spec.head_dim),
            "channels": vortex.Field(spec.page_size, 3),
            "best": vortex.Field(2, spec.head_dim),
            "heavy": vortex.Field(spec.page_size, 4, dtype="f32"),
            "own": vortex.Field(spec.head_dim),
        }

    def forward_cache(self, page: Any) -> dict[str, Any]:
        k, v = page.k, page.v
        return {
            "rows": k[self.rows] + v[[7, 1, 0, 3]],
            "channels": k[:, [63, 1, 30]],
            "best": v[k.sum(1).topk(2).indices],
            "heavy": k[:, v.abs().amax(0).topk(4).indices],
            "own": v.gather(0, k.argmax(0, keepdim=True))[0],
        }

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        of_rows = cache.rows.sum((1, 2)) + cache.channels.sum((1, 2)) + cache.best.sum((1, 2))
        return vortex.topk(of_rows + cache.heavy.sum((1, 2)) + cache.own @ q[0])


FLOWS = ("quest", "venergy_gated", "lserve_centroid", "gathered")
SPEC = Spec(page_size=8, head_dim=64, group=2)


FP8 = "venergy_gated_fp8"
SCALES = {"k": 0.375, "v": 0.01}
"""Of the pools in fp8: some values are clamped."""


@cache
def flow_of(name: str) -> Module:
    made = Gathered if name == "gathered" else find_flow(name.removesuffix("_fp8"))
    return trace(made, replace(SPEC, kv_dtype="fp8_e4m3") if name == FP8 else SPEC)


@cache
def kernels() -> Kernels:
    return Kernels.of({n: lower(flow_of(n), append={"threads": 64}) for n in (*FLOWS, FP8)}, ["append"])


def interpret(program: Module, b: Batch) -> None:
    """The program's append kernel by the page interpreter."""
    alone = Module("page", program.name, dict(program.attrs), dict(program.decls))
    alone.define(program.functions["append"])
    run_program(alone, b)


STEPS = {
    "prefill": ([17, 0, 5, 16, 9], [17, 0, 5, 16, 9]),
    "decode": ([17, 24, 5, 16, 9], [1, 1, 1, 1, 1]),
    "chunks": ([40, 0, 8, 33, 9], [9, 0, 8, 3, 2]),
}


@pytest.mark.parametrize("stored", [False, True], ids=["new", "stored"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", [*FLOWS, FP8])
def test_append_equals_the_interpreter(name: str, step: str, stored: bool) -> None:
    lengths, new = STEPS[step]
    for seed in (0, 1, 2):
        scales = SCALES if name == FP8 else None
        b = batch(flow_of(name), lengths, new=new, stored=stored, seed=seed, integers=seed != 2, scales=scales)
        want = copy(b)
        given = tensors(kernels(), name, b)
        kernels().run(name, given, ["append"], seed=seed)
        program = kernels().programs[name]
        interpret(program, want)
        for d in program.declared("buffer"):
            if d.name in want.paged:
                key = d.name if d.attrs["role"] == "pool" else f"field.{d.name}"
                have = loaded(given[key], dtype_of(program, d.name))
                np.testing.assert_allclose(
                    have, want.paged[d.name], rtol=0 if seed != 2 and name != FP8 else 1e-2, err_msg=d.name
                )


def test_padded_tokens_and_requests_are_left_alone() -> None:
    b = batch(flow_of("quest"), [17, 0, 9], new=[1, 0, 1])
    b.row_offsets = np.array([0, 1, 2, 3], np.int32)  # the padded request counts a token
    for name, x in b.tokens.items():
        b.tokens[name] = np.insert(x, 1, np.nan, axis=0)
    b.loc = np.array([b.loc[0], -1, -1], np.int64)
    given = tensors(kernels(), "quest", b)
    before = given["k"].view(torch.int16).clone()
    kernels().run("quest", given, ["append"])
    changed = (before != given["k"].view(torch.int16)).nonzero()
    assert {int(i[0]) for i in changed} == {int(b.loc[0]) // 8}


@dataclass(frozen=True)
class Before:
    """Values of which one is read as one less."""

    values: Any
    index: Value

    def read(self, v: Value, at: Any) -> Any:
        x = self.values.read(v, at)
        return x - 1 if v is self.index else x

    def __getattr__(self, name: str) -> Any:
        return getattr(self.values, name)


def of_torch(built: Kernels) -> None:
    """What is kept of full pages is what eager torch makes of the pools: the interpreter might gather wrongly too."""
    b = batch(flow_of("gathered"), STEPS["prefill"][0], new=STEPS["prefill"][1], seed=4)
    given, program = tensors(built, "gathered", b), built.programs["gathered"]
    built.run("gathered", given, ["append"])
    pools = [loaded(given[n], dtype_of(program, n)) for n in ("k", "v")]
    full = [int(p) for r, n in enumerate(b.lengths) for p in b.page_table[r, : n // SPEC.page_size]]
    for h in range(pools[0].shape[1]):
        rows = [torch.from_numpy(np.asarray(x[full, h], np.float32)) for x in pools]
        for name, want in oracle.summaries(Gathered, SPEC, *rows).items():
            have = loaded(given[f"field.{name}"], dtype_of(program, name))[full, h]
            np.testing.assert_array_equal(have, want.float().numpy(), err_msg=name)


def test_gathers_are_those_of_torch() -> None:
    of_torch(kernels())


def test_a_gather_of_the_place_before_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = NESTS[flow.Gather]

    def gather(self: Any, o: flow.Gather, into: Any) -> None:
        right(replace(self, values=Before(self.values, o.index)), o, into)

    monkeypatch.setitem(NESTS, flow.Gather, gather)
    with pytest.raises(AssertionError):
        of_torch(Kernels.of({"gathered": lower(flow_of("gathered"), append={"threads": 64})}, ["append"]))
