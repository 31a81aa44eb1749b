"""What the attention does not serve, and the reasons. A thing goes off the list when a test shows that it works."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import nn
from transformers.cache_utils import Cache, DummyLayer, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from vortex.errors import HF_REFUSED
from vortex.runtime.tensors import short

OTHER = "use attn_implementation='sdpa' for this model"

EXTRAS = {
    "s_aux": ("attention sinks", "the softmax of the kernels has no term beside the tokens", OTHER),
    "sinks": ("attention sinks", "the softmax of the kernels has no term beside the tokens", OTHER),
    "softcap": ("logit caps (softcap)", "attention would have to apply tanh to its scores", OTHER),
    "position_bias": ("position biases", "the kernels add nothing to the scores", OTHER),
    "indices": ("models with a selection of their own", "two would choose the same pages", OTHER),
    "block_indices": ("models with a selection of their own", "two would choose the same pages", OTHER),
    "output_attentions": (
        "output_attentions=True",
        "attention weights are not kept",
        "leave it out, or use attn_implementation='eager'",
    ),
    "cu_seq_lens_q": ("packed sequences", "a row of the batch is one request here", "pad the batch on the left"),
}
"""Arguments that models hand to attention and that change what it computes."""

HARMLESS = frozenset(
    (
        "is_causal", "sliding_window", "position_ids", "position_embeddings", "cache_position", "cache",
        "past_key_values", "use_cache", "output_hidden_states", "output_router_logits", "return_dict",
        "logits_to_keep", "num_items_in_batch", "token_type_ids", "mm_token_type_ids", "deterministic", "inputs_embeds",
    )
)  # fmt: skip
"""Arguments that do not, or that are looked at."""


def refuse(config: Any, what: str, why: str, hint: str) -> NoReturn:
    """VX9021, with the name under which the attention was asked for."""
    name = getattr(config, "_attn_implementation", None) or "vortex"
    raise HF_REFUSED.at(name=name, what=what, why=why, hint=hint)


def refuse_call(module: nn.Module, extras: Mapping[str, Any]) -> None:
    """VX9021 for a model, or a way to call it, that no layer serves."""
    config: Any = module.config
    if module.training:
        why = "a flow's selection has no gradient"
        refuse(config, "training", why, "model.eval(), or attn_implementation='sdpa' while training")
    if getattr(config, "is_encoder_decoder", False):
        refuse(config, "encoder-decoder models", "cross attention is not decoding in pages", OTHER)
    if getattr(config, "kv_lora_rank", None):
        why = "transformers hands their K and V to attention expanded, of unequal width, and not the latent rows"
        refuse(config, "MLA models", why, "serve them with SGLang (docs/sglang.md), or use attn_implementation='sdpa'")
    for name, given in extras.items():
        if given is None or given is False or name in HARMLESS:
            continue
        known = EXTRAS.get(name)
        if known is None:
            why = "it is not known whether attention would have to take it into account"
            refuse(config, f"a model that passes '{name}'", why, OTHER)
        refuse(config, *known)
    if getattr(module, "sinks", None) is not None:
        refuse(config, *EXTRAS["sinks"])


def refuse_shape(module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    """VX9021 for queries, keys and values that pages do not hold."""
    config: Any = module.config
    if key.shape[-1] != value.shape[-1] or key.shape[-1] != query.shape[-1]:
        dims = f"{query.shape[-1]}, {key.shape[-1]} and {value.shape[-1]}"
        refuse(config, f"head dims of {dims} (query, key, value)", "a page's K and V have one shape", OTHER)
    if query.shape[1] % key.shape[1]:
        heads = f"{query.shape[1]} query heads over {key.shape[1]} KV heads"
        refuse(config, heads, "each KV head has as many query heads as any other", OTHER)
    if not query.dtype == key.dtype == value.dtype or short(query.dtype) not in ("bf16", "f16", "f32"):
        types = ", ".join(dict.fromkeys(short(x.dtype) for x in (query, key, value)))
        why = "queries, keys and values are of one type, f32, bf16 or f16"
        refuse(config, f"attention in {types}", why, "load the model with dtype=torch.bfloat16")


def refuse_gradient(module: nn.Module, query: torch.Tensor) -> None:
    """VX9021 where a decode step should be differentiated."""
    if torch.is_grad_enabled() and query.requires_grad:
        why = "the kernels compute none"
        refuse(module.config, "gradients through a decode step", why, "decode under torch.no_grad()")


def refuse_assisted(module: nn.Module) -> None:
    """VX9021 where several tokens are verified at once. They look like a chunk of a prompt, and no argument tells, so
    it is transformers' own function that is looked for among the callers.
    """
    frame = sys._getframe(1)
    while (caller := frame.f_back) is not None:
        if caller.f_code.co_name == "_assisted_decoding":
            why = "verifying several tokens at once would read all pages, so that no flow is followed"
            hint = "leave out assistant_model, prompt_lookup_num_tokens and assistant_early_exit"
            refuse(module.config, "assisted generation", why, hint)
        frame = caller


def refuse_cache(module: nn.Module, cache: Cache, number: int) -> None:
    """VX9021 for a cache whose tensors are not the tokens, in their order."""
    if type(cache) is not DynamicCache and type(cache) is not Cache:
        why = "of caches that keep every token as it is, only DynamicCache is known"
        refuse(module.config, f"a {type(cache).__name__}", why, "use DynamicCache, which generate() makes by itself")
    if getattr(cache, "offloading", False):
        why = "its tensors are moved after each layer, so that all pages would be made anew in each step"
        refuse(module.config, "an offloaded cache", why, "drop cache_implementation='offloaded'")
    if number < len(cache.layers):
        layer = type(cache.layers[number])
        if layer not in (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer):
            why = "of cache layers that keep every token as it is, only DynamicLayer is known"
            refuse(module.config, f"a {layer.__name__} (layer {number})", why, OTHER)
