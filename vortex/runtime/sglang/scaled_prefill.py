"""Prompts over K and V in fp8 by a dense backend that knows no scales, as SGLang's torch_native."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from vortex.runtime.sglang.step import Layer


class ScaledPrefill:
    """``dense`` stores numbers and reads bytes as they are. Here K and V are stored by the scales of their layer, and
    what is read is put right where it is exact: q * (bytes * k_scale) is q * bytes with another factor for the logits,
    and v_scale is one factor of what comes out.
    """

    def __init__(self, dense: Any, pool: Any, layers: Mapping[int, Layer]) -> None:
        self._dense, self._pool, self._layers = dense, pool, layers
        self._unscaled: dict[int, Any] = {}  # SGLang's layers with that factor
        self.needs_cpu_seq_lens = dense.needs_cpu_seq_lens

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """As the dense backend does."""
        self._dense.init_forward_metadata(forward_batch)

    def support_triton(self) -> bool:
        """As the dense backend says."""
        return bool(self._dense.support_triton())

    def forward_extend(
        self, q: torch.Tensor, k: Any, v: Any, layer: Any, forward_batch: Any, save_kv_cache: bool = True
    ) -> torch.Tensor:
        """Prompt tokens of one layer."""
        mine = self._layers[layer.layer_id]
        if save_kv_cache and k is not None:
            # copies, for SGLang divides in place
            self._pool.set_kv_buffer(layer, forward_batch.out_cache_loc, k.clone(), v.clone(), *mine.scales)
        other = self._unscaled.get(layer.layer_id)
        if other is None:
            other = self._unscaled[layer.layer_id] = copy.copy(layer)
            other.scaling = layer.scaling * mine.k_scale
        out: torch.Tensor = self._dense.forward_extend(q, None, None, other, forward_batch, save_kv_cache=False)
        return out.mul_(mine.v_scale)
