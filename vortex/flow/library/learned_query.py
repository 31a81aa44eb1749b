"""Score pages by one learned mixture of the queries, ``scaling * sum_h Wk[h] Wq[h]^T q_h``, against their mean key."""

from __future__ import annotations

from typing import Any

import torch

import vortex


@vortex.register("learned_query")
class LearnedQuery(vortex.vFlow):
    """A bilinear score of rank ``rank``, learned by distilling attention mass: see docs/flows.md."""

    def __init__(self, rank: int = 16, scaling: float = 1.0) -> None:
        self.rank, self.scaling = rank, scaling

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        shape = (spec.group, spec.head_dim, self.rank)
        self.wq = vortex.Parameter("wq", shape, per="head")
        self.wk = vortex.Parameter("wk", shape, per="head")
        return {"centroid": vortex.Field(spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"centroid": page.k.mean(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        inner = torch.einsum("gd,gdr->gr", q, self.wq)
        mixed = self.scaling * torch.einsum("gr,gdr->d", inner, self.wk)
        return vortex.topk(cache.centroid @ mixed)
