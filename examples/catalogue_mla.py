"""The scoring rules of arXiv 2606.06453 for MLA, one class each: its shipped flows, and what it tried on GLM-4.7-Flash.

A latent row is ``[content | rope]``, 512 + 64 numbers there. ``rope_aware_block_sparse_mla`` comes with vortex as
``latent_topk``, its bound as ``latent_quest``, its low-rank centroid, better cut, as ``latent_slim``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

import vortex


class MeanRows(vortex.vFlow):
    """What rules on a page's mean latent row keep: content and rotary part."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        self.rank = spec.kv_lora_rank
        return {"content": vortex.Field(self.rank), "rope": vortex.Field(spec.qk_rope_head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        content, rope = page.latent.mean(0).split([self.rank, page.latent.shape[1] - self.rank])
        return {"content": content, "rope": rope}

    def scores(self, q: Any, cache: Any) -> tuple[Any, Any]:
        """The content's and the rotary part's share of the logit of the mean row."""
        q = q.mean(0)
        return cache.content @ q[: self.rank], cache.rope @ q[self.rank :]


class MeanRange(vortex.vFlow):
    """What rules on mean and elementwise range of a page's latent rows keep."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {name: vortex.Field(spec.head_dim) for name in ("mean", "lo", "hi")}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        rows = page.latent
        return {"mean": rows.mean(0), "lo": rows.amin(0), "hi": rows.amax(0)}

    def scores(self, q: Any, cache: Any) -> tuple[Any, Any]:
        """The logit of the mean row, and Quest's bound, both of the mean query head."""
        q = q.mean(0)
        return cache.mean @ q, torch.maximum(q * cache.lo, q * cache.hi).sum(-1)


@vortex.register("rope_unaware")
class RopeUnaware(vortex.vFlow):
    """The content's share of the logit alone, so nothing else is kept."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        self.rank = spec.kv_lora_rank
        return {"content": vortex.Field(self.rank)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"content": page.latent[:, : self.rank].mean(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk(cache.content @ q.mean(0)[: self.rank])


@vortex.register("lserve_centroid_mla")
class LServeCentroidMLA(vortex.vFlow):
    """The best mean latent row of sixteen tokens."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        self.sub, self.rank = min(16, spec.page_size), spec.kv_lora_rank
        return {"mean": vortex.Field(spec.page_size // self.sub, spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": page.latent.unflatten(0, (-1, self.sub)).mean(1)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk((cache.mean @ q.mean(0)).amax(-1))


@vortex.register("rope_unaware_lserve_centroid_mla")
class RopeUnawareLServeCentroidMLA(LServeCentroidMLA):
    """The best mean content of sixteen tokens."""

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk((cache.mean[..., : self.rank] @ q.mean(0)[: self.rank]).amax(-1))


class RopeWeighted(MeanRows):
    """Content and rotary part weighed apart."""

    share = 0.5

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        content, rope = self.scores(q, cache)
        return vortex.topk((1 - self.share) * content + self.share * rope)


@vortex.register("rope_weighted_b10")
class RopeWeighted10(RopeWeighted):
    """A tenth for the rotary part."""

    share = 0.10


@vortex.register("rope_weighted_b25")
class RopeWeighted25(RopeWeighted):
    """A quarter for the rotary part."""

    share = 0.25


@vortex.register("rope_weighted_b50")
class RopeWeighted50(RopeWeighted):
    """Half for the rotary part: the order of the whole logit."""

    share = 0.50


@vortex.register("rope_weighted_b75")
class RopeWeighted75(RopeWeighted):
    """Three quarters for the rotary part."""

    share = 0.75


@vortex.register("rope_weighted_b90")
class RopeWeighted90(RopeWeighted):
    """Nine tenths for the rotary part."""

    share = 0.90


@vortex.register("rope_only")
class RopeOnly(RopeWeighted):
    """The rotary part alone: ``rope_weighted_b100``."""

    share = 1.0


@vortex.register("self_gated_rope")
class SelfGatedRope(MeanRows):
    """The rotary part's share counts as far as it is positive."""

    weight = 0.5

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        content, rope = self.scores(q, cache)
        return vortex.topk(content + self.weight * F.silu(rope))


@vortex.register("low_frequency_rope")
class LowFrequencyRope(MeanRows):
    """Only the slower half of the rotary frequencies, of rows that rotate number i with number i + 32 (of 64)."""

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        half = cache.rope.shape[1] // 2
        slow = [*range(half // 2, half), *range(half + half // 2, 2 * half)]
        return vortex.topk(cache.rope[:, slow] @ q.mean(0)[self.rank :][slow])


@vortex.register("sub_page_quest_mla")
class SubPageQuestMLA(vortex.vFlow):
    """Quest's bound of the mean query head over eight tokens, the best of the page."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        self.sub = min(8, spec.page_size)
        parts = spec.page_size // self.sub
        return {"lo": vortex.Field(parts, spec.head_dim), "hi": vortex.Field(parts, spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        parts = page.latent.unflatten(0, (-1, self.sub))
        return {"lo": parts.amin(1), "hi": parts.amax(1)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        q = q.mean(0)
        return vortex.topk(torch.maximum(q * cache.lo, q * cache.hi).sum(-1).amax(-1))


@vortex.register("mean_quest_blend")
class MeanQuestBlend(MeanRange):
    """Halfway between the mean row's logit and the bound."""

    bound = 0.5

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        mean, bound = self.scores(q, cache)
        return vortex.topk((1 - self.bound) * mean + self.bound * bound)


@vortex.register("spiky_page_rescue")
class SpikyPageRescue(MeanRange):
    """The mean row's logit, with a bonus where the bound is far above it."""

    bonus = 0.25

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        mean, bound = self.scores(q, cache)
        return vortex.topk(mean + self.bonus * torch.relu(bound - mean))


@vortex.register("split_estimator")
class SplitEstimator(vortex.vFlow):
    """The mean of the content, the bound of the rotary part."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        self.rank, rope = spec.kv_lora_rank, spec.qk_rope_head_dim
        return {"content": vortex.Field(self.rank), "lo": vortex.Field(rope), "hi": vortex.Field(rope)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        rope = page.latent[:, self.rank :]
        return {"content": page.latent[:, : self.rank].mean(0), "lo": rope.amin(0), "hi": rope.amax(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        q, rope = q.mean(0)[: self.rank], q.mean(0)[self.rank :]
        return vortex.topk(cache.content @ q + torch.maximum(rope * cache.lo, rope * cache.hi).sum(-1))


@vortex.register("asymmetric")
class Asymmetric(vortex.vFlow):
    """One mean of the content for the page, one of the rotary part for each four tokens."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        self.rank, rope = spec.kv_lora_rank, spec.qk_rope_head_dim
        return {"content": vortex.Field(self.rank), "rope": vortex.Field(spec.page_size // 4, rope)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        rope = page.latent[:, self.rank :].unflatten(0, (-1, 4)).mean(1)
        return {"content": page.latent[:, : self.rank].mean(0), "rope": rope}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        q = q.mean(0)
        return vortex.topk(cache.content @ q[: self.rank] + (cache.rope @ q[self.rank :]).amax(-1))


@vortex.register("mass_aware")
class MassAware(vortex.vFlow):
    """The mean logit and its spread: a page with much variance along the query may hold what it looks for."""

    weight = 0.5

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"mean": vortex.Field(spec.head_dim), "var": vortex.Field(spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": page.latent.mean(0), "var": page.latent.var(0, correction=0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        q = q.mean(0)
        return vortex.topk(cache.mean @ q + self.weight * (cache.var @ q.square()))


@vortex.register("low_rank_centroid")
class LowRankCentroid(vortex.vFlow):
    """Means of two neighbouring features of the mean row, against sums of the same two of the query."""

    merged = 2

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"mean": vortex.Field(spec.head_dim // self.merged)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": page.latent.mean(0).unflatten(0, (-1, self.merged)).mean(1)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk(cache.mean @ q.mean(0).unflatten(0, (-1, self.merged)).sum(1))
