"""Pages scored by their tokens' keys at a few label channels (Double Sparsity, arXiv 2408.07092)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import vortex


@vortex.register("double_sparsity")
class DoubleSparsity(vortex.vFlow):
    """The best token of a page by the label channels alone; the channels are chosen offline, else evenly spaced.

    ``channels`` are those whose products make up most of q.k in a calibration run: ``DoubleSparsity([3, 7, ..])``.
    """

    def __init__(self, channels: Sequence[int] | None = None) -> None:
        self.channels = channels

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        spaced = range(0, spec.head_dim, max(spec.head_dim // 16, 1))
        self.labels = list(spaced if self.channels is None else self.channels)
        return {"label": vortex.Field(spec.page_size, len(self.labels))}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"label": page.k[:, self.labels]}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk(torch.einsum("spc,gc->spg", cache.label, q[:, self.labels]).amax((1, 2)))
