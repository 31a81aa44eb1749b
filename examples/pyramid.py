"""Bounds of whole pages, then the estimated mass of their blocks: coarse where all is read, fine where it is chosen."""

from __future__ import annotations

from typing import Any

import torch

import vortex


@vortex.register("pyramid")
class Pyramid(vortex.vFlow):
    """For pages of several blocks (64 tokens in blocks of 16): a bound of 64 tokens costs a quarter of its bytes."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        bounds = {name: vortex.Field(spec.head_dim, per="page") for name in ("lo", "hi")}
        keys = vortex.Field(spec.block_size, spec.head_dim, dtype="int4", scale=0, per="block")
        return {**bounds, "keys": keys}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"lo": page.k.amin(0), "hi": page.k.amax(0), "keys": page.block.k}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        bound = torch.maximum(q * cache.lo[:, None], q * cache.hi[:, None]).sum(-1)  # [pages, group]
        near = vortex.shortlist(bound.amax(-1), pages=32)
        logits = cache.keys[near] @ q.T * q.shape[-1] ** -0.5  # [blocks of these pages, block_size, group]
        return vortex.topk(logits.logsumexp(1).softmax(0).sum(-1))
