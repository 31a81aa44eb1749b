"""Quest's bound on logical sub-pages of 16 tokens, as in LServe (arXiv 2502.14866)."""

from __future__ import annotations

from typing import Any

import torch

import vortex


@vortex.register("lserve")
class LServe(vortex.vFlow):
    """A large page is as good as its best sub-page."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        self.sub = min(16, spec.page_size)
        parts = spec.page_size // self.sub
        return {"lo": vortex.Field(parts, spec.head_dim), "hi": vortex.Field(parts, spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        parts = page.k.unflatten(0, (-1, self.sub))  # [parts, sub, head_dim]
        return {"lo": parts.amin(1), "hi": parts.amax(1)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        bound = torch.maximum(q * cache.lo[:, :, None], q * cache.hi[:, :, None]).sum(-1)  # [S, parts, group]
        return vortex.topk(bound.amax((1, 2)))
