"""What is served, in one place for all who ask: the line in the log, ``get_server_info``, metrics and probes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any

from vortex.artifact.manifest import Manifest
from vortex.budget import Budget
from vortex.runtime.sglang.config import EngineConfig


@dataclass(frozen=True, slots=True)
class About:
    """A flow as an engine runs it.

    Attributes:
        page_size: tokens of the engine's pages; ``block_size`` those of what is selected, which may be less.
        pages: the most that a token reads of a long context, in units of ``block_size`` tokens and reserved ones
            included; ``budget.ratio`` may make them more.
        layers: how many the model has, those in ``dense_layers`` included.
        config: what was asked for.
    """

    flow: str
    target: str
    page_size: int
    block_size: int
    pages: int
    layers: int
    prefill: str
    config: EngineConfig

    @classmethod
    def of(cls, manifest: Manifest, target: str, config: EngineConfig, layers: int, prefill: str) -> About:
        """Of an artifact's ``manifest`` under ``config``."""
        spec, budget = manifest.spec, config.budget
        pages = manifest.cap.total(budget if budget.table else replace(budget, ratio=0), 0)
        return cls(manifest.flow, target, spec.page_size, spec.block_size, pages, layers, prefill, config)

    @property
    def budget(self) -> Budget:
        return self.config.budget

    @property
    def dense_layers(self) -> tuple[int, ...]:
        """In ascending order."""
        return tuple(sorted(self.config.dense_layers))

    @property
    def tokens(self) -> int:
        """The most tokens that a token reads: those of :attr:`pages`."""
        return self.pages * self.block_size

    def line(self) -> str:
        """For the log, without the name of who says it."""
        budget, unit = self.budget, "pages" if self.block_size == self.page_size else "blocks"
        scored = self.pages - budget.sink - budget.recent
        more = f", or {Fraction(budget.ratio)} of all where that is more" if budget.ratio else ""
        by = ", fewer as layers and heads have it" if budget.table else ""
        dense = ", ".join(map(str, self.dense_layers)) or "none"
        return (
            f"flow {self.flow} on {self.target}; a token reads {self.pages} {unit} of {self.block_size} "
            f"({self.tokens} tokens{more}): {scored} by score{by}, the first {budget.sink}, the last {budget.recent}; "
            f"dense layers {dense} of {self.layers}; prefill by {self.prefill}"
        )

    def facts(self) -> dict[str, Any]:
        """For programs: plain JSON; docs/sglang.md has the table. ``budget_pages`` and ``budget_tokens`` are what
        :attr:`pages` says. Probes have these names beside their own, so ``every`` is ``select_every`` here.
        """
        config, most = self.config, self.config.per_request
        budget = {"pages": self.budget.pages, "sink": self.budget.sink, "recent": self.budget.recent}
        return {
            "flow": self.flow,
            "target": self.target,
            "page_size": self.page_size,
            "block_size": self.block_size,
            "budget": budget | {"ratio": str(self.budget.ratio), "table": [list(row) for row in self.budget.table]},
            "budget_pages": self.pages,
            "budget_tokens": self.tokens,
            "dense_layers": list(self.dense_layers),
            "layers": self.layers,
            "pages_of": {str(layer): source for layer, source in config.pages_of.items()},
            "select_every": config.every,
            "deterministic": config.deterministic,
            "per_request": None if most is None else asdict(most) | {"ratio": str(most.ratio)},
            "parameters": config.parameters,
            "prefill_backend": self.prefill,
        }
