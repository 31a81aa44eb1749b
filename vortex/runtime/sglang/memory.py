"""Summaries in SGLang's memory: what a token costs more, and the tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vortex.artifact.folder import read_manifest
from vortex.artifact.manifest import FieldEntry, Manifest, ParameterEntry, StateEntry
from vortex.errors import ENGINE_REFUSED
from vortex.runtime.compiled import ModelShape, artifact_for, target_of
from vortex.runtime.sglang.config import EngineConfig
from vortex.runtime.sglang.refusals import refuse_settings
from vortex.runtime.sglang.shape import model_shape, refuse_table
from vortex.runtime.tensors import TORCH


def new_fields(
    entries: Sequence[FieldEntry], pages: int, kv_heads: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """Summaries ``[pages, kv_heads, *tile]`` of one layer, int4 and uint1 in bytes. What is in them is never read
    before it is written.
    """
    return {f.name: torch.empty(pages, kv_heads, *f.packed, dtype=TORCH[f.dtype], device=device) for f in entries}


def new_state(
    entries: Sequence[StateEntry], slots: int, kv_heads: int, columns: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """State of one layer, of ``slots`` requests of up to ``columns`` pages; begun where a prompt is."""
    each = {"page": (kv_heads, columns), "request": (kv_heads,)}
    return {s.name: torch.empty(slots, *each[s.per], *s.tile, dtype=TORCH[s.dtype], device=device) for s in entries}


def state_bytes(entries: Sequence[StateEntry], kv_heads: int, slots: int, columns: int, layers: int) -> int:
    """Bytes of the same over ``layers`` layers."""
    return slots * layers * sum(s.bytes(kv_heads, columns) for s in entries)


def parameter_bytes(entries: Sequence[ParameterEntry], kv_heads: int, layers: int) -> int:
    """Bytes of the weights of ``layers`` layers on the device."""
    return sum(p.bytes(layers, kv_heads) for p in entries)


def bytes_per_token(entries: Sequence[FieldEntry], shape: ModelShape, layers: int) -> int:
    """Bytes of summaries that a token of the pool costs, rounded up."""
    page = sum(f.tile_bytes for f in entries) * shape.kv_heads * layers
    return -(-page // shape.spec.page_size)


def add_summaries(cell_size: int, configurator: Any, kvc: Any, num_layers: int) -> int | None:
    """After SGLang's ``DefaultPoolConfigurator._compute_cell_size``: the summaries too, where this backend runs. What
    state and parameters take is left to :func:`leave_room`.

    This is the first place that knows the model's shape, so a flow that does not compile stops the start here.
    """
    if kvc.server_args.attention_backend != "vortex":
        return None
    refuse_settings(kvc.server_args)
    config = EngineConfig.read()
    latent, by_row, block = kvc.use_mla_backend, bool(config.budget.table), config.block_size
    own = config.per_request is not None
    refuse_table(config.budget, kvc.model_config, num_layers, latent)
    shape = model_shape(kvc.model_config, kvc.kv_cache_dtype, kvc.page_size, latent, by_row, block, own)
    manifest = read_manifest(artifact_for(config.flow, shape, target_of(kvc.device), blocks=bool(block)))
    without = config.dense_layers | config.pages_of.keys()
    bare = sum(kvc.layer_info.start_layer <= n < kvc.layer_info.end_layer for n in without)
    state = state_of(manifest, kvc.server_args, kvc.model_config, shape, num_layers - bare)
    # layers that share pages or are dense are bound too, and each bound layer has its weights
    weights = parameter_bytes(manifest.parameters, shape.kv_heads, num_layers)
    if state or weights:
        configurator.vortex_bytes = (state, weights)
    return cell_size + bytes_per_token(manifest.fields, shape, num_layers - bare)


SPARE = 8
"""Tokens beyond a model's context that SGLang's table has room for."""


def state_of(manifest: Manifest, args: Any, model: Any, shape: ModelShape, layers: int) -> int:
    """Bytes of state that the engine will have; VX9002 where nothing says of how many requests. ``args`` are SGLang's
    settings, ``model`` is its ModelConfig.
    """
    if not manifest.states:
        return 0
    if (most := args.max_running_requests) is None:
        why = "it keeps state for each request, whose memory depends on how many run at a time"
        hint = "say how many: --max-running-requests 64"
        raise ENGINE_REFUSED.at(what=f"flow '{manifest.flow}'", why=why, hint=hint)
    columns = -(-(model.context_len + SPARE) // shape.spec.page_size)
    return state_bytes(manifest.states, shape.kv_heads, most + 1, columns, layers)


def leave_room(
    configurator: Any, available_bytes: int, page_size: int
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Before ``DefaultPoolConfigurator.calculate_pool_sizes``: pools share what state and parameters leave of the
    memory.
    """
    state, weights = getattr(configurator, "vortex_bytes", (0, 0))
    taken = state + weights
    if not taken:
        return None
    if taken >= available_bytes:
        why = (
            f"it takes {taken / 2**30:.2f} GiB, and there are {available_bytes / 2**30:.2f} GiB for it and the KV cache"
        )
        if weights > state:
            hint = "smaller parameters, or one set for all layers and heads: Parameter(...) without per="
            raise ENGINE_REFUSED.at(what="the memory of the flow's parameters", why=why, hint=hint)
        hint = "fewer --max-running-requests, a shorter --context-length, or a narrower dtype= in the flow's Field"
        raise ENGINE_REFUSED.at(what="the state of so many requests", why=why, hint=hint)
    return (configurator, available_bytes - taken, page_size), {}
