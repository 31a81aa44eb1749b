"""Decode steps by compiled kernels: K and V copied to pages, token by token, and a Decoder over them.

transformers' cache stays the truth, for prompts are read from it by sdpa, and pools of pages are made beside it: one
new row a step is copied. The tensors of a DynamicCache cannot be those pools, for they are other ones after each
token; a cache class of our own could, but ``generate`` makes its cache by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch

from vortex.budget import Budget
from vortex.runtime.decoder import Decoder, NewTokens
from vortex.runtime.library import Library
from vortex.runtime.parameters import Parameters
from vortex.runtime.tensors import TORCH
from vortex.runtime.transformers.pages import Pages

SPARE = 16
"""Pages that a request gets beyond those it needs, or a quarter of those where that is more."""


@dataclass(slots=True)
class _Memory:
    """Of one layer: ``k`` and ``v`` ``[B * columns, Hkv, page, D]``, summaries, state. Request b has the pages
    ``b * columns ..`` in order.
    """

    k: torch.Tensor
    v: torch.Tensor
    fields: dict[str, torch.Tensor]
    state: dict[str, torch.Tensor]


class CompiledPages(Pages):
    """Pools of a growing number of pages for each request, and the Decoder on them."""

    def __init__(
        self, library: Library, budget: Budget, parameters: Parameters, kv_heads: int, device: torch.device
    ) -> None:
        manifest = library.manifest
        super().__init__(budget, manifest.spec.page_size)
        self._library, self._parameters, self._heads, self._device = library, parameters, kv_heads, device
        self.cap, self.stateful = manifest.cap, bool(manifest.states)
        self._memory: dict[int, _Memory] = {}
        self._begin(0)

    def _begin(self, batch: int) -> None:
        self._batch, self._columns = batch, 0
        self._memory.clear()
        self._decoder = Decoder(self._library, budget=self.budget, parameters=self._parameters)
        self._planned, self._served = 0, set[int]()  # places of the planned step, and layers that decoded in it

    # --- memory ---------------------------------------------------------------------------------------------

    def _new_memory(self, columns: int) -> _Memory:
        manifest, pages = self._library.manifest, self._batch * columns
        spec, heads = manifest.spec, self._heads

        def new(dtype: str, *shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=TORCH[dtype], device=self._device)

        pool = pages, heads, spec.page_size, spec.head_dim
        fields = {f.name: new(f.dtype, pages, heads, *f.packed) for f in manifest.fields}
        each = {"page": (heads, columns), "request": (heads,)}
        state = {s.name: new(s.dtype, self._batch, *each[s.per], *s.tile) for s in manifest.states}
        return _Memory(new(spec.kv_dtype, *pool), new(spec.kv_dtype, *pool), fields, state)

    def _bind(self, layer: int, memory: _Memory) -> None:
        self._memory[layer] = memory
        self._decoder.bind(layer, memory.k, memory.v, memory.fields, state=memory.state)
        self._planned = 0

    def _grow(self, columns: int) -> None:
        """Room for ``columns`` pages a request and some more; what is kept stays."""
        old, self._columns = self._columns, columns + max(SPARE, columns // 4)
        for layer, memory in self._memory.items():
            new = self._new_memory(self._columns)
            pages = [(memory.k, new.k), (memory.v, new.v), *((x, new.fields[n]) for n, x in memory.fields.items())]
            for x, y in pages:
                y.view(self._batch, -1, *y.shape[1:])[:, :old] = x.view(self._batch, -1, *x.shape[1:])
            for s in self._library.manifest.states:
                x, y = memory.state[s.name], new.state[s.name]
                (y[:, :, :old] if s.per == "page" else y).copy_(x)
            self._bind(layer, new)

    # --- a step ---------------------------------------------------------------------------------------------

    def _attend(
        self, layer: int, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        places = int(keys.shape[2])
        columns = -(-(places - min(self._starts)) // self.page_size)
        if columns > self._columns:
            self._grow(columns)
        if layer not in self._memory:
            self._bind(layer, self._new_memory(self._columns))
        firsts = [max(self.held(layer), start) for start in self._starts]
        if self._planned != places or layer in self._served:
            self._plan(places, firsts)
        new, out = self._new_tokens(keys, values, firsts), torch.empty_like(q)
        if any(places - first > 1 for first in firsts):
            self._decoder.append(layer, *new)
            self._decoder.decode(layer, q, out=out, scale=scale)
        else:
            self._decoder.decode(layer, q, out=out, scale=scale, new=new)
        self._served.add(layer)
        return out

    def _plan(self, places: int, firsts: list[int]) -> None:
        """A step of requests that end at ``places``; those with more than one new token begin their state anew."""
        fresh = slots = None
        if self.stateful:
            fresh = self._i32([places - first > 1 for first in firsts])
            slots = torch.arange(self._batch, dtype=torch.int32, device=self._device)
        lengths = self._i32([places - start for start in self._starts])
        pages = torch.arange(self._batch * self._columns, dtype=torch.int32, device=self._device)
        self._decoder.plan(lengths, pages.view(self._batch, self._columns), slots, fresh)
        self._planned, self._served = places, set()

    def _new_tokens(self, keys: torch.Tensor, values: torch.Tensor, firsts: list[int]) -> NewTokens:
        """Each request's tokens from ``firsts`` on, and where they are stored in its pages."""
        places, room = int(keys.shape[2]), self._columns * self.page_size
        new = [x.transpose(1, 2) for x in (keys.detach(), values.detach())]
        if all(places - first == 1 for first in firsts):
            k, v = (x[:, -1].contiguous() for x in new)
        else:
            rows = [[x[row, first:] for row, first in enumerate(firsts)] for x in new]
            k, v = (torch.cat(x) for x in rows)
        at = [
            torch.arange(first - start, places - start) + row * room
            for row, (first, start) in enumerate(zip(firsts, self._starts, strict=True))
        ]
        offsets = self._i32([0, *accumulate(places - first for first in firsts)])
        return k, v, torch.cat(at).to(self._device), offsets

    def _i32(self, numbers: list[int]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int32, device=self._device)
