"""What is decided before an engine runs: the configuration, what is refused, where the artifact comes from.

No SGLang is needed here; the few classes of it that are looked at are stood in for.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from vortex.budget import Budget, Cap
from vortex.errors import ENGINE_REFUSED, VortexError
from vortex.runtime import compiled
from vortex.runtime.compiled import ModelShape
from vortex.runtime.sglang import last_word, plugin
from vortex.runtime.sglang.about import About
from vortex.runtime.sglang.choice import Choice, choice_of, slip_of
from vortex.runtime.sglang.config import EngineConfig
from vortex.runtime.sglang.memory import bytes_per_token
from vortex.runtime.sglang.refusals import (
    SETTINGS,
    refuse_host_layout,
    refuse_layers,
    refuse_model,
    refuse_prefill,
    refuse_settings,
)
from vortex.runtime.sglang.shape import model_shape, refuse_table
from vortex.spec import Spec

SHAPE = ModelShape(Spec(page_size=16, head_dim=64, group=4, dtype="f32"), 2)


def code(call: Any, *args: Any, **named: Any) -> str:
    with pytest.raises(VortexError) as raised:
        call(*args, **named)
    return f"{raised.value.code} {raised.value}"


# --- configuration


def test_nothing_is_mandatory() -> None:
    assert EngineConfig.read("") == EngineConfig()


def test_every_key_counts(tmp_path: Path) -> None:
    text = json.dumps(
        {
            "flow": "mine.py:f",
            "budget": {"pages": 5, "ratio": "1/8", "sink": 2, "recent": 3},
            "dense_layers": [0, 3],
            "page_size": 32,
            "block_size": 16,
            "prefill_backend": "fa3",
            "parameters": "w.safetensors",
            "every": 4,
            "deterministic": True,
            "layers": {"5": 4},
            "per_request": {"pages": 128, "ratio": "1/4"},
        }
    )
    budget, layers = Budget(5, "1/8", 2, 3), {"5": 4}
    want = EngineConfig(
        "mine.py:f", budget, frozenset((0, 3)), 32, 16, "fa3", "w.safetensors", 4, True, layers, Choice(128, "1/4")
    )
    assert EngineConfig.read(text) == want
    (tmp_path / "c.json").write_text(text)
    assert EngineConfig.read(str(tmp_path / "c.json")) == want


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"flaw": "quest"}', "it has no 'flaw', did you mean 'flow'?"),
        ('{"budget": 5}', "budget is 5; an object is needed"),
        ('{"budget": {"sink": 1}}', "budget: it has neither pages, 0 or more, nor a table"),
        ('{"budget": {"table": [[1, "x"]]}}', "table[0] holds 'x'"),
        ('{"budget": {"pages": 1, "recant": 2}}', "budget has no 'recant', did you mean 'recent'?"),
        ('{"budget": {"pages": 1, "recent": 0}}', "recent is 0, an integer from 1 to 268435455 is needed"),
        ('{"dense_layers": [-1]}', "dense_layers[0] is -1; an integer from 0"),
        ('{"every": 0}', "every is 0; an integer from 1"),
        ('{"layers": {"4": 5}}', "layers: layer 4 takes the pages of 5, which is not an earlier layer"),
        ('{"layers": {"4": 4}}', "layers: layer 4 takes the pages of 4, which is not an earlier layer"),
        (
            '{"layers": {"4": 3, "03": 2}}',
            "layer 4 takes the pages of 3, which selects none itself: it takes th",
        ),
        ('{"layers": {"x": 3}}', "a layer is needed"),
        ('{"page_size": 0}', "page_size is 0; an integer from 1"),
        ('{"page_size": true}', "page_size is True; an integer"),
        ('{"block_size": -1}', "block_size is -1; an integer from 0"),
        ('{"flow": ""}', "flow is ''"),
        ("{", "is not JSON"),
        ("/nowhere.json", "file '/nowhere.json'"),
    ],
)
def test_a_wrong_configuration_says_where(text: str, says: str) -> None:
    said = code(EngineConfig.read, text)
    assert said.startswith("VX9003")
    assert says in said


@pytest.mark.parametrize(
    ("table", "latent", "says"),
    [
        ([3, 4], False, "the table has 2 layers, and the model has 3"),
        ([3, 4, 5, 6], False, "the table has 4 layers, and the model has 3"),
        ([3, [1, 2], [1, 2, 3, 4]], False, "table[1] has 2 numbers, and the model has 4 KV heads"),
        ([3, [1, 2, 3, 4], 5], True, "the model has 1 KV heads"),
        ([3, [1, 2, 3, 4], 5], False, ""),
        ([3, 4, [5]], True, ""),
    ],
)
def test_a_table_is_of_the_models_layers_and_heads(table: Any, latent: bool, says: str) -> None:
    budget = EngineConfig.read(json.dumps({"budget": {"table": table}})).budget
    assert budget == Budget(table=table)
    model = SimpleNamespace(get_num_kv_heads=lambda ranks: 4 // ranks)
    if not says:
        refuse_table(budget, model, 3, latent)
        return
    said = code(refuse_table, budget, model, 3, latent)
    assert said.startswith("VX9003")
    assert says in said


# --- what requests choose for themselves


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"per_request": {}}', "per_request allows nothing"),
        ('{"per_request": {"page": 3}}', "per_request has no 'page', did you mean 'pages'?"),
        ('{"per_request": {"pages": true}}', "per_request.pages is True"),
        ('{"per_request": {"ratio": 2}}', "per_request: ratio is 2; a share such as '1/16' is needed"),
        ('{"per_request": {"dense": true, "pages": 4}}', "per_request: it has pages or a ratio beside dense"),
        ('{"per_request": {"pages": 9}, "budget": {"table": [1]}}', "per_request beside a table by layer"),
    ],
)
def test_what_requests_may_choose_is_checked_at_the_start(text: str, says: str) -> None:
    said = code(EngineConfig.read, text)
    assert said.startswith("VX9003")
    assert says in said


@pytest.mark.parametrize(
    ("given", "most", "says"),
    [
        ({"pages": 16}, None, "'per_request' is not in its configuration"),
        ({"pages": 65}, Choice(64), "it asks for 65 pages by score, and this server's 'per_request' allows 64 pages"),
        ({"dense": True}, Choice(64, "1/4"), "asks for all pages, and this server's 'per_request' allows 64 pages by"),
        ({"ratio": "1/3"}, Choice(64, "1/4"), "it asks for 1/3 of all"),
        ({"ratio": "1/3"}, Choice(64), "it asks for 1/3 of all"),
        ({"pages": -1}, Choice(64), "pages is -1; an integer from 0"),
        ({"pages": "16"}, Choice(64), "pages is '16'; an integer"),
        ({"pages": 1.5}, Choice(64), "pages is 1.5; an integer"),
        ({"pages": True}, Choice(64), "pages is True; an integer"),
        ({"pages": 10**30}, Choice(64), "pages is 1"),
        ({"page": 1}, Choice(64), "it has no 'page', did you mean 'pages'?"),
        ({"dense": 1}, Choice(64), "dense is 1; true or false is needed"),
        ({"dense": True, "pages": 3}, Choice(64), "it has pages or a ratio beside dense"),
        ({"ratio": "1/0"}, Choice(64), "a share such as '1/16' is needed"),
        ({"ratio": "1e999999999"}, Choice(64), "a share such as '1/16' is needed"),
        ({"ratio": float("nan")}, Choice(64), "is needed"),
        ({"ratio": [1]}, Choice(64), "a share such as '1/16' is needed"),
        ({"ratio": 1.5}, Choice(dense=True), "a share such as '1/16' is needed"),
        ({"ratio": True}, Choice(dense=True), "a share such as '1/16' is needed"),
        ({}, Choice(64), "it is empty"),
        ("dense", Choice(64), "it is 'dense'; an object is needed"),
        ([], Choice(64), "an object is needed"),
    ],
)
def test_a_wrong_choice_is_refused_with_a_sentence(given: Any, most: Choice | None, says: str) -> None:
    said = code(choice_of, {"vortex": given}, most)
    assert said.startswith("VX9007")
    assert says in said


def test_a_choice_is_a_budget() -> None:
    engine, most = Budget(61, "1/2", sink=3, recent=4), Choice(64, "1/4")
    assert choice_of(None, most) is choice_of({}, most) is choice_of({"vortex": None}, most) is None
    assert choice_of({"vortex": {"dense": False}}, most) is None
    for given, want in (
        ({"pages": 16}, Budget(16, 0, 3, 4)),
        ({"ratio": 0.125}, Budget(0, "1/8", 3, 4)),
        ({"pages": 64, "ratio": "1/4", "dense": False}, Budget(64, "1/4", 3, 4)),
        ({"pages": 0}, Budget(0, 0, 3, 4)),
    ):
        made = choice_of({"vortex": given, "other": 1}, most)
        assert made is not None
        assert made.budget(engine) == want
    dense = choice_of({"vortex": {"dense": True}}, Choice(dense=True), table=True)
    assert dense is not None
    assert dense.budget(engine).total(1000) >= 1000
    assert "'dense' alone" in code(lambda: choice_of({"vortex": {"pages": 1}}, Choice(dense=True), table=True))


@pytest.mark.parametrize("key", ["Vortex", "VORTEX", "votex", "vortexx", "vortex "])
def test_a_key_that_is_meant_is_found(key: str) -> None:
    assert slip_of({"other": 1, key: {"dense": True}}) == key
    assert slip_of({key: 1, "vortex": {"pages": 3}}) == ""


def test_keys_of_others_are_theirs() -> None:
    assert slip_of({"context": 1, "text": 2, "vertices": 3, "vertex": 1, "cortex": 1, "vote": 1, 9: 1}) == ""


def test_a_client_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VORTEX_CONFIG", '{"per_request": {"pages": 8}}')
    plugin._verify(None, SimpleNamespace(custom_params={"vortex": {"pages": 8}}), 9)
    plugin._verify(None, SimpleNamespace(custom_params={"thinking_budget": 8}), 9)
    plugin._verify(None, SimpleNamespace(custom_params=None), 9)
    said = "custom_params.vortex: it is not there, but 'Vortex' is, did you mean 'vortex'?"
    with pytest.raises(ValueError, match=re.escape(said)):
        plugin._verify(None, SimpleNamespace(custom_params={"Vortex": {"pages": 8}}), 9)
    monkeypatch.setenv("VORTEX_CONFIG", "{}")  # where nobody may choose, nobody meant to
    plugin._verify(None, SimpleNamespace(custom_params={"Vortex": {"pages": 8}}), 9)
    monkeypatch.setenv("VORTEX_CONFIG", "/no/such.json")
    plugin._verify(None, SimpleNamespace(custom_params={"thinking_budget": 8}), 9)
    monkeypatch.setenv("VORTEX_CONFIG", '{"per_request": {"pages": 8}}')
    with pytest.raises(ValueError, match=r"VX9007: custom_params\.vortex: it asks for 9 pages by score"):
        plugin._verify(None, SimpleNamespace(custom_params={"vortex": {"pages": 9}}), 9)


# --- what is said of it


def test_the_line_and_the_facts_say_pages_and_tokens() -> None:
    cap, spec = Cap(), SHAPE.spec
    manifest: Any = SimpleNamespace(flow="quest", cap=cap, spec=spec)
    about = About.of(manifest, "sm_90a", EngineConfig(dense_layers=frozenset((3, 0))), 28, "triton")
    said = about.line()
    assert said.startswith("flow quest on sm_90a; a token reads 64 pages of 16 (1024 tokens): 61 by score, the first 1")
    assert said.endswith("the last 2; dense layers 0, 3 of 28; prefill by triton")
    facts = about.facts()
    assert (facts["budget_pages"], facts["budget_tokens"], facts["dense_layers"]) == (64, 1024, [0, 3])
    assert json.loads(json.dumps(facts)) == facts
    own = ("pages_of", "select_every", "deterministic", "per_request", "parameters")
    assert [facts[name] for name in own] == [{}, 1, False, None, ""]
    all_keys = (
        '{"layers": {"05": 4}, "every": 8, "deterministic": true, "per_request": {"ratio": "1/4"}, "parameters": "w"}'
    )
    facts = About.of(manifest, "cpu", EngineConfig.read(all_keys), 28, "triton").facts()
    most = {"pages": 0, "ratio": "1/4", "dense": False}
    assert [facts[name] for name in own] == [{"5": 4}, 8, True, most, "w"]
    assert json.loads(json.dumps(facts)) == facts
    share = About.of(manifest, "cpu", EngineConfig(budget=Budget(5, "1/16")), 2, "x")
    assert "8 pages of 16 (128 tokens, or 1/16 of all where that is more)" in share.line()
    assert "dense layers none of 2" in share.line()
    table = About.of(manifest, "cpu", EngineConfig(budget=Budget(table=[5, 9])), 2, "x")
    assert "12 pages of 16 (192 tokens): 9 by score, fewer as layers and heads have it" in table.line()
    manifest.spec = Spec(page_size=64, block_size=16, head_dim=64, group=4, dtype="f32")
    manifest.cap = Cap(budgets=2, pages=4)  # two selections by the budget, and one that bounds itself
    blocks = About.of(manifest, "cpu", EngineConfig(budget=Budget(5)), 2, "x")
    assert "17 blocks of 16 (272 tokens): 14 by score" in blocks.line()


# --- refusals


def plain(**changes: Any) -> SimpleNamespace:
    settings = {"attention_backend": "vortex", "disaggregation_mode": "null", "tp_size": 8, "dcp_size": 1, "pp_size": 1}
    return SimpleNamespace(**(settings | changes))


def graphs(decode: str = "full", prefill: str = "breakable") -> SimpleNamespace:
    return SimpleNamespace(decode=SimpleNamespace(backend=decode), prefill=SimpleNamespace(backend=prefill))


REFUSED = {
    "HiCache of SGLang before 0.5.23": {"enable_hierarchical_cache": True},
    "a KV cache of fp8 on a CPU with SGLang 0.5.23": {
        "device": "cpu",
        "kv_cache_dtype": "fp8_e4m3",
        "hicache_host_memory_mode": "cache",
    },
    "a storage backend of HiCache": {"hicache_storage_backend": "file"},
    "an external linker of the radix cache": {"enable_unified_cache_external_linker": True},
    "HiSparse": {"enable_hisparse": True},
    "PD disaggregation": {"disaggregation_mode": "decode"},
    "speculative decoding": {"speculative_algorithm": "EAGLE"},
    "diffusion language models": {"dllm_algorithm": "x"},
    "data-parallel attention": {"enable_dp_attention": True},
    "context parallelism": {"dcp_size": 2},
    "pipeline parallelism": {"pp_size": 2},
    "two-batch overlap": {"enable_two_batch_overlap": True},
    "PD multiplexing": {"enable_pdmux": True},
    "LMCache": {"enable_lmcache": True},
    "FlexKV": {"enable_flexkv": True},
    "separate prefill and decode backends": {"decode_attention_backend": "triton"},
    "multi-item scoring": {"enable_mis": True},
    "a prefill-only KV cache": {"prefill_only_disable_kv_cache": True},
    "one CUDA graph of a whole prefill": {"cuda_graph_config": graphs(prefill="full")},
    "decode graphs in pieces": {"cuda_graph_config": graphs(decode="breakable")},
}


def test_plain_settings_are_served() -> None:
    refuse_settings(plain(prefill_attention_backend="vortex", decode_attention_backend="vortex"))
    refuse_settings(plain(enable_mixed_chunk=True, cuda_graph_config=graphs()))
    refuse_settings(plain(enable_hierarchical_cache=True, hicache_host_memory_mode="cache"))
    refuse_settings(plain(device="cuda", kv_cache_dtype="fp8_e4m3", hicache_host_memory_mode="cache"))
    refuse_settings(plain(device="cpu", kv_cache_dtype="fp8_e4m3"))


def test_every_refusal_is_listed_here() -> None:
    assert [r.what for r in SETTINGS] == list(REFUSED)


@pytest.mark.parametrize("what", REFUSED)
def test_a_setting_is_refused_by_name(what: str) -> None:
    said = code(refuse_settings, plain(**REFUSED[what]))
    assert said.startswith("VX9002")
    assert f"does not serve {what}: " in said


@pytest.mark.parametrize(
    ("layout", "copier", "latent", "says"),
    [
        ("page_head", "direct", False, "SGLang copies K and V by direct in layer_first or page_first_direct alone"),
        ("page_first_kv_split", "kernel", False, "by kernel in layer_first or page_first or page_head"),
        ("page_head", "kernel", True, "SGLang copies latent rows by kernel in layer_first or page_first alone"),
        ("page_first_direct", "kernel_ascend", False, "kernel_ascend is not for the devices that vortex compiles for"),
    ],
)
def test_host_memory_that_sglang_does_not_copy(layout: str, copier: str, latent: bool, says: str) -> None:
    args = plain(enable_hierarchical_cache=True, hicache_mem_layout=layout, hicache_io_backend=copier)
    said = code(refuse_host_layout, args, latent=latent)
    assert said.startswith("VX9002")
    assert f"does not serve HiCache in the layout {layout} with I/O by {copier}: " in said
    assert says in said
    refuse_host_layout(plain(hicache_mem_layout=layout, hicache_io_backend=copier), latent=latent)


@pytest.mark.parametrize(("copier", "layout"), [("kernel", "page_head"), ("direct", "page_first_direct")])
def test_host_memory_that_sglang_copies(copier: str, layout: str) -> None:
    args = plain(enable_hierarchical_cache=True, hicache_mem_layout=layout, hicache_io_backend=copier)
    refuse_host_layout(args, latent=False)


@pytest.fixture
def sglang(monkeypatch: pytest.MonkeyPatch) -> None:
    class RadixAttention(torch.nn.Module):
        def __init__(self, **changes: Any) -> None:
            super().__init__()
            usual = {"layer_id": 0, "logit_cap": 0.0, "qk_head_dim": 64, "v_head_dim": 64, "sliding_window_size": -1}
            usual |= {"is_cross_attention": False, "attn_type": "decoder"}
            for name, value in (usual | changes).items():
                setattr(self, name, value)

    hybrid, radix = ModuleType("hybrid"), ModuleType("radix")
    hybrid.mambaish_config = lambda model: getattr(model, "mamba", None)  # type: ignore[attr-defined]
    radix.RadixAttention = RadixAttention  # type: ignore[attr-defined]
    radix.AttentionType = SimpleNamespace(DECODER="decoder")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sglang.srt.configs.hybrid_arch", hybrid)
    monkeypatch.setitem(sys.modules, "sglang.srt.layers.radix_attention", radix)


class MHATokenToKVPool(SimpleNamespace):
    pass


class MLATokenToKVPool(SimpleNamespace):
    pass


class OtherPool(SimpleNamespace):
    pass


def runner(*, model: dict[str, Any] | None = None, layer: dict[str, Any] | None = None, **changes: Any) -> Any:
    attention = sys.modules["sglang.srt.layers.radix_attention"].RadixAttention
    usual = {
        "model_config": SimpleNamespace(**(model or {})),
        "token_to_kv_pool": MHATokenToKVPool(use_hnd=False),
        "use_mla_backend": False,
        "is_hybrid_swa": False,
        "sliding_window_size": None,
        "model": torch.nn.Sequential(attention(**(layer or {}))),
    }
    return SimpleNamespace(**(usual | changes))


@pytest.mark.usefixtures("sglang")
def test_a_plain_model_is_served() -> None:
    refuse_model(runner())


@pytest.mark.usefixtures("sglang")
@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("a MHATokenToKVPool", {"use_mla_backend": True}),
        ("encoder-decoder models", {"model": {"is_encoder_decoder": True}}),
        ("embedding and reward models", {"model": {"is_generation": False}}),
        ("sliding-window models", {"sliding_window_size": 128}),
        ("sliding-window models", {"is_hybrid_swa": True}),
        ("hybrid linear-attention models", {"model": {"mamba": object()}}),
        ("draft models", {"is_draft_worker": True}),
        ("a OtherPool", {"token_to_kv_pool": OtherPool()}),
        ("SGLANG_USE_HND_KVCACHE", {"token_to_kv_pool": MHATokenToKVPool(use_hnd=True)}),
        ("logit caps", {"layer": {"logit_cap": 30.0}}),
        ("unequal head dims", {"layer": {"v_head_dim": 32}}),
        (
            "scales of latent rows (in layer 0)",
            {
                "use_mla_backend": True,
                "token_to_kv_pool": MLATokenToKVPool(),
                "layer": {"k_scale": torch.tensor(0.5), "v_scale": torch.tensor(1.0)},
            },
        ),
        ("sliding windows", {"layer": {"sliding_window_size": 128}}),
        ("encoder_only attention", {"layer": {"attn_type": "encoder_only"}}),
    ],
)
def test_a_model_is_refused_by_name(what: str, changes: dict[str, Any]) -> None:
    said = code(refuse_model, runner(**changes))
    assert said.startswith("VX9002")
    assert f"does not serve {what}" in said


def test_latent_rows_are_one_kv_head_and_no_ranks_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = SimpleNamespace(attn_tp_size=1)
    context = ModuleType("context")
    context.get_parallel = lambda: ranks  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sglang.srt.runtime_context", context)
    model = SimpleNamespace(dtype=torch.bfloat16, num_attention_heads=20, kv_lora_rank=512, qk_rope_head_dim=64)
    shape = model_shape(model, torch.bfloat16, 64, latent=True)
    assert shape == ModelShape(Spec.of_latent("512+64", 20, page_size=64), 1)
    words = " ".join(compiled.command("latent_topk", shape, "sm_90a", "x.vxa"))
    assert "--heads 20 --latent 512+64 --page-size 64 --dtype bf16" in words
    shape = model_shape(model, torch.bfloat16, 64, latent=True, block_size=16)
    assert "--page-size 64 --dtype bf16 --block-size 16" in " ".join(compiled.command("x", shape, "sm_90a", "x.vxa"))
    assert code(model_shape, model, torch.bfloat16, 64, True, False, 24).startswith("VX9003")
    shape = model_shape(model, torch.float8_e4m3fn, 64, latent=True)
    assert shape == ModelShape(Spec.of_latent("512+64", 20, page_size=64, kv_dtype="fp8_e4m3"), 1)
    words = " ".join(compiled.command("latent_topk", shape, "sm_90a", "x.vxa"))
    assert "--dtype bf16 --kv-dtype fp8_e4m3" in words
    ranks.attn_tp_size = 2
    said = code(model_shape, model, torch.bfloat16, 64, True)
    assert said.startswith("VX9002")
    assert "an MLA model on 2 tensor-parallel ranks" in said


def test_k_and_v_are_kept_as_the_model_has_them_or_in_fp8() -> None:
    model = SimpleNamespace(dtype=torch.bfloat16, head_dim=64, num_attention_heads=8, get_num_kv_heads=lambda ranks: 2)
    shape = model_shape(model, torch.float8_e4m3fn, 16, ranks=1)
    assert shape == ModelShape(Spec(page_size=16, head_dim=64, group=4, dtype="bf16", kv_dtype="fp8_e4m3"), 2)
    words = " ".join(compiled.command("quest", shape, "sm_90a", "x.vxa"))
    assert "--dtype bf16 --kv-dtype fp8_e4m3" in words
    for dtype, kept, latent, says in (
        (
            torch.bfloat16,
            torch.float8_e5m2,
            False,
            "a KV cache of float8_e5m2 under a model in bf16: the kernels read K",
        ),
        (
            torch.float16,
            torch.bfloat16,
            False,
            "a KV cache of bf16 under a model in f16: the kernels read K and V as the",
        ),
        (torch.float32, torch.float8_e4m3fn, False, "the kernels read fp8 for models in bf16 or f16"),
        (torch.float32, torch.float8_e4m3fn, True, "the kernels read fp8 for models in bf16 or f16"),
        (torch.bfloat16, torch.float8_e5m2, True, "a KV cache of float8_e5m2 under a model in bf16"),
    ):
        model.dtype = dtype
        said = code(model_shape, model, kept, 16, latent)
        assert said.startswith("VX9002")
        assert says in said


def test_prompts_in_fp8_are_read_by_backends_that_are_known_to(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = ModuleType("registry")
    registry.ATTENTION_BACKENDS = dict.fromkeys(("triton", "torch_native", "fa3"))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sglang.srt.layers.attention.attention_registry", registry)
    for name in ("triton", "torch_native"):
        for latent in (False, True):
            refuse_prefill(name, "cuda", latent=latent, scaled=True)
    refuse_prefill("fa3", "cuda", latent=False)
    with pytest.raises(VortexError, match=r"VX9002.*prefill_backend 'fa3' with a KV cache of fp8_e4m3"):
        refuse_prefill("fa3", "cuda", latent=False, scaled=True)


def test_prompts_on_a_cpu_are_read_by_backends_that_run_there(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = ModuleType("registry")
    registry.ATTENTION_BACKENDS = dict.fromkeys(("triton", "torch_native", "fa3"))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sglang.srt.layers.attention.attention_registry", registry)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for name in ("triton", "torch_native"):
        refuse_prefill(name, "cpu", latent=False)
    said = code(refuse_prefill, "fa3", "cpu", latent=False)
    assert said.startswith("VX9002")
    assert "prefill_backend 'fa3' on a CPU: there torch_native reads prompts or, under" in said
    for value in ("0", ""):
        monkeypatch.setenv("TRITON_INTERPRET", value)
        refuse_prefill("torch_native", "cpu", latent=False)
        assert "under Triton's interpreter, triton" in code(refuse_prefill, "triton", "cpu", latent=False)


@pytest.mark.usefixtures("sglang")
def test_an_mla_model_is_served() -> None:
    pool = MLATokenToKVPool()
    layer = {"qk_head_dim": 576, "v_head_dim": 512}
    refuse_model(runner(use_mla_backend=True, token_to_kv_pool=pool, layer=layer))
    one = torch.tensor(1.0)  # what SGLang says where a checkpoint has none
    refuse_model(runner(use_mla_backend=True, token_to_kv_pool=pool, layer={**layer, "k_scale": one, "v_scale": one}))


def test_other_versions_are_refused_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "_installed", lambda: "0.5.99")
    said = code(plugin._make, None)
    assert said.startswith("VX9001")
    assert "SGLang 0.5.99" in said
    assert "0.5.16 and 0.5.23" in said


def test_a_worker_leaves_its_error_and_its_parent_says_it_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(last_word, "_awaited", [])
    monkeypatch.setattr(last_word.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv(last_word.VARIABLE, "")
    ended: list[Any] = []
    monkeypatch.setattr(last_word.os, "kill", lambda *given: ended.append(given))

    def kill(*given: Any, **more: Any) -> None:
        ended.append((given, more))

    def fails(why: str) -> None:
        """As a worker of SGLang's does."""
        try:
            try:
                raise ENGINE_REFUSED.at(what="this", why=why, hint="leave it out")
            except VortexError as error:
                raise RuntimeError("scheduler") from error
        except RuntimeError:
            last_word.leave()

    last_word.expect()
    last_word.before_the_end(kill, os.getpid())
    first = ((os.getpid(),), {"include_parent": False})
    assert ended == [first, ((os.getpid(),), {})], "nothing was left, so SGLang ends this process"
    fails("the first rank says so")
    fails("the second one follows it")
    ended.clear()
    last_word.before_the_end(kill, os.getpid(), include_parent=False)
    assert ended == [first], "the process goes on"
    assert not capsys.readouterr().err
    ended.clear()
    last_word.before_the_end(kill, os.getpid())
    assert ended == [first, (os.getpid(), signal.SIGKILL), ((os.getpid(),), {})]
    said = capsys.readouterr().err
    assert said.startswith("error[VX9002]: the attention backend vortex does not serve this: the first rank says so\n")
    assert "second" not in said
    assert not list(tmp_path.iterdir())


