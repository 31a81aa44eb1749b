"""``vortex_torch.flow.algorithms``: the flows over K and V that come with that package, to derive others from.

They are written in its own terms, q ``[1, G, D]`` and fields ``[S, r, c]``; the tests hold them to their formulas.
"""

from __future__ import annotations

from typing import Any

from vortex.compat.vortex_torch import cache as on_cache
from vortex.compat.vortex_torch import indexer as on_index
from vortex.compat.vortex_torch.flows import vFlow


class _Centroids(vFlow):
    """Keeps the mean key of a block."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = on_index.Mean(dim=1)
        self.gemm = on_index.GeMM()
        self.output_func = on_index.topK()
        self.reduction = on_cache.Mean(dim=1)

    def create_cache(self, block_size: int, head_dim: int) -> Any:  # type: ignore[override]
        return {"centroids": (1, head_dim)}

    def forward_cache(self, cache: Any, loc: Any, ctx: Any) -> Any:  # type: ignore[override]
        self.reduction(cache["k"], cache["centroids"], loc=loc, ctx=ctx)


class BlockSparseAttention(_Centroids):
    """The mean query with the mean key."""

    def forward_indexer(self, q: Any, o: Any, cache: Any, ctx: Any) -> Any:  # type: ignore[override]
        score = self.gemm(self.mean(q, ctx=ctx), cache["centroids"], ctx=ctx)
        self.output_func(score, o, ctx=ctx)


class GQABlockSparseAttention(_Centroids):
    """Softmax over the blocks for each head, the best head."""

    def __init__(self) -> None:
        super().__init__()
        self.softmax = on_index.Softmax(dim=0, scale=0.09)
        self.max_op = on_index.Max(dim=2)

    def forward_indexer(self, q: Any, o: Any, cache: Any, ctx: Any) -> Any:  # type: ignore[override]
        heads = self.softmax(self.gemm(q, cache["centroids"], ctx=ctx), ctx=ctx)
        self.output_func(self.max_op(heads, ctx=ctx), o, ctx=ctx)


class CenteredBlockSparseAttention(_Centroids):
    """The mean over heads, less its mean over the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.mul = on_index.Multiply()
        self.sum_d = on_index.Sum(dim=2)
        self.mean_h = on_index.Mean(dim=1)
        self.mean_seq = on_index.Mean(dim=0)
        self.center = on_index.Add(alpha=1.0, beta=-1.0)

    def forward_indexer(self, q: Any, o: Any, cache: Any, ctx: Any) -> Any:  # type: ignore[override]
        heads = self.sum_d(self.mul(q, cache["centroids"], ctx=ctx), ctx=ctx)
        score = self.mean_h(heads, ctx=ctx)
        self.output_func(self.center(score, self.mean_seq(score, ctx=ctx), ctx=ctx), o, ctx=ctx)


