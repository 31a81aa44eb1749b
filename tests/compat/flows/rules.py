"""Scoring rules of the catalogue, written for vortex_torch: one operator object for each call."""

import torch
from typing import Dict

from vortex_torch.flow import vFlow, register
from vortex_torch.indexer import (
    GeMM, GeMV, Mean, Max, Min, Sum, Multiply, Add, Maximum, Minimum, Relu, Sigmoid, Abs, Exp, Log,
    Softmax, Conv1d, WhereGreater, Load, Save, topK, TopK, Union,
)
from vortex_torch.cache import (
    Mean as CMean, Max as CMax, Min as CMin, L2Norm as CL2Norm, Abs as CAbs, Log as CLog, Fill as CFill,
    MeanInterleave as CMeanInterleave, MaxInterleave as CMaxInterleave, MinInterleave as CMinInterleave,
    Add as CAdd,
)
from vortex_torch.abs import ContextBase


class Centroid(vFlow):
    """The mean key, and the dot of the mean query with it."""

    def __init__(self):
        super().__init__()
        self.q_mean = Mean(dim=1)
        self.dot = GeMM()
        self.k_mean = CMean(dim=1)
        self.output_func = topK()

    def create_cache(self, block_size: int, head_dim: int):
        return {"centroids": (1, head_dim)}

    def forward_cache(self, cache: dict[str, torch.Tensor], loc: torch.Tensor, ctx: ContextBase):
        self.k_mean(cache["k"], cache["centroids"], loc=loc, ctx=ctx)

    def score(self, q, cache, ctx):
        return self.dot(self.q_mean(q, ctx=ctx), cache["centroids"], ctx=ctx)

    def forward_indexer(self, q: torch.Tensor, o: torch.Tensor, cache: dict[str, torch.Tensor], ctx: ContextBase):
        self.output_func(self.score(q, cache, ctx), o, ctx=ctx)


class Range(vFlow):
    """The range of the keys."""

    def __init__(self):
        super().__init__()
        self.mul_max, self.mul_min = Multiply(), Multiply()
        self.both = Maximum()
        self.sum = Sum(dim=2)
        self.heads = Max(dim=1)
        self.k_max, self.k_min = CMax(dim=1), CMin(dim=1)
        self.output_func = topK()

    def create_cache(self, block_size, head_dim):
        return {"max": (1, head_dim), "min": (1, head_dim)}

    def forward_cache(self, cache, loc, ctx):
        self.k_max(cache["k"], cache["max"], loc=loc, ctx=ctx)
        self.k_min(cache["k"], cache["min"], loc=loc, ctx=ctx)

    def forward_indexer(self, q, o, cache, ctx):
        high = self.mul_max(q, cache["max"], ctx=ctx)
        low = self.mul_min(q, cache["min"], ctx=ctx)
        bound = self.sum(self.both(high, low, ctx=ctx), ctx=ctx)
        self.output_func(self.heads(bound, ctx=ctx), o, ctx=ctx)


@register("rule_2")
class MinOverHeads(Range):
    def __init__(self):
        super().__init__()
        self.heads = Min(dim=1)


@register("rule_3")
class AntiQuest(Range):
    def __init__(self):
        super().__init__()
        self.both = Minimum()


@register("rule_5")
class Saturated(Centroid):
    def __init__(self):
        super().__init__()
        self.mul = Multiply()
        self.logistic = Sigmoid(beta=-1.0)
        self.sum = Sum(dim=2)

    def score(self, q, cache, ctx):
        features = self.mul(self.q_mean(q, ctx=ctx), cache["centroids"], ctx=ctx)
        return self.sum(self.logistic(features, ctx=ctx), ctx=ctx)


@register("rule_6")
class MagnitudeOnly(vFlow):
    def __init__(self):
        super().__init__()
        self.load = Load()
        self.mean = Mean(dim=1)
        self.output_func = topK()
        self.norm = CL2Norm(dim=2)

    def create_cache(self, block_size, head_dim):
        return {"k_token_norm": (block_size, 1)}

    def forward_cache(self, cache, loc, ctx):
        self.norm(cache["k"], cache["k_token_norm"], loc=loc, ctx=ctx)

    def forward_indexer(self, q, o, cache, ctx):
        self.output_func(self.mean(self.load(cache["k_token_norm"], ctx=ctx), ctx=ctx), o, ctx=ctx)


