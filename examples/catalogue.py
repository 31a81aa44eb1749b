"""The scoring rules of arXiv 2606.06453 for K and V, one class each: its appendix, and variations on its flows.

``vortex compile examples/catalogue.py:worst_head_quest --heads 32/8`` compiles one. What the paper found best, and what
others wrote, comes with vortex (``vortex.find_flow``): its block-sparse rules are ``block_topk``, ``gqa_block``,
``centered``, ``lserve`` and ``lserve_centroid``, its bound is ``quest``, its value-energy gate (rule 10)
``venergy_gated``. ``nsa``, ``fsa`` and ``flash_moba`` are ``block_topk`` when they decode.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

import vortex


class MeanKeys(vortex.vFlow):
    """What rules on a page's mean key keep."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"mean": vortex.Field(spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": page.k.mean(0)}


class KeyRange(vortex.vFlow):
    """What rules on the elementwise range of a page's keys keep."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"lo": vortex.Field(spec.head_dim), "hi": vortex.Field(spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"lo": page.k.amin(0), "hi": page.k.amax(0)}


class MeanKeysValueWeights(vortex.vFlow):
    """What rules on a page's mean key and the length of its values along each feature keep."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"mean": vortex.Field(spec.head_dim), "weight": vortex.Field(spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": page.k.mean(0), "weight": page.v.norm(dim=0)}


@vortex.register("worst_head_quest")
class WorstHeadQuest(KeyRange):
    """Rule 2: Quest's bound of the head that bounds lowest."""

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        bound = torch.maximum(q * cache.lo[:, None], q * cache.hi[:, None]).sum(-1)  # [S, group]
        return vortex.topk(bound.amin(-1))


@vortex.register("anti_quest")
class AntiQuest(KeyRange):
    """Rule 3: the lower bound of q.k over a page instead of the upper."""

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        bound = torch.minimum(q * cache.lo[:, None], q * cache.hi[:, None]).sum(-1)  # [S, group]
        return vortex.topk(bound.amax(-1))


@vortex.register("saturated")
class Saturated(MeanKeys):
    """Rule 5: in how many features query and mean key agree, softly counted."""

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk(torch.sigmoid(q.mean(0) * cache.mean).sum(-1))


@vortex.register("key_norm")
class KeyNorm(vortex.vFlow):
    """Rule 6: the mean length of a page's keys, whatever the query."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"norm": vortex.Field(spec.page_size)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"norm": page.k.norm(dim=-1)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk(cache.norm.mean(-1))


@vortex.register("bipolar")
class Bipolar(MeanKeys):
    """Rule 7: a score times its negative's softmax over pages, which prefers moderate scores."""

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        score = cache.mean @ q.mean(0)
        return vortex.topk(score * torch.softmax(-score, 0))


@vortex.register("mean_times_part_max")
class MeanTimesPartMax(vortex.vFlow):
    """Rule 9: the mean key's score times that of the best elementwise maximum of eight tokens."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"mean": vortex.Field(spec.head_dim), "hi": vortex.Field(spec.page_size // 8, spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": page.k.mean(0), "hi": page.k.unflatten(0, (-1, 8)).amax(1)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        q = q.mean(0)
        return vortex.topk(cache.mean @ q * (cache.hi @ q).amax(-1))


@vortex.register("absolute")
class Absolute(vortex.vFlow):
    """Rule 11: mean absolute query against mean absolute key."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"size": vortex.Field(spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"size": page.k.abs().mean(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk(cache.size @ q.abs().mean(0))


