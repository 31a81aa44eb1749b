"""Writes a small Qwen3 with random weights, and a tokenizer of words t4 .. t1023. Runs in the engine's environment.

The weights are drawn wide, and q and k are scaled up, so that attention is far from uniform: leaving a page out
changes the tokens, and no two scores tie.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

VOCABULARY = 1024


def write_model(path: Path) -> None:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = Qwen3ForCausalLM(config).float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.normal_(0, 0.5 if "embed" in name or "lm_head" in name else 0.12)
            if "q_norm" in name or "k_norm" in name:
                weight.fill_(2.5)
    model.save_pretrained(path)


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
    target = Path(sys.argv[1])
    write_model(target)
    write_tokenizer(target)
