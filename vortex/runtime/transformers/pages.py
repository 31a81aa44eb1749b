"""What is kept of the tokens in a cache of transformers', so that a decode step need not look at all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from vortex.budget import Budget, Cap
from vortex.runtime.transformers.refusals import refuse


class Pages(ABC):
    """Pages of the layers that one flow serves over one cache.

    transformers' cache is the truth; this is made of it, and made anew where it was changed. A request's pages begin at
    its first real token: ``starts`` are the places of those in the cache's tensors, behind the padding.

    Attributes:
        cap: what bounds the pages that a row reads.
        stateful: whether the flow keeps state from one decode step to the next.
    """

    cap: Cap
    stateful: bool

    def __init__(self, budget: Budget, page_size: int) -> None:
        self.budget, self.page_size = budget, page_size
        self._starts: tuple[int, ...] = ()
        self._held: dict[int, int] = {}
        self._decoded: set[int] = set()
        self._lost: set[int] = set()

    def held(self, layer: int) -> int:
        """Places of the cache's tensors, from the first on, whose tokens are kept of a layer."""
        return self._held.get(layer, 0)

    def trim(self, layer: int, places: int) -> None:
        """Only the first ``places`` in the cache's tensors still are what they were."""
        if places < self.held(layer):
            self._held[layer] = places
            if layer in self._decoded:
                self._lost.add(layer)

    def prompted(self, layer: int) -> None:
        """Several tokens were read at once: state begins anew at the next decode step."""
        self._decoded.discard(layer)
        self._lost.discard(layer)

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        starts: tuple[int, ...],
        scale: float | None,
    ) -> torch.Tensor:
        """Attention of ``q`` ``[B, Hq, D]`` over the pages that the flow selects: ``[B, Hq, D]``. ``keys`` and
        ``values`` ``[B, Hkv, places, D]`` are the cache's tensors, with the step's own token as the last.

        Raises:
            VortexError: VX9021 for a flow with state whose cache was reordered, cropped or written to.
        """
        if starts != self._starts:
            for other in list(self._held):
                self.trim(other, 0)
            self._starts = starts
            self._begin(len(starts))
        if self.stateful and layer in self._lost:
            why = "its state is that of tokens that the cache has no more, or of requests in another order"
            hint = "use a flow without state for beams, or give a prompt of several tokens first"
            refuse(None, "a flow with state over a cache that was changed between two decode steps", why, hint)
        out = self._attend(layer, q, keys, values, scale)
        self._held[layer] = int(keys.shape[2])
        self._decoded.add(layer)
        return out

    def read(self, layer: int, kv_heads: int, places: int) -> tuple[int, int]:
        """Pages that the requests have, and the most of them that a step reads: sums over requests and KV heads."""
        lengths = [-(-(places - start) // self.page_size) for start in self._starts]
        budgets = [self.budget.of(layer, head) for head in range(kv_heads)]
        kept = [self.cap.kept(budget, n) for budget in budgets for n in lengths]
        return sum(lengths) * kv_heads, sum(kept)

    @abstractmethod
    def _begin(self, batch: int) -> None:
        """Nothing is kept any more; the batch has so many requests."""

    @abstractmethod
    def _attend(
        self, layer: int, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float | None
    ) -> torch.Tensor: ...
