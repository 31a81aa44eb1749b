"""Learned routing as vortex_torch has it: Parameter in a GeMM, LearnedQuery."""

import torch
from vortex_torch.abs import ContextBase, Parameter
from vortex_torch.cache import Mean as CMean
from vortex_torch.flow import vFlow, register
from vortex_torch.indexer import GeMM, LearnedQuery, Reshape, topK
from vortex_torch.indexer.parameter import Parameter as Same

assert Parameter is Same


def made(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


class Learned(vFlow):
    """W of the layer times all heads' queries, with the mean key."""

    W, LOOKUP, H, D = made(3, 16, 64), [0, 2, 1, 9], 4, 16

    def __init__(self):
        super().__init__()
        self.w = Parameter(self.W, torch.tensor(self.LOOKUP) if self.LOOKUP else None)
        self.flat, self.row = Reshape(-1, 1, self.H * self.D), Reshape(-1, 1, self.D)
        self.mix, self.dot, self.output_func, self.k_mean = GeMM(), GeMM(), topK(), CMean(dim=1)

    def create_cache(self, block_size, head_dim):
        return {"centroids": (1, head_dim)}

    def forward_cache(self, cache, loc, ctx):
        self.k_mean(cache["k"], cache["centroids"], loc=loc, ctx=ctx)

    def query(self, q, ctx):
        return self.row(self.mix(self.flat(q, ctx=ctx), self.w, ctx=ctx), ctx=ctx)

    def forward_indexer(self, q, o, cache, ctx: ContextBase):
        self.output_func(self.dot(self.query(q, ctx), cache["centroids"], ctx=ctx), o, ctx=ctx)


register("by_layer")(type("ByLayer", (Learned,), {}))
register("for_all")(type("ForAll", (Learned,), {"W": made(16, 64), "LOOKUP": None}))
register("large")(type("Large", (Learned,), {"W": made(24, 64, 512), "LOOKUP": None, "H": 8, "D": 64}))


@register("query")
class Query(Learned):
    WQ, WK = made(2, 4, 16, 3), made(1, 2, 4, 16, 3)[0]

    def __init__(self):
        super().__init__()
        self.learned = LearnedQuery(self.WQ, self.WK, torch.tensor([0, -1, 1]), scaling=0.5)

    def query(self, q, ctx):
        return self.learned(q, ctx=ctx)


@register("identity")
class Identity(Learned):
    def __init__(self):
        super().__init__()
        self.learned = LearnedQuery()

    def query(self, q, ctx):
        return self.learned(q, ctx=ctx)
