"""Models with latent attention (MLA), read as latent rows: beside transformers' own attention, and by flows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    Glm4MoeLiteConfig,
    MiniCPM3Config,
    PreTrainedTokenizerFast,
)

from tests.evaluate.prompts import prompts
from tests.evaluate.test_lanes import by_lane, compiled_as_eager, evaluated
from vortex.errors import VortexError
from vortex.evaluate.advise import Advisor, Settings
from vortex.evaluate.agreement import Configuration
from vortex.evaluate.latent import why_not
from vortex.evaluate.models import Model, load_model
from vortex.evaluate.prefill import PromptCache, prefill, stored_bytes
from vortex.evaluate.prompts import Prompt
from vortex.evaluate.readers import spec_of
from vortex.evaluate.run import Evaluation
from vortex.evaluate.traces import capture

SIZE, RANK, ROPE, HEADS, LAYERS = 128, 24, 8, 4, 2
SHAPE: dict[str, Any] = {
    "vocab_size": SIZE, "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32,
    "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "kv_lora_rank": RANK,
    "qk_nope_head_dim": 16, "qk_rope_head_dim": ROPE, "v_head_dim": 20, "q_lora_rank": None, "head_dim": ROPE,
    "first_k_dense_replace": 1, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "max_position_embeddings": 2048, "initializer_range": 0.15, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
CONFIGS = {
    "v2": lambda: DeepseekV2Config(**SHAPE),
    "v3": lambda: DeepseekV3Config(**SHAPE | {"q_lora_rank": 32}),
    "yarn": lambda: DeepseekV3Config(
        **SHAPE,
        rope_parameters={
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 512,
            "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32, "beta_slow": 1,
        },
    ),
    "glm": lambda: Glm4MoeLiteConfig(**SHAPE | {"q_lora_rank": 32}),
    "minicpm": lambda: MiniCPM3Config(**SHAPE | {"q_lora_rank": 32}),
}  # fmt: skip


def saved(kind: str, folder: Path) -> Path:
    """A folder with a small model of random weights; words of its text are numbers."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        AutoModelForCausalLM.from_config(CONFIGS[kind]()).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({str(i): i for i in range(SIZE)}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="0", eos_token="2").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def latent(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(str(saved("v2", tmp_path_factory.mktemp("v2"))))


def test_advice_of_latent_rows(latent: Model, tmp_path: Path) -> None:
    """All pages agree fully, fewer do not, and layers can be dense."""
    given = Prompt("prompt 1", 200, 0, tuple(3 + 7 * i % 120 for i in range(200)), (), "all", (), (), 8)
    settings = Settings({"latent_topk": "latent_topk"}, (1, 64), 1.0, 8, backend="eager")
    advisor = Advisor(latent, [given], settings, folder=tmp_path)
    part, whole, dense = (Configuration("latent_topk", k, n) for k, n in ((1, ()), (64, ()), (1, (0, 1))))
    advisor.measure([part, whole, dense])
    found = advisor.advice().search
    assert found.measured[whole].share == found.measured[dense].share == 1.0
    assert found.measured[part].change < -1e-3 and found.measured[part].mass.max() < 0.9
    assert found.bytes(part) < found.bytes(dense) == found.dense_bytes


def test_what_is_known_of_it(latent: Model) -> None:
    assert (latent.heads, latent.kv_heads, latent.head_dim, latent.kv_lora_rank) == (HEADS, 1, RANK + ROPE, RANK)
    assert latent.sparse_layers == tuple(range(LAYERS))
    spec = spec_of(latent)
    assert (spec.pools, spec.group, spec.v_dim, spec.qk_rope_head_dim) == (("latent",), HEADS, RANK, ROPE)


FULL = pytest.mark.full


