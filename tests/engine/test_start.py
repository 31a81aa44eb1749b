"""What is decided before an engine runs: the configuration, what is refused, where the artifact comes from.

No SGLang is needed here; the few classes of it that are looked at are stood in for.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from vortex.budget import Budget
from vortex.errors import VortexError
from vortex.runtime import compiled
from vortex.runtime.compiled import ModelShape
from vortex.runtime.sglang import plugin
from vortex.runtime.sglang.config import EngineConfig
from vortex.runtime.sglang.memory import bytes_per_token
from vortex.runtime.sglang.refusals import SETTINGS, refuse_model, refuse_settings
from vortex.runtime.sglang.shape import model_shape
from vortex.spec import Spec

SHAPE = ModelShape(Spec(page_size=16, head_dim=64, group=4, dtype="f32"), 2)


def code(call: Any, *args: Any) -> str:
    with pytest.raises(VortexError) as raised:
        call(*args)
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
        }
    )
    want = EngineConfig("mine.py:f", Budget(5, "1/8", 2, 3), frozenset((0, 3)), 32, 16, "fa3", "w.safetensors")
    assert EngineConfig.read(text) == want
    (tmp_path / "c.json").write_text(text)
    assert EngineConfig.read(str(tmp_path / "c.json")) == want


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"flaw": "quest"}', "it has no 'flaw', did you mean 'flow'?"),
        ('{"budget": 5}', "budget is 5; an object is needed"),
        ('{"budget": {"sink": 1}}', "budget: it has neither pages nor a table"),
        ('{"budget": {"table": [[1, "x"]]}}', "table[0] holds 'x'"),
        ('{"budget": {"pages": 1, "recant": 2}}', "budget has no 'recant', did you mean 'recent'?"),
        ('{"budget": {"pages": 1, "recent": 0}}', "at least 1 is needed"),
        ('{"dense_layers": [-1]}', "dense_layers[0] is -1; an integer from 0"),
        ('{"every": 0}', "every is 0; an integer from 1"),
        ('{"layers": {"4": 4}}', "with an earlier one that selects is needed"),
        ('{"layers": {"4": 3, "3": 2}}', "with an earlier one that selects is needed"),
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


# --- refusals


def plain(**changes: Any) -> SimpleNamespace:
    settings = {"attention_backend": "vortex", "disaggregation_mode": "null", "tp_size": 8, "dcp_size": 1, "pp_size": 1}
    return SimpleNamespace(**(settings | changes))


def graphs(decode: str = "full", prefill: str = "breakable") -> SimpleNamespace:
    return SimpleNamespace(decode=SimpleNamespace(backend=decode), prefill=SimpleNamespace(backend=prefill))


REFUSED = {
    "HiCache": {"enable_hierarchical_cache": True},
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


def test_every_refusal_is_listed_here() -> None:
    assert [r.what for r in SETTINGS] == list(REFUSED)


@pytest.mark.parametrize("what", REFUSED)
def test_a_setting_is_refused_by_name(what: str) -> None:
    said = code(refuse_settings, plain(**REFUSED[what]))
    assert said.startswith("VX9002")
    assert f"does not serve {what}: " in said


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
    ranks.attn_tp_size = 2
    said = code(model_shape, model, torch.bfloat16, 64, True)
    assert said.startswith("VX9002")
    assert "an MLA model on 2 tensor-parallel ranks" in said


@pytest.mark.usefixtures("sglang")
def test_an_mla_model_is_served() -> None:
    pool = MLATokenToKVPool()
    refuse_model(runner(use_mla_backend=True, token_to_kv_pool=pool, layer={"qk_head_dim": 576, "v_head_dim": 512}))


def test_other_versions_are_refused_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "_installed", lambda: "0.5.99")
    said = code(plugin._make, None)
    assert said.startswith("VX9001")
    assert "SGLang 0.5.99" in said
    assert "0.5.16 and 0.5.23" in said


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
    assert "page_size 32 with this artifact" in said
    assert "compiled for page_size 16" in said
    assert code(compiled.artifact_for, str(path), SHAPE, "sm_90a").startswith("VX5003")
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
