"""How sparse decoding was: VORTEX_STATS=path for a JSON file that is rewritten after each step, ``--log-level debug``
for a line about each step in the log.

SGLang ends its processes without a last word, so nothing is left for the end. A step costs one host sync and about
0.1 ms with it; without either nothing of this is reached.

What is counted follows from the lengths and the budget alone, so that captured graphs are counted too; a selection
whose size depends on scores is counted at its bound.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sglang.srt.runtime_context import get_parallel

from vortex.kinds.kind import KINDS
from vortex.runtime.library import Library
from vortex.runtime.sglang.config import EngineConfig
from vortex.runtime.sglang.step import Layer
from vortex.runtime.tensors import TORCH

VARIABLE = "VORTEX_STATS"

logger = logging.getLogger(__name__)


class Stats:
    """Sums over decode steps of this process; tensor-parallel rank r > 0 writes to ``path.r``."""

    @classmethod
    def wanted(cls, library: Library, config: EngineConfig, layers: Mapping[int, Layer]) -> Stats | None:
        """None unless the environment or the log's level asks for it."""
        path = os.environ.get(VARIABLE)
        if not path:
            return cls(None, library, config, layers) if logger.isEnabledFor(logging.DEBUG) else None
        rank = get_parallel().attn_tp_rank
        return cls(Path(f"{path}.{rank}" if rank else path), library, config, layers)

    def __init__(self, path: Path | None, library: Library, config: EngineConfig, layers: Mapping[int, Layer]) -> None:
        self._path, self._budget, self._cap = path, config.budget, library.manifest.cap
        manifest, spec = library.manifest, library.manifest.spec
        self._page = spec.block_size  # what is selected is called a page here
        self._dense = sum(layer.dense for layer in layers.values())
        self._sparse = len(layers) - self._dense
        heads = next(iter(layers.values())).k.shape[1]
        self._kv_bytes = len(spec.pools) * self._page * spec.head_dim * TORCH[spec.dtype].itemsize * heads
        self._field_bytes = sum(f.tile_bytes for f in manifest.fields) * heads
        self._field_bytes //= spec.page_blocks
        calls = Counter(KINDS[k.kind].call for k in library.target.kernels if k.variant_of == k.name)
        # where a plan divides the work among SMs, that of layers which keep all pages is a second one
        plans = 1 + (self._dense > 0 and any("work" in k.args for k in library.target.kernels))
        launches = calls["plan"] * plans + calls["attend"] * (self._sparse + self._dense)
        launches += (calls["append"] + calls["select"]) * self._sparse
        self._about: dict[str, Any] = {
            "flow": manifest.flow,
            "target": library.name,
            "layers": {"sparse": self._sparse, "dense": self._dense},
            "launches_per_step": launches,
            "kernels": {k.symbol: dict(k.schedule) for k in library.target.kernels},
        }
        self._steps = self._rows = self._pages = self._kept = self._scored = 0
        logger.debug("vortex: %s", json.dumps(self._about))

    def step(self, lengths: Sequence[int]) -> None:
        """Count one decode step over requests of these lengths."""
        self._steps += 1
        self._rows += len(lengths)
        pages, kept = self._pages, self._kept
        for length in lengths:
            n = -(-length // self._page)
            self._pages += n
            self._kept += self._cap.kept(self._budget, n)
            self._scored += self._cap.scored(self._budget, n)
        pages, kept = self._pages - pages, self._kept - kept
        logger.debug("vortex: %d requests decode, %d of their %d pages are read", len(lengths), kept, pages)
        if self._path:
            self._write(self._path)

    def summary(self) -> dict[str, Any]:
        """What the file holds; pages are per KV head and layer, bytes over all sparse layers of this rank."""
        read = self._kept * self._kv_bytes + self._scored * self._field_bytes
        return self._about | {
            "decode_steps": self._steps,
            "requests_decoded": self._rows,
            "pages": self._pages,
            "pages_kept": self._kept,
            "pages_scored": self._scored,
            "selected_share": round(self._kept / self._pages, 6) if self._pages else None,
            "bytes_read": read * self._sparse,
            "bytes_saved": (self._pages * self._kv_bytes - read) * self._sparse,
        }

    def _write(self, path: Path) -> None:
        """Replace the file; a reader sees all of it or the one before."""
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        scratch.write_text(json.dumps(self.summary(), indent=1) + "\n", encoding="utf-8")
        scratch.replace(path)
