"""What decoding through a flow should give: the oracle over a request's real tokens, from nothing in each step."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from vortex.budget import Budget
from vortex.flow import oracle
from vortex.flow.flow import find_flow
from vortex.spec import Spec


class Reference:
    """Knows neither caches nor pages that it has seen; a flow's state alone is kept, from a prompt to the next."""

    def __init__(self, flow: str, budget: Budget, page_size: int) -> None:
        self.flow, self.budget, self.page_size = find_flow(flow), budget, page_size
        self.states: dict[tuple[int, int], oracle.RequestState] = {}

    def __call__(
        self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **more: Any
    ) -> tuple[torch.Tensor, None]:
        layer = module.layer_idx
        if query.shape[2] > 1 or more.get("sliding_window"):
            self.states = {at: x for at, x in self.states.items() if at[0] != layer}
            return sdpa_attention_forward(module, query, key, value, mask, **more)
        heads = key.shape[1]
        spec = Spec(page_size=self.page_size, head_dim=key.shape[3], group=query.shape[1] // heads, dtype="f32")
        outs = []
        for row in range(len(query)):
            real = torch.arange(key.shape[2]) if mask is None else mask[row, 0, -1].nonzero()[:, 0]
            k, v = (x[row, :, real].transpose(0, 1) for x in (key, value))
            if (layer, row) not in self.states:
                self.states[layer, row] = oracle.RequestState(self.flow, spec, heads)
            state = self.states[layer, row]
            scale = more.get("scaling")
            outs.append(
                oracle.step(self.flow, spec, query[row, :, 0], k, v, self.budget, scale, layer, state=state).out
            )
        return torch.stack(outs)[:, None].to(query.dtype), None


def register(flow: str, budget: Budget, page_size: int, name: str = "reference") -> None:
    AttentionInterface.register(name, Reference(flow, budget, page_size))
    AttentionMaskInterface.register(name, sdpa_mask)
