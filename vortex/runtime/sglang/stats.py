"""How sparse decoding was: VORTEX_STATS=path for a JSON file that is rewritten after each step, ``--log-level debug``
for a line about each step in the log.

SGLang ends its processes without a last word, so nothing is left for the end. A step costs one host sync and about
0.1 ms with it; without either nothing of this is reached. What is counted, ``counts`` says.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sglang.srt.runtime_context import get_parallel

from vortex.budget import Budget
from vortex.errors import writing
from vortex.kinds.kind import KINDS
from vortex.runtime.library import Library
from vortex.runtime.sglang.config import EngineConfig
from vortex.runtime.sglang.counts import Counts
from vortex.runtime.sglang.step import Layer

VARIABLE = "VORTEX_STATS"

logger = logging.getLogger(__name__)


class Stats:
    """Decode steps of this process; tensor-parallel rank r > 0 writes to ``path.r``."""

    @classmethod
    def wanted(cls, library: Library, config: EngineConfig, layers: Mapping[int, Layer]) -> Stats | None:
        """None unless the environment or the log's level asks for it."""
        path = os.environ.get(VARIABLE)
        if not path:
            return cls(None, library, config, layers) if logger.isEnabledFor(logging.DEBUG) else None
        rank = get_parallel().attn_tp_rank
        return cls(Path(f"{path}.{rank}" if rank else path), library, config, layers)

    def __init__(self, path: Path | None, library: Library, config: EngineConfig, layers: Mapping[int, Layer]) -> None:
        self._path, self._counts = path, Counts(library, config, layers)
        sparse, dense = self._counts.sparse, self._counts.dense
        calls = Counter(KINDS[k.kind].call for k in library.target.kernels if k.variant_of == k.name)
        # where a plan divides the work among SMs, that of layers which keep all pages is a second one
        plans = 1 + (dense > 0 and any("work" in k.args for k in library.target.kernels))
        launches = calls["plan"] * plans + calls["attend"] * (sparse + dense)
        launches += ((0 if library.takes_in_tokens else calls["append"]) + calls["select"]) * sparse
        self._about: dict[str, Any] = {
            "flow": library.manifest.flow,
            "target": library.name,
            "layers": {"sparse": sparse, "dense": dense},
            "launches_per_step": launches,
            "kernels": {k.symbol: dict(k.schedule) for k in library.target.kernels},
        }
        logger.debug("vortex: %s", json.dumps(self._about))

    def step(self, lengths: Sequence[int], own: Sequence[Budget | None] | None = None) -> None:
        """Count one decode step over requests of these lengths, some of which have budgets of their ``own``."""
        pages, kept = self._counts.step(lengths, own)
        logger.debug("vortex: %d requests decode, %d of their %d pages are read", len(lengths), kept, pages)
        if self._path:
            self._write(self._path)

    def summary(self) -> dict[str, Any]:
        """What the file holds; pages are per KV head and layer, bytes over all sparse layers of this rank."""
        counts = self._counts
        return self._about | {
            "decode_steps": counts.steps,
            "requests_decoded": counts.rows,
            "pages": counts.pages,
            "pages_kept": counts.kept,
            "pages_scored": counts.scored,
            "selected_share": round(counts.kept / counts.pages, 6) if counts.pages else None,
            "bytes_read": counts.bytes_read,
            "bytes_saved": counts.bytes_saved,
        }

    def _write(self, path: Path) -> None:
        """Replace the file; a reader sees all of it or the one before. What cannot be written is said once, and serving
        goes on without.
        """
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            scratch.write_text(json.dumps(self.summary(), indent=1) + "\n", encoding="utf-8")
            scratch.replace(path)
        except OSError as error:
            self._path = None
            with suppress(OSError):
                scratch.unlink()
            logger.warning(
                "vortex: no more statistics are written (VORTEX_STATS), serving goes on: '%s' cannot be written: %s",
                path,
                error.strerror or error,
            )


def refuse_path() -> None:
    """VX7004 where VORTEX_STATS names what cannot be written: a folder, or a file in none or in a read-only one."""
    if not (name := os.environ.get(VARIABLE)):
        return
    path = Path(name)
    with writing(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
        if path.exists() and not path.is_file():  # the file is replaced with each step
            raise OSError(errno.EINVAL, "a device or pipe is no plain file")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
