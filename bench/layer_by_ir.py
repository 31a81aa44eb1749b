"""What a layer should have given, and the bytes that it moves, by the IR that an artifact carries of its flow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vortex.budget import Budget
from vortex.check.choices import differing
from vortex.check.step_bytes import count_step
from vortex.check.verdict import by_block, numbers, rounded, unlike_own
from vortex.cli.run import traced_flow
from vortex.ir.core import Module
from vortex.ir.dialects.flow import cap_of, of_pages
from vortex.ir.parser import parse_module
from vortex.ir.types import TensorType
from vortex.runtime.library import Library

if TYPE_CHECKING:
    from gpu_layer import Layer, Step

COMPARED_ROWS = 4
"""Rows of a batch whose selections are compared: each is interpreted several times on a CPU."""
COMPARED_PAGES = 16
"""Pages of each request, the last full ones, whose summaries are compared in one KV head."""


@dataclass(frozen=True)
class ByIR:
    """A flow's IR as the judge of its kernels, and its page IR as the count of their bytes."""

    flow: Module
    program: Module

    @classmethod
    def of(cls, artifact: Path, library: Library) -> ByIR:
        """Of an artifact that was compiled from a flow."""
        (page,) = (n for n in library.manifest.files if n.endswith(f".{library.name}.page"))
        return cls(traced_flow(str(artifact)), parse_module((artifact / page).read_text(), str(artifact / page)))

    def bytes(self, library: Library, budget: Budget, tokens: int) -> dict[str, float]:
        """What each kind of kernel reads and writes for a row of ``tokens`` tokens."""
        kinds = {f.name: str(f.attrs["kind"]) for f in self.program.functions.values()}
        made = count_step(self.program, library.manifest.spec, tokens, budget)
        return {kinds[k.kernel]: k.total for k in made}

    def wrong_summaries(self, layer: Layer, tables: list[list[int]]) -> list[str]:
        """Which requests have fields that are not those of their keys and values; ``tables`` are their full pages."""
        spec, wrong = layer.spec, []
        for r, pages in enumerate(tables[:COMPARED_ROWS]):
            at, h = torch.tensor(pages[-COMPARED_PAGES:], device=layer.device), r % layer.k.shape[1]
            if not len(at):
                continue
            tiles = [x[at, h].reshape(-1, spec.block_size, spec.head_dim).float().cpu().numpy()
                     for x in (layer.k, layer.v)]  # fmt: skip
            if bad := unlike_own(self.flow, self._fields(layer, at, h), tiles, {}).nonzero()[0].tolist():
                wrong.append(f"summaries of request {r}, head {h}, of pages {bad[:4]} after a prefill")
        return wrong

    def wrong_selections(self, step: Step) -> list[str]:
        """What is wrong with the selections of some rows, pages whose scores differ by rounding aside."""
        requests, heads = step.requests, step.layer.k.shape[1]
        rows = sorted({(i * (requests * heads - 1)) // max(1, COMPARED_ROWS - 1) for i in range(COMPARED_ROWS)})
        return [w for i in rows for w in self._wrong_selection(step, *divmod(i, heads))]

    def _wrong_selection(self, step: Step, r: int, h: int) -> list[str]:
        layer = step.layer
        spec, budget, cap = layer.spec, layer.budget, cap_of(self.flow)
        length = step.lengths[r]
        n = -(-length // spec.block_size)
        mine = step.pages[r, h, : int(step.counts[r, h])].tolist()
        parts = []
        if cap.scored(budget, n):
            candidates = cap.candidates(budget, n)
            table = step.table[r, : -(-length // spec.page_size)].long()
            whole = dict.fromkeys(of_pages(self.flow), cap.whole)
            given, read = {}, {a.name for a in self.flow.functions["index"].args}
            for name, x in self._fields(layer, table, h).items():
                each = whole.get(name, 1)
                given[name] = np.ascontiguousarray(x[candidates.start // each : candidates.stop // each])
            for name, pool in zip(spec.pools, (layer.k, layer.v), strict=True):
                if name in read:
                    tokens = pool[table, h].reshape(-1, spec.block_size, spec.head_dim)
                    given[name] = tokens[candidates.start : candidates.stop].float().cpu().numpy()
            q = step.q[r, h * spec.group : (h + 1) * spec.group].float().cpu().numpy()
            left = budget.total(n) - budget.sink - budget.recent
            place: dict[str, Any] = {"layer": 0, "head": h, "parameters": {}, "state": {}}
            parts, _ = rounded(self.flow, q, given, slice(candidates.start, candidates.stop), left, place)
        odd, gap = differing(mine, parts, n, budget, cap)
        return [f"selection of request {r}, head {h}: {odd} pages, {gap:.1e} from the last one kept"] if odd else []

    def _fields(self, layer: Layer, pages: torch.Tensor, h: int) -> dict[str, Any]:
        """The fields of physical pages in a KV head, ``[pages or blocks, *tile]``, as the interpreter holds them."""
        types = {d.name: d.type.dtype for d in self.flow.declared("field") if isinstance(d.type, TensorType)}
        whole = of_pages(self.flow)
        return {
            name: numbers((held if name in whole else by_block(held, layer.spec))[:, 0], types[name])
            for name, x in layer.fields.items()
            for held in [x.view(torch.uint8)[pages, h : h + 1].view(x.dtype).cpu()]
        }
