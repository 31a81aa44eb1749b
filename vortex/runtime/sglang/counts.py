"""How sparse decoding was, counted from the lengths of requests: for VORTEX_STATS, the log and SGLang's metrics.

Lengths and the budget are all that is looked at, so that captured graphs are counted too; a selection whose size
depends on scores is counted at its bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vortex.budget import Budget
from vortex.runtime.library import Library
from vortex.runtime.sglang.config import EngineConfig
from vortex.runtime.sglang.step import Layer
from vortex.runtime.tensors import TORCH


class Counts:
    """Sums over decode steps of this process. Pages are those of one layer that selects, for one KV head; what is
    selected is called a page here.

    Attributes:
        steps, rows: decode steps, and requests in them.
        pages, kept, scored: pages that the requests had, and how many of them were read and scored.
        sparse, dense: layers that select, and those that read everything.
    """

    def __init__(self, library: Library, config: EngineConfig, layers: Mapping[int, Layer]) -> None:
        manifest, spec = library.manifest, library.manifest.spec
        self._budget, self._cap, self._page = config.budget, manifest.cap, spec.block_size
        self.dense = sum(layer.dense for layer in layers.values())
        self.sparse = len(layers) - self.dense
        heads = next(iter(layers.values())).k.shape[1]
        self._kv_bytes = len(spec.pools) * self._page * spec.head_dim * TORCH[spec.kv_dtype].itemsize * heads
        self._field_bytes = sum(f.tile_bytes for f in manifest.fields) * heads
        self._field_bytes //= spec.page_blocks
        self.steps = self.rows = self.pages = self.kept = self.scored = 0
        self._known: dict[tuple[int, Budget], tuple[int, int]] = {}  # pages of a request -> kept and scored

    def step(self, lengths: Sequence[int], own: Sequence[Budget | None] | None = None) -> tuple[int, int]:
        """Count one decode step over requests of these lengths, some with budgets of their ``own``; its pages, and how
        many of them are read.
        """
        pages, kept = self.pages, self.kept
        self.steps += 1
        self.rows += len(lengths)
        for length, chosen in zip(lengths, own or [None] * len(lengths), strict=True):
            n, budget = -(-length // self._page), chosen or self._budget
            found = self._known.get((n, budget))
            if found is None:
                found = self._known[n, budget] = self._cap.kept(budget, n), self._cap.scored(budget, n)
            self.pages += n
            self.kept += found[0]
            self.scored += found[1]
        return self.pages - pages, self.kept - kept

    @property
    def bytes_read(self) -> int:
        """Of this rank's KV heads over all layers that select: K and V of what was read, summaries of what was
        scored.
        """
        return (self.kept * self._kv_bytes + self.scored * self._field_bytes) * self.sparse

    @property
    def bytes_saved(self) -> int:
        """What dense attention would have read more in the same layers."""
        return self.pages * self._kv_bytes * self.sparse - self.bytes_read