@pytest.mark.parametrize("kind", [k if k in ("v2", "yarn") else pytest.param(k, marks=FULL) for k in CONFIGS])
def test_dense_lanes_are_the_models_own(kind: str, tmp_path: Path) -> None:
    """Tokens and log-probabilities of dense lanes, and of flows that keep all pages, are those of transformers."""
    model = load_model(str(saved(kind, tmp_path / "model")))
    given = prompts(model, 150, 2)
    found = evaluated(model, tmp_path, ["latent_topk"], given, budgets=(64,), backend="eager")
    assert {str(o.lane) for o in found} == {"dense", "oracle@64", "random@64", "recent@64", "latent_topk@64"}
    for o in found:
        prompt = given[o.index]
        ids = torch.tensor([[*prompt.tokens, *prompt.answer]])
        with torch.inference_mode():
            logits = model.hf(ids, use_cache=False).logits[0, len(prompt.tokens) - 1 : -1].log_softmax(-1)
        want = logits.gather(1, torch.tensor(prompt.answer)[:, None]).mean()
        # rows are kept on disk in f16
        assert o.logprob == pytest.approx(float(want), abs=2e-3), str(o.lane)
        assert o.text == " ".join(prompt.wanted) and o.score == 1.0
        assert o.error.max() < 1e-5 and o.mass.min() == pytest.approx(1.0, abs=1e-6)
        assert o.mass.shape == (LAYERS, 1)


def test_compiled_and_eager_choose_the_same_pages(latent: Model, tmp_path: Path) -> None:
    given = prompts(latent, 250, 2)
    found = by_lane(compiled_as_eager(latent, tmp_path, ["latent_topk"], given, 1e-4))
    assert all(o.pages == 5 for o in found["latent_topk@2"])
    for k in (2, 8):  # chosen by the mass that is measured, in the layer whose queries are the same
        read = {
            rule: sum(o.mass[0, 0] for o in found[f"{rule}@{k}"])
            for rule in ("oracle", "latent_topk", "random", "recent")
        }
        assert max(read.values()) <= read["oracle"] + 1e-6


def test_rows_on_disk(latent: Model, tmp_path: Path) -> None:
    """Latent rows alone are kept, once."""
    (given,) = prompts(latent, 100, 1)
    cache = PromptCache(tmp_path)
    first = cache.read(latent, given)
    size = cache.path(latent, given).stat().st_size
    assert 0 <= size - stored_bytes(latent, 100) < 2000
    assert stored_bytes(latent, 100) == LAYERS * 99 * (RANK + ROPE) * 2
    again = cache.read(latent, given)
    assert all(torch.equal(a, b) for a, b in zip((*first.k, *first.v), (*again.k, *again.v), strict=True))
    assert again.v[0].shape == (1, 99, RANK) and again.v[0].data_ptr() == again.k[0].data_ptr()


def test_a_flow_over_keys_fails_and_the_others_go_on(latent: Model, tmp_path: Path) -> None:
    given = prompts(latent, 200, 1)
    flows = {"quest": "quest", "latent_topk": "latent_topk"}
    made = Evaluation(latent, flows, (2,), "eager", folder=tmp_path).run(given)
    assert set(made.failures) == {"quest"} and "latent" in made.failures["quest"].render()
    assert "latent_topk@2" in by_lane(made.outcomes)


def test_traces_are_refused(latent: Model, tmp_path: Path) -> None:
    (given,) = prompts(latent, 100, 1)
    with pytest.raises(VortexError, match="keeps latent rows") as caught:
        capture(latent, given, PromptCache(tmp_path))
    assert caught.value.code == "VX9124"


def test_keys_in_another_order_are_refused(tmp_path: Path) -> None:
    model = load_model(str(saved("v2", tmp_path / "model")))
    (given,) = prompts(model, 50, 1)
    for module in model.hf.modules():
        if hasattr(module, "expand_kv"):
            right = module.expand_kv
            module.expand_kv = lambda *given, right=right: (right(*given)[0].roll(ROPE, -1), right(*given)[1])
    with pytest.raises(VortexError, match="orders its keys in a way that is not known") as caught:
        prefill(model, given)
    assert caught.value.code == "VX9103"


def test_modules_that_select_by_themselves_are_refused(tmp_path: Path) -> None:
    folder = saved("v2", tmp_path / "model")
    made = AutoModelForCausalLM.from_pretrained(folder)
    attention = made.model.layers[0].self_attn
    assert why_not(attention) == ""
    attention.indexer = torch.nn.Linear(1, 1)
    assert "selects tokens by an indexer of its own" in why_not(attention)
    del attention.indexer
    attention.kv_b_proj = torch.nn.Linear(RANK, HEADS * 36, bias=True)
    assert "kv_b_proj of DeepseekV2Attention is no plain matrix" in why_not(attention)
    attention.kv_b_proj = torch.nn.Linear(RANK + 1, HEADS * 36, bias=False)
    assert "is 144 x 25" in why_not(attention)
    del attention.v_head_dim
    assert "does not say its kv_lora_rank" in why_not(attention)
