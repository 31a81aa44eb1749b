"""What the backend does not serve: every line is a feature of SGLang, and the reason.

The list is closed the other way round: a feature goes off it when a test shows that it works.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from vortex.errors import ENGINE_REFUSED, nearest
from vortex.runtime.sglang.config import EngineConfig

OTHER = "use another attention backend for this model"

LATENT_PREFILL = ("triton", "torch_native")
"""Dense backends that take absorbed queries (MLA) in one piece, compressed part and rotary part together."""

CPU_PREFILL = ("torch_native", "triton", "intel_amx")
"""Dense backends that read prompts on a CPU; the second one does under Triton's interpreter, the third has not been
tried. SGLang says of another one that it needs a GPU after the weights are loaded, and what else to do for its own
attention backend.
"""

SCALED_PREFILL = ("triton", "torch_native")
"""Dense backends whose prompts over K and V in fp8 are known to be read by the scales; the second one knows none, and
is put right by ``scaled_prefill``. Latent rows in fp8 have no scales: both read them as the numbers they are."""


HOST_LAYOUTS = {"kernel": ("layer_first", "page_first", "page_head"), "direct": ("layer_first", "page_first_direct")}
"""HiCache's I/O backends on a GPU -> the layouts of host memory that each copies; latent rows (MLA) have no heads."""


class Refusal(NamedTuple):
    """``applies`` looks at SGLang's ServerArgs; the sentence is "does not serve {what}: {why}"."""

    what: str
    applies: Callable[[Any], bool]
    why: str
    hint: str


def _on(name: str) -> Callable[[Any], bool]:
    """The setting is there and neither off, empty nor "null"."""
    return lambda args: getattr(args, name, None) not in (None, False, "", "null", 0, "none")


def _several(name: str) -> Callable[[Any], bool]:
    return lambda args: (getattr(args, name, 1) or 1) > 1


def _graph(phase: str, *backends: str) -> Callable[[Any], bool]:
    """CUDA graphs of this phase, "prefill" or "decode", are made in one of these ways."""
    return lambda args: (
        getattr(getattr(getattr(args, "cuda_graph_config", None), phase, None), "backend", None) in backends
    )


SETTINGS = (
    Refusal(
        "HiCache of SGLang before 0.5.23",
        # the setting is newer than the wait for passes that may still write to pages of requests that have ended
        lambda args: _on("enable_hierarchical_cache")(args) and not hasattr(args, "hicache_host_memory_mode"),
        "it loads pages while the pass before may still write to them, and to their summaries",
        "use SGLang 0.5.23, or drop --enable-hierarchical-cache",
    ),
    Refusal(
        "a KV cache of fp8 on a CPU with SGLang 0.5.23",
        lambda args: (
            getattr(args, "device", None) == "cpu"
            and getattr(args, "kv_cache_dtype", None) == "fp8_e4m3"
            and hasattr(args, "hicache_host_memory_mode")
        ),
        "SGLang has such pools there for its backend intel_amx alone",
        "use --kv-cache-dtype auto",
    ),
    Refusal(
        "a storage backend of HiCache",
        _on("hicache_storage_backend"),
        "pages that come from further away than this host's memory are untested here",
        "drop --hicache-storage-backend",
    ),
    Refusal(
        "an external linker of the radix cache",
        _on("enable_unified_cache_external_linker"),
        "pages that another store loads have no summaries",
        "drop --enable-unified-cache-external-linker",
    ),
    Refusal(
        "HiSparse",
        _on("enable_hisparse"),
        "it moves pages to the host by a selection of its own",
        "drop --enable-hisparse",
    ),
    Refusal(
        "PD disaggregation",
        _on("disaggregation_mode"),
        "pages that arrive from a prefill server have no summaries",
        "serve prefill and decode in one process",
    ),
    Refusal(
        "speculative decoding",
        _on("speculative_algorithm"),
        "verifying several tokens at once needs kernels for several queries of a request",
        "drop --speculative-algorithm",
    ),
    Refusal(
        "diffusion language models",
        _on("dllm_algorithm"),
        "they rewrite tokens whose pages were summarised",
        "use another attention backend",
    ),
    Refusal(
        "data-parallel attention",
        lambda args: _on("enable_dp_attention")(args) or _several("attn_dp_size")(args),
        "batches padded across ranks are untested here",
        "drop --enable-dp-attention and --attn-dp-size",
    ),
    Refusal(
        "context parallelism",
        lambda args: any(_several(n)(args) for n in ("dcp_size", "attn_cp_size")) or _on("enable_prefill_cp")(args),
        "a rank that holds a part of a request cannot rank its pages against the others'",
        "set the context-parallel sizes to 1",
    ),
    Refusal(
        "pipeline parallelism",
        _several("pp_size"),
        "several batches in flight are untested here",
        "use tensor parallelism",
    ),
    Refusal(
        "two-batch overlap",
        _on("enable_two_batch_overlap"),
        "two batches of one step would share one plan",
        "drop --enable-two-batch-overlap",
    ),
    Refusal(
        "PD multiplexing",
        _on("enable_pdmux"),
        "two streams would share one plan",
        "drop --enable-pdmux",
    ),
    Refusal(
        "LMCache",
        _on("enable_lmcache"),
        "pages that another store loads have no summaries",
        "drop --enable-lmcache",
    ),
    Refusal(
        "FlexKV",
        _on("enable_flexkv"),
        "pages that another store loads have no summaries",
        "drop --enable-flexkv",
    ),
    Refusal(
        "separate prefill and decode backends",
        lambda args: any(
            getattr(args, n, None) not in (None, args.attention_backend)
            for n in ("prefill_attention_backend", "decode_attention_backend")
        ),
        "this backend must see prompts as well, to summarise their pages",
        "use --attention-backend vortex alone, and 'prefill_backend' in VORTEX_CONFIG",
    ),
    Refusal(
        "multi-item scoring",
        _on("enable_mis"),
        "its masks are not those of plain causal attention",
        "drop --enable-mis",
    ),
    Refusal(
        "a prefill-only KV cache",
        _on("prefill_only_disable_kv_cache"),
        "without stored K and V there are no pages",
        "drop --prefill-only-disable-kv-cache",
    ),
    Refusal(
        "one CUDA graph of a whole prefill",
        _graph("prefill", "full"),
        "which pages a prompt fills is planned anew for each batch",
        "use --cuda-graph-backend-prefill breakable, or disabled",
    ),
    Refusal(
        "decode graphs in pieces",
        _graph("decode", "breakable", "tc_piecewise"),
        "whole graphs are what was tested",
        "use --cuda-graph-backend-decode full, or disabled",
    ),
)


