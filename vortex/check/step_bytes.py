"""The bytes that one row moves in a decode step, counted by the page interpreter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vortex.artifact.manifest import ParameterEntry
from vortex.budget import Budget
from vortex.check.weights import random_parameters
from vortex.ir.core import Module
from vortex.ir.dialects.page import cap_of, of_whole_pages, pages_of
from vortex.ir.interpret import held_as
from vortex.ir.interpret_page import Batch, Counts, run_program
from vortex.ir.numerics import narrow
from vortex.ir.types import TensorType
from vortex.spec import Spec


@dataclass(frozen=True, slots=True)
class StepBytes:
    """Bytes that a kernel reads and writes for one (request, KV head) row in one decode step."""

    kernel: str
    read: float
    written: float
    buffers: dict[str, float]
    """Read and written, by buffer, the most first and equal ones by name; ``kept between sweeps`` is what ``select``
    keeps of pages for a later sweep.
    """

    @property
    def total(self) -> float:
        return self.read + self.written


def count_step(program: Module, spec: Spec, tokens: int, budget: Budget, seed: int = 0) -> list[StepBytes]:
    """What each kernel of ``program`` (page IR) moves for one row of ``tokens`` tokens, which end with a full page.

    A page (a block, where pages have several) fills in one step of as many as it has tokens, so of what ``append``
    moves to summarise it each step bears that part.
    """
    size, page = spec.block_size, spec.page_size if cap_of(program).whole > 1 else spec.block_size
    length = max(1, tokens // page) * page
    filled = run_program(program, _batch(program, spec, length, budget, seed))
    usual = run_program(program, _batch(program, spec, max(1, length - 1), budget, seed))
    # where pages have summaries beside their blocks, fewer steps fill a page
    block = filled if page == size else run_program(program, _batch(program, spec, length - size, budget, seed))
    return [_shared(name, filled, block, usual, size, page) for name in filled.kernels]


def page_sizes(program: Module) -> dict[str, int]:
    """Bytes of a page in each paged buffer, one KV head; of a block, where pages have several."""
    return {
        d.name: d.type.tile_bytes // pages_of(d).blocks
        for d in program.declared("buffer")
        if isinstance(d.type, TensorType) and d.attrs["layout"] == "paged"
    }


def dense_bytes(program: Module, spec: Spec, tokens: int) -> int:
    """Bytes of K and V of a row, which dense attention reads."""
    return sum(n for name, n in page_sizes(program).items() if name in spec.pools) * (tokens // spec.block_size)


def _shared(name: str, filled: Counts, block: Counts, usual: Counts, size: int, page: int) -> StepBytes:
    """A kernel's bytes: those of any step, and a part of what only the step moves that fills a block or page."""
    kernels = [c.kernels.get(name, {}) for c in (filled, block, usual)]
    if not name.startswith("append"):
        kernels = [kernels[0]] * 3
    buffers: dict[str, float] = {}
    read = written = 0.0
    for buffer in sorted({b for k in kernels for b in k}):
        each = [(t.read, t.written) if (t := k.get(buffer)) is not None else (0, 0) for k in kernels]
        r, w = (c + (b - c) / size + (a - b) / page for a, b, c in zip(*each, strict=True))
        read, written, buffers[buffer] = read + r, written + w, r + w
    if kept := filled.scratch.get(name, 0):
        buffers["kept between sweeps"] = float(kept)
    return StepBytes(name, read, written, dict(sorted(buffers.items(), key=lambda x: (-x[1], x[0]))))


def _batch(program: Module, spec: Spec, length: int, budget: Budget, seed: int) -> Batch:
    """One request with one KV head whose last token comes with this step; random numbers."""
    random = np.random.default_rng(seed)
    pages, blocks = -(-length // spec.page_size), spec.page_blocks

    def numbers(*shape: int) -> Any:
        return random.standard_normal(shape, np.float32)

    paged: dict[str, Any] = {}
    state: dict[str, Any] = {}
    for d in program.declared("buffer"):
        if d.attrs["layout"] == "paged":
            assert isinstance(d.type, TensorType)
            tile = (blocks, *d.type.tile) if blocks > 1 and not of_whole_pages(d) else d.type.tile
            if d.attrs["role"] == "pool":
                tile = (spec.page_size, *d.type.tile[1:])
            paged[d.name] = np.asarray(narrow(numbers(pages, 1, *tile), d.type.dtype), held_as(d.type.dtype))
        if d.attrs["role"] == "state":
            assert isinstance(d.type, TensorType)
            lead = (1, 1, pages * blocks) if d.attrs["layout"] == "entry" else (1, 1)
            state[d.name] = np.asarray(narrow(numbers(*lead, *d.type.tile), d.type.dtype), np.float32)
    entries = [ParameterEntry.of(d) for d in program.declared("param")]
    weights = {name: x.float().numpy() for name, x in random_parameters(entries, 1, 1).items()}
    return Batch(
        q=numbers(1, spec.group, spec.head_dim),
        paged=paged,
        parameters=weights,
        lengths=np.array([length], np.int32),
        page_table=np.arange(pages, dtype=np.int32)[None],
        budget=budget.numbers(),
        capacity=max(1, min(cap_of(program).total(budget, n := pages * blocks), n)),
        scale=float(spec.head_dim**-0.5),
        tokens={f"{name}_new": numbers(1, 1, spec.head_dim) for name in spec.pools},
        loc=np.array([length - 1], np.int64),
        row_offsets=np.array([0, 1], np.int32),
        state=state,
        slots=np.zeros(1, np.int32),
    )
