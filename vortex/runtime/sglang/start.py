"""What a start can be told is wrong before a worker runs or weights load, by its arguments and configuration alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from vortex.artifact.folder import read_manifest
from vortex.errors import ENGINE_CONFIG, ENGINE_REFUSED
from vortex.runtime import page_trace, probes
from vortex.runtime.compiled import artifact_for, target_of
from vortex.runtime.parameters import Parameters
from vortex.runtime.safetensors import read_safetensors
from vortex.runtime.sglang import stats
from vortex.runtime.sglang.config import VARIABLE, EngineConfig
from vortex.runtime.sglang.memory import state_of
from vortex.runtime.sglang.refusals import (
    refuse_architecture,
    refuse_host_layout,
    refuse_layers,
    refuse_prefill,
    refuse_settings,
)
from vortex.runtime.sglang.shape import model_shape, refuse_table

KV_DTYPES = {
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
"""SGLang's --kv-cache-dtype; ``auto`` is the model's, unless its checkpoint says more, which the workers see."""


def _refuse_missing(config: EngineConfig) -> None:
    """VX9003 where the configuration names files that are not there."""
    from vortex.flow.flow import file_of

    flow = config.flow if config.flow.endswith(".vxa") else file_of(config.flow)
    for key, path in (("flow", flow), ("parameters", config.parameters)):
        if path and not os.path.exists(path):
            why = f"{key} names '{path}', which is not there"
            if not os.path.isabs(path):
                why += f": a path that is not absolute is one from {os.getcwd()}, where the server starts"
                source = os.environ.get(VARIABLE, "").strip()
                elsewhere = source[:1] not in ("", "{") and Path(source).resolve().parent != Path.cwd()
                why += f", and not from where '{source}' lies" if elsewhere else ""
            raise ENGINE_CONFIG.at(why=why)


def refuse_start(args: Any, model: Any) -> None:
    """Refuse what cannot be served; compile the flow where that was not done yet, so that a failure comes before the
    weights. ``args`` are SGLang's settings, resolved; ``model`` is its ModelConfig.

    Raises:
        VortexError: VX9002 for what is not served, VX9003 to VX9005 as the configuration and the compiler say, VX6020
            and VX7002 for the flow's parameters, VX7004 for statistics, VX9010 for probes and VX9015 for page traces
            that cannot be written, VX5001 to VX5003 for the artifact, and what tracing the flow raises.
    """
    config = EngineConfig.read()
    _refuse_missing(config)
    refuse_settings(args)
    stats.refuse_path()
    probes.Wanted.read()
    page_trace.Wanted.read()
    refuse_architecture(model)
    latent = model.attention_arch.name == "MLA"
    refuse_host_layout(args, latent=latent)
    refuse_prefill(config.prefill_on(args.device), args.device, latent=latent, scaled=args.kv_cache_dtype == "fp8_e4m3")
    layers = max(model.num_hidden_layers, model.num_attention_layers)
    refuse_layers(config, range(layers))
    if model.num_hidden_layers == model.num_attention_layers:
        refuse_table(config.budget, model, layers, latent)
    kv = args.kv_cache_dtype
    if kv != "auto" and kv not in KV_DTYPES:
        why = "the kernels read K and V as the model has them, or as fp8_e4m3"
        raise ENGINE_REFUSED.at(what=f"a KV cache of {kv}", why=why, hint="use --kv-cache-dtype auto or fp8_e4m3")
    if config.parameters:
        read_safetensors(config.parameters)  # nothing is compiled for a file that is none
    by_row, block = bool(config.budget.table), config.block_size
    own = config.per_request is not None
    kv_dtype = KV_DTYPES.get(kv, model.dtype)
    shape = model_shape(model, kv_dtype, args.page_size, latent, by_row, block, own, ranks=args.tp_size)
    manifest = read_manifest(artifact_for(config.flow, shape, target_of(args.device), blocks=bool(block)))
    weights = Parameters(manifest.flow, manifest.parameters, config.parameters or None)
    if manifest.parameters:
        # those of the last layer and of the last heads are there when all are
        first = 0 if latent else model.get_num_kv_heads(1) - shape.kv_heads
        weights.of(layers - 1, first, shape.kv_heads, torch.device("cpu"))
    state_of(manifest, args, model, shape, layers)
