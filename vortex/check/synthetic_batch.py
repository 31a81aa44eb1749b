"""A ragged batch of made-up requests on an artifact, and what its steps should have given.

Keys hold planted heavy pages: on a few pages of every (request, KV head) row the keys lean towards a direction that
the row's queries lean towards as well, so that most of the dense attention mass lies there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vortex.budget import Budget
from vortex.check.reference import Reference, differing
from vortex.runtime.decoder import Decoder
from vortex.runtime.paged_cache import PagedCache
from vortex.runtime.tensors import TORCH

LAYER = 0
HEAVY_PAGES = 8
"""Heavy pages of a row (fewer where it is short)."""
LEAN_KEY, LEAN_QUERY = 8.0, 11.0
"""How far heavy keys and all queries lean: a logit of ``88 / sqrt(128)`` beside noise of about 1."""
SCALES = {"k_scale": 0.375, "v_scale": 0.3}
"""Of K and V in fp8: nothing is clamped."""
CHUNK = 4096
"""Tokens of a prefill step."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of one decoding step: everything, and select and attend alone."""

    step: float
    decode: float


@dataclass(frozen=True, slots=True)
class Check:
    """One request at one step against its reference."""

    length: int
    pages: int
    selected: int
    error: float
    """Largest absolute difference of the output."""
    differing: int
    """Pages that one of the two selected and the other did not, over all KV heads; ties within rounding aside."""
    kept: float
    """Share of the dense attention mass on the selected pages, mean over heads."""
    random: float
    """The same for as many random pages, the reserved ones included."""
    reference_seconds: float


