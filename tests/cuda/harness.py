"""Page programs whose GPU kernels run under the emulator, on batches of the page interpreter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from tests.emulation import Emulated
from vortex.codegen.build.nvcc import emit_cuda
from vortex.codegen.emit import KernelSource, emit_kernel
from vortex.errors import VortexError
from vortex.flow.narrow import numbers
from vortex.flow.oracle import round_to
from vortex.ir.core import Attr, Module
from vortex.ir.dialects import page
from vortex.ir.interpret import resource
from vortex.ir.interpret_page import Batch
from vortex.ir.types import DTYPES, TensorType
from vortex.passes.manager import PassContext, run_pipeline
from vortex.schedules.variants import variants_of
from vortex.targets.target import TARGETS, Target

KINDS = ("plan", "append", "select", "attend")
H200 = TARGETS["sm_90a"]
TORCH = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "fp8_e4m3": torch.float8_e4m3fn}
PAGE_PIPELINE = "outline,expand-softmax,fuse,softmax-sums,plan-memory,schedule"

APPENDED = "int new_row = "
"""What follows it in the text of ``select`` takes in tokens, as ``append`` does: test_taken_in.py has mutants of it."""


def lower(flow: Module, target: Target = H200, **knobs: Mapping[str, Attr]) -> Module:
    """Page IR for ``target``; ``knobs`` are by kernel name, and a fused pipeline names each kind once."""
    program = run_pipeline(flow, PAGE_PIPELINE, PassContext(target))
    for name, chosen in knobs.items():
        f = program.functions[name]
        f.attrs["schedule"] = {**f.attrs.get("schedule", {}), **chosen}
    return program


def emitted(
    programs: Mapping[str, Module], kinds: Iterable[str], target: Target
) -> tuple[dict[tuple[str, str], KernelSource], dict[str, Any]]:
    """Kernels by program and name, and what is to be compiled by symbol: kernels that differ by name only are one."""
    wanted, seen = tuple(kinds), dict[str, str]()
    sources, functions = dict[tuple[str, str], KernelSource](), dict[str, Any]()
    for key, program in programs.items():
        program.name = key
        for f in program.functions.values():
            for v in variants_of(f) if str(f.attrs["kind"]) in wanted else ():
                made = emit_kernel(program, v, target)
                symbol = seen.setdefault(made.text.replace(made.symbol, "kernel"), made.symbol)
                sources[key, v.name] = replace(made, symbol=symbol)
                functions.setdefault(symbol, made.function)
    return sources, functions


def cuda_source(source: KernelSource, target: Target = H200) -> str:
    """CUDA C++ of a kernel and its launcher, as the product builds it."""
    return emit_cuda(source.symbol, source.function, target.arch)


@dataclass
class Kernels:
    """The kernels of some programs, emulated."""

    programs: dict[str, Module]
    sources: dict[tuple[str, str], KernelSource]
    texts: dict[str, str]
    """CUDA C++ by symbol."""
    emulated: Emulated

    @classmethod
    def of(cls, programs: dict[str, Module], names: Iterable[str] = ("plan", "append", "select")) -> Kernels:
        sources, functions = emitted(programs, names, H200)
        texts = {symbol: emit_cuda(symbol, f, H200.arch) for symbol, f in functions.items()}
        return cls(programs, sources, texts, Emulated(texts))

    def mutated(self, symbol: str, text: str) -> Kernels:
        """The same with another text for one kernel."""
        texts = {**self.texts, symbol: text}
        return Kernels(self.programs, self.sources, texts, Emulated(texts))

    def run(
        self, key: str, given: dict[str, Any], kinds: Iterable[str], *, seed: int = 0, takes_in: bool = False
    ) -> None:
        """Launch the program's kernels of these kinds in order; with ``takes_in``, ``select`` takes in new tokens."""
        for (program, _), source in self.sources.items():
            if program == key and source.kind in tuple(kinds):
                nothing = nothing_new(given) if source.kind == "select" and not takes_in else {}
                self.emulated.call(source.symbol, *[{**given, **nothing}[a] for a in source.args], seed=seed)

    def words(self, key: str, columns: int) -> int:
        """Words of workspace a row of ``columns`` pages needs."""
        mine = [s for (program, _), s in self.sources.items() if program == key]
        return max(s.page_words * columns + s.row_words for s in mine)


