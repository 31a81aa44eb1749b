"""Writes a small model with random weights, and a tokenizer of words t4 .. t1023. Runs in the engine's environment.

    weights.py FOLDER KIND     grouped: a Qwen3; latent: a DeepSeek V2 whose attention is latent (MLA)
                               calm: a Llama for half precision; scaled: the same with scales of K and V in fp8,
                               which SGLang loads for Llama and not for Qwen3; calm_latent: that DeepSeek V2 for
                               half precision

The weights are drawn wide, and q and k are scaled up, so that attention is far from uniform: leaving a page out
changes the tokens, and no two scores tie. That makes a model in which an error of rounding grows from layer to layer;
``calm`` ones add less to what goes through them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 1024

SCALES = ((0.1, 0.04), (0.13, 0.05), (0.16, 0.06), (0.19, 0.07))
"""Of K and V in each layer: no powers of two, and nothing is clamped."""

COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def grouped() -> PreTrainedModel:
    """Two KV heads of 64 for eight query heads."""
    return Qwen3ForCausalLM(Qwen3Config(**COMMON, num_key_value_heads=2, head_dim=64))


def plain() -> PreTrainedModel:
    """As :func:`grouped`, without norms of q and k."""
    return LlamaForCausalLM(LlamaConfig(**COMMON, num_key_value_heads=2, head_dim=64))


def latent() -> PreTrainedModel:
    """Latent rows of 64 + 16 numbers for eight query heads; no layer has experts."""
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 2048}
    # no scale of attention beside it: transformers and SGLang apply that in different places
    rope |= {"mscale": 0.0, "mscale_all_dim": 0.0, "attention_factor": 1.0, "beta_fast": 32, "beta_slow": 1}
    config = DeepseekV2Config(
        **COMMON,
        num_key_value_heads=8,
        kv_lora_rank=64,
        q_lora_rank=None,
        qk_nope_head_dim=32,
        qk_rope_head_dim=16,
        v_head_dim=32,
        head_dim=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        first_k_dense_replace=COMMON["num_hidden_layers"],
        moe_layer_freq=1,
        rope_parameters=rope,
    )
    return DeepseekV2ForCausalLM(config)


def write_model(path: Path, make: Callable[[], PreTrainedModel], *, calm: bool = False) -> None:
    torch.manual_seed(0)
    model = make().float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.normal_(0, 0.5 if "embed" in name or "lm_head" in name else 0.12)
            if "q_norm" in name or "k_norm" in name or "kv_a_layernorm" in name:
                weight.fill_(2.5)
            if calm and ("o_proj" in name or "down_proj" in name):
                weight.mul_(1 / 15)
            if calm and ("q_proj" in name or "k_proj" in name):
                weight.mul_(0.78)
            if calm and isinstance(model, DeepseekV2ForCausalLM) and ("kv_b_proj" in name or "o_proj" in name):
                # as large as of 64 numbers of a row, and of 8 heads of 32, of which it is calm
                weight.mul_(((64 if "kv_b" in name else 256) / weight.shape[1]) ** 0.5)
    model.save_pretrained(path)


def add_scales(path: Path) -> None:
    """As llm-compressor writes them for K and V alone."""
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    scheme = {"type": "float", "num_bits": 8, "strategy": "tensor", "symmetric": True, "dynamic": False}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "dense",
        "config_groups": {},
        "ignore": ["re:.*"],
        "kv_cache_scheme": scheme,
    }
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = load_file(path / "model.safetensors")
    for layer, scales in enumerate(SCALES):
        for name, scale in zip("kv", scales, strict=True):
            weights[f"model.layers.{layer}.self_attn.{name}_scale"] = torch.tensor(scale)
    save_file(weights, path / "model.safetensors", {"format": "pt"})


def write_tokenizer(path: Path) -> None:
    names = ["<unk>", "<s>", "</s>", "<pad>", *(f"t{i}" for i in range(4, VOCABULARY))]
    words = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=names[0]))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    unknown, begin, end, pad = names[:4]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token=unknown, bos_token=begin, eos_token=end, pad_token=pad
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    tokenizer.save_pretrained(path)


if __name__ == "__main__":
    target, kind = Path(sys.argv[1]), sys.argv[2]
    made = {"grouped": grouped, "latent": latent, "calm_latent": latent, "calm": plain, "scaled": plain}[kind]
    write_model(target, made, calm=made is plain or kind == "calm_latent")
    if kind == "scaled":
        add_scales(target)
    write_tokenizer(target)
