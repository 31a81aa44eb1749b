"""Decode steps by the oracle: the flow's own code in torch, on the CPU, one request and KV head after another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from vortex.budget import Budget
from vortex.flow import oracle
from vortex.flow.flow import vFlow
from vortex.runtime.transformers.pages import Pages
from vortex.spec import Spec


@dataclass(slots=True)
class _Request:
    """The summaries of a request's full pages, by KV head, and the flow's state of it."""

    state: oracle.RequestState
    fields: list[dict[str, torch.Tensor]]
    pages: int = 0


@dataclass(slots=True)
class _Layer:
    requests: dict[int, _Request] = field(default_factory=dict)


class EagerPages(Pages):
    """Summaries of full pages; keys and values are read in the cache itself."""

    def __init__(
        self,
        flow: vFlow | type[vFlow],
        spec: Spec,
        budget: Budget,
        parameters: Mapping[str, torch.Tensor] | None,
        kv_heads: int,
    ) -> None:
        super().__init__(budget, spec.page_size)
        self._flow, self._spec, self._parameters, self._heads = flow, spec, parameters, kv_heads
        self.cap = oracle.cap(flow, spec)
        self.stateful = any(oracle.RequestState(flow, spec, 1).kept[0])
        self._layers: dict[int, _Layer] = {}

    def trim(self, layer: int, places: int) -> None:
        """As of all pages; summaries of pages that reach beyond are dropped."""
        super().trim(layer, places)
        for row, request in self._layers.get(layer, _Layer()).requests.items():
            full = max(0, places - self._starts[row]) // self.page_size
            if full < request.pages:
                request.pages = full
                request.fields = [{name: x[:full] for name, x in mine.items()} for mine in request.fields]

    def _begin(self, batch: int) -> None:
        self._layers.clear()

    def _new(self) -> _Request:
        return _Request(oracle.RequestState(self._flow, self._spec, self._heads), [{} for _ in range(self._heads)])

    def _attend(
        self, layer: int, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        requests = self._layers.setdefault(layer, _Layer()).requests
        outs = []
        for row, start in enumerate(self._starts):
            request = requests.setdefault(row, self._new())
            if keys.shape[2] - max(self.held(layer), start) > 1:  # a prompt was read
                request.state = self._new().state
            k, v = (x[row, :, start:].transpose(0, 1).detach().cpu() for x in (keys, values))
            self._summarise(request, layer, k, v)
            done = oracle.step(
                self._flow,
                self._spec,
                q[row].detach().cpu(),
                k,
                v,
                self.budget,
                scale,
                layer,
                request.fields,
                parameters=self._parameters,
                state=request.state,
            )
            outs.append(done.out)
        return torch.stack(outs).to(q)

    def _summarise(self, request: _Request, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """The pages that have filled since the last step, of tokens ``[len, Hkv, D]``."""
        page, first, last = self.page_size, request.pages, len(k) // self.page_size
        if first == last:
            return
        for head, mine in enumerate(request.fields):
            shape = last - first, page, k.shape[-1]
            k_pages, v_pages = (x[first * page : last * page, head].reshape(shape) for x in (k, v))
            new = oracle.summaries(self._flow, self._spec, k_pages, v_pages, layer, head, self._parameters)
            for name, x in new.items():
                mine[name] = torch.cat([mine[name], x]) if name in mine else x
        request.pages = last
