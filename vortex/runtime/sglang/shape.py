"""What of a model a flow is compiled for, read off SGLang's description of it."""

from __future__ import annotations

from typing import Any

import torch

from vortex.budget import Budget
from vortex.errors import ENGINE_CONFIG, ENGINE_REFUSED, VortexError
from vortex.runtime.compiled import ModelShape
from vortex.runtime.tensors import short
from vortex.spec import Spec


def model_shape(
    model: Any,
    kv_dtype: torch.dtype,
    page_size: int,
    latent: bool = False,
    budget_table: bool = False,
    block_size: int = 0,
    request_budgets: bool = False,
    ranks: int = 0,
) -> ModelShape:
    """The shape of ``model``, an SGLang ModelConfig, on this rank; ``latent`` where SGLang keeps latent rows (MLA),
    ``budget_table`` where the budget is a table, ``block_size`` where less than a page is selected,
    ``request_budgets`` where requests may have budgets of their own. With ``ranks`` it is that of the first of so
    many tensor-parallel ranks, wherever this runs.

    VX9002 for KV of another type than the model's that the kernels do not read, and for latent rows on several ranks;
    VX9003 for blocks that do not divide the page.
    """
    if block_size and page_size % block_size:
        why = f"'block_size' is {block_size}, and the engine's pages of {page_size} tokens are no multiple of it"
        raise ENGINE_CONFIG.at(why=why)
    dtype, kept = short(model.dtype), short(kv_dtype)
    if dtype not in ("bf16", "f16", "f32"):
        why = "the kernels read K and V as bf16, f16 or f32"
        raise ENGINE_REFUSED.at(what=f"a model in {dtype}", why=why, hint="use --dtype bfloat16")
    if kept != dtype:
        _refuse_kept(kept, dtype)
    rank = 0
    if not ranks:
        from sglang.srt.runtime_context import get_parallel

        parallel = get_parallel()
        ranks, rank = parallel.attn_tp_size, 0 if latent else parallel.attn_tp_rank
    if latent:
        if ranks > 1:
            why = "all heads read the same pages, and a rank knows the queries of its own heads alone"
            raise ENGINE_REFUSED.at(what=f"an MLA model on {ranks} tensor-parallel ranks", why=why, hint="use --tp 1")
        row = f"{model.kv_lora_rank}+{model.qk_rope_head_dim}"
        more: dict[str, Any] = {"page_size": page_size, "dtype": dtype, "kv_dtype": kept, "budget_table": budget_table}
        more |= {"block_size": block_size, "request_budgets": request_budgets}
        return ModelShape(Spec.of_latent(row, model.num_attention_heads, **more), 1)
    kv_heads = model.get_num_kv_heads(ranks)
    group = model.num_attention_heads // ranks // kv_heads
    sizes = {"page_size": page_size, "block_size": block_size, "head_dim": model.head_dim}
    own = {"budget_table": budget_table, "request_budgets": request_budgets}
    spec = Spec(**sizes, group=group, dtype=dtype, kv_dtype=kept, **own)
    # where there are more ranks than heads, several ranks hold one
    return ModelShape(spec, kv_heads, rank * model.get_num_kv_heads(1) // ranks)


def _refuse_kept(kept: str, dtype: str) -> None:
    """VX9002 unless K and V, or latent rows, may be ``kept`` in another type than the model's ``dtype``."""
    hint = "use --kv-cache-dtype auto"
    if kept != "fp8_e4m3":
        why, hint = "the kernels read K and V as the model has them, or as fp8_e4m3", f"{hint} or fp8_e4m3"
    elif dtype == "f32":
        why, hint = "the kernels read fp8 for models in bf16 or f16", f"{hint}, or --dtype bfloat16"
    else:
        return
    raise ENGINE_REFUSED.at(what=f"a KV cache of {kept} under a model in {dtype}", why=why, hint=hint)


def refuse_table(budget: Budget, model: Any, layers: int, latent: bool) -> None:
    """VX9003 for a table of budgets that is not of the model's layers, or tells other KV heads apart than it has."""
    try:
        budget.require_model(layers, 1 if latent else model.get_num_kv_heads(1))
    except VortexError as error:
        raise ENGINE_CONFIG.at(why=f"budget: {error.message}") from None