class Trial:
    """Requests that join, decode and leave; one layer, ``kv_heads`` heads, where the decoder's library runs."""

    def __init__(self, decoder: Decoder, kv_heads: int, num_pages: int, seed: int = 0) -> None:
        self.decoder, self.spec = decoder, decoder.spec
        self.device = torch.empty(0, device=decoder.library.device.kind).device
        self.cache = PagedCache(num_pages, kv_heads, decoder.spec, decoder.fields, device=self.device)
        self.random = torch.Generator().manual_seed(seed)
        self._lean: dict[str, torch.Tensor] = {}
        self._heavy: dict[str, torch.Tensor] = {}
        self._batch: list[str] = []
        self.scales = SCALES if self.spec.scaled else dict.fromkeys(SCALES, 1.0)
        decoder.bind(LAYER, self.cache.k[LAYER], self.cache.v[LAYER], self.cache.fields[LAYER], **self.scales)
        self.q = self.out = torch.empty(0)

    @property
    def requests(self) -> list[str]:
        """Who decodes, in batch order."""
        return list(self._batch)

    def join(self, name: str, tokens: int) -> None:
        """Prefill a request of ``tokens`` tokens."""
        heads, dim, page = self.cache.kv_heads, self.spec.head_dim, self.spec.page_size
        lean = torch.randn(heads, dim, generator=self.random)
        self._lean[name] = lean / lean.norm(dim=-1, keepdim=True)
        pages = -(-tokens // page)
        chosen = torch.stack([torch.randperm(pages, generator=self.random)[:HEAVY_PAGES] for _ in range(heads)])
        self._heavy[name] = torch.zeros(heads, pages + 1, dtype=torch.bool).scatter_(1, chosen, True)
        self.cache.add(name)
        for start in range(0, tokens, CHUNK):
            size = min(CHUNK, tokens - start)
            k = self._noise(size, heads, dim)
            at = torch.arange(start, start + size) // page
            k += LEAN_KEY * self._heavy[name][:, at].T[:, :, None] * self._lean[name]
            loc, offsets = self.cache.extend_batch([name], [size])
            self._plan([name])
            self.decoder.append(LAYER, *self._new(k), loc, offsets)
        self._batch.append(name)

    def leave(self, name: str) -> None:
        """Free a request's pages."""
        self._batch.remove(name)
        self.cache.free(name)

    def step(self) -> Times:
        """Decode one token of every request."""
        heads, group, dim = self.cache.kv_heads, self.spec.group, self.spec.head_dim
        batch = len(self._batch)
        lean = torch.stack([self._lean[r] for r in self._batch])[:, :, None]
        self.q = self._stored((self._noise(batch, heads, group, dim) + LEAN_QUERY * lean).reshape(batch, -1, dim))
        self.out = self.q.new_empty(*self.q.shape[:2], self.spec.v_dim)
        k, v = self._new(self._noise(batch, heads, dim))
        loc, offsets = self.cache.extend_batch(self._batch, [1] * batch)
        start = self._now()
        self._plan(self._batch)
        self.decoder.append(LAYER, k, v, loc, offsets)
        middle = self._now()
        self.decoder.decode(LAYER, self.q, out=self.out, scale=self.scale)
        end = self._now()
        return Times(end - start, end - middle)

    def dense(self, name: str) -> Callable[[], torch.Tensor]:
        """Dense attention of one request by torch, its K and V made contiguous beforehand."""
        k, v = (x.transpose(0, 1)[None].to(self.q.dtype).contiguous() for x in self.keys_and_values(name))
        q = self.q[self._batch.index(name)][None, :, None]
        attention = torch.nn.functional.scaled_dot_product_attention
        return lambda: attention(q, k, v, enable_gqa=True)

    def check(self, name: str, reference: Reference) -> Check:
        """Compare a request's last step with its reference, and its selection with a random one."""
        assert self.decoder.pages is not None
        assert self.decoder.counts is not None
        row, heads = self._batch.index(name), self.cache.kv_heads
        k, v = (x.cpu() for x in self.keys_and_values(name))
        asked = self.q[row].float().cpu()
        start = time.perf_counter()
        right = reference(asked, k, None if self.spec.kv_lora_rank else v, self._budget)
        seconds = time.perf_counter() - start
        error = float((self.out[row].float().cpu() - right.out).abs().max())
        q = asked.view(heads, self.spec.group, -1)
        pages = -(-len(k) // self.spec.page_size)
        wrong, kept, random, selected = 0, 0.0, 0.0, 0
        for h in range(heads):
            count = int(self.decoder.counts[row, h])
            mine = self.decoder.pages[row, h, :count].tolist()
            wrong += differing(mine, right, h, self._budget)
            mass = self._mass(q[h], k[:, h], pages)
            kept += float(mass[:, mine].sum(-1).mean()) / heads
            random += float(mass[:, self._random_pages(pages, count)].sum(-1).mean()) / heads
            selected = max(selected, count)
        return Check(len(k), pages, selected, error, wrong, kept, random, seconds)

    @property
    def scale(self) -> float:
        """Of the softmax; no model stands behind a trial, so under MLA too that of the row's length."""
        return float(self.spec.head_dim**-0.5)

    @property
    def _budget(self) -> Budget:
        assert self.decoder.budget is not None
        return self.decoder.budget

    def _plan(self, names: list[str]) -> None:
        self.decoder.plan(self.cache.lengths(names), self.cache.page_table(names))

    def _now(self) -> float:
        """Seconds, when all that was launched has run."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _stored(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.device, TORCH[self.spec.dtype])

    def _noise(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.random)

    def _new(self, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Tokens to append: these keys and made-up values; under MLA latent rows alone."""
        return self._stored(k), None if self.spec.kv_lora_rank else self._stored(self._noise(*k.shape))

    def keys_and_values(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of a request as the cache gives them back, fp32 ``[len, Hkv, D]``; under MLA latent rows and the
        part of them that is value.
        """
        table = list(self.cache.pages(name))
        length = int(self.cache.lengths([name])[0])
        k_pool, v_pool = self.cache.k[LAYER], self.cache.v[LAYER]
        if v_pool is None:
            v_pool = k_pool[..., : self.spec.v_dim]
        k, v = (
            pool[table].transpose(1, 2).flatten(0, 1)[:length].float() * scale
            for pool, scale in zip((k_pool, v_pool), self.scales.values(), strict=True)
        )
        return k, v

    def _mass(self, q: torch.Tensor, k: torch.Tensor, pages: int) -> torch.Tensor:
        """Share of the dense attention mass on each page, ``[G, pages]``."""
        weights = torch.softmax(q @ k.T * self.scale, -1)
        padded = torch.nn.functional.pad(weights, (0, pages * self.spec.page_size - k.shape[0]))
        return padded.view(q.shape[0], pages, -1).sum(-1)

    def _random_pages(self, pages: int, count: int) -> list[int]:
        """As many pages as were selected: the reserved ones and random others."""
        b = self._budget
        reserved = {*range(min(b.sink, pages)), *range(max(0, pages - b.recent), pages)}
        others = [p for p in torch.randperm(pages, generator=self.random).tolist() if p not in reserved]
        return [*reserved, *others][:count]
