"""Flows for benchmarks: a selection that depends on its scores in every way, and mass by keys in fp8."""

from __future__ import annotations

from typing import Any

import torch

import vortex


@vortex.register("share_union")
class ShareUnion(vortex.vFlow):
    """Four fifths of the estimated mass, and the best four of the newest sixteen pages."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"mean": vortex.Field(spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": page.k.mean(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        logits = cache.mean @ q.T / q.shape[-1] ** 0.5
        heavy = vortex.topp(logits.softmax(0).sum(-1), 0.8)
        late = torch.where(vortex.page_index() >= vortex.page_count() - 16, logits.amax(-1), -torch.inf)
        return vortex.union(heavy, vortex.topk(late, pages=4))


@vortex.register("mass_fp8")
class MassFp8(vortex.vFlow):
    """Share of a page in dense attention, from its keys in fp8."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"keys": vortex.Field(spec.page_size, spec.head_dim, dtype="fp8_e4m3")}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"keys": page.k}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        logits = torch.einsum("spd,gd->spg", cache.keys, q * q.shape[-1] ** -0.5)
        return vortex.topk(torch.logsumexp(logits, 1).softmax(0).sum(-1))
