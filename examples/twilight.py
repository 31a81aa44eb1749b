"""As many pages as hold a share of the estimated attention mass (Twilight, arXiv 2502.02770)."""

from __future__ import annotations

from typing import Any

import torch

import vortex


@vortex.register("twilight")
class Twilight(vortex.vFlow):
    """Quest's bound keeps 256 candidates; of their mass, told from keys in four bits, the best pages with 85 % stay."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        keys = vortex.Field(spec.page_size, spec.head_dim, dtype="int4", scale=0)
        return {"lo": vortex.Field(spec.head_dim), "hi": vortex.Field(spec.head_dim), "keys": keys}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"lo": page.k.amin(0), "hi": page.k.amax(0), "keys": page.k}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        bound = torch.maximum(q * cache.lo[:, None], q * cache.hi[:, None]).sum(-1)  # [S, group]
        near = vortex.shortlist(bound.amax(-1), pages=256)
        logits = cache.keys[near] @ q.T * q.shape[-1] ** -0.5  # [S1, page_size, group]
        return vortex.topp(logits.logsumexp(1).softmax(0).sum(-1), 0.85)
