"""Requests for a generated flow, in memory that is poisoned where nobody wrote, and what eager torch makes of them.

Rows have 0, 1, 2, 33 and 300 candidates. The longest has few pages, each many times in its table: what is read of it is
another row's length, and no other summaries have to be made.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from tests.batches import POISON, parameters
from tests.generated.grammar import KEYS, LAYERS, MODEL_HEADS, QUERIES
from tests.generated.program import Program
from vortex.budget import Cap
from vortex.flow import oracle
from vortex.flow.narrow import numbers
from vortex.flow.selection import Selection
from vortex.flow.trace import trace
from vortex.ir.core import Module
from vortex.ir.dialects.flow import cap_of, of_pages
from vortex.ir.interpret import held_as
from vortex.ir.interpret_page import Batch
from vortex.ir.numerics import narrow
from vortex.ir.types import DTYPES, TensorType

CANDIDATES = (0, 1, 2, 33, 300)
REPEATED = 24
"""Pages of memory that the longest row has."""
LAYER, FIRST_HEAD = 1, 1
SCALES = {"k": 2.0, "v": 0.5}


@dataclass(frozen=True)
class Row:
    """What eager torch selects for a row of a step, and keeps of it."""

    pages: list[int]
    selected: Selection | None
    state: dict[str, torch.Tensor]
    """Of pages: ``[pages that were candidates so far, *shape]``."""


@dataclass
class Step:
    """A batch, and what eager torch makes of each (request, head)."""

    batch: Batch
    rows: dict[tuple[int, int], Row] = field(default_factory=dict)


class World:
    """Memory, requests and answers of one flow."""

    def __init__(self, program: Program, sizes: Sequence[int] = CANDIDATES) -> None:
        self.program, self.spec, self.budget = program, program.spec, program.budget
        self.flow = program.flow()
        self.rng = np.random.default_rng(program.seed)
        self.heads = 1 if self.spec.kv_lora_rank else 2
        self.sizes = sizes
        block, each = self.spec.block_size, self.spec.page_blocks
        ends = self.budget.sink + self.budget.recent
        self.lengths = [max(1, (n + ends) * block - int(self.rng.integers(0, block))) for n in sizes]
        self.tables, used = [], 0
        for n in self.lengths:
            pages = -(-n // self.spec.page_size)
            many = min(pages, REPEATED)
            repeated = self.rng.integers(0, many, pages)
            self.tables.append(used + (np.arange(pages) if pages == many or pages < 100 else repeated))
            used += many if pages >= 100 else pages
        self.physical = self.rng.permutation(used + 3)
        self.memory = {n: self._numbers(KEYS, used, self.heads, self.spec.page_size) for n in self.spec.pools}
        """K and V as the cache gives them back, by page in order."""
        self.blocks = used * each

    def _numbers(self, most: float, *shape: int) -> Any:
        return self.rng.integers(-int(most), int(most) + 1, (*shape, self.spec.head_dim)).astype(np.float32)

    @cached_property
    def module(self) -> Module:
        """The traced flow."""
        return trace(self.flow, self.spec)

    @cached_property
    def cap(self) -> Cap:
        """What bounds the selection, and how many blocks the candidates come in."""
        return cap_of(self.module)

    @cached_property
    def whole(self) -> list[str]:
        """The fields of whole pages of several blocks."""
        return of_pages(self.module)

    @property
    def scales(self) -> dict[str, float]:
        return SCALES if self.spec.scaled else {}

    @cached_property
    def parameters(self) -> dict[str, Any]:
        return parameters(self.module, layers=LAYERS, heads=MODEL_HEADS, integers=True, seed=self.program.seed)

    @cached_property
    def torch_parameters(self) -> dict[str, torch.Tensor]:
        return {n: torch.from_numpy(x) for n, x in self.parameters.items()}

    @cached_property
    def summaries(self) -> list[dict[str, torch.Tensor]]:
        """What eager torch keeps of each block, by head: ``[blocks, *shape]`` in their storage types."""
        made = []
        for h in range(self.heads):
            blocks = [torch.from_numpy(x[:, h]).reshape(self.blocks, self.spec.block_size, -1)
                      for x in self.memory.values()]  # fmt: skip
            v = blocks[1] if len(blocks) > 1 else None
            made.append(
                oracle.summaries(
                    self.flow, self.spec, blocks[0], v, LAYER, FIRST_HEAD + h, parameters=self.torch_parameters
                )
            )
        return made

    def kept(self, name: str, h: int) -> Any:
        """The summaries of a field as interpreters hold them."""
        t = self.module.decls[name].type
        assert isinstance(t, TensorType)
        x = numbers(self.summaries[h][name], t.dtype)
        return x.numpy().astype(held_as(t.dtype))

    def rows_of(self, name: str, blocks: Any) -> Any:
        """Which rows of a field are those of blocks that make whole pages."""
        each = self.spec.page_blocks
        return blocks[::each] // each if name in self.whole else blocks

    def blocks_of(self, r: int, count: int) -> Any:
        """Which blocks the first ``count`` of a request are."""
        at, each = np.arange(count), self.spec.page_blocks
        return self.tables[r][at // each] * each + at % each

    def queries(self, h: int) -> slice:
        """The query heads of a KV head."""
        return slice(h * self.spec.group, (h + 1) * self.spec.group)

    def attended(self, b: Batch, r: int, h: int, pages: Sequence[int], q: Any) -> Any:
        """Attention of ``q`` ``[G, D]`` over these pages (blocks, where pages have several) of a row, in torch."""
        block, length = self.spec.block_size, int(b.lengths[r])
        tokens = np.array([t for p in pages for t in range(p * block, min((p + 1) * block, length))])
        at = self.tables[r][tokens // self.spec.page_size], h, tokens % self.spec.page_size
        pools = [torch.from_numpy(x[at]) for x in self.memory.values()]
        weights = (torch.from_numpy(np.array(q)) @ pools[0].T * b.scale).softmax(-1)
        return (weights @ pools[-1][:, : self.spec.v_dim]).numpy()

    # steps

    @cached_property
    def steps(self) -> list[Step]:
        """One step, or three where the flow keeps state: then rows grow, and each has other queries."""
        block = self.spec.block_size
        whole = [n - block - 1 if self.program.state and i < 4 else n for i, n in enumerate(self.lengths)]
        lengths = [max(1, n) for n in whole]
        ends = [lengths, lengths, self.lengths] if self.program.state else [self.lengths]
        state, made = self._state(), list[Step]()
        memory = self._memory(lengths)
        before = [self._stored(r, n) for r, n in enumerate(lengths)]
        keepers = [oracle.RequestState(self.flow, self.spec, self.heads) for _ in self.sizes]
        for i, now in enumerate(ends):
            b = self._batch(now, before, memory, state, fresh=i == 0)
            made.append(Step(b, {(r, h): self._row(b, r, h, keepers[r]) for r, h in b.rows()}))
            before = now
        return made

    def _stored(self, r: int, length: int) -> int:
        """The tokens that somebody has stored before the first step: all of long rows, most of others, or none."""
        if length > 100 * self.spec.block_size:
            return length
        return (0, length, max(0, length - 2 * self.spec.block_size - 1))[(r + self.program.seed) % 3]

    def _memory(self, lengths: Sequence[int]) -> dict[str, Any]:
        """Pools and fields of what is stored before the first step; everything else holds NaN."""
        each, made = self.spec.page_blocks, {}
        lead = (len(self.physical), self.heads)
        stored = {n: np.full(x.shape, np.nan, np.float32) for n, x in self.memory.items()}
        done = np.zeros(self.blocks, bool)
        for r, n in enumerate(lengths):
            tokens = np.arange(self._stored(r, n))
            at = self.tables[r][tokens // self.spec.page_size], slice(None), tokens % self.spec.page_size
            for name, x in self.memory.items():
                stored[name][at] = x[at]
            done[self.blocks_of(r, len(tokens) // self.spec.block_size)] = True
        for name, x in stored.items():
            made[name] = np.full((*lead, *x.shape[2:]), np.nan, np.float32)
            made[name][self.physical[: len(x)]] = x / np.float32(self.scales.get(name, 1))
        for d in self.module.declared("field"):
            if "state" in d.attrs:
                continue
            assert isinstance(d.type, TensorType)
            blocks = 1 if d.name in self.whole else each
            full = done.reshape(-1, each).all(1) if d.name in self.whole else done
            poison = POISON.get(d.type.dtype.name, np.nan)
            rows = np.full((len(full), self.heads, *d.type.tile), poison, held_as(d.type.dtype))
            for h in range(self.heads):
                rows[full, h] = self.kept(d.name, h)[full]
            pages = rows.reshape(-1, blocks, self.heads, *d.type.tile).swapaxes(1, 2)
            made[d.name] = np.full((*lead, blocks, *d.type.tile), poison, rows.dtype)
            made[d.name][self.physical[: len(pages)]] = pages
            if blocks == 1:
                made[d.name] = made[d.name][:, :, 0]
        return made

    def _state(self) -> dict[str, Any]:
        made = {}
        columns = max(map(len, self.tables)) * self.spec.page_blocks
        for d in self.module.declared("field"):
            if "state" in d.attrs:
                assert isinstance(d.type, TensorType)
                lead = (columns,) if d.attrs["state"] == "page" else ()
                made[d.name] = np.full((len(self.sizes) + 1, self.heads, *lead, *d.type.tile), np.nan, np.float32)
        return made

    def _batch(
        self, now: Sequence[int], before: Sequence[int], memory: dict[str, Any], state: dict[str, Any], *, fresh: bool
    ) -> Batch:
        size, block, b = self.spec.page_size, self.spec.block_size, self.budget
        pages = [-(-n // size) for n in now]
        table = np.full((len(now), max(map(len, self.tables))), -(10**6), np.int32)
        tokens: dict[str, list[Any]] = {f"{n}_new": [] for n in self.memory}
        loc = []
        for r, n in enumerate(now):
            table[r, : pages[r]] = self.physical[self.tables[r][: pages[r]]]
            for t in range(before[r], n):
                loc.append(int(table[r, t // size]) * size + t % size)
                for name, x in self.memory.items():
                    tokens[f"{name}_new"].append(x[self.tables[r][t // size], :, t % size])
        dim, new = self.spec.head_dim, [n - m for n, m in zip(now, before, strict=True)]
        rows = [b.row(LAYER, FIRST_HEAD + h) for h in range(self.heads)]
        blocks = [-(-n // block) for n in now]
        return Batch(
            q=narrow(self._numbers(QUERIES, len(now), self.heads * self.spec.group), DTYPES[self.spec.dtype]),
            paged=memory, lengths=np.array(now, np.int32), page_table=table, budget=b.numbers(),
            capacity=max([min(self.cap.total(b, n), n) for n in blocks] + [1]),
            scale=0.25, scales=self.scales, layer=LAYER, head_offset=FIRST_HEAD, parameters=self.parameters,
            row_budget=np.array(rows, np.int32) if self.spec.budget_table else None,
            tokens={n: np.array(x, np.float32).reshape(-1, self.heads, dim) for n, x in tokens.items()},
            loc=np.array(loc, np.int64), row_offsets=np.concatenate([[0], np.cumsum(new)]).astype(np.int32),
            state=state, slots=(np.arange(len(now), dtype=np.int32)[::-1] + 1).copy() if state else (),
            fresh=[int(fresh and m > 0) for m in before],
        )  # fmt: skip

    def _row(self, b: Batch, r: int, h: int, keeper: oracle.RequestState) -> Row:
        """The row by eager torch."""
        n, mine = -(-int(b.lengths[r]) // self.spec.block_size), self.budget.of(LAYER, FIRST_HEAD + h)
        candidates = self.cap.candidates(mine, n)
        first, last = candidates.start, candidates.stop
        if not self.cap.scored(mine, n):
            return Row(list(range(n)), None, {m: x.clone() for m, x in keeper.kept[h].items()})
        at = self.blocks_of(r, last)[first:]
        seen = {name: x[torch.from_numpy(self.rows_of(name, at))] for name, x in self.summaries[h].items()}
        for name, x in self.memory.items():
            seen[name] = torch.from_numpy(x[:, h]).reshape(self.blocks, self.spec.block_size, -1)[torch.from_numpy(at)]
        q = torch.from_numpy(b.q[r, h * self.spec.group : (h + 1) * self.spec.group])
        held, place = keeper.read(h, first, last), (LAYER, first, last - first, FIRST_HEAD + h)
        selected, new = oracle.chosen_with(self.flow, self.spec, q, seen, held, *place, self.torch_parameters)
        keeper.write(h, new, first, last)
        pages = oracle.select_pages(selected, n, mine, self.cap.whole)
        return Row(pages, selected, {m: x.clone() for m, x in keeper.kept[h].items()})


def again(steps: Sequence[Step]) -> list[Step]:
    """The same steps over memory of their own, which they share."""
    first = steps[0].batch
    memory, state = copy.deepcopy(first.paged), copy.deepcopy(first.state)
    fresh = {"plan": None, "pages": None, "counts": None, "out": None, "lse": None}
    return [Step(replace(s.batch, paged=memory, state=state, workspace={}, **fresh), s.rows) for s in steps]
