"""Flows of two and three steps, for tests of every stage."""

from __future__ import annotations

from typing import Any

import torch

import vortex


class TwoSteps(vortex.vFlow):
    """Quest's bound over all pages, then the exact mass of five."""

    pages = 5

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"lo": vortex.Field(spec.head_dim), "hi": vortex.Field(spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"lo": page.k.amin(0), "hi": page.k.amax(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        bound = torch.maximum(q * cache.lo[:, None], q * cache.hi[:, None]).sum(-1).amax(-1)
        near = vortex.shortlist(bound, pages=self.pages)
        mass = (cache.k[near] @ q.T * q.shape[-1] ** -0.5).logsumexp(1).softmax(0).sum(-1)
        return vortex.topk(mass)


class Linear(TwoSteps):
    """Nothing but sums and largest numbers, which small integers keep exact."""

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        bound = torch.maximum(q * cache.lo[:, None], q * cache.hi[:, None]).sum(-1).amax(-1)
        near = vortex.shortlist(bound, pages=self.pages)
        logits = torch.einsum("spd,gd->spg", cache.k[near], q).amax(1)  # [S1, group]
        return vortex.topk(logits.sum(-1) - bound[near] + (vortex.page_index()[near] % 3) + logits.sum((0, 1)))


class ThreeSteps(vortex.vFlow):
    """A shortlist of a shortlist; values of the outer one are looked at in both others."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"mean": vortex.Field(spec.head_dim), "hi": vortex.Field(spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": page.k.sum(0), "hi": page.k.amax(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        first = cache.mean @ q.sum(0)
        near = vortex.shortlist(first, pages=12)
        second = (cache.hi[near] * q.amax(0)).sum(-1) + first[near]
        nearer = vortex.shortlist(second - second.amax(0), pages=4)
        rows = cache.v[nearer].amax(1) - cache.hi[nearer]  # [S2, head_dim]
        score = torch.stack([rows.amax(-1), second[nearer], first[nearer].cumsum(0)], 1)
        return vortex.topk(score.sum(-1) + score.shape[0] * score[:, 0])


class Both(vortex.vFlow):
    """Two shortlists of the same length over the same pages, and raw rows over all of them."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"mean": vortex.Field(spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": page.k.sum(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        by_key, by_value = cache.mean @ q[0], cache.v.amax((1, 2)) + cache.mean[:, 0]
        one, other = vortex.shortlist(by_key, pages=6), vortex.shortlist(by_value, pages=6)
        best = (cache.mean[one] @ q[0]).sum(0)
        return vortex.topk((cache.k[other] @ q[0]).amax(1) - best.expand_as(by_value[other]))


FLOWS = {f.__name__: f for f in (TwoSteps, Linear, ThreeSteps, Both)}


class Latent(vortex.vFlow):
    """Mean latent rows over all pages, then the rows themselves of four."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"mean": vortex.Field(spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": page.latent.sum(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        near = vortex.shortlist(cache.mean @ q.sum(0), pages=4)
        return vortex.topk((cache.latent[near] @ q.T).amax((1, 2)))
