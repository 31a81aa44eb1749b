"""Flows for benchmarks: a selection that depends on its scores in every way, mass by keys in fp8, and two steps whose
bounds or keys are narrow.
"""

from __future__ import annotations

from typing import Any

import torch

import vortex


@vortex.register("share_union")
class ShareUnion(vortex.vFlow):
    """Four fifths of the estimated mass, and the best four of the newest sixteen pages."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"mean": vortex.Field(spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": page.k.mean(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        logits = cache.mean @ q.T / q.shape[-1] ** 0.5
        heavy = vortex.topp(logits.softmax(0).sum(-1), 0.8)
        late = torch.where(vortex.page_index() >= vortex.page_count() - 16, logits.amax(-1), -torch.inf)
        return vortex.union(heavy, vortex.topk(late, pages=4))


@vortex.register("mass_fp8")
class MassFp8(vortex.vFlow):
    """Share of a page in dense attention, from its keys in fp8."""

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        return {"keys": vortex.Field(spec.page_size, spec.head_dim, dtype="fp8_e4m3")}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"keys": page.k}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        logits = torch.einsum("spd,gd->spg", cache.keys, q * q.shape[-1] ** -0.5)
        return vortex.topk(torch.logsumexp(logits, 1).softmax(0).sum(-1))


class Bounded(vortex.vFlow):
    """Quest's bounds in ``bounds`` keep ``listed`` pages, and the mass of their keys in int4 ranks them."""

    bounds, listed = "bf16", 64

    def create_cache(self, spec: vortex.Spec) -> dict[str, vortex.Field]:
        bounds = {name: vortex.Field(spec.head_dim, dtype=self.bounds, per="page") for name in ("lo", "hi")}
        return {**bounds, "keys": vortex.Field(spec.block_size, spec.head_dim, dtype="int4", scale=0, per="block")}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"lo": page.k.amin(0), "hi": page.k.amax(0), "keys": page.block.k}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        bound = torch.maximum(q * cache.lo[:, None], q * cache.hi[:, None]).sum(-1)
        near = vortex.shortlist(bound.amax(-1), pages=self.listed)
        logits = cache.keys[near] @ q.T * q.shape[-1] ** -0.5
        return vortex.topk(logits.logsumexp(1).softmax(0).sum(-1))


@vortex.register("quest_then_mass_int4")
class QuestThenMassInt4(Bounded):
    """As examples/quest_then_mass.py, with keys in int4."""


@vortex.register("quest_then_mass_fp8")
class QuestThenMassFp8(Bounded):
    """The same with bounds in fp8."""

    bounds = "fp8_e4m3"


@vortex.register("pyramid_fp8")
class PyramidFp8(Bounded):
    """As examples/pyramid.py, for pages of several blocks, with bounds in fp8."""

    bounds, listed = "fp8_e4m3", 32


@vortex.register("bounds_then_mass_408")
class List408(QuestThenMassFp8):
    """A shortlist of four times what is kept, beside AMASS and LOCKS: 102 pages, 5 % of 32K tokens."""

    listed = 408


@vortex.register("bounds_then_mass_1636")
class List1636(QuestThenMassFp8):
    """The same for 409 pages, 5 % of 128K tokens."""

    listed = 1636