class VEnergyGatedCentroid(_Centroids):
    """The mean query with the mean key, times the mean length of the values."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = on_index.Multiply()
        self.v_norm = on_cache.L2Norm(dim=2)
        self.v_mean = on_cache.Mean(dim=1)

    def create_cache(self, block_size: int, head_dim: int) -> Any:  # type: ignore[override]
        return {"centroids": (1, head_dim), "v_energy": (1, 1)}

    def forward_cache(self, cache: Any, loc: Any, ctx: Any) -> Any:  # type: ignore[override]
        super().forward_cache(cache, loc, ctx)
        lengths = self.v_norm(cache["v"], None, loc=loc, ctx=ctx)
        self.v_mean(lengths, cache["v_energy"], loc=loc, ctx=ctx)

    def forward_indexer(self, q: Any, o: Any, cache: Any, ctx: Any) -> Any:  # type: ignore[override]
        score = self.gemm(self.mean(q, ctx=ctx), cache["centroids"], ctx=ctx)
        self.output_func(self.gate(score, cache["v_energy"], ctx=ctx), o, ctx=ctx)


class RunningAvgBlockSparse(_Centroids):
    """The mean query with the mean key, and half of what the block had in the step before."""

    ALPHA = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.load_score, self.save_score = on_index.Load(), on_index.Save()
        self.fuse = on_index.Add(alpha=self.ALPHA, beta=1.0)
        self.init_running_score = on_cache.Fill(alpha=0.0)

    def create_cache(self, block_size: int, head_dim: int) -> Any:  # type: ignore[override]
        return {"centroids": (1, head_dim), "running_score": (1, 1)}

    def forward_cache(self, cache: Any, loc: Any, ctx: Any) -> Any:  # type: ignore[override]
        super().forward_cache(cache, loc, ctx)
        self.init_running_score(cache["running_score"], loc=loc, ctx=ctx)

    def forward_indexer(self, q: Any, o: Any, cache: Any, ctx: Any) -> Any:  # type: ignore[override]
        now = self.gemm(self.mean(q, ctx=ctx), cache["centroids"], ctx=ctx)
        running = self.fuse(self.load_score(cache["running_score"], ctx=ctx), now, ctx=ctx)
        self.save_score(running, cache["running_score"], ctx=ctx)
        self.output_func(running, o, ctx=ctx)


class GQAQuestSparseAttention(vFlow):
    """The upper bound of q.k over a block, for the best head."""

    def __init__(self) -> None:
        super().__init__()
        self.mul_max, self.mul_min = on_index.Multiply(), on_index.Multiply()
        self.maximum_op = on_index.Maximum()
        self.sum = on_index.Sum(dim=2)
        self.max_op = on_index.Max(dim=1)
        self.output_func = on_index.topK()
        self.reduction_max: Any = on_cache.Max(dim=1)
        self.reduction_min: Any = on_cache.Min(dim=1)

    def create_cache(self, block_size: int, head_dim: int) -> Any:  # type: ignore[override]
        return {"max": (1, head_dim), "min": (1, head_dim)}

    def forward_cache(self, cache: Any, loc: Any, ctx: Any) -> Any:  # type: ignore[override]
        self.reduction_max(cache["k"], cache["max"], loc=loc, ctx=ctx)
        self.reduction_min(cache["k"], cache["min"], loc=loc, ctx=ctx)

    def bound(self, q: Any, cache: Any, ctx: Any) -> Any:
        """Of each feature, ``[S, rows, D]``."""
        high = self.mul_max(q, cache["max"], ctx=ctx)
        return self.maximum_op(high, self.mul_min(q, cache["min"], ctx=ctx), ctx=ctx)

    def forward_indexer(self, q: Any, o: Any, cache: Any, ctx: Any) -> Any:  # type: ignore[override]
        score = self.sum(self.bound(q, cache, ctx), ctx=ctx)
        self.output_func(self.max_op(score, ctx=ctx), o, ctx=ctx)


class MaskedQuestSparseAttention(GQAQuestSparseAttention):
    """The same without the first features."""

    MASK_END = 8

    def __init__(self) -> None:
        super().__init__()
        self.feature_mask = on_index.MaskSlice(start=0, end=self.MASK_END, dim=2, alpha=0.0, beta=1.0)
        self.mul_mask = on_index.Multiply()

    def bound(self, q: Any, cache: Any, ctx: Any) -> Any:
        """Of each feature, 0 of those that are masked."""
        whole = super().bound(q, cache, ctx)
        return self.mul_mask(whole, self.feature_mask(whole, ctx=ctx), ctx=ctx)


class LServeSparseAttention(GQAQuestSparseAttention):
    """The upper bound for each 16 tokens of a block, the best of them."""

    LSERVE_BLOCK_SIZE = 16

    def __init__(self) -> None:
        super().__init__()
        self.mul_max, self.mul_min = on_index.Kron(dim=1), on_index.Kron(dim=1)  # type: ignore[assignment]
        self.reduction_max = on_cache.MaxInterleave(dim=1, k=self.LSERVE_BLOCK_SIZE)
        self.reduction_min = on_cache.MinInterleave(dim=1, k=self.LSERVE_BLOCK_SIZE)

    def create_cache(self, block_size: int, head_dim: int) -> Any:  # type: ignore[override]
        shape = block_size // self.LSERVE_BLOCK_SIZE, head_dim
        return {"max": shape, "min": shape}


class LServeCentroidSparseAttention(_Centroids):
    """The mean query with the mean of each 16 keys, the best of them."""

    LSERVE_BLOCK_SIZE = 16

    def __init__(self) -> None:
        super().__init__()
        self.max_sub = on_index.Max(dim=1)
        self.reduction: Any = on_cache.MeanInterleave(dim=1, k=self.LSERVE_BLOCK_SIZE)

    def create_cache(self, block_size: int, head_dim: int) -> Any:  # type: ignore[override]
        return {"centroids": (block_size // self.LSERVE_BLOCK_SIZE, head_dim)}

    def forward_indexer(self, q: Any, o: Any, cache: Any, ctx: Any) -> Any:  # type: ignore[override]
        parts = self.gemm(self.mean(q, ctx=ctx), cache["centroids"], ctx=ctx)
        self.output_func(self.max_sub(parts, ctx=ctx), o, ctx=ctx)


class NSASparseAttention(BlockSparseAttention):
    """What ``nsa`` does in decoding."""


class FSASparseAttention(BlockSparseAttention):
    """What ``fsa`` does in decoding."""


class FlashMoBASparseAttention(BlockSparseAttention):
    """What ``flash_moba`` does in decoding."""
