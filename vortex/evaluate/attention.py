"""Attention of a model of ``transformers``, handed to a reader of ours for as long as a block runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from vortex.evaluate.latent import Latents

NAME = "vortex_eval"
"""What the model's attention is called meanwhile."""


class Reader(Protocol):
    """Who computes attention: ``q`` ``[B, Hq, T, D]`` and the new tokens' ``k`` ``[B, Hkv, T, D]`` and ``v``
    ``[B, Hkv, T, Dv]``, after the rotary embedding, give ``[B, T, Hq, Dv]``; None is for what the model itself computes
    of these tokens alone, causally. ``window`` is how many tokens the layer sees, 0 for all.

    Under MLA ``q`` is absorbed, ``k`` are latent rows, one head for all, and ``v`` is their first ``Dv`` numbers.
    """

    def __call__(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, window: int
    ) -> torch.Tensor | None: ...


_readers: list[tuple[Reader, Latents]] = []


def _attention(
    module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, **rest: Any
) -> tuple[torch.Tensor, None]:
    reader, latents = _readers[-1]
    scale = float(rest.get("scaling") or q.shape[-1] ** -0.5)
    about = scale, int(rest.get("sliding_window") or 0)
    absorbed = latents.absorbed(module, q, k)
    if absorbed is None:
        made = reader(int(module.layer_idx), q, k, v, *about)
    else:
        asked, rows = absorbed
        made = reader(int(module.layer_idx), asked, rows, rows[..., : module.kv_lora_rank], *about)
        made = made if made is None else latents.expanded(module, made)
    if made is None:
        made = sdpa_attention_forward(module, q, k, v, mask, **rest)[0]
    return made, None


@contextmanager
def attending(hf: PreTrainedModel, reader: Reader) -> Iterator[None]:
    """Forwards of ``hf`` inside the block ask ``reader`` in every layer; they must not use a cache."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    before = hf.config._attn_implementation
    hf.set_attn_implementation(NAME)
    latents = Latents()
    _readers.append((reader, latents))
    try:
        with latents.watching(hf):
            yield
    finally:
        _readers.pop()
        hf.set_attn_implementation(before)