def test_an_error_of_ours_ends_a_command_line_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    others: list[Any] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, *_: others.append(kind))
    last_word.alone()
    sys.excepthook(VortexError, ENGINE_REFUSED.at(what="this", why="so it is", hint="leave it out"), None)
    want = "error[VX9002]: the attention backend vortex does not serve this: so it is\n   = help: leave it out\n"
    assert capsys.readouterr().err == want
    sys.excepthook(ValueError, ValueError("another's"), None)
    assert others == [ValueError]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"dense_layers": [1, 4]}, "dense layer 4: the model has layers 0 to 3"),
        ({"layers": {"4": 1}}, "layer 4 with pages of 1"),
        ({"layers": {"3": 1}, "dense_layers": [1]}, "dense layers select no pages"),
    ],
)
def test_layers_that_the_model_does_not_have(config: dict[str, Any], says: str) -> None:
    refuse_layers(EngineConfig.read('{"dense_layers": [0], "layers": {"3": 2}}'), range(4))
    said = code(refuse_layers, EngineConfig.read(json.dumps(config)), range(4))
    assert said.startswith("VX9002")
    assert says in said


# --- the artifact


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No compiler, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(compiled.COMPILER, raising=False)
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: None)
    return tmp_path


@pytest.mark.usefixtures("alone")
def test_without_a_compiler_the_command_is_given() -> None:
    said = code(compiled.artifact_for, "", SHAPE, "cpu")
    assert said.startswith("VX9004")
    want = "vortex compile quest --target cpu --heads 8/2 --head-dim 64 --page-size 16 --dtype f32 -o quest.vxa"
    assert want in said


