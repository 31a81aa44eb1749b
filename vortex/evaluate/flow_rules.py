"""Lanes that read by a flow: through its compiled kernels, or through its own eager code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from vortex.budget import Budget
from vortex.evaluate.rules import Read, Rule, Step
from vortex.evaluate.shared_pages import SharedPages
from vortex.flow.flow import find_flow, vFlow
from vortex.flow.oracle import RequestState, cap, chosen_with, select_pages, summaries
from vortex.runtime.compiled import ModelShape, artifact_for, target_of
from vortex.runtime.decoder import Decoder
from vortex.runtime.library import Library, open_library
from vortex.runtime.parameters import Parameters
from vortex.runtime.tensors import TORCH
from vortex.spec import Spec

Weights = Mapping[str, torch.Tensor]


class FlowRules(Protocol):
    """One flow in one evaluation; its lanes share what is made once a prompt."""

    def lane(self, budget: int) -> Rule:
        """A rule that keeps ``budget`` candidate pages."""

    def begin(self, pages: SharedPages) -> None:
        """A prompt: make the summaries of its full pages, before its lanes begin."""


class Compiled:
    """A flow through its artifact and a :class:`~vortex.runtime.decoder.Decoder`.

    Raises:
        VortexError: what compiling the flow raises, VX6020 where its parameters are missing or do not fit.
    """

    def __init__(
        self, flow: str, spec: Spec, kv_heads: int, layers: tuple[int, ...], device: torch.device, given: Weights | None
    ) -> None:
        target = target_of(device.type)
        self.library: Library = open_library(artifact_for(flow, ModelShape(spec, kv_heads), target), target)
        manifest = self.library.manifest
        self.parameters = Parameters(manifest.flow, manifest.parameters, given if manifest.parameters else None)
        self.spec, self.kv_heads, self.layers, self.device = spec, kv_heads, layers, device
        self.fields: dict[int, dict[str, torch.Tensor]] = {}

    def lane(self, budget: int) -> Rule:
        return CompiledLane(self, Budget(budget))

    def begin(self, pages: SharedPages) -> None:
        entries = self.library.manifest.fields
        self.fields = {
            layer: {
                f.name: torch.zeros(pages.pages, self.kv_heads, *f.packed, dtype=TORCH[f.dtype], device=self.device)
                for f in entries
            }
            for layer in self.layers
        }
        decoder = self.decoder(Budget(1))
        self.bind(decoder, pages)
        tokens = pages.full * pages.page
        if not tokens:
            return
        decoder.plan(
            torch.tensor([tokens], dtype=torch.int32, device=self.device),
            torch.arange(pages.full, dtype=torch.int32, device=self.device)[None],
            torch.zeros(1, dtype=torch.int32, device=self.device),
        )
        loc = torch.arange(tokens, device=self.device)
        offsets = torch.tensor([0, tokens], dtype=torch.int32, device=self.device)
        for layer in self.layers:
            decoder.append(layer, None, None, loc, offsets)

    def decoder(self, budget: Budget) -> Decoder:
        """Another one on the same code."""
        return Decoder(self.library, budget=budget, parameters=self.parameters)

    def bind(self, decoder: Decoder, pages: SharedPages) -> None:
        """Give it the pages of a prompt, and state of its own."""
        columns = pages.full + pages.tail
        for layer in self.layers:
            state = {
                s.name: torch.zeros(
                    1, self.kv_heads, *((columns,) if s.per == "page" else ()), *s.tile,
                    dtype=TORCH[s.dtype], device=self.device,
                )
                for s in decoder.states
            }  # fmt: skip
            latent = bool(self.spec.kv_lora_rank)
            pools = pages.pool(pages.k[layer]), None if latent else pages.pool(pages.v[layer])
            decoder.bind(layer, *pools, self.fields[layer], state=state)


class CompiledLane:
    """One budget of a compiled flow."""

    own_attention = True

    def __init__(self, flow: Compiled, budget: Budget) -> None:
        self.flow = flow
        self._decoder = flow.decoder(budget)

    def begin(self, pages: SharedPages, lane: int) -> None:
        device = self.flow.device
        self.flow.bind(self._decoder, pages)
        self._table = pages.page_table(torch.tensor([lane], device=device))
        self._slots = torch.zeros(1, dtype=torch.int32, device=device)
        self._offsets = torch.tensor([0, 1], dtype=torch.int32, device=device)

    def plan(self, step: Step) -> None:
        device = self.flow.device
        at, page = step.length - 1, step.page
        self._loc = self._table[0, at // page].long()[None] * page + at % page
        self._n = step.pages
        # K and V are stored already: what is left to do is a page that filled, and state that begins
        self._appends = step.length % page == 0 or step.first
        lengths = torch.tensor([step.length], dtype=torch.int32, device=device)
        fresh = torch.tensor([step.first], dtype=torch.int32, device=device)
        self._decoder.plan(lengths, self._table, self._slots, fresh)

    def read(self, layer: int, q: torch.Tensor, mass: torch.Tensor | None, scale: float) -> Read:
        decoder, spec = self._decoder, self.flow.spec
        if self._appends:
            decoder.append(layer, None, None, self._loc, self._offsets)
        asked = q.reshape(1, -1, spec.head_dim).to(TORCH[spec.dtype]).contiguous()
        out = asked.new_empty(*asked.shape[:2], spec.v_dim)
        decoder.decode(layer, asked, out=out, scale=scale)
        assert decoder.pages is not None and decoder.counts is not None
        listed = torch.arange(decoder.pages.shape[2], device=q.device) < decoder.counts[0, :, None]
        kept = torch.zeros(q.shape[0], self._n + 1, dtype=torch.bool, device=q.device)
        # what is behind the counts goes to a column of its own
        kept.scatter_(1, torch.where(listed, decoder.pages[0].long(), self._n), True)
        return Read(kept[:, : self._n], out[0])


class Eager:
    """A flow through the oracle; the summaries of a page are made once."""

    def __init__(
        self,
        flow: str | type[vFlow] | vFlow,
        spec: Spec,
        kv_heads: int,
        layers: tuple[int, ...],
        device: torch.device,
        given: Weights | None,
    ) -> None:
        self.flow = find_flow(flow) if isinstance(flow, str) else flow
        self.cap = cap(self.flow, spec)  # a flow that cannot be traced is refused here
        self.spec, self.kv_heads, self.layers, self.given = spec, kv_heads, layers, given
        self.fields: dict[tuple[int, int], dict[str, torch.Tensor]] = {}

    def lane(self, budget: int) -> Rule:
        return EagerLane(self, Budget(budget))

    def begin(self, pages: SharedPages) -> None:
        for layer in self.layers:
            for head in range(self.kv_heads):
                rows = [pages.shared(x[layer])[head] for x in self.pools(pages)]
                self.fields[layer, head] = self.summaries(layer, head, rows)

    def pools(self, pages: SharedPages) -> list[list[torch.Tensor]]:
        """K and V, or the latent rows, of each layer."""
        return [pages.k, pages.v][: len(self.spec.pools)]

    def summaries(self, layer: int, head: int, rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Of the full pages with tokens ``[T, D]`` in each pool."""
        parts = [x.reshape(-1, self.spec.page_size, x.shape[-1]).float().cpu() for x in rows]
        v_pages = parts[1] if len(parts) > 1 else None
        return summaries(self.flow, self.spec, parts[0], v_pages, layer, head, self.given)


