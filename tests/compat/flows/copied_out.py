"""A file of the package itself, copied out of it: its imports are relative, and nothing is around it."""

from ..abs import ContextBase
from ..cache import MeanInterleave as CMeanInterleave
from ..indexer import GeMM, MaskSlice, Mean, Multiply, topK
from .algorithms_mla import QuestMLA, RopeAwareBlockSparseMLA
from .flow_mla import vFlowMLA
from .registry import register


@register("rope_weighted")
class RopeWeighted(vFlowMLA):
    def __init__(self):
        super().__init__()
        self.mean, self.gemm, self.mul, self.output_func = Mean(dim=1), GeMM(), Multiply(), topK()
        self.reduction = CMeanInterleave(dim=1, k=16)

    def create_cache(self, block_size: int, kv_lora_rank: int, qk_rope_head_dim: int):
        self.weight = MaskSlice(0, kv_lora_rank, dim=2, alpha=0.75, beta=0.25)
        return {"centroids": (block_size // 16, kv_lora_rank + qk_rope_head_dim)}

    def forward_cache(self, cache, loc, ctx: ContextBase):
        self.reduction(cache["latent"], cache["centroids"], loc=loc, ctx=ctx)

    def forward_indexer(self, q, o, cache, ctx: ContextBase):
        q = self.mean(q, ctx=ctx)
        q = self.mul(q, self.weight(q, ctx=ctx), ctx=ctx)
        self.output_func(self.gemm(q, cache["centroids"], ctx=ctx), o, ctx=ctx)


register("derived")(type("Derived", (RopeAwareBlockSparseMLA,), {}))
register("quest_mla")(QuestMLA)
