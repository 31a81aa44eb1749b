"""Flows with fields of pages beside fields of their blocks, for tests of every stage."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

import vortex


class Pyramid(vortex.vFlow):
    """Quest's bound over pages, then the estimated mass of their blocks."""

    pages = 3

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        codes = vortex.Field(spec.block_size, spec.head_dim, dtype="int4", scale=0, per="block")
        return {"lo": vortex.Field(spec.head_dim), "hi": vortex.Field(spec.head_dim), "codes": codes}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"lo": page.k.amin(0), "hi": page.k.amax(0), "codes": page.block.k}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        bound = torch.maximum(q * cache.lo[:, None], q * cache.hi[:, None]).sum(-1)  # [pages, group]
        near = vortex.shortlist(bound.amax(-1), pages=self.pages)
        logits = cache.codes[near] @ q.T * q.shape[-1] ** -0.5  # [blocks, block_size, group]
        return vortex.topk(logits.logsumexp(1).softmax(0).sum(-1))


class Exact(vortex.vFlow):
    """Sums and largest numbers alone, which small integers keep exact; and three steps."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"sum": vortex.Field(spec.head_dim, per="block"), "hi": vortex.Field(spec.head_dim, per="page")}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"hi": page.k.amax(0), "sum": page.block.k.sum(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        first = (cache.hi * q.amax(0)).sum(-1) - 2 * (vortex.page_index() % 5)  # over pages
        near = vortex.shortlist(first, pages=5)
        second = first[near] + (cache.hi[near] * q[0]).amax(-1)
        nearer = vortex.shortlist(second - second.sum(0), pages=3)
        rows = cache.v[nearer].amax(1) - cache.sum[nearer]  # [blocks, head_dim]
        score = rows.amax(-1) + (vortex.block_index()[nearer] % 5) + second.sum(0) + vortex.page_count()
        best = vortex.shortlist(score + cache.sum[nearer][:, 0], pages=7)
        return vortex.topk(score[best] + rows.shape[0] * cache.k[best].amax((1, 2)))


class Beside(vortex.vFlow):
    """A topp over all blocks beside statistics of the pages; nothing is listed."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"mean": vortex.Field(spec.head_dim, per="block"), "top": vortex.Field()}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": page.block.k.sum(0), "top": page.v.amax()}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        ceiling = cache.top.amax(0) + cache.top.shape[0] - vortex.block_index().amin(0)
        mass = (cache.mean @ q.sum(0) - cache.top.sum(0)) % 64  # a page that is counted twice changes the order
        return vortex.topp(mass + ceiling.clamp(min=0), 0.75)


class Wide(vortex.vFlow):
    """Fields of pages alone, as wide as the page, beside their neighbours and what is before; rows of blocks rank."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"first": vortex.Field(spec.page_size, per="page"), "sign": vortex.Field(32, dtype="uint1", per="page")}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"first": page.k[:, 0], "sign": (page.v.sum(0) > 0).tile(32)[:32]}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        same = vortex.same_bits(cache.sign, (q.sum(0) > 0).tile(32)[:32])
        score = cache.first.sum(-1) + same
        score = score + F.pad(score, (1, 0))[:-1] - score.cumsum(0) % 7
        near = vortex.shortlist(score, pages=4)
        return vortex.union(
            vortex.topk((cache.k[near] @ q[0]).amax(1), pages=5), vortex.topk(cache.v[near].amax((1, 2)), pages=3)
        )


class Latent(vortex.vFlow):
    """The same way down under MLA: the range of whole latent rows, then the blocks' own."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"hi": vortex.Field(spec.head_dim), "sum": vortex.Field(spec.kv_lora_rank, per="block")}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        rank = page.block.latent.shape[1] // 4 * 3
        return {"hi": page.latent.amax(0), "sum": page.block.latent[:, :rank].sum(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        near = vortex.shortlist((cache.hi @ q.T).amax(-1), pages=3)
        rank = cache.sum.shape[1]
        return vortex.topk((cache.sum[near] @ q[:, :rank].T).amax(-1) + cache.latent[near].amax((1, 2)))


FLOWS = {f.__name__: f for f in (Pyramid, Exact, Beside, Wide)}
