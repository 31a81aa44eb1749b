"""``vortex_torch.flow.algorithms_mla``: the flows over latent rows that come with that package."""

from __future__ import annotations

from typing import Any

import torch

from vortex.compat.vortex_torch import cache as on_cache
from vortex.compat.vortex_torch import indexer as on_index
from vortex.compat.vortex_torch.flows import vFlowMLA


class RopeAwareBlockSparseMLA(vFlowMLA):
    """The mean query with the mean row: the whole logit of the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = on_index.Mean(dim=1)
        self.gemm = on_index.GeMM()
        self.output_func = on_index.topK()
        self.reduction: Any = on_cache.Mean(dim=1)

    def create_cache(  # type: ignore[override]
        self, block_size: int, kv_lora_rank: int, qk_rope_head_dim: int
    ) -> Any:
        return {"centroids": (1, kv_lora_rank + qk_rope_head_dim)}

    def forward_cache(self, cache: Any, loc: Any, ctx: Any) -> Any:  # type: ignore[override]
        self.reduction(cache["latent"], cache["centroids"], loc=loc, ctx=ctx)

    def query(self, q: Any, ctx: Any) -> Any:
        """One row for all heads, ``[1, 1, D]``."""
        return self.mean(q, ctx=ctx)

    def forward_indexer(self, q: Any, o: Any, cache: Any, ctx: Any) -> Any:  # type: ignore[override]
        self.output_func(self.gemm(self.query(q, ctx), cache["centroids"], ctx=ctx), o, ctx=ctx)


class LServeCentroidMLA(RopeAwareBlockSparseMLA):
    """The same for each 16 rows of a block, the best of them."""

    SUB_BLOCK_SIZE = 16

    def __init__(self) -> None:
        super().__init__()
        self.max_sub = on_index.Max(dim=1)
        self.reduction = on_cache.MeanInterleave(dim=1, k=self.SUB_BLOCK_SIZE)

    def create_cache(  # type: ignore[override]
        self, block_size: int, kv_lora_rank: int, qk_rope_head_dim: int
    ) -> Any:
        return {"centroids": (block_size // self.SUB_BLOCK_SIZE, kv_lora_rank + qk_rope_head_dim)}

    def forward_indexer(self, q: Any, o: Any, cache: Any, ctx: Any) -> Any:  # type: ignore[override]
        parts = self.gemm(self.query(q, ctx), cache["centroids"], ctx=ctx)
        self.output_func(self.max_sub(parts, ctx=ctx), o, ctx=ctx)


class _Weighted(vFlowMLA):
    """A weight for the compressed numbers and one for the rotary key."""

    NOPE_DIM = 512
    A = 1.0
    B = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.weight = on_index.MaskSlice(start=0, end=self.NOPE_DIM, dim=2, alpha=self.A, beta=self.B)
        self.mul = on_index.Multiply()

    def create_cache(  # type: ignore[override]
        self, block_size: int, kv_lora_rank: int, qk_rope_head_dim: int
    ) -> Any:
        assert kv_lora_rank == self.NOPE_DIM, f"it is written for a kv_lora_rank of {self.NOPE_DIM}, not {kv_lora_rank}"
        return super().create_cache(block_size, kv_lora_rank, qk_rope_head_dim)  # type: ignore[call-arg, arg-type]

    def query(self, q: Any, ctx: Any) -> Any:
        """The mean query, weighted."""
        whole = super().query(q, ctx)  # type: ignore[misc]
        return self.mul(whole, self.weight(whole, ctx=ctx), ctx=ctx)


class RopeUnawareBlockSparseMLA(_Weighted, RopeAwareBlockSparseMLA):
    """The compressed numbers alone."""


class RopeUnawareLServeCentroidMLA(_Weighted, LServeCentroidMLA):
    """The compressed numbers alone, for each 16 rows."""


class RopeWeightedBlockSparseMLA_B10(_Weighted, RopeAwareBlockSparseMLA):
    """A tenth of the weight on the rotary key."""

    A, B = 0.90, 0.10


class RopeWeightedBlockSparseMLA_B25(_Weighted, RopeAwareBlockSparseMLA):
    """A quarter of the weight on the rotary key."""

    A, B = 0.75, 0.25


class RopeWeightedBlockSparseMLA_B50(_Weighted, RopeAwareBlockSparseMLA):
    """Half of the weight on the rotary key."""

    A, B = 0.50, 0.50


class RopeWeightedBlockSparseMLA_B75(_Weighted, RopeAwareBlockSparseMLA):
    """Three quarters of the weight on the rotary key."""

    A, B = 0.25, 0.75


class RopeWeightedBlockSparseMLA_B90(_Weighted, RopeAwareBlockSparseMLA):
    """Nine tenths of the weight on the rotary key."""

    A, B = 0.10, 0.90


class RopeWeightedBlockSparseMLA_B100(_Weighted, RopeAwareBlockSparseMLA):
    """The rotary key alone."""

    A, B = 0.00, 1.00


class QuestMLA(vFlowMLA):
    """The upper bound of the mean query over a block's rows."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = on_index.Mean(dim=1)
        self.relu = on_index.Relu()
        self.neg = on_index.Add(alpha=1.0, beta=-1.0)
        self.gemm_max, self.gemm_min = on_index.GeMM(), on_index.GeMM()
        self.add_score = on_index.Add()
        self.output_func = on_index.topK()
        self.red_max = on_cache.Max(dim=1)
        self.red_min = on_cache.Min(dim=1)

    def create_cache(  # type: ignore[override]
        self, block_size: int, kv_lora_rank: int, qk_rope_head_dim: int
    ) -> Any:
        shape = 1, kv_lora_rank + qk_rope_head_dim
        return {"cmin": shape, "cmax": shape}

    def forward_cache(self, cache: Any, loc: Any, ctx: Any) -> Any:  # type: ignore[override]
        self.red_max(cache["latent"], cache["cmax"], loc=loc, ctx=ctx)
        self.red_min(cache["latent"], cache["cmin"], loc=loc, ctx=ctx)

    def forward_indexer(self, q: Any, o: Any, cache: Any, ctx: Any) -> Any:  # type: ignore[override]
        whole = self.mean(q, ctx=ctx)
        above = self.relu(whole, ctx=ctx)
        high = self.gemm_max(above, cache["cmax"], ctx=ctx)
        low = self.gemm_min(self.neg(whole, above, ctx=ctx), cache["cmin"], ctx=ctx)
        self.output_func(self.add_score(high, low, ctx=ctx), o, ctx=ctx)


