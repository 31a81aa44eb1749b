"""Masks of one forward: sdpa's own, and what decoding has to know of them.

transformers makes a mask once a forward and hands it to all layers. A decode step attends to every token from the
request's first real one on, or is masked in a way that pages do not follow.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary
from transformers.masking_utils import causal_mask_function, sdpa_mask

from vortex.runtime.transformers.refusals import refuse


@dataclass(slots=True)
class Made:
    """A mask that :func:`causal_mask` made: whether it is causality and padding alone, and the places of the first
    real tokens, once somebody has asked for them.
    """

    plain: bool
    starts: tuple[int, ...] | None = None


_MADE: MutableMapping[torch.Tensor, Made] = WeakTensorKeyDictionary()


def causal_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """transformers' mask for sdpa: bool ``[B, 1, queries, keys]``, or None where there is no padding.

    Raises:
        VortexError: VX9021 where the cache is a static one.
    """
    config = kwargs.get("config")
    if isinstance(kwargs.get("q_offset"), torch.Tensor):
        why = "its tensors are as long as they ever get from the start, and do not say how much of them is filled"
        refuse(config, "static caches", why, "drop cache_implementation, or use 'dynamic'")
    made: torch.Tensor | None = sdpa_mask(*args, **kwargs)
    if made is not None:
        _MADE[made] = Made(kwargs.get("mask_function", causal_mask_function) is causal_mask_function)
    return made


def first_tokens(mask: torch.Tensor | None, batch: int, tokens: int, config: Any) -> tuple[int, ...]:
    """Where each of ``batch`` requests begins among ``tokens`` places, in a step of one query.

    Raises:
        VortexError: VX9021 for a mask of the model's own or the caller's, and for holes behind the first token.
    """
    if mask is None:
        return (0,) * batch
    made = _MADE.get(mask)
    if made is None or not made.plain:
        why = "what it hides is not known to be padding, and pages are chosen among all tokens of a request"
        hint = "give a 2D attention_mask, one number a token, and let the model make the rest of it"
        refuse(config, "a mask beside padding and causality", why, hint)
    if made.starts is None:
        row = mask[:, 0, -1, :]
        seen = torch.stack([row.int().argmax(-1), row.sum(-1)]).tolist()  # one wait for the device
        made.starts = tuple(seen[0])
        if row.shape != (batch, tokens) or any(tokens - at != n for at, n in zip(*seen, strict=True)):
            why = "pages are counted from a request's first token, and all tokens behind it must be real"
            refuse(config, "padding on the right, or holes in the mask", why, 'use padding_side="left"')
    return made.starts
