"""Pages scored by the attention mass that their keys, kept in four bits, are estimated to have."""

from __future__ import annotations

from typing import Any

import torch

import vortex


@vortex.register("mass")
class Mass(vortex.vFlow):
    """What attention would give a page: logsumexp over its tokens, softmax over pages, summed over the heads.

    Keys are kept as int4 codes with one scale a token. With 4 pages this keeps what Quest needs 64 for.
    """

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"keys": vortex.Field(spec.page_size, spec.head_dim, dtype="int4", scale=0)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"keys": page.k}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        logits = torch.einsum("gd,std->sgt", q, cache.keys) * q.shape[-1] ** -0.5  # [S, group, page]
        return vortex.topk(torch.logsumexp(logits, -1).softmax(0).sum(-1))
