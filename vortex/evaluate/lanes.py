"""All lanes of a prompt, attending as one batch: what each read, what it gave, and what dense attention gives.

    q [B, Hq, D]  --  K of the shared pages, one product a KV head for all lanes  --> logits of a row
                  --  K of the lanes' own pages, one product a lane                -> (the same row, further right)
    softmax -> mass of a page -> each lane's rule chooses -> the others' weights are dropped -> V

A lane with kernels of its own gives pages and outputs itself; of it the weights are only measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypedDict

import numpy as np
import torch

from vortex.errors import VortexError
from vortex.evaluate.rules import Rule, Step
from vortex.evaluate.shared_pages import PAGE, SharedPages
from vortex.runtime.mass import by_page, read_mass


class Measures(TypedDict):
    """What of an :class:`~vortex.evaluate.outcomes.Outcome` is measured inside of attention."""

    recall: float
    mass: np.ndarray
    error: np.ndarray
    pages: float


class Tally:
    """Sums over the steps of a forced pass, of each lane; layers are those where pages are selected."""

    def __init__(
        self, lanes: int, layers: int, heads: int, evidence: Sequence[tuple[int, int]], page: int = PAGE
    ) -> None:
        self.mass = torch.zeros(lanes, layers, heads, dtype=torch.float64)
        self.error = torch.zeros_like(self.mass)
        self.pages = torch.zeros_like(self.mass)
        self.found = torch.zeros_like(self.mass)
        self.steps = 0
        self.evidence = sorted({p for first, last in evidence for p in range(first // page, -(-last // page))})
        """Pages that hold the answer."""

    def of(self, lane: int) -> Measures:
        """The means of a lane."""
        steps = max(self.steps, 1)
        return Measures(
            recall=float(self.found[lane].mean()) / steps if self.evidence else math.nan,
            mass=(self.mass[lane] / steps).numpy(),
            error=(self.error[lane] / steps).numpy(),
            pages=float(self.pages[lane].mean()) / steps,
        )

    def add(self, at: int, kept: torch.Tensor, mass: torch.Tensor, out: torch.Tensor, dense: torch.Tensor) -> None:
        """Pages that were kept ``[B, Hkv, n]``, dense mass ``[B, Hkv, G, n]``, outputs ``[B, Hkv, G, D]``."""
        self.mass[:, at] += read_mass(mass, kept).double().cpu()
        norm = dense.flatten(2).norm(dim=-1)
        self.error[:, at] += ((out - dense).flatten(2).norm(dim=-1) / norm.clamp_min(1e-30)).double().cpu()
        self.pages[:, at] += kept.sum(-1).double().cpu()
        if self.evidence:
            self.found[:, at] += kept[:, :, self.evidence].all(-1).double().cpu()


@dataclass
class Failure:
    """Why a lane gives no outcome."""

    layer: int
    error: VortexError | None = None
    """None for outputs that are not finite."""


class Lanes:
    """A :class:`~vortex.evaluate.attention.Reader` for one token of each lane."""

    def __init__(
        self,
        pages: SharedPages,
        rules: Sequence[Rule],
        layers: Sequence[int],
        dense: Sequence[Collection[int]] = (),
    ) -> None:
        self.pages, self.rules = pages, rules
        self.dense = dense or [()] * len(rules)
        """Of each lane the layers that read everything, whatever its rule is."""
        self.layers = {layer: i for i, layer in enumerate(layers)}
        """Those where pages are selected, in order."""
        self.failed: dict[int, Failure] = {}
        self.tally: Tally | None = None
        self._step = Step(1, True)
        self._rows: list[int] = []

    def begin(self) -> None:
        """The prompt begins for all rules."""
        for lane, rule in enumerate(self.rules):
            self._try(lane, -1, partial(rule.begin, self.pages, lane))

    def plan(self, rows: list[int], step: Step) -> None:
        """A step of the lanes ``rows``."""
        self._rows, self._step = rows, step
        self._lanes = torch.tensor(rows, device=self.pages.k[0].device)
        for lane in rows:
            if lane not in self.failed:
                self._try(lane, -1, partial(self.rules[lane].plan, step))

    def __call__(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, window: int
    ) -> torch.Tensor:
        """``q`` ``[B, Hq, 1, D]``, ``k`` and ``v`` ``[B, Hkv, 1, D]`` of the planned rows."""
        self.pages.write(layer, self._lanes, self._step.length - 1, k[:, :, 0], v[:, :, 0])
        batch, heads = k.shape[:2]
        asked = q[:, :, 0].view(batch, heads, -1, q.shape[-1])
        if layer not in self.layers:
            weights = self._weights(layer, asked, scale, window)
            return self._out(layer, weights).flatten(1, 2)[:, None].to(q.dtype)
        return self._selected(layer, asked, scale).flatten(1, 2)[:, None].to(q.dtype)

    def _selected(self, layer: int, q: torch.Tensor, scale: float) -> torch.Tensor:
        resting = [lane in self.failed or layer in self.dense[lane] for lane in self._rows]
        own = [self.rules[lane].own_attention and not rests for lane, rests in zip(self._rows, resting, strict=True)]
        shown = [i for i in range(len(own)) if self.tally is not None or not own[i]]
        n = self._step.pages
        kept = torch.ones(len(own), q.shape[1], n, dtype=torch.bool, device=q.device)
        out = torch.zeros(*q.shape[:3], self.pages.v[layer].shape[-1], device=q.device)
        weights = self._weights(layer, q[shown], scale, 0, shown) if shown else None
        mass = None if weights is None else by_page(weights, self.pages.page)
        place = {i: at for at, i in enumerate(shown)}
        for i, lane in enumerate(self._rows):
            if resting[i]:
                continue
            seen = mass[place[i]] if mass is not None and i in place else None
            made = self._try(lane, layer, partial(self.rules[lane].read, layer, q[i], seen, scale))
            if made is not None:
                kept[i] = made.pages
                if made.out is not None:
                    out[i] = made.out.view(out[i].shape).float()
        if weights is not None and mass is not None:
            sparse = _masked(weights, kept[shown], self.pages.page)
            share = sparse.sum(-1, keepdim=True)
            if self.tally is None:
                given = self._out(layer, sparse, shown) / share
            else:
                both = self._out(layer, torch.cat([sparse, weights]), [*shown, *shown])
                given, whole = both[: len(shown)] / share, both[len(shown) :]
            mine = torch.tensor([not own[i] for i in shown], device=q.device)
            out[shown] = torch.where(mine[:, None, None, None], given, out[shown])
            if self.tally is not None:
                self.tally.add(self.layers[layer], kept, mass, out, whole)
        for i, fine in enumerate(out.flatten(1).isfinite().all(-1).tolist()):
            if not fine:
                self.failed.setdefault(self._rows[i], Failure(layer))
                out[i] = 0.0
        return out

    def _weights(
        self, layer: int, q: torch.Tensor, scale: float, window: int, rows: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Softmax over all tokens, ``[B, Hkv, G, length]``; with a window over the last so many."""
        pages, (batch, heads, group, dim) = self.pages, q.shape
        lanes = self._lanes if rows is None else self._lanes[list(rows)]
        by_head = q.float().transpose(0, 1)
        shared = pages.shared(pages.k[layer]).float()
        logits = by_head.reshape(heads, batch * group, dim) @ shared.transpose(1, 2)
        own = pages.of_lanes(pages.k[layer])[:, lanes, : self._step.length - pages.full * pages.page].float()
        both = torch.cat([logits.view(heads, batch, group, -1), by_head @ own.transpose(2, 3)], -1) * scale
        if window and window < self._step.length:
            both[..., : self._step.length - window] = float("-inf")
        return both.softmax(-1).transpose(0, 1)

    def _out(self, layer: int, weights: torch.Tensor, rows: Sequence[int] | None = None) -> torch.Tensor:
        """``weights`` ``[B, Hkv, G, length]`` by V: ``[B, Hkv, G, D]``."""
        pages, (batch, heads, group, _) = self.pages, weights.shape
        lanes = self._lanes if rows is None else self._lanes[list(rows)]
        cut = pages.full * pages.page
        by_head = weights.transpose(0, 1)
        shared = pages.shared(pages.v[layer]).float()
        out = by_head[..., :cut].reshape(heads, batch * group, cut) @ shared
        own = pages.of_lanes(pages.v[layer])[:, lanes, : self._step.length - cut].float()
        return (out.view(heads, batch, group, -1) + by_head[..., cut:] @ own).transpose(0, 1)

    def _try(self, lane: int, layer: int, call: Callable[[], Any]) -> Any:
        """What ``call`` gives; a rule that fails takes no part any more, and the other lanes go on."""
        try:
            return call()
        except VortexError as error:
            self.failed.setdefault(lane, Failure(layer, error))
            return None


def _masked(weights: torch.Tensor, kept: torch.Tensor, page: int) -> torch.Tensor:
    """``weights`` ``[B, Hkv, G, length]`` of tokens on ``kept`` pages ``[B, Hkv, n]``, 0 elsewhere."""
    tokens = kept.repeat_interleave(page, -1)[..., : weights.shape[-1]]
    return torch.where(tokens[:, :, None], weights, 0.0)
