"""Pages scored by how many hash bits of a key and a query agree."""

from __future__ import annotations

from typing import Any

import torch

import vortex


@vortex.register("hash_bits")
class HashBits(vortex.vFlow):
    """The token nearest to each head, in a hash of 64 bits: the signs of projections on random directions.

    Two vectors at an angle a agree in a share 1 - a / pi of the bits, which kernels compare 32 at a time.
    """

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        some = torch.rand(spec.head_dim, 64, generator=torch.Generator().manual_seed(0))
        self.directions = torch.where(some < 0.5, -1.0, 1.0)
        return {"bits": vortex.Field(spec.page_size, 64, dtype="uint1")}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"bits": page.k @ self.directions > 0}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        same = vortex.same_bits(cache.bits[:, :, None], q @ self.directions > 0)  # [S, page, group]
        return vortex.topk(same.amax(1).sum(-1).float())
