"""A ragged batch of made-up requests on an artifact, and what its steps should have given.

Data is of one of two kinds. *Planted*: on a few pages of every (request, KV head) row the keys lean towards a direction
that the row's queries lean towards as well, so that most of the dense attention mass lies there. *Varied*: every page
and head has a magnitude of its keys, a norm of its values and leans of its own, and queries are small in one step and
large in another, so that every term of a flow decides about some page.
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
from vortex.spec import Spec

LAYER = 0
HEAVY_PAGES = 8
"""Heavy pages of a row (fewer where it is short)."""
LEAN_KEY, LEAN_QUERY = 8.0, 11.0
"""How far heavy keys and all queries lean: a logit of ``88 / sqrt(128)`` beside noise of about 1."""
SCALES = (0.375, 0.3)
"""Of K and V in fp8: nothing is clamped."""
LEANS = 3
"""Directions that varied pages and queries lean to, each by an amount of its own, of either sign."""
QUERY_SIZES = (1.0, 0.1, 3.0, 0.02)
"""Of varied queries, by step: where scores are small, the terms decide that do not grow with them."""
MOST_SINGLE = 64
"""Tokens that a varied request is given one by one."""
SLOTS = 64
"""Requests at a time that have room for state."""
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


class Planted:
    """Heavy pages that most of the attention mass lies on."""

    def __init__(self, spec: Spec, kv_heads: int, random: torch.Generator) -> None:
        self.spec, self.heads, self.random = spec, kv_heads, random
        self._lean: dict[tuple[str, int], torch.Tensor] = {}
        self._heavy: dict[tuple[str, int], torch.Tensor] = {}

    def begin(self, name: str, tokens: int, layers: range) -> None:
        """Draw what is true of a request of ``tokens`` tokens throughout."""
        pages = -(-tokens // self.spec.block_size)
        for layer in layers:
            lean = self._noise(self.heads, self.spec.head_dim)
            self._lean[name, layer] = lean / lean.norm(dim=-1, keepdim=True)
            chosen = torch.stack(
                [torch.randperm(pages, generator=self.random)[:HEAVY_PAGES] for _ in range(self.heads)]
            )
            heavy = torch.zeros(self.heads, pages, dtype=torch.bool).scatter_(1, chosen, True)
            self._heavy[name, layer] = heavy

    def chunks(self, tokens: int) -> list[int]:
        """Tokens of each prefill step."""
        return [min(CHUNK, tokens - start) for start in range(0, tokens, CHUNK)]

    def tokens(self, name: str, layer: int, start: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V ``[size, Hkv, D]`` of the tokens from ``start`` on."""
        k = self._noise(size, self.heads, self.spec.head_dim)
        heavy = self._heavy[name, layer]
        at = torch.arange(start, start + size) // self.spec.block_size
        inside = at < heavy.shape[1]
        k[inside] += LEAN_KEY * heavy[:, at[inside]].T[:, :, None] * self._lean[name, layer]
        return k, self._noise(*k.shape)

    def queries(self, name: str, layer: int, step: int) -> torch.Tensor:
        """Q ``[Hkv, G, D]`` of one step."""
        noise = self._noise(self.heads, self.spec.group, self.spec.head_dim)
        return noise + LEAN_QUERY * self._lean[name, layer][:, None]

    def heavy(self, name: str, layer: int) -> tuple[tuple[int, ...], ...]:
        """The heavy pages of each head, ascending."""
        return tuple(tuple(row.nonzero()[:, 0].tolist()) for row in self._heavy[name, layer])

    def _noise(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.random)