@register("rule_7")
class BipolarSoftmax(Centroid):
    def __init__(self):
        super().__init__()
        self.softmax = Softmax(dim=0, scale=-1.0)
        self.mul = Multiply()

    def score(self, q, cache, ctx):
        s = super().score(q, cache, ctx)
        weights = self.softmax(s, ctx=ctx)
        return self.mul(s, weights, ctx=ctx)


@register("rule_9")
class MeanTimesHalfMax(Centroid):
    def __init__(self):
        super().__init__()
        self.dots = GeMM()
        self.best = Max(dim=1)
        self.mul = Multiply()
        self.k_max = CMaxInterleave(dim=1, k=8)

    def create_cache(self, block_size, head_dim):
        return {"centroids": (1, head_dim), "half_max": (block_size // 8, head_dim)}

    def forward_cache(self, cache, loc, ctx):
        super().forward_cache(cache, loc, ctx)
        self.k_max(cache["k"], cache["half_max"], loc=loc, ctx=ctx)

    def score(self, q, cache, ctx):
        q_mean = self.q_mean(q, ctx=ctx)
        best = self.best(self.dots(q_mean, cache["half_max"], ctx=ctx), ctx=ctx)
        return self.mul(self.dot(q_mean, cache["centroids"], ctx=ctx), best, ctx=ctx)


@register("rule_10")
class ValueEnergy(Centroid):
    def __init__(self):
        super().__init__()
        self.mul = Multiply()
        self.v_norm, self.v_mean = CL2Norm(dim=2), CMean(dim=1)

    def create_cache(self, block_size, head_dim):
        return {"centroids": (1, head_dim), "energy": (1, 1)}

    def forward_cache(self, cache, loc, ctx):
        super().forward_cache(cache, loc, ctx)
        norms = self.v_norm(cache["v"], None, loc=loc, ctx=ctx)
        self.v_mean(norms, cache["energy"], loc=loc, ctx=ctx)

    def score(self, q, cache, ctx):
        return self.mul(super().score(q, cache, ctx), cache["energy"], ctx=ctx)


@register("rule_11")
class AbsoluteCentroid(Centroid):
    def __init__(self):
        super().__init__()
        self.q_abs = Abs()
        self.k_abs = CAbs()

    def forward_cache(self, cache, loc, ctx):
        self.k_mean(self.k_abs(cache["k"], loc=loc, ctx=ctx), cache["centroids"], loc=loc, ctx=ctx)

    def score(self, q, cache, ctx):
        return super().score(self.q_abs(q, ctx=ctx), cache, ctx)


@register("rule_12")
class LogMagnitude(Centroid):
    def __init__(self):
        super().__init__()
        self.add = Add(alpha=1.0, beta=0.1)
        self.norm, self.log = CL2Norm(dim=2), CLog(alpha=1e-6)

    def create_cache(self, block_size, head_dim):
        return {"centroids": (1, head_dim), "log_norm": (1, 1)}

    def forward_cache(self, cache, loc, ctx):
        c = self.k_mean(cache["k"], cache["centroids"], loc=loc, ctx=ctx)
        self.log(self.norm(c, None, loc=loc, ctx=ctx), cache["log_norm"], loc=loc, ctx=ctx)

    def score(self, q, cache, ctx):
        return self.add(super().score(q, cache, ctx), cache["log_norm"], ctx=ctx)


@register("rule_14")
class Spread(vFlow):
    def __init__(self):
        super().__init__()
        self.q_mean, self.dot, self.best, self.output_func = Mean(dim=1), GeMM(), Max(dim=1), topK()
        self.high, self.low = CMaxInterleave(dim=1, k=4), CMinInterleave(dim=1, k=4)
        self.less = CAdd(alpha=1.0, beta=-1.0)

    def create_cache(self, block_size, head_dim):
        return {"spread": (block_size // 4, head_dim)}

    def forward_cache(self, cache, loc, ctx):
        high = self.high(cache["k"], None, loc=loc, ctx=ctx)
        low = self.low(cache["k"], None, loc=loc, ctx=ctx)
        self.less(high, low, cache["spread"], loc=loc, ctx=ctx)

    def forward_indexer(self, q, o, cache, ctx):
        parts = self.dot(self.q_mean(q, ctx=ctx), cache["spread"], ctx=ctx)
        self.output_func(self.best(parts, ctx=ctx), o, ctx=ctx)


class WithValues(Centroid):
    """Keeps a summary of the values as well."""

    def __init__(self):
        super().__init__()
        self.v_dot = GeMV()
        self.mul = Multiply()
        self.v_sum = CL2Norm(dim=1)

    def create_cache(self, block_size, head_dim):
        return {"centroids": (1, head_dim), "w": (1, head_dim)}

    def forward_cache(self, cache, loc, ctx):
        super().forward_cache(cache, loc, ctx)
        self.v_sum(cache["v"], cache["w"], loc=loc, ctx=ctx)


@register("rule_15")
class KeyAndValue(WithValues):
    def __init__(self):
        super().__init__()
        self.v_sum = CMean(dim=1)
        self.k_relu, self.v_relu = Relu(), Relu()

    def score(self, q, cache, ctx):
        k = self.k_relu(super().score(q, cache, ctx), ctx=ctx)
        v = self.v_relu(self.v_dot(self.q_mean(q, ctx=ctx), cache["w"], ctx=ctx), ctx=ctx)
        return self.mul(k, v, ctx=ctx)


@register("rule_16")
class ValueTemperature(WithValues):
    def __init__(self):
        super().__init__()
        self.features = Multiply()
        self.sum = Sum(dim=2)

    def score(self, q, cache, ctx):
        raw = self.features(self.q_mean(q, ctx=ctx), cache["centroids"], ctx=ctx)
        return self.sum(self.mul(raw, cache["w"], ctx=ctx), ctx=ctx)


@register("rule_17")
class SequenceGate(WithValues):
    def __init__(self):
        super().__init__()
        self.average = Mean(dim=0)
        self.above = WhereGreater()
        self.add = Add()

    def score(self, q, cache, ctx):
        v = self.v_dot(self.q_mean(q, ctx=ctx), cache["w"], ctx=ctx)
        gate = self.above(v, self.average(v, ctx=ctx), ctx=ctx)
        return self.add(super().score(q, cache, ctx), gate, ctx=ctx)


@register("rule_18")
class MiniCentroids(Centroid):
    def __init__(self):
        super().__init__()
        self.average = Mean(dim=1)
        self.k_mean = CMeanInterleave(dim=1, k=4)

    def create_cache(self, block_size, head_dim):
        return {"centroids": (block_size // 4, head_dim)}

    def score(self, q, cache, ctx):
        return self.average(super().score(q, cache, ctx), ctx=ctx)


@register("rule_19")
class SigmoidGate(WithValues):
    def __init__(self):
        super().__init__()
        self.gate = Sigmoid(alpha=0.0, beta=-0.02)

    def score(self, q, cache, ctx):
        v = self.v_dot(self.q_mean(q, ctx=ctx), cache["w"], ctx=ctx)
        return self.mul(super().score(q, cache, ctx), self.gate(v, ctx=ctx), ctx=ctx)


@register("rule_20")
class BestHead(WithValues):
    def __init__(self):
        super().__init__()
        self.best = Max(dim=2)

    def score(self, q, cache, ctx):
        heads = self.best(self.dot(q, cache["centroids"], ctx=ctx), ctx=ctx)
        return self.mul(heads, self.v_dot(self.q_mean(q, ctx=ctx), cache["w"], ctx=ctx), ctx=ctx)


@register("rule_21")
class Smoothed(Centroid):
    def __init__(self):
        super().__init__()
        self.smooth = Conv1d(weight=[[[0.25]], [[0.5]], [[0.25]]], dim=0)

    def score(self, q, cache, ctx):
        return self.smooth(super().score(q, cache, ctx), ctx=ctx)


@register("both_views")
class BothViews(Centroid):
    """The best blocks by their keys and the best by their values."""

    def __init__(self):
        super().__init__()
        self.by_keys, self.by_values, self.output_func = TopK(k=3), TopK(2), Union()
        self.v_mean, self.v_dot = CMean(dim=1), GeMM()

    def create_cache(self, block_size, head_dim):
        return {"centroids": (1, head_dim), "values": (1, head_dim)}

    def forward_cache(self, cache, loc, ctx):
        super().forward_cache(cache, loc, ctx)
        self.v_mean(cache["v"], cache["values"], loc=loc, ctx=ctx)

    def forward_indexer(self, q, o, cache, ctx):
        tables, lengths = self.by_keys(self.score(q, cache, ctx), ctx=ctx)
        values = self.v_dot(self.q_mean(q, ctx=ctx), cache["values"], ctx=ctx)
        self.output_func((tables, lengths), self.by_values(values, ctx=ctx), o, ctx=ctx)


class Kept(Centroid):
    """One number for each block that is kept from step to step."""

    INIT = 0.0

    def __init__(self):
        super().__init__()
        self.load, self.save = Load(), Save()
        self.init = CFill(alpha=self.INIT)

    def create_cache(self, block_size, head_dim):
        return {"centroids": (1, head_dim), "kept": (1, 1)}

    def forward_cache(self, cache, loc, ctx):
        super().forward_cache(cache, loc, ctx)
        self.init(cache["kept"], loc=loc, ctx=ctx)


@register("rule_1")
class Velocity(Kept):
    def __init__(self):
        super().__init__()
        self.rise = Add(alpha=1.0, beta=-0.5)

    def score(self, q, cache, ctx):
        now = super().score(q, cache, ctx)
        score = self.rise(now, self.load(cache["kept"], ctx=ctx), ctx=ctx)
        self.save(now, cache["kept"], ctx=ctx)
        return score


@register("rule_4")
class Variance(Kept):
    def __init__(self):
        super().__init__()
        self.load_square, self.save_square, self.init_square = Load(), Save(), CFill()
        self.square, self.square_mean = Multiply(), Multiply()
        self.decay, self.decay_square = Add(alpha=0.7, beta=0.3), Add(alpha=0.7, beta=0.3)
        self.spread, self.sum = Add(alpha=1.0, beta=-1.0), Add(alpha=1.0, beta=0.5)

    def create_cache(self, block_size, head_dim):
        return {"centroids": (1, head_dim), "kept": (1, 1), "square": (1, 1)}

    def forward_cache(self, cache, loc, ctx):
        super().forward_cache(cache, loc, ctx)
        self.init_square(cache["square"], loc=loc, ctx=ctx)

    def score(self, q, cache, ctx):
        s = super().score(q, cache, ctx)
        mean = self.decay(self.load(cache["kept"], ctx=ctx), s, ctx=ctx)
        square = self.decay_square(self.load_square(cache["square"], ctx=ctx), self.square(s, s, ctx=ctx), ctx=ctx)
        self.save(mean, cache["kept"], ctx=ctx)
        self.save_square(square, cache["square"], ctx=ctx)
        variance = self.spread(square, self.square_mean(mean, mean, ctx=ctx), ctx=ctx)
        return self.sum(s, variance, ctx=ctx)


@register("rule_8")
class QueryAverage(Kept):
    def __init__(self):
        super().__init__()
        self.decay = Add(alpha=0.7, beta=0.3)

    def create_cache(self, block_size, head_dim):
        return {"centroids": (1, head_dim), "kept": (1, head_dim)}

    def score(self, q, cache, ctx):
        average = self.decay(self.load(cache["kept"], ctx=ctx), self.q_mean(q, ctx=ctx), ctx=ctx)
        self.save(average, cache["kept"], ctx=ctx)
        return self.dot(average, cache["centroids"], ctx=ctx)


@register("rule_13")
class RunningEnergy(Kept):
    def __init__(self):
        super().__init__()
        self.v_norm, self.v_mean = CL2Norm(dim=2), CMean(dim=1)
        self.decay, self.mul = Add(alpha=0.95, beta=0.05), Multiply()

    def create_cache(self, block_size, head_dim):
        return {"centroids": (1, head_dim), "kept": (1, 1), "energy": (1, 1)}

    def forward_cache(self, cache, loc, ctx):
        super().forward_cache(cache, loc, ctx)
        norms = self.v_norm(cache["v"], None, loc=loc, ctx=ctx)
        self.v_mean(norms, cache["energy"], loc=loc, ctx=ctx)

    def score(self, q, cache, ctx):
        total = self.decay(cache["kept"], cache["energy"], ctx=ctx)
        self.save(total, cache["kept"], ctx=ctx)
        return self.mul(super().score(q, cache, ctx), self.load(cache["kept"], ctx=ctx), ctx=ctx)


@register("least_so_far")
class LeastSoFar(Kept):
    """How far a score lies above the least that the block has had."""

    INIT = 1e6

    def __init__(self):
        super().__init__()
        self.least, self.above = Minimum(), Add(beta=-1.0)

    def score(self, q, cache, ctx):
        s = super().score(q, cache, ctx)
        least = self.least(self.load(cache["kept"], ctx=ctx), s, ctx=ctx)
        self.save(least, cache["kept"], ctx=ctx)
        return self.above(s, least, ctx=ctx)


@register("drifting")
class Drifting(Kept):
    """A mean key that drifts to the queries: it begins as what forward_cache computes, and is saved."""

    def __init__(self):
        super().__init__()
        self.drift = Add(alpha=0.5, beta=0.5)

    def create_cache(self, block_size, head_dim):
        return {"centroids": (1, head_dim)}

    def forward_cache(self, cache, loc, ctx):
        self.k_mean(cache["k"], cache["centroids"], loc=loc, ctx=ctx)

    def score(self, q, cache, ctx):
        s = super().score(q, cache, ctx)
        self.save(self.drift(cache["centroids"], self.q_mean(q, ctx=ctx), ctx=ctx), cache["centroids"], ctx=ctx)
        return s


@register("unfilled")
class Unfilled(Kept):
    """As older generations had it: nothing fills what is saved, and it begins as 0."""

    def forward_cache(self, cache, loc, ctx):
        self.k_mean(cache["k"], cache["centroids"], loc=loc, ctx=ctx)

    def score(self, q, cache, ctx):
        s = Add(alpha=0.5, beta=1.0)(self.load(cache["kept"], ctx=ctx), super().score(q, cache, ctx), ctx=ctx)
        self.save(s, cache["kept"], ctx=ctx)
        return s


@register("true_mass")
class TrueMass(vFlow):
    """The largest share of attention that a token of the block has, summed over heads: from the keys themselves."""

    def __init__(self):
        super().__init__()
        self.logits, self.best_token, self.best = GeMM(), Max(dim=1), Max(dim=0)
        self.less, self.sum_tokens, self.sum = Add(alpha=1.0, beta=-1.0), Sum(dim=1), Sum(dim=0)
        self.log, self.inverse, self.share = Log(), Exp(beta=-1.0), Multiply()
        self.heads, self.tokens, self.output_func = Sum(dim=2), Max(dim=1), topK()
        self.fill = CFill(0.0)

    def create_cache(self, block_size, head_dim):
        self.exp = Exp(beta=head_dim**-0.5)
        return {"unused": (1, 1)}

    def forward_cache(self, cache, loc, ctx):
        self.fill(cache["unused"], loc=loc, ctx=ctx)

    def forward_indexer(self, q, o, cache, ctx):
        logits = self.logits(q, cache["k"], ctx=ctx)
        top = self.best(self.best_token(logits, ctx=ctx), ctx=ctx)
        e = self.exp(self.less(logits, top, ctx=ctx), ctx=ctx)
        total = self.log(self.sum(self.sum_tokens(e, ctx=ctx), ctx=ctx), ctx=ctx)
        share = self.share(e, self.inverse(total, ctx=ctx), ctx=ctx)
        self.output_func(self.tokens(self.heads(share, ctx=ctx), ctx=ctx), o, ctx=ctx)


@register("kept_rows")
class KeptRows(TrueMass):
    """Reads rows and saves: what is state is found where rows are read as well."""

    def __init__(self):
        super().__init__()
        self.save, self.load, self.add = Save(), Load(), Add()

    def forward_indexer(self, q, o, cache, ctx):
        s = self.tokens(self.heads(self.logits(q, cache["k"], ctx=ctx), ctx=ctx), ctx=ctx)
        s = self.add(self.load(cache["unused"], ctx=ctx), s, ctx=ctx)
        self.save(s, cache["unused"], ctx=ctx)
        self.output_func(s, o, ctx=ctx)
