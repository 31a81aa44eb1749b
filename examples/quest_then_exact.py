"""Two steps: Quest's bound over all pages keeps 64, and the exact mass of their keys ranks them."""

from __future__ import annotations

from typing import Any

import torch

import vortex


@vortex.register("quest_then_exact")
class QuestThenExact(vortex.vFlow):
    """Bounds in fp8 keep 64 pages; the mass is that of the keys in the KV cache itself, of which no copy is kept."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        self.scale = spec.head_dim**-0.5
        return {name: vortex.Field(spec.head_dim, dtype="fp8_e4m3") for name in ("lo", "hi")}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"lo": page.k.amin(0), "hi": page.k.amax(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        bound = torch.maximum(q * cache.lo[:, None], q * cache.hi[:, None]).sum(-1)  # [S, group]
        near = vortex.shortlist(bound.amax(-1), pages=64)
        logits = cache.k[near] @ q.T * self.scale  # [S1, page_size, group]
        return vortex.topk(logits.logsumexp(1).softmax(0).sum(-1))
