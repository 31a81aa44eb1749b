"""Layers that take each other's selections, and earlier steps': beside what the documents say they attend to."""

from __future__ import annotations

import torch

from vortex.flow import oracle
from vortex.runtime.decoder import Decoder, NewTokens
from vortex.runtime.paged_cache import PagedCache

HKV, I32 = 2, torch.int32


class Layers:
    """Requests in a decoder of ``block_topk`` whose layers 0 and 1 have fields, and 2 and 3 have none. New tokens are
    appended, or given to ``decode``.
    """

    def __init__(self, decoder: Decoder, every: int, *, given: bool = False) -> None:
        self.decoder, self.spec, self.every, self.given = decoder, decoder.spec, every, given
        self.cache = PagedCache(200, HKV, self.spec, decoder.fields, layers=4)
        self.said: dict[int, torch.Tensor] = {}
        for layer in range(4):
            k, v, fields = self.cache.k[layer], self.cache.v[layer], self.cache.fields[layer]
            for pool in (k, v, *fields.values()):
                assert pool is not None
                pool.fill_(float("nan"))
            decoder.bind(layer, k, v, fields if layer < 2 else None)
        self.exchanged = torch.tensor([1, 0])
        self.random = torch.Generator().manual_seed(0)
        self._age, self._before = 0, dict[int, int]()
        self._rows: list[int] = []
        self._kept: dict[tuple[int, int], list[int]] = {}
        self.selected = 0
        """Steps in which layer 1 selected anew."""

    def prompt(self, new: dict[int, int]) -> None:
        """Tokens that no decoding follows."""
        for layer, tokens in enumerate(self.begin(new)[1]):
            self.decoder.append(layer, *tokens)
        if sum(new.values()) > len(new):
            self._age = 0

    def leave(self, r: int) -> None:
        self.cache.free(r)
        del self.said[r]

    def decode(self, requests: list[int]) -> None:
        """A token of each request; every layer's pages and outputs are compared."""
        q, new = self.begin(dict.fromkeys(requests, 1))
        if not self.given:
            for layer, tokens in enumerate(new):
                self.decoder.append(layer, *tokens)
        first, second = new if self.given else (None, None)
        n = {r: int(x) for r, x in zip(requests, self.cache.lengths(requests), strict=True)}
        grown = requests == self._rows and all(n[r] == self._before.get(r, -1) + 1 for r in requests)
        anew = not grown or not 0 < self._age < self.every
        self._age, self._rows, self._before = 1 if anew else self._age + 1, list(requests), n
        self.selected += anew
        d = self.decoder
        self._decode(0, q, lambda layer, row, h: self._oracle(layer, requests[row], q[row])[h], new=first)
        later = lambda layer, row, h: self._later(requests[row], row, h, q[row], anew)  # noqa: E731
        self._decode(1, q, later, every=self.every, new=second)
        self._decode(2, q, lambda layer, row, h: self._oracle(0, requests[row], q[row])[h], pages_of=0)
        swapped = lambda layer, row, h: self._kept[requests[row], 1 - h]  # noqa: E731
        self._decode(3, q, swapped, pages_of=1, heads=self.exchanged)
        assert d.pages is not None

    def _decode(self, layer: int, q: torch.Tensor, want: object, **how: object) -> None:
        out = torch.full_like(q, float("nan"))
        self.decoder.decode(layer, q, out=out, **how)  # type: ignore[arg-type]
        pages, counts = self.decoder.pages, self.decoder.counts
        assert pages is not None and counts is not None and callable(want)
        size, group = self.spec.page_size, self.spec.group
        for row, r in enumerate(self._rows):
            k, v = self.said[r][:, layer].unbind(1)
            for h in range(HKV):
                mine = pages[row, h, : int(counts[row, h])].tolist()
                assert mine == want(layer, row, h), (layer, r, h)
                inside = (torch.arange(len(k)) // size)[:, None].eq(torch.tensor(mine)).any(-1)
                heads = slice(h * group, (h + 1) * group)
                right, _ = oracle.attend(q[row, heads], k[inside, h], v[inside, h], self.spec.head_dim**-0.5)
                torch.testing.assert_close(out[row, heads].float(), right, rtol=2e-2, atol=2e-2)

    def _oracle(self, layer: int, r: int, q: torch.Tensor) -> list[list[int]]:
        """The pages of each head by the formula of ``block_topk``."""
        k, budget, size = self.said[r][:, layer, 0], self.decoder.budget, self.spec.page_size
        assert budget is not None
        n = -(-len(k) // size)
        scored = slice(budget.sink * size, max(budget.sink, n - budget.recent) * size)
        means = k[scored].unflatten(0, (-1, size)).mean(1).bfloat16().float() if n > budget.sink else k[:0]
        queries = q.float().unflatten(0, (HKV, self.spec.group)).mean(1)
        return [oracle.select_pages(means[:, h] @ queries[h], n, budget) for h in range(HKV)]

    def _later(self, r: int, row: int, h: int, q: torch.Tensor, anew: bool) -> list[int]:
        """What layer 1 attends to: by the oracle, or what it attended to with its last pages moved."""
        budget = self.decoder.budget
        assert budget is not None
        n = -(-len(self.said[r]) // self.spec.page_size)
        if anew:
            found = self._oracle(1, r, q)[h]
        elif n <= budget.total(n):
            found = list(range(n))
        else:
            found = [*self._kept[r, h][: -budget.recent], *range(n - budget.recent, n)]
        self._kept[r, h] = found
        return found

    def begin(self, new: dict[int, int]) -> tuple[torch.Tensor, list[NewTokens]]:
        """Queries of a step, and the new tokens of its layers 0 and 1."""
        requests = list(new)
        for r in new.keys() - self.said.keys():
            self.cache.add(r)
            self.said[r] = torch.empty(0, 4, 2, HKV, self.spec.head_dim)
        loc, offsets = self.cache.extend_batch(requests, list(new.values()))
        shape = (len(loc), 4, 2, HKV, self.spec.head_dim)
        kv = torch.randint(-3, 4, shape, generator=self.random).bfloat16()
        self.decoder.plan(self.cache.lengths(requests), self.cache.page_table(requests, 50), self.cache.slots(requests))
        tokens = [(*(kv[:, layer, i].contiguous() for i in range(2)), loc, offsets) for layer in range(2)]
        for layer in range(2, 4):  # the engine stores those
            for i, pool in enumerate((self.cache.k[layer], self.cache.v[layer])):
                assert pool is not None
                pool[loc // self.spec.page_size, :, loc % self.spec.page_size] = kv[:, layer, i]
        for row, r in enumerate(requests):
            self.said[r] = torch.cat([self.said[r], kv[int(offsets[row]) : int(offsets[row + 1])].float()])
        size = (len(new), HKV * self.spec.group, self.spec.head_dim)
        return torch.randint(-3, 4, size, generator=self.random).bfloat16(), tokens


def story(layers: Layers) -> None:
    """Requests of all sizes grow over page boundaries and beyond their budget, join, leave, and take freed slots."""
    page = layers.spec.page_size
    layers.prompt({0: 20 * page - 3, 1: 5, 2: 5 * page - 2})
    for _ in range(page + 3):
        layers.decode([0, 1, 2])
    layers.leave(1)  # another batch: all select anew
    for _ in range(3):
        layers.decode([0, 2])
    layers.prompt({3: 8 * page + 1})  # takes the freed slot
    for _ in range(3):
        layers.decode([0, 3, 2])
    layers.leave(3)
    tokens = int(layers.cache.lengths([2])[0])
    layers.prompt({4: tokens})  # the freed slot again, at the place of another
    for rows in ([0, 4, 2], [0, 4, 2]):
        layers.decode(rows)
    layers.prompt({5: tokens + 2})
    for rows in ([4, 5], [5, 4], [5, 4]):  # as long as each other, in another order
        layers.decode(rows)
