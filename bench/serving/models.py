"""Models of random weights: the small ones of the engine tests, and the shapes of public ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

QWEN: dict[str, dict[str, Any]] = {
    "1.7b": dict(
        hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16, head_dim=128,
        tie_word_embeddings=True,
    ),
    "8b": dict(
        hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32, head_dim=128,
        tie_word_embeddings=False,
    ),
}  # fmt: skip
SMALL: dict[str, Any] = dict(
    hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=16, head_dim=32,
    tie_word_embeddings=True,
)  # fmt: skip


def small(folder: Path, kind: str, dtype: str) -> Path:
    """A small model of a kind of tests/engine/weights.py; latent rows are V2-Lite's."""
    import weights

    folder = folder / kind
    if not folder.exists():
        plain = kind in ("calm", "scaled")
        make = weights.plain if plain else weights.grouped if kind == "grouped" else lambda: _latent(weights)
        weights.write_model(folder, make, calm=plain or kind == "calm_latent")
        weights.write_tokenizer(folder)
        if dtype == "float16":
            _round(folder / "model.safetensors")
        if kind == "scaled":
            weights.add_scales(folder)
    return folder


def _round(path: Path) -> None:
    """Weights of 16 bits, so that the simulation, which computes in 32, has the same."""
    from safetensors.torch import load_file, save_file

    save_file({key: value.half() for key, value in load_file(path).items()}, path, metadata={"format": "pt"})


def _latent(weights: Any) -> Any:
    """tests/engine's DeepSeek V2 with the attention of V2-Lite."""
    from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

    config = weights.latent().config.to_dict()
    shape = {
        "num_attention_heads": 16, "num_key_value_heads": 16, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "v_head_dim": 128, "head_dim": 64,
    }  # fmt: skip
    return DeepseekV2ForCausalLM(DeepseekV2Config(**(config | shape)))


def qwen(folder: Path, which: str, longest: int, device: str) -> Path:
    """The shape of a Qwen3, weights drawn wide on the device."""
    import torch
    from safetensors.torch import save_file
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from weights import write_tokenizer

    folder, cpu = folder / f"qwen-{which}", device == "cpu"
    words = SMALL if cpu else QWEN[which]
    config = Qwen3Config(
        **words, num_key_value_heads=8, vocab_size=1024 if cpu else 151936, max_position_embeddings=longest,
        bos_token_id=1, eos_token_id=2, dtype="bfloat16",
    )  # fmt: skip
    config.architectures = ["Qwen3ForCausalLM"]
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config)
    drawn = {}
    torch.manual_seed(0)
    for label, weight in model.named_parameters():
        made = torch.empty(weight.shape, dtype=torch.bfloat16, device=device)
        if weight.dim() == 2:
            made.normal_(0, 0.5 if "embed" in label or "lm_head" in label else 2 * weight.shape[-1] ** -0.5)
        else:
            made.fill_(2.5 if "q_norm" in label or "k_norm" in label else 1.0)
        drawn[label] = made.cpu()
    save_file(drawn, folder / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(folder)
    return folder
