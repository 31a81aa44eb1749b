"""Contractions of ``select`` on tensor cores, under the emulator: fields of every type, by pages and by rows of pages,
and what the kernel's text must not lose.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import vortex
from tests.batches import batch, require_selections, summarise
from tests.cuda.harness import Kernels, fails, lower, tensors
from vortex.budget import Budget
from vortex.flow.trace import trace
from vortex.ir.core import Module
from vortex.ir.interpret_page import Batch
from vortex.passes.manager import PassContext, run_pipeline
from vortex.schedules.matrices import matrices_of
from vortex.spec import Spec

FLOW_PASSES = "canonicalize,cse,reassociate,move-scales,canonicalize,cse,dce"


@dataclass(frozen=True)
class Kept:
    """A field of a flow, and how the flow uses it."""

    dtype: str
    page_size: int
    head_dim: int
    group: int
    rows: bool = True
    """Whether the field has a row for each token, rather than their mean."""
    computed: bool = False
    """Whether queries are computed with first."""
    stacked: int = 0
    """Rows of a page that are on M beside each other."""
    fold: str = "logsumexp"
    ahead: int = 64
    """Registers for what is on its way; with few of them a page tile takes several turns."""


KEPT = {
    "fp8": Kept("fp8_e4m3", 16, 64, 4, computed=True, stacked=16),
    "fp8_best": Kept("fp8_e4m3", 16, 64, 4, computed=True, stacked=16, fold="amax"),
    "fp8_long": Kept("fp8_e4m3", 48, 128, 1, stacked=48),
    "fp8_mean": Kept("fp8_e4m3", 8, 80, 3, rows=False, stacked=1),
    "int4": Kept("int4", 16, 32, 4, stacked=16, ahead=32),
    "int4_many": Kept("int4", 8, 128, 9, computed=True, stacked=8),
    "int4_mean": Kept("int4", 8, 64, 2, rows=False, computed=True, stacked=1),
    "int8": Kept("int8", 8, 64, 3, stacked=8, fold="amax"),
    "int8_few": Kept("int8", 4, 48, 2, computed=True, stacked=1),
    "bf16": Kept("bf16", 32, 32, 2, computed=True, stacked=32),
    "f16": Kept("f16", 8, 16, 5, computed=True, stacked=8, fold="amax"),
}
FEW = ("fp8", "fp8_mean", "int4", "int8_few", "bf16")


def flow_class(k: Kept) -> type[vortex.vFlow]:
    class Estimated(vortex.vFlow):
        def create_cache(self, spec: Spec) -> dict[str, vortex.Field]:
            shape = (spec.page_size, spec.head_dim) if k.rows else (spec.head_dim,)
            coded = k.dtype.startswith("int")
            return {"keys": vortex.Field(*shape, dtype=k.dtype, **({"scale": 0 if k.rows else ()} if coded else {}))}

        def forward_cache(self, page: Any) -> dict[str, Any]:
            return {"keys": page.k if k.rows else page.k.mean(0)}

        def forward_indexer(self, q: Any, cache: Any) -> Any:
            q = q * 0.3 if k.computed else q
            if not k.rows:
                return vortex.topk(torch.einsum("gd,sd->sg", q, cache.keys).amax(-1))
            if k.fold == "amax":
                return vortex.topk(torch.einsum("spd,gd->spg", cache.keys, q).amax((1, 2)))
            logits = torch.einsum("gd,std->sgt", q, cache.keys) * 0.25
            return vortex.topk(torch.logsumexp(logits, -1).softmax(0).sum(-1))

    return Estimated


@cache
def flow_of(name: str) -> Module:
    k = KEPT[name]
    return trace(flow_class(k), Spec(page_size=k.page_size, head_dim=k.head_dim, group=k.group))


@cache
def program_of(name: str) -> Module:
    flow = run_pipeline(flow_of(name), FLOW_PASSES, PassContext(None))
    knobs = {"threads": 64, "chip_words": 2048, "ahead": KEPT[name].ahead}
    return lower(flow, plan={"threads": 64, "select_pages": 32}, select=knobs)


@cache
def kernels(name: str) -> Kernels:
    return Kernels.of({name: program_of(name)}, ("plan", "select"))


def filled(name: str, seed: int) -> Batch:
    """Requests of several page tiles and of parts of one; numbers are not integers where the seed is odd."""
    size = KEPT[name].page_size
    lengths = (size * 70 + 3, 0, 5, size * 33, size * 9 + 1)
    b = batch(flow_of(name), lengths, budget=Budget(4), stored=True, seed=seed, integers=seed % 2 == 0)
    # heads of very different sizes
    b.q *= (2.0 ** -(20.0 * (np.arange(b.q.shape[1]) % KEPT[name].group)).clip(0, 60))[:, None].astype(np.float32)
    summarise(flow_of(name), b)
    if name == "fp8_best":
        plant(b)
    return b


def plant(b: Batch) -> None:
    """Leave three pages that are best, one that is fourth, and one before it that would be fourth by 11 bits of the
    queries: 1.5 * 3 = 4.5, and 0.9 * 5 + 0.15 / 512 is a little more.
    """
    b.q[:], b.paged["keys"][:] = 0, 0
    b.q[..., :3] = (5, 3, 0.5)
    for r, length in enumerate(b.lengths):
        if length > 16 * 8:
            for p, keys in ((1, (4, 0, 0)), (2, (4, 0, 0)), (3, (3, 0, 0)), (4, (4, 0, 0)), (5, (0, 5, 2**-9))):
                b.paged["keys"][b.page_table[r, p], :, p, :3] = keys


def check(built: Kernels, name: str) -> None:
    # integers tie, and what is not exact of them then differs by rounding: queries times 0.3, powers of e
    k = KEPT[name]
    for at, seed in enumerate((1, 3) if k.computed or (k.rows and k.fold == "logsumexp") else (0, 1)):
        b = filled(name, seed)
        given = tensors(built, name, b, slots=1 + 7 * at)
        built.run(name, given, ("plan", "select"), seed=seed)
        require_selections(flow_of(name), b, given, name, seed)


@pytest.mark.parametrize("name", [n if n in FEW else pytest.param(n, marks=pytest.mark.full) for n in KEPT])
def test_selection_equals_the_interpreter(name: str) -> None:
    program = program_of(name)
    (m,) = matrices_of(program, program.functions["select"])
    assert m.stacked == KEPT[name].stacked
    check(kernels(name), name)


FAULTS = {
    "nibbles of another place": ("int4", r"\(uint\)15728880, \(uint\)8388736", "(uint)983055, (uint)524296"),
    "nibbles without their sign": ("int4", r"\(uint\)983055, \(uint\)524296", "(uint)983055, (uint)0"),
    "codes with an offset": ("int4", r"(sums_ptr\[\d\] = )(begin\w*_ptr)", r"\1 0.5f * \2"),
    "the scale of the other row": ("int4", r"(scale_pair\w*) >> \(uint\)16", r"\1 >> (uint)0"),
    "the power of two of another column": ("int4", r"undo_ptr\[0\] = ", "undo_ptr[0] = 0.5f * "),
    "pages of the turn at hand": ("fp8", r"\(\(turn0 == 3\) \? 0 : \(turn0 \+ 1\)\)", "turn0"),
    "the next page tile too early": ("fp8", r"if \(turn0 == 3\)", "if (turn0 == 0)"),
    "powers of two that are not yet there": ("int4", r"(warp_max >>(?:.|\n)*?)tvm_builtin_cuda_cta_sync\(\);", r"\1"),
    "columns beyond the range of f16": ("fp8", r"\(uint\)268", "(uint)276"),
    "the second piece lost": ("fp8_best", r"\? (\(x_ptr_\d\[0\] - first_\d\)) :", r"? 0.0f * \1 :"),
    "upper bytes of fp8 that are the lower ones": ("fp8", r"byte_pairs(\w*)_ptr\[1\]\);", r"byte_pairs\1_ptr[0]);"),
    "a row that its neighbour has": ("fp8", r"== 0\) \? (sums_ptr\[0\]) : (sums_ptr\[2\])\);", r"== 0) ? \2 : \1);"),
    "numbers of another page tile": ("fp8", r"expf\(\(add_1_ptr", "expf((add_0_ptr"),
    "bytes without their sign": ("int8", r"\(uint\)2155905152", "(uint)0"),
}
"""A kernel of :data:`KEPT`, what is found in its text, and what stands in each place instead."""
FEW = ("codes with an offset", "pages of the turn at hand", "powers of two that are not yet there")


@pytest.mark.parametrize("fault", [*FEW, *(pytest.param(f, marks=pytest.mark.full) for f in FAULTS if f not in FEW)])
def test_a_planted_fault_is_seen(fault: str) -> None:
    name, found, instead = FAULTS[fault]
    built = kernels(name)
    check(built, name)
    symbol = built.sources[name, "select"].symbol
    text, count = re.subn(found, instead, built.texts[symbol])
    assert count, "the pattern no longer finds its place"
    assert fails(check, built.mutated(symbol, text), name), fault
