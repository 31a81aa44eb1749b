"""Pages scored by the attention mass of their keys in a few directions."""

from __future__ import annotations

from typing import Any

import torch

import vortex


@vortex.register("mass_lowrank")
class MassLowRank(vortex.vFlow):
    """As ``mass``, of keys projected on eight directions and kept in eight bits: a fifth of its bytes at head dim 128.

    ``basis`` ``[head_dim, rank]`` are the leading directions of a model's keys, from a calibration run; else random
    signs, which are the same on every machine, so that artifacts and results are shared.
    """

    def __init__(self, basis: torch.Tensor | None = None) -> None:
        self.basis = basis

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        signs = torch.randn(spec.head_dim, 8, generator=torch.Generator().manual_seed(0)).sign()
        self.directions = signs * spec.head_dim**-0.5 if self.basis is None else self.basis
        return {"keys": vortex.Field(spec.page_size, self.directions.shape[1], dtype="int8", scale=0)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"keys": page.k @ self.directions}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        logits = torch.einsum("gr,str->sgt", q @ self.directions, cache.keys) * q.shape[-1] ** -0.5
        return vortex.topk(torch.logsumexp(logits, -1).softmax(0).sum(-1))