def test_a_compiler_that_fails_is_quoted(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = alone / "python"
    broken.write_text("#!/bin/sh\necho no such thing >&2; exit 2\n")
    broken.chmod(0o755)
    monkeypatch.setenv(compiled.COMPILER, str(broken))
    said = code(compiled.artifact_for, "", SHAPE, "cpu")
    assert said.startswith("VX9005")
    assert "no such thing" in said
    monkeypatch.setenv(compiled.COMPILER, str(alone / "missing"))
    assert "No such file" in code(compiled.artifact_for, "", SHAPE, "cpu")
    assert not list((alone / "vortex" / "engine").iterdir()), "a failed compile leaves nothing behind"


def test_ranks_that_wait_for_a_lock_are_never_inside_together(alone: Path) -> None:
    """The lock is removed by whoever held it, and the next may wait for the removed one."""
    inside, most = [], []

    def rank() -> None:
        for _ in range(20):
            with compiled._alone(alone / "x" / "quest.vxa"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.0005)
                inside.pop()

    threads = [threading.Thread(target=rank) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 80
    assert max(most) == 1
    assert not list((alone / "x").iterdir())


def test_a_compiled_flow_is_found_again_and_another_shape_is_not(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled.COMPILER, sys.executable)
    path = compiled.artifact_for("", SHAPE, "cpu")
    monkeypatch.delenv(compiled.COMPILER)
    assert compiled.artifact_for("", SHAPE, "cpu") == path
    assert compiled.artifact_for(str(path), SHAPE, "cpu") == path
    other = ModelShape(Spec(page_size=32, head_dim=64, group=4, dtype="f32"), 2)
    assert code(compiled.artifact_for, "", other, "cpu").startswith("VX9004")
    said = code(compiled.artifact_for, str(path), other, "cpu")
    assert said.startswith("VX9002")
    assert f"does not serve the artifact '{path}' with this model" in said
    assert "compiled for page_size 16 and not 32\n" in said
    assert code(compiled.artifact_for, str(path), SHAPE, "sm_90a").startswith("VX5003")
    wrong = ModelShape(Spec(page_size=32, head_dim=128, group=2, dtype="bf16"), 2)
    said = code(compiled.artifact_for, str(path), wrong, "sm_90a")
    for part in ("page_size 16 and not 32", "head_dim 64 and not 128", "group 4 and not 2", "dtype f32 and not bf16"):
        assert part in said
    assert "; cpu and not sm_90a" in said
    monkeypatch.chdir(path.parent)
    path.rename("quest.vxa")
    said = code(compiled.artifact_for, "quest.vxa", other, "cpu")
    assert "-o quest-2.vxa" in said, "the user's own artifact is not what a hint overwrites"
    path = Path("quest.vxa")
    fields = compiled.read_manifest(path).fields
    # quest keeps two rows of 64 f32 a page and KV head
    assert bytes_per_token(fields, SHAPE, 4) == 2 * 64 * 4 * 2 * 4 // 16


def test_a_cache_that_cannot_be_written(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it holds is used; what it lacks is an error that names it."""
    (alone / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(alone / "file"))
    said = code(compiled.artifact_for, "", SHAPE, "cpu")
    assert said.startswith("VX7004")
    assert f"{alone}/file/vortex/engine/quest-" in said

    monkeypatch.setenv("XDG_CACHE_HOME", str(alone))
    kept = compiled.entry("quest", compiled.identity_of("quest", SHAPE.spec, "cpu"))
    kept.mkdir(parents=True)

    def read_only(path: Path, *given: Any, **more: Any) -> Any:
        if path.is_relative_to(alone):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, *given, **more)

    opened = Path.open
    monkeypatch.setattr(Path, "open", read_only)
    assert compiled.artifact_for("", SHAPE, "cpu") == kept
    kept.rmdir()
    assert "Read-only file system" in code(compiled.artifact_for, "", SHAPE, "cpu")
