"""A plug-in of SGLang's that lends HiCache on a CPU the kernels that it calls there, and has for GPUs alone.

They copy rows as SGLang's own do for each ``--hicache-io-backend`` and ``--hicache-mem-layout``: ``lf`` is the pool, a
tensor for each layer, ``pf`` and ``ph`` are the host's layouts by pages. All the rest is SGLang's: what is saved,
evicted and loaded back, when, and who waits for it. Streams, which on a GPU run at once, do nothing on a CPU: every
copy is there when it was asked for.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch

Tensor = torch.Tensor


def copy_rows(
    src_layers: Sequence[Tensor], dst_layers: Sequence[Tensor], src_indices: Tensor, dst_indices: Tensor, page_size: int
) -> None:
    """Both sides have a tensor for each layer."""
    for source, target in zip(src_layers, dst_layers, strict=True):
        target[dst_indices] = source[src_indices]


def save_pages(
    src_ptrs: Sequence[Tensor], dst_ptrs: Sequence[Tensor], src_indices: Tensor, dst_indices: Tensor, page_size: int
) -> None:
    """The host has [page, layer, token] for K and for V, or for latent rows; the pool all layers of K, then of V."""
    layers = len(src_ptrs) // len(dst_ptrs)
    for i, source in enumerate(src_ptrs):
        dst_ptrs[i // layers][dst_indices // page_size, i % layers, dst_indices % page_size] = source[src_indices]


def load_pages(
    src_ptrs: Sequence[Tensor],
    dst_ptrs: Sequence[Tensor],
    src_indices: Tensor,
    dst_indices: Tensor,
    layer_id: int,
    page_size: int,
) -> None:
    for source, target in zip(src_ptrs, dst_ptrs, strict=True):
        target[dst_indices] = source[src_indices // page_size, layer_id, src_indices % page_size]


def at(address: Tensor, indices: Tensor, item_size: int) -> Tensor:
    """Rows of a layer up to the last of these, as bytes: some kernels are told the addresses of layers alone."""
    rows = int(indices.max()) + 1
    there = (ctypes.c_uint8 * (rows * item_size)).from_address(int(address))
    return torch.frombuffer(there, dtype=torch.uint8).view(rows, item_size)


def save_layers(
    src_layers: Tensor, dst_layers: Tensor, src_indices: Tensor, dst_indices: Tensor, item_size: int, num_layers: int
) -> None:
    """Both sides have a tensor for each layer."""
    for source, target in zip(src_layers, dst_layers, strict=True):
        at(target, dst_indices, item_size)[dst_indices] = at(source, src_indices, item_size)[src_indices]


def save_all(
    src_layers: Tensor, dst: Tensor, src_indices: Tensor, dst_indices: Tensor, item_size: int, **sizes: int
) -> None:
    """The host has [token, layer], or [page, head, token, layer] where it is told how many tokens a page has."""
    for layer, address in enumerate(src_layers):
        rows = at(address, src_indices, item_size)[src_indices].view(dst.dtype).view(-1, *_row(dst, sizes))
        if page := sizes.get("page_size"):
            dst[dst_indices // page, :, dst_indices % page, layer] = rows
        else:
            dst[dst_indices, layer] = rows


def load_layer(
    src: Tensor, dst: Tensor, src_indices: Tensor, dst_indices: Tensor, item_size: int, layer_id: int = -1, **sizes: int
) -> None:
    """Of one layer's own tensor where the layer is not told."""
    if layer_id < 0:
        dst[dst_indices] = src[src_indices]
    elif page := sizes.get("page_size"):
        dst[dst_indices] = src[src_indices // page, :, src_indices % page, layer_id]
    else:
        dst[dst_indices] = src[src_indices, layer_id]


def _row(host: Tensor, sizes: dict[str, int]) -> tuple[int, ...]:
    """The shape of a token's row in one layer."""
    return (host.shape[1], host.shape[-1]) if "page_size" in sizes else host.shape[2:]


def save_layers_of_both(
    src_k_layers: Tensor, dst_k_layers: Tensor, src_v_layers: Tensor, dst_v_layers: Tensor, **rest: Any
) -> None:
    save_layers(src_k_layers, dst_k_layers, **rest)
    save_layers(src_v_layers, dst_v_layers, **rest)


def save_k_and_v(src_k_layers: Tensor, dst_k: Tensor, src_v_layers: Tensor, dst_v: Tensor, **rest: Any) -> None:
    save_all(src_k_layers, dst_k, **rest)
    save_all(src_v_layers, dst_v, **rest)


def load_k_and_v(src_k: Tensor, dst_k: Tensor, src_v: Tensor, dst_v: Tensor, **rest: Any) -> None:
    load_layer(src_k, dst_k, **rest)
    load_layer(src_v, dst_v, **rest)


def unpinned(
    dims: tuple[int, ...], dtype: torch.dtype, device: str, pin_memory: bool, allocator: object, **rest: object
) -> torch.Tensor:
    return torch.empty(dims, dtype=dtype, device=device)


def lend() -> None:
    from sglang.srt.mem_cache.pool_host import base, common, mha, mla

    for pool in (mha, mla):
        pool.transfer_kv_direct = copy_rows
        pool.transfer_kv_all_layer_direct_lf_pf = save_pages
        pool.transfer_kv_per_layer_direct_pf_lf = load_pages
        pool.transfer_kv_all_layer_mla, pool.transfer_kv_per_layer_mla = save_layers, load_layer
        pool.transfer_kv_all_layer_mla_lf_pf = save_all
        pool.transfer_kv_per_layer_mla_pf_lf = load_layer
    mha.transfer_kv_all_layer, mha.transfer_kv_per_layer = save_layers_of_both, load_k_and_v
    mha.transfer_kv_all_layer_lf_pf = mha.transfer_kv_all_layer_lf_ph = save_k_and_v
    mha.transfer_kv_per_layer_pf_lf = mha.transfer_kv_per_layer_ph_lf = load_k_and_v
    common.ALLOC_MEMORY_FUNCS["cpu"] = unpinned
    base.HICACHE_HOST_MEMORY_RESERVE_BYTES = 0  # of a machine that runs tests
