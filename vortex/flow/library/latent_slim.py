"""MLA pages scored by part of their mean latent row: a third of the bytes, and all of the rotary key.

At page 16 a summary as wide as the latent costs a sixteenth of the dense bytes, so that no selection is more than 16
times as fast; a narrow one moves that bound.
"""

from __future__ import annotations

from typing import Any

import torch

import vortex


@vortex.register("latent_slim")
class LatentSlim(vortex.vFlow):
    """The mean rotary key, and the first 128 of the compressed numbers: where a page is, and roughly what it says."""

    rank = 128

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        self.content = min(self.rank, spec.kv_lora_rank)
        self.rope = spec.kv_lora_rank  # where the rotary key begins
        return {"mean": vortex.Field(self.content + spec.head_dim - self.rope)}

    def _slim(self, row: Any) -> Any:
        return torch.cat([row[: self.content], row[self.rope :]])

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": self._slim(page.latent.mean(0))}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk(cache.mean @ self._slim(q.mean(0)))
