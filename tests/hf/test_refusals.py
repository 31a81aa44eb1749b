"""What is not served, and wrong settings: each is said with its code, its reason and what to do instead."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DynamicCache,
    Gemma2Config,
    GptOssConfig,
    T5Config,
    T5ForConditionalGeneration,
)

import vortex.hf
from tests.hf.models import GROUPED, model, prompts
from vortex.errors import VortexError

EMA = str(Path(__file__).resolve().parents[2] / "examples" / "query_ema.py")
PAGE = 8


def few(**settings: Any) -> str:
    """An attention that reads few pages by the oracle, so that nothing is compiled."""
    vortex.hf.register("few", **{"flow": "quest", "budget": 1, "page_size": PAGE, "backend": "eager", **settings})
    return "few"


def error(call: Callable[[], object], code: str) -> str:
    with pytest.raises(VortexError) as caught:
        call()
    assert caught.value.code == code
    return caught.value.render()


def of(config: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return AutoModelForCausalLM.from_config(config, attn_implementation=few()).eval()


# --- VX9020 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("found", "said"), [("", "transformers is not installed"), ("5.12.1", "transformers 5.12.1")])
def test_another_transformers(found: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if not found:
            raise PackageNotFoundError(name)
        return found

    monkeypatch.setattr(vortex.hf, "version", version)
    for call in (vortex.hf.register, lambda: vortex.hf.report(torch.nn.Identity())):
        text = error(call, "VX9020")
        assert said in text and "pip install 'transformers>=5.20'" in text


# --- VX9022 ---------------------------------------------------------------------------------------------------

SETTINGS = {
    "a name of transformers'": ({"name": "sdpa"}, "the name 'sdpa' is transformers' own"),
    "eager": ({"name": "eager"}, "the name 'eager' is transformers' own"),
    "no name": ({"name": ""}, "the name '' is transformers' own"),
    "two names": ({"name": "a|b"}, "the name 'a|b' is transformers' own"),
    "a page of no tokens": ({"page_size": 0}, "register(): page_size"),
    "a backend": ({"backend": "triton"}, "register(): backend"),
    "no flow": ({"flow": ""}, "register(): flow"),
    "layers before the first": ({"dense_layers": [-1]}, "register(): dense_layers"),
    "layers by name": ({"dense_layers": ["first"]}, "register(): dense_layers"),
    "the code of an artifact": ({"flow": "x.vxa"}, "flow 'x.vxa' is an artifact, and backend 'eager' runs"),
}


@pytest.mark.parametrize(("given", "said"), SETTINGS.values(), ids=SETTINGS.keys())
def test_settings_of_register(given: dict[str, Any], said: str) -> None:
    text = error(lambda: vortex.hf.register(**{"name": "wrong", "backend": "eager", **given}), "VX9022")
    assert said in text and "docs/transformers.md" in text


def test_a_flow_object_that_should_be_compiled() -> None:
    from vortex.flow.library.quest import Quest

    for flow in (Quest, Quest()):
        said = "flow Quest is an object, which no other interpreter can import to compile it"
        assert said in error(lambda flow=flow: vortex.hf.register("object", flow=flow), "VX9022")  # type: ignore[misc]
    vortex.hf.register("object", flow=Quest, backend="eager")


def test_budgets_that_are_none() -> None:
    for budget in (-1, 1.5, True, "many", {"pages": 1, "recent": 0}, {"pages": 1, "ratio": -0.5}, {"page": 1}):
        assert "register(): budget" in error(lambda budget=budget: few(budget=budget), "VX9022")  # type: ignore[misc]


def test_flows_that_there_are_not() -> None:
    error(lambda: few(flow="no_such_flow"), "VX1018")
    error(lambda: few(flow="no_such_file.py"), "VX7002")


CONFIGS: dict[str, tuple[object, str]] = {
    "no object": (61, "config.vortex is 61; an object is needed"),
    "another key": ({"flow": "quest", "pages": 61}, "config.vortex: it has no 'pages', did you mean 'page_size'?"),
    "another type": ({"page_size": "16"}, "config.vortex: page_size"),
    "the code of an artifact": ({"flow": "x.vxa", "backend": "eager"}, "flow 'x.vxa' is an artifact"),
}


@pytest.mark.parametrize(("given", "said"), CONFIGS.values(), ids=CONFIGS.keys())
def test_settings_of_a_config(given: object, said: str) -> None:
    m = model(attention=few())
    m.config.vortex = given
    assert said in error(lambda: m(**prompts(20)), "VX9022")


# --- VX9021: ways to call a model -----------------------------------------------------------------------------


@torch.no_grad()
def stepped(m: Any, cache: Any = None, **step: Any) -> None:
    """A prompt, and one token behind it."""
    cache = DynamicCache(config=m.config) if cache is None else cache
    m(**prompts(40), cache=cache)
    m(**{"input_ids": torch.tensor([[5]]), "attention_mask": torch.ones(1, 41), "cache": cache, **step})


def holes(at: int) -> dict[str, torch.Tensor]:
    given = prompts(40, 40)
    given["attention_mask"][1, at] = 0
    return given


def own_mask(m: Any) -> None:
    stepped(m, attention_mask=torch.zeros(1, 1, 1, 41))


def edited_cache(m: Any) -> None:
    class Other(DynamicCache):
        pass

    stepped(m, Other(config=m.config))


def trained(m: Any) -> None:
    m.train()(**prompts(20))


def differentiated(m: Any) -> None:
    cache = DynamicCache(config=m.config)
    m(**prompts(40), cache=cache)
    m(input_ids=torch.tensor([[5]]), attention_mask=torch.ones(1, 41), cache=cache)


def generated(given: dict[str, torch.Tensor] | None = None, **more: Any) -> Callable[[Any], None]:
    def run(m: Any) -> None:
        if more.pop("assisted", False):
            more["assistant_model"] = copy.deepcopy(m)
        m.generate(**(given or prompts(40)), max_new_tokens=4, do_sample=False, **more)

    return run


CALLS: dict[str, tuple[Callable[[Any], object], str, str]] = {
    "training": (trained, "training: a flow's selection has no gradient", "model.eval()"),
    "gradients": (differentiated, "gradients through a decode step", "torch.no_grad()"),
    "weights that are asked for": (
        lambda m: stepped(m, output_attentions=True),
        "output_attentions=True: attention weights are not kept",
        "attn_implementation='eager'",
    ),
    "packed sequences": (
        lambda m: stepped(m, cu_seq_lens_q=torch.tensor([0, 1], dtype=torch.int32)),
        "packed sequences: a row of the batch is one request here",
        "pad the batch on the left",
    ),
    "arguments that nobody knows": (
        lambda m: stepped(m, tilt=0.5),
        "a model that passes 'tilt'",
        "use attn_implementation='sdpa'",
    ),
    "a mask of one's own": (own_mask, "a mask beside padding and causality", "give a 2D attention_mask"),
    "padding on the right": (generated(holes(39)), "padding on the right, or holes in the mask", "padding_side="),
    "holes": (generated(holes(10)), "padding on the right, or holes in the mask", "padding_side="),
    "a static cache": (generated(cache_implementation="static"), "static caches", "drop cache_implementation"),
    "an offloaded cache": (
        lambda m: (stepped(m), generated(cache_implementation="offloaded")(m)),  # before it is moved at all
        "an offloaded cache",
        "drop cache_implementation='offloaded'",
    ),
    "a cache of another kind": (edited_cache, "a Other: of caches that keep every token", "use DynamicCache"),
    "an assistant": (generated(assisted=True), "assisted generation", "leave out assistant_model"),
    "prompt lookup": (generated(prompt_lookup_num_tokens=3), "assisted generation", "prompt_lookup_num_tokens"),
}


@pytest.mark.parametrize(("call", "said", "hint"), CALLS.values(), ids=CALLS.keys())
def test_calls(call: Callable[[Any], object], said: str, hint: str) -> None:
    if "offloaded" in said and torch.version.cuda and not torch.cuda.is_available():
        pytest.skip("this torch is made for CUDA and finds none, so that transformers makes no such cache")
    text = error(lambda: call(model(attention=few())), "VX9021")
    assert "attn_implementation 'few' does not serve" in text
    assert said in text and hint in text


def test_a_type_that_kernels_do_not_have() -> None:
    m = model(attention=few()).double()
    text = error(lambda: stepped(m), "VX9021")
    assert "attention in float64" in text and "dtype=torch.bfloat16" in text


def test_state_in_a_first_forward() -> None:
    """Its cache is not known before the second forward: the hook is made in the first one."""
    filled = DynamicCache()
    other = model()
    with torch.no_grad():
        other(**prompts(40), cache=filled)
        m = model(attention=few(flow=EMA))
        given = {"input_ids": torch.tensor([[5]]), "attention_mask": torch.ones(1, 41), "cache": filled}
        text = error(lambda: m(**given), "VX9021")
    assert "a flow with state in a model's first forward" in text and "read a prompt first" in text


# --- VX9021: models -------------------------------------------------------------------------------------------


def test_latent_attention() -> None:
    m = of(
        DeepseekV2Config(
            **GROUPED | {"num_key_value_heads": 4, "head_dim": 8}, kv_lora_rank=24, q_lora_rank=None,
            qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16, first_k_dense_replace=9,
        )
    )  # fmt: skip
    text = error(lambda: m(**prompts(20)), "VX9021")
    assert "MLA models" in text and "docs/sglang.md" in text


def test_soft_caps() -> None:
    m = of(Gemma2Config(**GROUPED, attn_logit_softcapping=50.0, sliding_window=16))
    assert "logit caps (softcap): attention would have to apply tanh" in error(lambda: m(**prompts(20)), "VX9021")


def test_sinks() -> None:
    m = of(GptOssConfig(**GROUPED, num_local_experts=2, num_experts_per_tok=1, sliding_window=16))
    assert "attention sinks: the softmax of the kernels" in error(lambda: m(**prompts(20)), "VX9021")


def test_encoders_and_decoders() -> None:
    few()
    config = T5Config(
        vocab_size=300, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4, decoder_start_token_id=0
    )  # fmt: skip
    m = T5ForConditionalGeneration._from_config(config, attn_implementation="few").eval()
    given = {"input_ids": torch.ones(1, 5, dtype=torch.long), "decoder_input_ids": torch.ones(1, 1, dtype=torch.long)}
    text = error(lambda: m(**given), "VX9021")
    assert "encoder-decoder models" in text