class LearnedBlockSparseMLA(vFlowMLA):
    """A learned matrix of all heads' queries with the mean row; the sum of the queries until it is given another."""

    _H, _D = 20, 576

    def __init__(self) -> None:
        super().__init__()
        self.W = on_index.Parameter(torch.eye(self._D).repeat(1, self._H))
        self.rq, self.rv = on_index.Reshape(-1, 1, self._H * self._D), on_index.Reshape(-1, 1, self._D)
        self.gV, self.gemm = on_index.GeMM(), on_index.GeMM()
        self.output_func = on_index.topK()
        self.reduction = on_cache.Mean(dim=1)

    def create_cache(  # type: ignore[override]
        self, block_size: int, kv_lora_rank: int, qk_rope_head_dim: int
    ) -> Any:
        return {"centroids": (1, kv_lora_rank + qk_rope_head_dim)}

    def forward_cache(self, cache: Any, loc: Any, ctx: Any) -> Any:  # type: ignore[override]
        self.reduction(cache["latent"], cache["centroids"], loc=loc, ctx=ctx)

    def forward_indexer(self, q: Any, o: Any, cache: Any, ctx: Any) -> Any:  # type: ignore[override]
        mixed = self.gV(self.rq(q, ctx=ctx), self.W, ctx=ctx)
        self.output_func(self.gemm(self.rv(mixed, ctx=ctx), cache["centroids"], ctx=ctx), o, ctx=ctx)
