"""Small random models of several families, and prompts for them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedModel,
    Qwen3Config,
)

WORDS = 300
SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": WORDS,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "initializer_range": 0.25,
}
GROUPED = SMALL | {"num_key_value_heads": 2, "head_dim": 16}
CONFIGS = {
    "llama": lambda: LlamaConfig(**GROUPED),
    "qwen3": lambda: Qwen3Config(**GROUPED),
    "gemma3": lambda: Gemma3TextConfig(
        **GROUPED | {"num_hidden_layers": 4}, sliding_window=24, layer_types=["sliding_attention", "full_attention"] * 2
    ),
    "neox": lambda: GPTNeoXConfig(**SMALL),  # a KV head for each query head
}


def model(kind: str = "llama", attention: str = "sdpa", **settings: Any) -> PreTrainedModel:
    """The same weights at each call."""
    config = CONFIGS[kind]()
    if settings:
        config.vortex = settings
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def prompts(*lengths: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch of prompts of these lengths, padded on the left."""
    drawn = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids = torch.randint(2, WORDS, (len(lengths), longest), generator=drawn)
    mask = torch.ones_like(ids)
    for row, length in enumerate(lengths):
        mask[row, : longest - length] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}
