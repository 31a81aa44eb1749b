"""Runs any traced function as one compiled CPU kernel, and as numpy: the two must agree.

Row arguments travel in the workspace, page arguments as paged fields behind a shuffled page table; the
result comes back through the workspace. Everything that is not written stays NaN.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vortex.codegen.build.llvm import build_library, detect_mcpu
from vortex.codegen.emit import emit_program
from vortex.ir.core import Decl, Function, Module, Value
from vortex.ir.dialects import flow, page
from vortex.ir.interpret import resource
from vortex.ir.types import S, TensorType, bool_, f32, i32
from vortex.ir.verify import verify
from vortex.passes.manager import PassContext, run_pipeline

TORCH = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "fp8_e4m3": torch.float8_e4m3fn}
FIRST = 3
"""Logical index of the first candidate page."""


def program_of(module: Module, name: str = "case") -> Module:
    """A page program with one select kernel that computes what ``@index`` of ``module`` returns."""
    f = module.functions["index"]
    program = Module("page", name, {"page_size": 16, "head_dim": 16, "group": 2, "dtype": "bf16"})
    for d in module.declared("resource"):
        program.declare(Decl("resource", d.name, d.type, dict(d.attrs)))
    kernel = Function("kernel", "select", attrs={"kind": "select", "domain": "rows"})
    made: dict[Value, Value] = {}
    for a in f.args:
        assert isinstance(a.type, TensorType) and a.type.page_axis in (None, 0)
        paged = a.type.page_axis == 0
        kind = {"layout": "paged", "role": "field"} if paged else {"layout": "batched", "role": "workspace"}
        stored = TensorType(a.type.dtype if paged else f32, a.type.tile)
        program.declare(Decl("buffer", a.name, stored, kind))
        shape = (S, *stored.shape) if paged else stored.shape
        made[a] = kernel.add(page.Load(a.name, TensorType(stored.dtype, shape)), a.name)
    for o in f.ops[:-1]:
        twin = o.with_operands([made[v] for v in o.operands])
        kernel.append(twin, o.value.name)
        made[o.value] = twin.value
    end = f.ops[-1]
    assert isinstance(end, flow.Return)
    result = made[end.values[0]]
    assert isinstance(result.type, TensorType)
    axis, rank = result.type.page_axis, len(result.type.shape)
    layout = "batched" if axis is None else "ragged"
    if axis:
        result = kernel.add(flow.Transpose(result, (axis, *(i for i in range(rank) if i != axis))), "by_page")
    assert isinstance(result.type, TensorType)
    kept = result.type.dtype if result.type.dtype in (i32, bool_) else f32
    program.declare(
        Decl("buffer", "result", TensorType(kept, result.type.tile), {"layout": layout, "role": "workspace"})
    )
    kernel.append(page.Store(result, "result"))
    program.define(kernel)
    verify(program)
    return run_pipeline(program, "expand-softmax,plan-memory,schedule", PassContext(None))


@dataclass
class Compiled:
    """Kernels of many programs in one library."""

    programs: dict[str, Module]
    sources: dict[str, Any]
    library: Any

    def run(
        self, name: str, inputs: dict[str, np.ndarray], pages: int, heads: int = 2, item_pages: int = 1 << 20
    ) -> list[np.ndarray]:
        """The result of every row; ``inputs`` hold a leading row axis, fp32 values already rounded."""
        program, source = self.programs[name], self.sources[name]
        table_width, capacity = FIRST + pages + 2, FIRST + pages + 7
        rng = np.random.default_rng(0)
        table = torch.from_numpy(rng.permutation(capacity)[:table_width].astype(np.int32))[None]
        words = source.page_words * table_width + source.row_words
        workspace = torch.full((heads, max(words, 1)), float("nan"))
        given: dict[str, Any] = {
            "plan": torch.tensor([[FIRST + pages + 2], [0], [FIRST], [pages]], dtype=torch.int32),
            "work": _work(pages, item_pages),
            "arrivals": torch.zeros(heads, dtype=torch.int32),
            "page_table": table,
            "layer": 5,
            "workspace": workspace,
            "pages": torch.zeros(1, heads, 4, dtype=torch.int32),
            "counts": torch.zeros(1, heads, dtype=torch.int32),
        }
        base = int(program.functions["select"].attrs["page_words"]) * table_width
        for d in program.declared("buffer"):
            assert isinstance(d.type, TensorType)
            if d.attrs["role"] == "field":
                pool = torch.full((capacity, heads, *d.type.tile), float("nan")).to(TORCH[d.type.dtype.name])
                for h in range(heads):
                    rows = table[0, FIRST : FIRST + pages].long()
                    pool[rows, h] = torch.from_numpy(inputs[d.name][h]).to(pool.dtype)
                given[f"field.{d.name}"] = pool.view(torch.uint8) if d.type.dtype.name == "fp8_e4m3" else pool
            elif d.name != "result":
                at = base + d.attrs["offset"]
                workspace[:, at : at + d.type.numel] = torch.from_numpy(inputs[d.name].reshape(heads, -1))
        for d in program.declared("resource"):
            held = torch.from_numpy(np.array(resource(program, d.name)))
            given[f"const.{d.name}"] = held.int() if held.dtype == torch.bool else held
        self.library[source.symbol](*[given[a] for a in source.args])
        return [_result(program, workspace[h].numpy(), base, pages, table_width) for h in range(heads)]


def part_pages(pages: int, item: int) -> int:
    """Equal parts in whole slabs of 32, none more than 5/4 of an item before rounding: what ``plan`` lists."""
    parts = max(1, (pages + item - item // 4 - 1) // item)
    even = -(-pages // parts)
    return max(32, -(-even // 32) * 32)


def _work(pages: int, item_pages: int) -> torch.Tensor:
    """The work list of one request, for kernels that have one."""
    parts = -(-pages // part_pages(pages, item_pages))
    return torch.tensor([[parts, item_pages, *range(parts)]] * 2, dtype=torch.int32)


def _result(program: Module, row: np.ndarray, base: int, pages: int, table_width: int) -> np.ndarray:
    d = program.decls["result"]
    assert isinstance(d.type, TensorType)
    if d.attrs["layout"] == "ragged":
        at, size, shape = d.attrs["offset"] * table_width, d.type.numel * pages, (pages, *d.type.tile)
    else:
        at, size, shape = base + d.attrs["offset"], d.type.numel, d.type.tile
    words = row[at : at + size]
    if d.type.dtype == i32:
        return words.view(np.int32).reshape(shape)
    return (words != 0 if d.type.dtype == bool_ else words).reshape(shape)


def compile_all(modules: dict[str, Module]) -> Compiled:
    """One library with a kernel per module; names must be identifiers."""
    programs = {name: program_of(m, name) for name, m in modules.items()}
    sources = {name: emit_program(p)["select"] for name, p in programs.items()}
    functions = {s.symbol: s.function for s in sources.values()}
    folder = Path(tempfile.mkdtemp(prefix="vortex-test-"))
    build_library(functions, detect_mcpu(), folder / "lib.so")
    import tvm_ffi

    return Compiled(programs, sources, tvm_ffi.load_module(str(folder / "lib.so")))