class Varied(Planted):
    """Pages that differ in everything a flow may look at; see the module.

    ``given`` has the K and V of each request and layer, in order.
    """

    def __init__(self, spec: Spec, kv_heads: int, random: torch.Generator) -> None:
        super().__init__(spec, kv_heads, random)
        self._pages: dict[tuple[str, int, int], tuple[torch.Tensor, ...]] = {}
        self.given: dict[tuple[str, int], list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def begin(self, name: str, tokens: int, layers: range) -> None:
        for layer in layers:
            lean = self._noise(LEANS, self.heads, self.spec.head_dim)
            self._lean[name, layer] = lean / lean.norm(dim=-1, keepdim=True)
            self.given[name, layer] = []
        self._pages = {at: x for at, x in self._pages.items() if at[0] != name}

    def chunks(self, tokens: int) -> list[int]:
        """Uneven ones, then single tokens: pages fill in the midst of a step and at the end of one."""
        single = min(tokens // 2, self.spec.block_size + 1, MOST_SINGLE)
        rest = tokens - single
        first = -(-2 * rest // 3)
        split = [part for size in (first, rest - first) for part in Planted.chunks(self, size)]
        return [*split, *[1] * single]

    def tokens(self, name: str, layer: int, start: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        k = self._noise(size, self.heads, self.spec.head_dim)
        v = self._noise(size, self.heads, self.spec.head_dim)
        for i in range(size):
            large, norm, key_lean, value_lean = self._page(name, layer, (start + i) // self.spec.block_size)
            k[i] = large * (k[i] + key_lean)
            v[i] = norm * (v[i] + value_lean)
        self.given[name, layer].append((k, v))
        return k, v

    def queries(self, name: str, layer: int, step: int) -> torch.Tensor:
        """Each head leans its own way, each step has a size of its own."""
        heads, group, dim = self.heads, self.spec.group, self.spec.head_dim
        leans = torch.einsum("lhg,lhd->hgd", 4 * self._noise(LEANS, heads, group), self._lean[name, layer])
        size = torch.exp(0.5 * self._noise(heads, group, 1)) * QUERY_SIZES[step % len(QUERY_SIZES)]
        return size * (self._noise(heads, group, dim) + leans)

    def _page(self, name: str, layer: int, page: int) -> tuple[torch.Tensor, ...]:
        """Of each head: the magnitude of keys, the norm of values, and what is added to either, ``[Hkv, 1 or D]``."""
        at = (name, layer, page)
        if at not in self._pages:
            lean, heads = self._lean[name, layer], self.heads
            of_keys, of_values = (
                torch.einsum("lh,lhd->hd", much * self._noise(LEANS, heads), lean) for much in (3.0, 1.0)
            )
            large, norm = (torch.exp(much * self._noise(heads, 1)) for much in (0.4, 0.7))
            self._pages[at] = large, norm, of_keys, of_values
        return self._pages[at]


class Trial:
    """Requests that join, decode and leave: ``layers`` layers of ``kv_heads`` heads, where the decoder's library runs.

    What no token was written to holds NaN. ``q``, ``out`` and ``selected`` (pages and counts) are those of the last
    step, by layer.
    """

    def __init__(
        self, decoder: Decoder, kv_heads: int, num_pages: int, seed: int = 0, *, layers: int = 1, varied: bool = False
    ) -> None:
        self.decoder, self.spec, self.layers = decoder, decoder.spec, range(layers)
        self.device = torch.empty(0, device=decoder.library.device.kind).device
        self.cache = PagedCache(
            num_pages, kv_heads, decoder.spec, decoder.fields, layers=layers, device=self.device,
            states=decoder.states, slots=SLOTS, columns=num_pages,
        )  # fmt: skip
        self.random = torch.Generator().manual_seed(seed)
        self.data: Planted | Varied = (Varied if varied else Planted)(self.spec, kv_heads, self.random)
        self._steps = 0
        self._batch: list[str] = []
        # as the interpreter holds them
        self.parameters = {n: x.detach().cpu().float().numpy() for n, x in decoder.parameters.tensors.items()}
        latent = self.spec.kv_lora_rank > 0
        k_scale, v_scale = SCALES if self.spec.scaled else (1.0, 1.0)
        self.scales = (k_scale, k_scale if latent else v_scale)
        """What K and V are kept as multiples of; a latent row, whose beginning is value, has one scale."""
        self.given_scales = self.scales[:1] if latent else self.scales
        """The same as a decoder is given them."""
        for layer in self.layers:
            k, v, fields = self.cache.k[layer], self.cache.v[layer], self.cache.fields[layer]
            for pool in (k, v, *fields.values()):
                if pool is not None and pool.is_floating_point():
                    pool.fill_(float("nan"))
                elif pool is not None:
                    pool.view(torch.uint8).fill_(0xA5)
            for x in self.cache.state[layer].values():
                x.fill_(float("nan"))
            decoder.bind(layer, k, v, fields, *self.given_scales, state=self.cache.state[layer])
        self.q = [torch.empty(0) for _ in self.layers]
        self.out = [torch.empty(0) for _ in self.layers]
        self.selected = [(torch.empty(0), torch.empty(0)) for _ in self.layers]

    @property
    def requests(self) -> list[str]:
        """Who decodes, in batch order."""
        return list(self._batch)

    def join(self, name: str, tokens: int) -> None:
        """Prefill a request of ``tokens`` tokens."""
        self.data.begin(name, tokens, self.layers)
        self.cache.add(name)
        start = 0
        for size in self.data.chunks(tokens):
            loc, offsets = self.cache.extend_batch([name], [size])
            self._plan([name])
            for layer in self.layers:
                k, v = self.data.tokens(name, layer, start, size)
                self.decoder.append(layer, *self._new(k, v), loc, offsets)
            start += size
        self._batch.append(name)

    def leave(self, name: str) -> None:
        """Free a request's pages."""
        self._batch.remove(name)
        self.cache.free(name)

    def step(self) -> Times:
        """Decode one token of every request; where ``select`` can take in the tokens, it does in every other step."""
        taken = self._steps % 2 == 1 and self.decoder.library.takes_in_tokens
        names, seconds = self._batch, Times(0.0, 0.0)
        starts = self.cache.lengths(names).tolist()
        loc, offsets = self.cache.extend_batch(names, [1] * len(names))
        for layer in self.layers:
            queries = [self.data.queries(name, layer, self._steps) for name in names]
            q = self._stored(torch.stack(queries).reshape(len(names), -1, self.spec.head_dim))
            new = [self.data.tokens(name, layer, n, 1) for name, n in zip(names, starts, strict=True)]
            k, v = self._new(*(torch.cat(x) for x in zip(*new, strict=True)))
            out = torch.full_like(q[..., : self.spec.v_dim], float("nan"))
            start = self._now()
            if layer == LAYER:
                self._plan(names)
            if not taken:
                self.decoder.append(layer, k, v, loc, offsets)
            middle = self._now()
            self.decoder.decode(layer, q, out=out, scale=self.scale, new=(k, v, loc, offsets) if taken else None)
            end = self._now()
            seconds = Times(seconds.step + end - start, seconds.decode + end - middle)
            self.q[layer], self.out[layer] = q, out
            self.selected[layer] = self.selection()
        self._steps += 1
        return seconds

    def selection(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of the pages and counts that the decoder's last call selected, on the CPU."""
        assert self.decoder.pages is not None
        assert self.decoder.counts is not None
        return self.decoder.pages.cpu().clone(), self.decoder.counts.cpu().clone()

    def dense(self, name: str) -> Callable[[], torch.Tensor]:
        """Dense attention of one request by torch, its K and V made contiguous beforehand."""
        k, v = (x.transpose(0, 1)[None].to(self.q[LAYER].dtype).contiguous() for x in self.keys_and_values(name))
        q = self.q[LAYER][self._batch.index(name)][None, :, None]
        attention = torch.nn.functional.scaled_dot_product_attention
        return lambda: attention(q, k, v, enable_gqa=True)

    def check(self, name: str, reference: Reference) -> Check:
        """Compare a request's last step in the first layer with its reference, and its selection with a random one."""
        row, heads = self._batch.index(name), self.cache.kv_heads
        k, v = (x.cpu() for x in self.keys_and_values(name))
        asked = self.q[LAYER][row].float().cpu()
        start = time.perf_counter()
        right = reference(asked, k, None if self.spec.kv_lora_rank else v, self.budget)
        seconds = time.perf_counter() - start
        error = float((self.out[LAYER][row].float().cpu() - right.out).abs().max())
        q = asked.view(heads, self.spec.group, -1)
        pages = -(-len(k) // self.spec.block_size)
        wrong, kept, random, selected = 0, 0.0, 0.0, 0
        chosen, counts = self.selected[LAYER]
        for h in range(heads):
            count = int(counts[row, h])
            mine = chosen[row, h, :count].tolist()
            wrong += differing(mine, right, h, self.budget)
            mass = self.mass(q[h], k[:, h], pages)
            kept += float(mass[:, mine].sum(-1).mean()) / heads
            random += float(mass[:, self._random_pages(pages, count)].sum(-1).mean()) / heads
            selected = max(selected, count)
        return Check(len(k), pages, selected, error, wrong, kept, random, seconds)

    @property
    def scale(self) -> float:
        """Of the softmax; no model stands behind a trial, so under MLA too that of the row's length."""
        return float(self.spec.head_dim**-0.5)

    def per_page(self, state: str) -> bool:
        """Whether a state field has a tensor for each page."""
        return any(s.name == state and s.per == "page" for s in self.decoder.states)

    @property
    def budget(self) -> Budget:
        """The decoder's."""
        assert self.decoder.budget is not None
        return self.decoder.budget

    def _plan(self, names: list[str]) -> None:
        self.decoder.plan(self.cache.lengths(names), self.cache.page_table(names), self.cache.slots(names))

    def _now(self) -> float:
        """Seconds, when all that was launched has run."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _stored(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.device, TORCH[self.spec.dtype])

    def _new(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Tokens to append as they are stored; under MLA latent rows alone."""
        return self._stored(k), None if self.spec.kv_lora_rank else self._stored(v)

    def keys_and_values(self, name: str, layer: int = LAYER) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of a request in a layer as the cache gives them back, fp32 ``[len, Hkv, D]``; under MLA latent rows
        and the part of them that is value.
        """
        table = list(self.cache.pages(name))
        length = int(self.cache.lengths([name])[0])
        k_pool, v_pool = self.cache.k[layer], self.cache.v[layer]
        if v_pool is None:
            v_pool = k_pool[..., : self.spec.v_dim]
        k, v = (
            pool[table].transpose(1, 2).flatten(0, 1)[:length].float() * scale
            for pool, scale in zip((k_pool, v_pool), self.scales, strict=True)
        )
        return k, v

    def mass(self, q: torch.Tensor, k: torch.Tensor, pages: int) -> torch.Tensor:
        """Share of the dense attention mass on each page, ``[G, pages]``."""
        weights = torch.softmax(q @ k.T * self.scale, -1)
        padded = torch.nn.functional.pad(weights, (0, pages * self.spec.block_size - k.shape[0]))
        return padded.view(q.shape[0], pages, -1).sum(-1)

    def _random_pages(self, pages: int, count: int) -> list[int]:
        """As many pages as were selected: the reserved ones and random others."""
        candidates = self.decoder.library.manifest.cap.candidates(self.budget, pages)
        reserved = {*range(pages)} - {*candidates}
        others = [p for p in torch.randperm(pages, generator=self.random).tolist() if p not in reserved]
        return [*reserved, *others][:count]
