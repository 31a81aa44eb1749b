"""Two steps: Quest's bound over all pages keeps 64, and the mass of a copy of their keys ranks them."""

from __future__ import annotations

from typing import Any

import torch

import vortex


@vortex.register("quest_then_mass")
class QuestThenMass(vortex.vFlow):
    """The bound reads little of every page, the mass all keys of a few."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        self.scale = spec.head_dim**-0.5
        lo, hi = vortex.Field(spec.head_dim), vortex.Field(spec.head_dim)
        return {"lo": lo, "hi": hi, "keys": vortex.Field(spec.page_size, spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"lo": page.k.amin(0), "hi": page.k.amax(0), "keys": page.k}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        bound = torch.maximum(q * cache.lo[:, None], q * cache.hi[:, None]).sum(-1)  # [S, group]
        near = vortex.shortlist(bound.amax(-1), pages=64)
        logits = cache.keys[near] @ q.T * self.scale  # [S1, page_size, group]
        return vortex.topk(logits.logsumexp(1).softmax(0).sum(-1))
