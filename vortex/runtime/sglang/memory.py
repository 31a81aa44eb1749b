"""Summaries in SGLang's memory: what a token costs more, and the tensors."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch

from vortex.artifact.folder import read_manifest
from vortex.artifact.manifest import FieldEntry
from vortex.runtime.sglang.compiled import artifact_for
from vortex.runtime.sglang.config import EngineConfig
from vortex.runtime.sglang.refusals import refuse_settings
from vortex.runtime.sglang.shape import ModelShape, model_shape, target_of
from vortex.runtime.tensors import TORCH


def new_fields(
    entries: Sequence[FieldEntry], pages: int, kv_heads: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """Summaries ``[pages, kv_heads, *tile]`` of one layer. What is in them is never read before it is written."""
    return {f.name: torch.empty(pages, kv_heads, *f.tile, dtype=TORCH[f.dtype], device=device) for f in entries}


def bytes_per_token(entries: Sequence[FieldEntry], shape: ModelShape, layers: int) -> int:
    """Bytes of summaries that a token of the pool costs, rounded up."""
    page = sum(prod(f.tile) * TORCH[f.dtype].itemsize for f in entries) * shape.kv_heads * layers
    return -(-page // shape.spec.page_size)


def add_summaries(cell_size: int, configurator: Any, kvc: Any, num_layers: int) -> int | None:
    """After SGLang's ``DefaultPoolConfigurator._compute_cell_size``: the summaries too, where this backend runs.

    This is the first place that knows the model's shape, so a flow that does not compile stops the start here.
    """
    if kvc.server_args.attention_backend != "vortex":
        return None
    refuse_settings(kvc.server_args)
    config = EngineConfig.read()
    by_row = bool(config.budget.table)
    shape = model_shape(kvc.model_config, kvc.kv_cache_dtype, kvc.page_size, kvc.use_mla_backend, by_row)
    fields = read_manifest(artifact_for(config, shape, target_of(kvc.device))).fields
    without = config.dense_layers | config.pages_of.keys()
    bare = sum(kvc.layer_info.start_layer <= n < kvc.layer_info.end_layer for n in without)
    return cell_size + bytes_per_token(fields, shape, num_layers - bare)
