"""Multi-head latent attention (MLA) read as attention over latent rows, which is what engines keep of a token.

``transformers`` hands attention K and V expanded for each head. Of one head, with its parts of the weight of
``kv_b_proj``, ``W_UK`` ``[nope, R]`` and ``W_UV`` ``[V, R]``:

    q_nope . (W_UK @ c) + q_rope . k_rope   =   (q_nope @ W_UK, q_rope) . (c, k_rope)
    sum of w * (W_UV @ c)                   =   W_UV @ (sum of w * c)

so queries of ``R + rope`` numbers ask rows ``(c, k_rope)``, which all heads share, and of an output of ``R`` numbers
``W_UV`` makes what the model expects.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from vortex.errors import MODEL_REFUSED

NEAR = 0.05
"""Relative distance that rounding to bf16 stays far below."""
PARTS = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
"""What an attention module says of itself."""


def why_not(module: nn.Module) -> str:
    """Why the latent rows of a module that has a ``kv_b_proj`` cannot be read; empty where they can."""
    expands = getattr(module, "kv_b_proj", None)
    if not all(isinstance(getattr(module, name, None), int) for name in PARTS):
        return f"{type(module).__name__} does not say its {', '.join(PARTS)}"
    if getattr(module, "indexer", None) is not None:
        return f"{type(module).__name__} selects tokens by an indexer of its own"
    if type(expands) is not nn.Linear or expands.bias is not None:
        return f"kv_b_proj of {type(module).__name__} is no plain matrix"
    rank, nope, _, value = (getattr(module, name) for name in PARTS)
    if expands.in_features != rank or expands.out_features % (nope + value):
        return f"kv_b_proj of {type(module).__name__} is {expands.out_features} x {expands.in_features}"
    return ""


def modules(hf: nn.Module) -> list[nn.Module]:
    """Attention modules that expand latent rows, in order."""
    return [m for m in hf.modules() if isinstance(getattr(m, "kv_b_proj", None), nn.Module)]


class Latents:
    """What the modules of a model compress the tokens of a forward to, while :meth:`watching` runs."""

    def __init__(self) -> None:
        self._rows: dict[nn.Module, torch.Tensor] = {}

    @contextmanager
    def watching(self, hf: nn.Module) -> Iterator[None]:
        """Look at what ``kv_b_proj`` is given."""
        with ExitStack() as stack:
            for module in modules(hf):

                def look(_: nn.Module, given: tuple[torch.Tensor, ...], module: nn.Module = module) -> None:
                    self._rows[module] = given[0]

                stack.callback(module.kv_b_proj.register_forward_pre_hook(look).remove)  # type: ignore[union-attr]
            yield

    def absorbed(self, module: Any, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Queries ``[B, H, T, R + rope]`` and rows ``[B, 1, T, R + rope]``, from ``q`` and expanded ``k``
        ``[B, H, T, nope + rope]``; None for a module without latent rows.
        """
        compressed = self._rows.pop(module, None)
        if compressed is None:
            return None
        batch, _, tokens, _ = k.shape
        nope, rank = module.qk_nope_head_dim, module.kv_lora_rank
        up = module.kv_b_proj.weight.view(q.shape[1], -1, rank)[:, :nope]
        if tokens > 1:
            _require_order(module, torch.einsum("br,hnr->bhn", compressed.reshape(batch, tokens, rank)[:, 0], up), k)
        asked = torch.einsum("bhtn,hnr->bhtr", q[..., :nope], up)
        # all heads have the same rotary key
        rows = torch.cat([compressed.reshape(batch, 1, tokens, rank), k[:, :1, :, nope:]], -1)
        return torch.cat([asked, q[..., nope:]], -1), rows

    @staticmethod
    def expanded(module: Any, out: torch.Tensor) -> torch.Tensor:
        """``[B, T, H, V]`` of latent outputs ``[B, T, H, R]``."""
        nope, rank = module.qk_nope_head_dim, module.kv_lora_rank
        up = module.kv_b_proj.weight.view(out.shape[2], -1, rank)[:, nope:]
        return torch.einsum("bthr,hvr->bthv", out, up)


def _require_order(module: nn.Module, want: torch.Tensor, k: torch.Tensor) -> None:
    """VX9103 where keys are not what this file says of them: ``want`` ``[B, H, nope]`` of the first token, then a part
    that all heads share. Told of the first token of each prompt.
    """
    nope = want.shape[-1]
    first = k[:, :, 0].float()
    same = (first[..., nope:] == first[:, :1, nope:]).all()
    if not same or (first[..., :nope] - want.float()).norm() > NEAR * want.float().norm():
        why = f"{type(module).__name__} orders its keys in a way that is not known"
        hint = "models of the architectures of DeepSeek-V2 and V3 are known to do"
        raise MODEL_REFUSED.at(name=getattr(module.config, "_name_or_path", ""), why=why, hint=hint)
