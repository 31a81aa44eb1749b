"""The memory traffic of a kernel, told from the IR: what work is balanced by and what cost models count."""

from __future__ import annotations

from vortex.ir.core import Function, Module
from vortex.ir.dialects import page
from vortex.ir.staging import loads_by_loop, stage
from vortex.ir.types import TensorType


def bytes_per_page(program: Module, f: Function) -> int:
    """Bytes that a kernel reads for one page, each pass over the pages counted."""
    paged = {d.name: d.type for d in program.declared("buffer") if d.attrs["layout"] in ("paged", "ragged")}
    total = 0
    for o, passes in loads_by_loop(f, stage(f)).items():
        tile = paged.get(o.buffer) if isinstance(o, page.Load) else None
        if isinstance(o, page.Load) and isinstance(tile, TensorType):
            # of a page of several blocks, each has its part
            total += -(-tile.tile_bytes * len(passes) // page.pages_of(program.decls[o.buffer]).blocks)
    for o in f.ops:
        if isinstance(o, page.Attend):
            for name in {o.keys, o.values}:
                tile = paged[name]
                total += tile.tile_bytes if isinstance(tile, TensorType) else 0
    return total
