"""Which layers of a model a flow served, and how much they read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from vortex.runtime.transformers.attention import LAYERS
from vortex.runtime.transformers.settings import Settings


@dataclass(frozen=True, slots=True)
class Report:
    """What came of the attention in one model since it was loaded.

    Attributes:
        settings: flow, budget and backend of the layers, None where no forward has run.
        sparse: layers whose decode steps go through the flow.
        dense: the other layers that were called, each with the reason.
        prompts: forwards of several tokens, which all layers read densely.
        steps: decode steps of the whole model that went through the flow; 0 says that no page was ever left out.
        pages_read: share of their pages that these steps read in sparse layers, at most; 1 before the first.
        rebuilt: steps before which pages were made anew, because somebody had changed the cache (beams, cropping).
    """

    settings: Settings | None
    sparse: tuple[int, ...]
    dense: Mapping[int, str]
    prompts: int
    steps: int
    pages_read: float
    rebuilt: int

    def __str__(self) -> str:
        if self.settings is None:
            return "vortex: no forward has run with it"
        lines = [
            f"vortex: flow {self.settings.flow}, {self.settings.budget}, {self.settings.backend}",
            f"  {len(self.sparse)} layers through the flow, {len(self.dense)} dense",
            *(f"  layer {number}: {why}" for number, why in self.dense.items()),
            f"  {self.prompts} prompts or chunks read densely, {self.steps} decode steps read {self.pages_read:.1%}"
            " of their pages",
        ]
        lines += [f"  pages were made anew before {self.rebuilt} of these steps"] if self.rebuilt else []
        return "\n".join(lines)


def report(model: nn.Module) -> Report:
    """What the attention ``vortex`` did in ``model`` so far."""
    found = sorted((x for m in model.modules() if (x := LAYERS.get(m))), key=lambda layer: layer.number)
    sparse = [layer for layer in found if not layer.dense]
    pages, read = sum(x.pages for x in sparse), sum(x.pages_read for x in sparse)
    return Report(
        found[0].settings if found else None,
        tuple(x.number for x in sparse),
        {x.number: x.dense for x in found if x.dense},
        max((x.prompts for x in found), default=0),
        max((x.steps for x in sparse), default=0),
        read / pages if pages else 1.0,
        max((x.rebuilt for x in sparse), default=0),
    )