class EagerLane:
    """One budget of an eager flow."""

    own_attention = False

    def __init__(self, flow: Eager, budget: Budget) -> None:
        self.flow, self.budget = flow, budget

    def begin(self, pages: SharedPages, lane: int) -> None:
        self._pages, self._lane = pages, lane

    def plan(self, step: Step) -> None:
        self._step = step
        if step.first:
            flow = self.flow
            self._state = {layer: RequestState(flow.flow, flow.spec, flow.kv_heads) for layer in flow.layers}
            self._fields = dict(flow.fields)
            self._known = dict.fromkeys(self._fields, self._pages.full)

    def read(self, layer: int, q: torch.Tensor, mass: torch.Tensor | None, scale: float) -> Read:
        n, budget, flow = self._step.pages, self.budget, self.flow
        kept = torch.zeros(q.shape[0], n, dtype=torch.bool)
        if not flow.cap.scored(budget, n):
            return Read(~kept.to(q.device))
        candidates = flow.cap.candidates(budget, n)
        first, last = candidates.start, candidates.stop
        for head in range(q.shape[0]):
            fields = {name: x[first:last] for name, x in self._summaries(layer, head, last).items()}
            fields |= dict(zip(flow.spec.pools, self.rows(layer, head, first, last), strict=True))
            held = self._state[layer].read(head, first, last)
            chosen, new = chosen_with(
                flow.flow, flow.spec, q[head].float().cpu(), fields, held, layer, first, last - first, head, flow.given
            )
            self._state[layer].write(head, new, first, last)
            kept[head, select_pages(chosen, n, budget)] = True
        return Read(kept.to(q.device))

    def rows(self, layer: int, head: int, first: int, last: int) -> list[torch.Tensor]:
        """K and V, or latent rows, of pages ``[first, last)``, each ``[S, page, D]``."""
        page, made = self._pages.page, []
        for x in (of_layers[layer] for of_layers in self.flow.pools(self._pages)):
            rows = self._pages.shared(x)[head, first * page : last * page]
            if last > self._pages.full:
                own = self._pages.of_lanes(x)[head, self._lane]
                start = max(first, self._pages.full) - self._pages.full
                rows = torch.cat([rows, own[start * page : (last - self._pages.full) * page]])
            made.append(rows.reshape(last - first, page, rows.shape[-1]).cpu())
        return made

    def _summaries(self, layer: int, head: int, last: int) -> dict[str, torch.Tensor]:
        """Of pages ``[0, last)`` at least, which are full."""
        at = layer, head
        if self._known[at] < last:
            new = self.flow.summaries(layer, head, self.rows(layer, head, self._known[at], last))
            self._fields[at] = {name: torch.cat([x, new[name]]) for name, x in self._fields[at].items()}
            self._known[at] = last
        return self._fields[at]
