"""A flow that picks pages by a hash of their numbers: what a budget is worth without a rule."""

from __future__ import annotations

from typing import Any

import vortex

PRIME = 46337
"""The largest whose square is an int32."""


@vortex.register("random_pages")
class RandomPages(vortex.vFlow):
    """Other pages in each layer, KV head and page that a request grows by; nothing of the model takes part."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        mixed = vortex.page_index() * 7919 + vortex.layer() * 3571 + vortex.head() * 1999 + vortex.page_count() * 887
        for _ in range(3):
            mixed = mixed % PRIME
            mixed = (mixed * mixed + 12345) % PRIME
        return vortex.topk(mixed.float())
