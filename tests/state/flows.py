"""Flows with state for tests: each looks at what it kept, or writes it, in a way of its own."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F

import vortex


class WithMeans(vortex.vFlow):
    """Mean keys, and state that ``states`` declares."""

    states: ClassVar[dict[str, vortex.Field]] = {}

    def create_cache(self, spec: Any) -> dict[str, vortex.Field]:
        return {"mean": vortex.Field(spec.head_dim), **self.states}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": page.k.mean(0)}


class Ema(WithMeans):
    """Both kinds, each read once."""

    states: ClassVar = {
        "ema": vortex.Field(dtype="f32", state="page", init=-1.0),
        "query": vortex.Field(32, dtype="f32", state="request", init=0.25),
    }

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        query = 0.75 * cache.query + 0.25 * q.mean(0)
        ema = 0.5 * cache.ema + 0.5 * (cache.mean @ query)
        return vortex.topk(ema), {"query": query, "ema": ema}


class Swap(WithMeans):
    """What one becomes is what the other was."""

    states: ClassVar = {
        "a": vortex.Field(dtype="f32", state="page"),
        "b": vortex.Field(dtype="f32", state="page", init=3),
        "m": vortex.Field(5, dtype="f32", state="request"),
        "n": vortex.Field(5, dtype="f32", state="request", init=2),
    }

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        score = cache.mean @ q[0] + cache.a * (1 + cache.m[0] - cache.n[1])
        return vortex.topk(score), {"a": cache.b, "b": 0.5 * score, "m": cache.n, "n": cache.m * 0.5 + q[0, :5]}


class Neighbours(WithMeans):
    """A page's state depends on that of the pages beside it."""

    states: ClassVar = {"x": vortex.Field(2, dtype="f32", state="page", init=1)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        taps = torch.tensor([[[0.25, 0.5, 0.25], [0.0, 0.1, 0.0]], [[0.0, 0.0, 0.5], [0.5, 0.0, 0.0]]])
        mixed = F.conv1d(cache.x.T, taps, padding=1).T
        score = cache.mean @ q[0] + mixed[:, 0]
        return vortex.topk(score), {"x": 0.5 * mixed + 0.25 * score[:, None]}


class Last(WithMeans):
    """State is looked at in the last sweep, after statistics over the pages, and kept in a narrow type."""

    states: ClassVar = {
        "share": vortex.Field(dtype="f16", state="page"),
        "total": vortex.Field(dtype="f32", state="request", init=1.5),
    }

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        share = torch.softmax(cache.mean @ q.mean(0) + cache.share.cumsum(0) * 0.125, 0)
        score = share - share.mean() + 0.25 * cache.share + cache.total * vortex.page_index() * 0.001
        return vortex.topk(score), {"share": 0.5 * cache.share + share, "total": 0.5 * cache.total + cache.share.amax()}


class Window(WithMeans):
    """The last three queries, and differences of a row's own elements."""

    states: ClassVar = {
        "last": vortex.Field(3, 32, dtype="f32", state="request"),
        "square": vortex.Field(8, 8, dtype="f32", state="request", init=0.5),
        "step": vortex.Field(state="request", dtype="f32"),
    }

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        last = torch.cat([cache.last[1:], q.mean(0)[None]])
        # known only after a sweep, when other threads may have written what is looked at
        mean = (cache.mean @ q[1]).mean()
        square = 0.5 * cache.square.T - 0.25 * cache.square[:1] + q[0, :8] + 0.01 * mean
        score = cache.mean @ last.mean(0) + square.sum() * 0.001 * vortex.page_index()
        return vortex.topk(score), {"last": last, "square": square, "step": cache.step + 1}


class Wide(WithMeans):
    """A vector of state for each page, in bf16 and fp8, under a contraction."""

    states: ClassVar = {
        "trace": vortex.Field(32, dtype="bf16", state="page"),
        "size": vortex.Field(8, dtype="fp8_e4m3", state="page", init=0.5),
    }

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        trace = 0.5 * cache.trace + 0.5 * cache.mean * q[0]
        score = torch.einsum("sd,gd->sg", trace, q).amax(-1) + cache.size.sum(-1)
        # lanes that fold over the pages look at pages that other lanes write
        most = cache.trace.amax(0)[:8]
        return vortex.topk(score), {"trace": trace, "size": 0.5 * cache.size + 0.25 * trace[:, :8] + 0.125 * most}


class Only(vortex.vFlow):
    """No summary at all: how often a page was a candidate."""

    def create_cache(self, spec: Any) -> dict[str, vortex.Field]:
        return {"seen": vortex.Field(dtype="f32", state="page"), "steps": vortex.Field(dtype="f32", state="request")}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk(torch.sin(3 * cache.seen + cache.steps)), {"seen": cache.seen + 1, "steps": cache.steps + 1}


class HandedOn(WithMeans):
    """What nothing looks at becomes what the others were."""

    states: ClassVar = {
        "a": vortex.Field(dtype="f32", state="page"),
        "before": vortex.Field(dtype="f32", state="page", init=3),
        "m": vortex.Field(5, dtype="f32", state="request"),
        "m_before": vortex.Field(5, dtype="f32", state="request", init=2),
    }

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        score = cache.mean @ q[0] + 0.25 * cache.a + cache.m[0]
        return vortex.topk(score), {"a": 0.5 * score, "before": cache.a, "m": q[0, :5], "m_before": cache.m}


class Listed(WithMeans):
    """Neighbours and a shortlist, which are not one kernel: a later one writes state that an earlier one made."""

    states: ClassVar = {
        "a": vortex.Field(dtype="f32", state="page", init=1),
        "b": vortex.Field(dtype="f16", state="page", init=1),
    }

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        score = cache.mean @ q[0] + 0.25 * cache.a
        widest = F.max_pool1d(cache.a[None], 3, 1, 1)[0]
        near = vortex.shortlist(score, pages=7)
        fine = cache.b[near].roll(-1, 0) + cache.mean[near].amax(-1)
        return vortex.topk(fine), {"a": 0.25 * (widest + cache.a), "b": 0.5 * score}


FLOWS = {c.__name__.lower(): c for c in (Ema, Swap, Neighbours, Last, Window, Wide, Only, HandedOn, Listed)}
