"""A flow written for vortex_torch that ends in the union of two choices."""

from vortex_torch.cache import Mean as CMean
from vortex_torch.flow import register, vFlow
from vortex_torch.indexer import Abs, GeMM, Mean, TopK, Union


@register("near_and_large")
class NearAndLarge(vFlow):
    """The pages most like the query, and those whose score is large, of either sign."""

    def __init__(self):
        super().__init__()
        self.q_mean, self.dot, self.k_mean = Mean(dim=1), GeMM(), CMean(dim=1)
        self.size = Abs()
        self.near, self.large, self.output_func = TopK(3), TopK(2), Union()

    def create_cache(self, block_size, head_dim):
        return {"centroids": (1, head_dim)}

    def forward_cache(self, cache, loc, ctx):
        self.k_mean(cache["k"], cache["centroids"], loc=loc, ctx=ctx)

    def forward_indexer(self, q, o, cache, ctx):
        score = self.dot(self.q_mean(q, ctx=ctx), cache["centroids"], ctx=ctx)
        near = self.near(score, ctx=ctx)
        large = self.large(self.size(score, ctx=ctx), ctx=ctx)
        self.output_func(near, large, o, ctx=ctx)
