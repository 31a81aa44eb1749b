"""The same few rules as several generations of vortex_torch had them written."""

import torch
import vortex_torch
from vortex_torch.cache import *
from vortex_torch.flow.flow import vFlow
from vortex_torch.flow.registry import _REGISTRY
from vortex_torch.flow.registry import register as _register

CMean, CFill = Mean, Fill
from vortex_torch.abs import FORMAT, ContextBase, vOp, vTensor  # noqa: E402
from vortex_torch.indexer import *  # noqa: E402
from vortex_torch.indexer.output_func import approxTopK  # noqa: E402


def register(name):
    """Only what is not there yet."""

    def declare(cls):
        if name not in _REGISTRY:
            _register(name)(cls)
        return cls

    return declare


@register("in-place")
class InPlace(vFlow):
    """Softmax changes its operand, the query is averaged by torch, ctx is given by position."""

    def __init__(self):
        super().__init__()
        self.gemm, self.softmax, self.best, self.out = GeMM(), Softmax(dim=0, scale=0.09), Max(dim=2), topK()
        self.reduction = CMean(dim=1)

    def create_cache(self, page_size: int, head_dim: int):
        return {"k-mean": (1, head_dim)}

    def forward_cache(self, cache, loc: "torch.Tensor", ctx: ContextBase):
        self.reduction(cache["k"], cache["k-mean"], loc, ctx)

    def forward_indexer(self, q: vTensor, o: torch.Tensor, cache, ctx: ContextBase):
        score = self.gemm(q, cache["k-mean"], ctx)
        self.softmax(score, ctx)
        self.out(self.best(score, ctx), o, ctx)


@register("torch_mean")
class TorchMean(InPlace):
    def __init__(self):
        super().__init__()
        self.gemv = vortex_torch.indexer.GeMV()

    def forward_indexer(self, q, o, cache, ctx):
        self.out(self.gemv(q.mean(dim=1, keepdim=True), cache["k-mean"], ctx=ctx), o, ctx=ctx)


class _Masked:
    """A mixin that is no flow: some channels of the query."""

    GROUPS = [0]

    def masks(self):
        self.parts = [MaskSlice(start=4 * g, end=4 * g + 4, dim=2, alpha=1.0, beta=0.0) for g in self.GROUPS]
        self.sums = [Add() for _ in self.GROUPS[1:]]
        self.times = Multiply()

    def masked(self, q, ctx):
        mask = self.parts[0](q, ctx=ctx)
        for part, add in zip(self.parts[1:], self.sums):
            mask = add(mask, part(q, ctx=ctx), ctx=ctx)
        return self.times(q, mask, ctx=ctx)


class _MaskedCentroid(_Masked, vFlow):
    def __init__(self):
        super().__init__()
        self.masks()
        self.mean = vortex_torch.indexer.Mean(dim=1)
        self.gemm = GeMM()
        self.output_func = approxTopK(tolerate_ratio=0.25)
        self.reduction = CMean(dim=1)

    def create_cache(self, block_size, head_dim):
        return {"pages": (1, head_dim)}

    def forward_cache(self, cache, loc, ctx):
        self.reduction(cache["k"], output=cache["pages"], loc=loc, ctx=ctx)

    def forward_indexer(self, q, o, cache, ctx):
        q = self.mean(self.masked(q, ctx), ctx=ctx)
        self.output_func(self.gemm(q, cache["pages"], ctx=ctx), o, ctx=ctx)


@register("channels_even")
class ChannelsEven(_MaskedCentroid):
    GROUPS = [0, 2]


@register("channels_even")
class NotThere(_MaskedCentroid):
    GROUPS = [1]


@register("lazy")
class Lazy(vFlow):
    """Makes operators late and leaves notes on itself; nothing of the cache is a mean but by GeMM and Fill."""

    def __init__(self):
        super().__init__()
        self.gemm = None
        self.calls = []

    def create_cache(self, block_size, head_dim):
        self.scale = Add_Mul(beta=1.0 / block_size)
        self.ones = CFill(1.0)
        self.total = vortex_torch.cache.GeMM()
        return {"ones": (1, block_size), "rows": (1, 1)}

    def forward_cache(self, cache, loc, ctx):
        assert cache["k"].shape[1] == self.block_size and self.head_dim
        self.ones(cache["ones"], loc=loc, ctx=ctx)
        self.rows = vortex_torch.cache.Max(dim=1)
        best = self.rows(vortex_torch.cache.L2Norm(dim=2)(cache["k"], loc=loc, ctx=ctx), loc=loc, ctx=ctx)
        self.total(best, best, cache["rows"], loc=loc, ctx=ctx)

    def forward_indexer(self, q, o, cache, ctx):
        if self.gemm is None:
            self.gemm = GeMM()
        ones = self.gemm(cache["ones"], cache["ones"], ctx=ctx)
        self.out = topK()
        self.out(self.scale(Multiply()(ones, cache["rows"], ctx=ctx), ctx=ctx), o, ctx=ctx)


assert FORMAT.PAGED and issubclass(GeMM, vOp)