def nothing_new(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``append`` in a launch of ``select`` that takes in no tokens."""
    names = [n for n in given if n.endswith("_new")]
    none = {n: given[n][:0] for n in (*names, "loc")}
    return {**none, "row_offsets": given["row_offsets"][:1]}


def fails(check: Callable[..., None], *arguments: object) -> bool:
    """Whether a check of mutants, which first passed for what it is a mutant of, says that something is wrong: a
    result, or a race that the emulator saw.
    """
    try:
        check(*arguments)
    except (AssertionError, RuntimeError, VortexError):
        return True
    return False


def stored(x: Any, dtype: str) -> torch.Tensor:
    """fp32 values that fit ``dtype``, in it; fp8 as its bits, codes packed."""
    if not DTYPES[dtype].is_float:
        return round_to(torch.from_numpy(np.ascontiguousarray(x)), dtype)
    made = torch.from_numpy(np.ascontiguousarray(x)).to(TORCH[dtype])
    return made.view(torch.uint8) if dtype == "fp8_e4m3" else made


def loaded(x: torch.Tensor, dtype: str) -> Any:
    """Back to fp32, codes to int32."""
    if not DTYPES[dtype].is_float:
        return numbers(x, DTYPES[dtype]).numpy()
    return (x.view(torch.float8_e4m3fn) if dtype == "fp8_e4m3" else x).float().numpy()


def tensors(kernels: Kernels, key: str, b: Batch, *, slots: int = 4) -> dict[str, Any]:
    """The batch as arguments of the calling convention; outputs and scratch are poisoned, counters are 0."""
    program = kernels.programs[key]
    dtype = str(program.attrs["dtype"])
    requests, heads = b.requests, b.heads
    columns = b.page_table.shape[1]
    given: dict[str, Any] = {
        "q": stored(b.q, dtype),
        "lengths": torch.from_numpy(b.lengths),
        "page_table": torch.from_numpy(b.page_table),
        "budget": torch.tensor((*b.budget, 0, 0), dtype=torch.int32),
        "request_budget": torch.tensor(
            [[-1] * 5] * requests if b.request_budget is None else b.request_budget, dtype=torch.int32
        ),
        "plan": torch.full((4, requests), -7, dtype=torch.int32),
        "work": torch.full((2, 2 + requests + slots), -7, dtype=torch.int32),
        "arrivals": torch.zeros(requests * heads, dtype=torch.int32),
        "workspace": torch.full(
            (requests * heads, max(1, kernels.words(key, columns * page.page_blocks(program)))), float("nan")
        ),
        "pages": torch.full((requests, heads, b.capacity), -7, dtype=torch.int32),
        "counts": torch.full((requests, heads), -7, dtype=torch.int32),
        "layer": b.layer,
        "head_offset": b.head_offset,
        "row_budget": torch.tensor([2**31 - 1] * heads if b.row_budget is None else b.row_budget, dtype=torch.int32),
        "k_scale": float(b.scale_of("k")),
        "v_scale": float(b.scale_of("v")),
        "latent_scale": float(b.scale_of("latent")),
        "loc": torch.tensor(np.asarray(b.loc).tolist(), dtype=torch.int64),
        "row_offsets": torch.from_numpy(b.row_offsets),
        "slots": torch.tensor(list(b.slots), dtype=torch.int32),
        "fresh": torch.tensor([int(x) for x in b.fresh] or [0] * requests, dtype=torch.int32),
    }
    for name, x in b.tokens.items():
        given[name] = stored(x, dtype)
    for d in program.declared("buffer"):
        if d.name in b.paged:
            assert isinstance(d.type, TensorType)
            prefix = "" if d.attrs["role"] == "pool" else "field."
            given[prefix + d.name] = stored(b.paged[d.name], d.type.dtype.name)
        if d.name in b.state:
            assert isinstance(d.type, TensorType)
            held, blocks = b.state[d.name], page.page_blocks(program)
            if blocks > 1 and d.attrs["layout"] == "entry":
                held = held.reshape(*held.shape[:2], -1, blocks, *d.type.tile)
            given[f"state.{d.name}"] = stored(held, d.type.dtype.name)
    for d in program.declared("param"):
        assert isinstance(d.type, TensorType)
        x = b.parameters[d.name]
        sets = {"model": (), "layer": (b.layer,), "head": (b.layer, slice(b.head_offset, b.head_offset + heads))}
        given[f"param.{d.name}"] = stored(x[sets[d.attrs["per"]]], d.type.dtype.name)
    for d in program.declared("resource"):
        held = torch.from_numpy(np.array(resource(program, d.name)))
        given[f"const.{d.name}"] = held.int() if held.dtype == torch.bool else held
    return given


def dtype_of(program: Module, name: str) -> str:
    t = program.decls[name].type
    assert isinstance(t, TensorType)
    assert t.dtype.name in DTYPES
    return t.dtype.name
