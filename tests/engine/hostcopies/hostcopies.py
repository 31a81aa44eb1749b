"""A plug-in of SGLang's that lends HiCache on a CPU the one kernel that it calls there, and has for GPUs alone.

It copies rows, as SGLang's own does by ``--hicache-io-backend direct`` and ``--hicache-mem-layout layer_first``. All
the rest is SGLang's: what is saved, evicted and loaded back, when, and who waits for it. Streams, which on a GPU run at
once, do nothing on a CPU: every copy is there when it was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def copy_rows(
    src_layers: Sequence[torch.Tensor],
    dst_layers: Sequence[torch.Tensor],
    src_indices: torch.Tensor,
    dst_indices: torch.Tensor,
    page_size: int,
) -> None:
    for source, target in zip(src_layers, dst_layers, strict=True):
        target[dst_indices] = source[src_indices]


def unpinned(
    dims: tuple[int, ...], dtype: torch.dtype, device: str, pin_memory: bool, allocator: object, **rest: object
) -> torch.Tensor:
    return torch.empty(dims, dtype=dtype, device=device)


def lend() -> None:
    from sglang.srt.mem_cache.pool_host import base, common, mha, mla

    mha.transfer_kv_direct = mla.transfer_kv_direct = copy_rows
    common.ALLOC_MEMORY_FUNCS["cpu"] = unpinned
    base.HICACHE_HOST_MEMORY_RESERVE_BYTES = 0  # of a machine that runs tests