def refuse_settings(args: Any) -> None:
    """VX9002 for the first setting of SGLang's that is not served."""
    for refusal in SETTINGS:
        if refusal.applies(args):
            raise ENGINE_REFUSED.at(what=refusal.what, why=refusal.why, hint=refusal.hint)


def refuse_host_layout(args: Any, *, latent: bool) -> None:
    """VX9002 for HiCache with host memory that SGLang does not copy; it would say so after the weights are loaded, or
    when the first page is saved. ``args`` are resolved: SGLang puts ``page_first`` right for ``direct``.
    """
    if not _on("enable_hierarchical_cache")(args):
        return
    copier, layout = args.hicache_io_backend, args.hicache_mem_layout
    known = [name for name in HOST_LAYOUTS.get(copier, ()) if not latent or name != "page_head"]
    if layout not in known:
        why = f"SGLang copies {'latent rows' if latent else 'K and V'} by {copier} in {' or '.join(known)} alone"
        if not known:
            why = f"{copier} is not for the devices that vortex compiles for"
        hint = "use --hicache-mem-layout page_first --hicache-io-backend kernel, SGLang's default"
        _refuse(f"HiCache in the layout {layout} with I/O by {copier}", why, hint)


def refuse_architecture(model: Any) -> None:
    """VX9002 for what its configuration alone says of a model that is not served; ``model`` is SGLang's ModelConfig."""
    if getattr(model, "is_encoder_decoder", False):
        _refuse("encoder-decoder models", "cross attention is not paged decoding", OTHER)
    if not getattr(model, "is_generation", True):
        _refuse("embedding and reward models", "nothing is decoded", OTHER)
    if getattr(model, "is_hybrid_swa", False):
        _refuse("sliding-window models", "a page outside the window must not be kept", OTHER)
    from sglang.srt.configs.hybrid_arch import mambaish_config

    if mambaish_config(model):
        _refuse("hybrid linear-attention models", "their state pools are not pages", OTHER)