@vortex.register("log_norm_bias")
class LogNormBias(vortex.vFlow):
    """Rule 12: the mean key's score, with a bonus for the logarithm of its length."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"mean": vortex.Field(spec.head_dim), "log_norm": vortex.Field()}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        mean = page.k.mean(0)
        return {"mean": mean, "log_norm": (mean.norm() + 1e-6).log()}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk(cache.mean @ q.mean(0) + 0.1 * cache.log_norm)


@vortex.register("query_spread")
class QuerySpread(vortex.vFlow):
    """Rule 14: the query against the range of four tokens' keys; the range is kept, not its two ends."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"spread": vortex.Field(spec.page_size // 4, spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        parts = page.k.unflatten(0, (-1, 4))
        return {"spread": parts.amax(1) - parts.amin(1)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk((cache.spread @ q.mean(0)).amax(-1))


@vortex.register("key_and_value")
class KeyAndValue(vortex.vFlow):
    """Rule 15: both the mean key and the mean value must match the query."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"key": vortex.Field(spec.head_dim), "value": vortex.Field(spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"key": page.k.mean(0), "value": page.v.mean(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        q = q.mean(0)
        return vortex.topk(torch.relu(cache.key @ q) * torch.relu(cache.value @ q))


@vortex.register("value_temperature")
class ValueTemperature(MeanKeysValueWeights):
    """Rule 16: each feature of the mean key weighed by the values along it."""

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk((q.mean(0) * cache.mean * cache.weight).sum(-1))


@vortex.register("value_gate")
class ValueGate(MeanKeysValueWeights):
    """Rule 17: only pages whose values weigh more than the row's mean count."""

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        q = q.mean(0)
        weight = cache.weight @ q
        return vortex.topk(cache.mean @ q + torch.where(weight > weight.mean(0), 0.0, -1e30))


@vortex.register("mini_centroids")
class MiniCentroids(vortex.vFlow):
    """Rule 18: the mean over means of four tokens, which is the page's mean, at four times its bytes."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"mean": vortex.Field(spec.page_size // 4, spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": page.k.unflatten(0, (-1, 4)).mean(1)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk((cache.mean @ q.mean(0)).mean(-1))


@vortex.register("sigmoid_value_gate")
class SigmoidValueGate(MeanKeysValueWeights):
    """Rule 19: the mean key's score times a soft gate of the page's values."""

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        q = q.mean(0)
        return vortex.topk(cache.mean @ q * torch.sigmoid(0.02 * (cache.weight @ q)))


@vortex.register("best_head_value")
class BestHeadValue(MeanKeysValueWeights):
    """Rule 20: the best head's score times the weight of the page's values."""

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk((cache.mean @ q.T).amax(-1) * (cache.weight @ q.mean(0)))


@vortex.register("smoothed")
class Smoothed(MeanKeys):
    """Rule 21: a quarter of either neighbour's score and half of one's own; there is nothing beyond the ends."""

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        score = cache.mean @ q.mean(0)
        return vortex.topk(F.conv1d(score[None, None], torch.tensor([[[0.25, 0.5, 0.25]]]), padding=1)[0, 0])


# what the paper lists beside its appendix ------------------------------------------------------------


@vortex.register("quest_times_values")
class QuestTimesValues(vortex.vFlow):
    """Quest's bound times the mean length of the page's values."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"lo": vortex.Field(spec.head_dim), "hi": vortex.Field(spec.head_dim), "energy": vortex.Field()}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"lo": page.k.amin(0), "hi": page.k.amax(0), "energy": page.v.norm(dim=-1).mean()}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        bound = torch.maximum(q * cache.lo[:, None], q * cache.hi[:, None]).sum(-1)
        return vortex.topk(bound.amax(-1) * cache.energy)


@vortex.register("dual_band")
class DualBand(vortex.vFlow):
    """Mean key, best mean key of eight tokens and length of the mean, added up."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"parts": vortex.Field(spec.page_size // 8, spec.head_dim), "norm": vortex.Field()}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"parts": page.k.unflatten(0, (-1, 8)).mean(1), "norm": page.k.mean(0).norm()}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        score = cache.parts @ q.mean(0)  # [S, parts]
        return vortex.topk(score.mean(-1) + score.amax(-1) + 0.1 * cache.norm)


@vortex.register("head_centroid_grid")
class HeadCentroidGrid(vortex.vFlow):
    """The best pair of a query head and a mean key of eight tokens."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"parts": vortex.Field(spec.page_size // 8, spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"parts": page.k.unflatten(0, (-1, 8)).mean(1)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk(torch.einsum("spd,gd->spg", cache.parts, q).amax((1, 2)))


@vortex.register("cosine")
class Cosine(vortex.vFlow):
    """The mean key's direction alone: its inverse length is kept beside it."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"mean": vortex.Field(spec.head_dim), "inverse": vortex.Field(dtype="f32")}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        mean = page.k.mean(0)
        return {"mean": mean, "inverse": 1 / (mean.norm() + 1e-6)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk(cache.mean @ q.mean(0) * cache.inverse)


@vortex.register("query_channels")
class QueryChannels(MeanKeys):
    """The mean key at an eighth of the channels, chosen by each step's query, as SparQ does (arXiv 2312.04985)."""

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        q = q.mean(0)
        chosen = q.abs().topk(q.shape[0] // 8).indices
        return vortex.topk(cache.mean[:, chosen] @ q[chosen])


@vortex.register("channel_study")
class ChannelStudy(MeanKeys):
    """Mean keys with the second group of sixteen channels left out: which channels matter?"""

    without = range(16, 32)

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        kept = [c for c in range(q.shape[-1]) if c not in self.without]
        return vortex.topk(cache.mean[:, kept] @ q.mean(0)[kept])
