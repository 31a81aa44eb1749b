"""Attention of a model of ``transformers``, handed to a reader of ours for as long as a block runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "vortex_eval"
"""What the model's attention is called meanwhile."""


class Reader(Protocol):
    """Who computes attention: ``q`` ``[B, Hq, T, D]`` and the new tokens' ``k``, ``v`` ``[B, Hkv, T, D]``, after the
    rotary embedding, give ``[B, T, Hq, D]``. ``window`` is how many tokens the layer sees, 0 for all.
    """

    def __call__(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, window: int, dense: Dense
    ) -> torch.Tensor: ...


class Dense(Protocol):
    """What the model itself would compute from these tokens alone, causally: ``[B, T, Hq, D]``."""

    def __call__(self) -> torch.Tensor: ...


_readers: list[Reader] = []


def _attention(
    module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, **rest: Any
) -> tuple[torch.Tensor, None]:
    def dense() -> torch.Tensor:
        made: torch.Tensor = sdpa_attention_forward(module, q, k, v, mask, **rest)[0]
        return made

    scale = rest.get("scaling") or q.shape[-1] ** -0.5
    return _readers[-1](int(module.layer_idx), q, k, v, float(scale), int(rest.get("sliding_window") or 0), dense), None


@contextmanager
def attending(hf: PreTrainedModel, reader: Reader) -> Iterator[None]:
    """Forwards of ``hf`` inside the block ask ``reader`` in every layer; they must not use a cache."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    before = hf.config._attn_implementation
    hf.set_attn_implementation(NAME)
    _readers.append(reader)
    try:
        yield
    finally:
        _readers.pop()
        hf.set_attn_implementation(before)