def refuse_layers(config: EngineConfig, layers: range) -> None:
    """VX9002 where the configuration names layers that the model does not have, or pages of one that selects none."""
    has = f"the model has layers {layers.start} to {layers.stop - 1}"
    if odd := config.dense_layers - set(layers):
        _refuse(f"dense layer {min(odd)}", has, "change 'dense_layers'")
    for number, source in config.pages_of.items():
        if number not in layers or source not in layers or {number, source} & config.dense_layers:
            why = f"{has}, and dense layers select no pages"
            _refuse(f"layer {number} with pages of {source}", why, "change 'layers'")


def refuse_prefill(name: str, device: str, *, latent: bool, scaled: bool = False) -> None:
    """VX9002 for a dense backend that SGLang does not have, that does not run on ``device``, that does not read prompts
    of a model with latent rows (MLA), or of which nobody knows how it reads a pool that is ``scaled`` (fp8).
    """
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS

    known = sorted(n for n in ATTENTION_BACKENDS if n != "vortex")
    if name not in known:
        _refuse(f"prefill_backend '{name}'", f"it is none of {', '.join(known)}", f"name one{nearest(name, known)}")
    if device == "cpu" and (name not in CPU_PREFILL or (name == "triton" and not _interpreted())):
        why = "there torch_native reads prompts or, under Triton's interpreter, triton"
        hint = "use torch_native, or triton with TRITON_INTERPRET=1 in the environment"
        _refuse(f"prefill_backend '{name}' on a CPU", why, hint)
    if latent and name not in LATENT_PREFILL:
        why = "it takes the parts of an absorbed query apart"
        _refuse(f"prefill_backend '{name}' for an MLA model", why, f"use {' or '.join(LATENT_PREFILL)}")
    if scaled and name not in SCALED_PREFILL:
        why = "how it reads fp8 and its scales is untested here"
        _refuse(f"prefill_backend '{name}' with a KV cache of fp8_e4m3", why, f"use {' or '.join(SCALED_PREFILL)}")


def _interpreted() -> bool:
    """Whether Triton interprets its kernels, as it reads the environment."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def refuse_model(runner: Any) -> None:
    """VX9002 for a model, or memory of it, that is not served; ``runner`` is SGLang's ModelRunner with its pools."""
    model, pool = runner.model_config, runner.token_to_kv_pool
    refuse_architecture(model)
    if runner.is_hybrid_swa or (runner.sliding_window_size or -1) > 0:
        _refuse("sliding-window models", "a page outside the window must not be kept", OTHER)
    if getattr(runner, "is_draft_worker", False):
        _refuse("draft models", "speculative decoding is not served", "drop --speculative-algorithm")
    plain = "MLATokenToKVPool" if runner.use_mla_backend else "MHATokenToKVPool"
    if type(pool).__name__ != plain:
        why = "only SGLang's plain pools, of K and V or of latent rows, are known to be laid out in pages"
        _refuse(f"a {type(pool).__name__}", why, OTHER)
    if getattr(pool, "use_hnd", False):
        _refuse("SGLANG_USE_HND_KVCACHE", "pages are read in SGLang's default layout", "unset it")
    from sglang.srt.layers.radix_attention import AttentionType, RadixAttention

    for layer in (m for m in runner.model.modules() if isinstance(m, RadixAttention)):
        where = f"in layer {layer.layer_id}"
        if layer.logit_cap:
            _refuse(f"logit caps ({where})", "attention would have to apply tanh to its scores", OTHER)
        if runner.use_mla_backend and _has_scales(layer):
            why = "SGLang stores the rows of some tokens by them, and of others without"
            _refuse(f"scales of latent rows ({where})", why, "use a checkpoint without scales of the KV cache")
        if layer.qk_head_dim != layer.v_head_dim and not runner.use_mla_backend:
            _refuse(f"unequal head dims of K and V ({where})", "a page's K and V have one shape", OTHER)
        if layer.sliding_window_size is not None and layer.sliding_window_size > -1:
            _refuse(f"sliding windows ({where})", "a page outside the window must not be kept", OTHER)
        if layer.is_cross_attention or layer.attn_type not in (AttentionType.DECODER, "decoder"):
            _refuse(f"{layer.attn_type} attention ({where})", "only causal attention decodes in pages", OTHER)


def _has_scales(layer: Any) -> bool:
    """Whether a checkpoint gave the layer scales of K and V other than 1, which stands for none."""
    found = (getattr(layer, name, None) for name in ("k_scale", "v_scale"))
    return any(scale is not None and float(scale) != 1 for scale in found)


def _refuse(what: str, why: str, hint: str) -> NoReturn:
    raise ENGINE_REFUSED.at(what=what, why=why, hint=hint)
