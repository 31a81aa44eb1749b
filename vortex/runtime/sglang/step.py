"""The tables of one forward pass, and the decoders that work on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from vortex.budget import Budget
from vortex.runtime.decoder import Decoder
from vortex.runtime.library import Library
from vortex.runtime.parameters import Parameters
from vortex.runtime.sglang.chosen import Chosen

UNSCALED = (1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Layer:
    """The memory of one layer: ``k`` and ``v`` are SGLang's pools seen as pages ``[P, Hkv, page, D]``, or ``k`` its
    pool of latent rows and ``v`` None; a layer without ``fields`` keeps every page, or those of another. ``state`` has
    what requests keep, by the rows of ``req_to_token``.
    """

    k: torch.Tensor
    v: torch.Tensor | None
    fields: Mapping[str, torch.Tensor] | None
    state: Mapping[str, torch.Tensor] | None = None
    pages_of: int | None = None
    """The layer to whose pages it attends, where it selects none."""
    scales: tuple[float, float] = UNSCALED
    """Of K and V, which fp8 pools keep as multiples of them."""

    @property
    def dense(self) -> bool:
        """Whether the flow skips it."""
        return self.fields is None and self.pages_of is None

    @property
    def k_scale(self) -> float:
        """Of K."""
        return self.scales[0]

    @property
    def v_scale(self) -> float:
        """Of V."""
        return self.scales[1]

    def bind(self, decoder: Decoder, number: int) -> None:
        """Give ``decoder`` the memory of this layer, which is the ``number``-th."""
        decoder.bind(number, self.k, self.v, self.fields, *self.scales, state=self.state)


class Step:
    """A private copy of the batch's page table and lengths, and decoders over it.

    The copy is what makes overlap scheduling right: the scheduler writes ``req_to_token`` for the next step while the
    kernels of this one run. Captured graphs hold the addresses of everything here, so a pass that is captured and
    one that is not never share a Step, nor do passes that plan for different rows share a decoder.

    Attributes:
        lengths: i32 ``[B]``, tokens with those of this pass.
        table: i32 ``[B, Pmax]``, physical pages.
        budgets: i32 ``[B, 5]``, what requests chose for themselves, -1 for those that did not.
        slots: i32 ``[B]``, rows of ``req_to_token``, where requests keep their state; -1 for padded rows.
    """

    def __init__(
        self,
        library: Library,
        budget: Budget,
        layers: Mapping[int, Layer],
        req_to_token: torch.Tensor,
        rows: int,
        weights: Parameters | None = None,
        first_head: int = 0,
        every: int = 1,
        *,
        deterministic: bool = False,
        chosen: Chosen | None = None,
    ) -> None:
        self._page = page = library.manifest.spec.page_size
        self._first_slots = req_to_token[:, ::page]  # slot of each page's first token, by request
        self._columns = self._first_slots.shape[1]
        self._layers = layers
        dense = any(layer.dense for layer in layers.values())
        self._every = every
        keep = {layer.pages_of for layer in layers.values() if layer.pages_of is not None}
        if every > 1:
            keep |= {number for number, layer in layers.items() if layer.fields is not None}
        self._decode = Decoder(
            library,
            budget=budget,
            dense=dense,
            parameters=weights,
            head_offset=first_head,
            keep=keep,
            deterministic=deterministic,
            largest=None if chosen is None else chosen.largest,
        )
        self._chosen = None if chosen is None else chosen.rows
        self._fill = Decoder(library, budget=budget, parameters=weights, head_offset=first_head)
        for number, layer in layers.items():
            layer.bind(self._decode, number)
            layer.bind(self._fill, number)
        self._grow(rows)

    def _grow(self, rows: int) -> None:
        device = self._first_slots.device
        self._rows = rows
        self._lengths = torch.ones(rows, dtype=torch.int32, device=device)
        self._table = torch.zeros(rows, self._columns, dtype=torch.int32, device=device)
        self._slots = torch.full((rows,), -1, dtype=torch.int32, device=device)
        self._budgets = torch.full((rows, 5), -1, dtype=torch.int32, device=device)
        self._one_each = torch.arange(rows + 1, dtype=torch.int32, device=device)

    def begin(self, requests: torch.Tensor, lengths: torch.Tensor, live: int | None = None) -> None:
        """Copy what SGLang knows of a batch: rows of ``req_to_token`` i64 ``[B]`` and ``lengths`` ``[B]``. The rows
        from ``live`` on are padded: they look like requests of one token, whose state is nobody's.
        """
        batch = len(lengths)
        if batch > self._rows:
            self._grow(batch)
        self.lengths, self.table, self.slots = self._lengths[:batch], self._table[:batch], self._slots[:batch]
        self.lengths.copy_(lengths)
        self.budgets = self._budgets[:batch]
        if self._chosen is not None:
            torch.index_select(self._chosen, 0, requests, out=self.budgets)
        if self._decode.states or self._decode.keep:
            self.slots.copy_(requests)
            self.slots[batch if live is None else live :] = -1
        torch.index_select(self._first_slots, 0, requests, out=self.table)
        self.table.floor_divide_(self._page)

    def reserve(self) -> None:
        """Give the decoding of all rows its scratch, so that graphs of fewer rows share it."""
        self._decode.reserve(self._rows, self._columns)

    def plan_decode(self, rows: int | None = None) -> None:
        """Plan decoding of the last ``rows`` requests, all unless given."""
        first = 0 if rows is None else len(self.lengths) - rows
        lengths, table, slots = self.lengths[first:], self.table[first:], self.slots[first:]
        self._decode_offsets = self._one_each[: len(lengths) + 1]
        self._decode.plan(lengths, table, slots, budgets=None if self._chosen is None else self.budgets[first:])

    def forget(self) -> None:
        """Let all layers select in the next step: a prompt was read, and slots may be another's."""
        if self._decode.keep:
            self._decode.forget()

    def plan_fill(self, new_tokens: torch.Tensor, decoding: int = 0) -> None:
        """Plan summaries of the pages that ``new_tokens`` ``[B]`` more tokens of each request fill; the last
        ``decoding`` requests are not in their prompts any more.

        The state of the others begins anew with each chunk of a prompt, so that it is not that of whoever had the slot,
        whatever prefix was found in the cache: nothing is scored before a prompt has ended.
        """
        offsets = torch.zeros(len(new_tokens) + 1, dtype=torch.int32, device=self._table.device)
        offsets[1:] = new_tokens.cumsum(0)
        self._fill_offsets = offsets
        fresh = torch.ones(len(new_tokens), dtype=torch.int32, device=self._table.device)
        fresh[len(new_tokens) - decoding :] = 0
        self._fill.plan(self.lengths, self.table, self.slots, fresh)

    def fill(self, layer: int, loc: torch.Tensor) -> None:
        """Summarise the pages that this pass filled, after SGLang stored K and V at ``loc`` i64 ``[T]``."""
        if self._layers[layer].fields is not None:
            self._fill.append(layer, None, None, loc, self._fill_offsets)

    def attend(
        self, layer: int, q: torch.Tensor, out: torch.Tensor, scale: float, loc: torch.Tensor | None = None
    ) -> None:
        """Write to ``out`` ``[B, Hq, Dv]`` what each planned request's one query of ``q`` ``[B, Hq, D]`` attends to;
        before, as :meth:`fill`, with the new tokens that SGLang stored at ``loc`` i64 ``[B]``, one of each request.
        """
        mine = self._layers[layer]
        if mine.dense:
            self._decode.attend_all(layer, q, out=out, scale=scale)
        elif mine.pages_of is not None:
            self._decode.decode(layer, q, out=out, scale=scale, pages_of=mine.pages_of)
        else:
            new = None if loc is None else (None, None, loc, self._decode_offsets)
            self._decode.decode(layer, q, out=out, scale=scale, every=self._every, new=new)
