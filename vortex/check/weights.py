"""Made-up numbers for the parameters of a flow, where nobody gives trained ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vortex.artifact.manifest import ParameterEntry
from vortex.runtime.tensors import TORCH


def random_parameters(
    entries: Sequence[ParameterEntry], layers: int, heads: int, seed: int = 0
) -> dict[str, torch.Tensor]:
    """A tensor for each parameter of a model of so many layers and KV heads: normal numbers, those of a matrix divided
    by the square root of its rows, so that a product is about as large as what it is made of.
    """
    random = torch.Generator().manual_seed(seed)
    made = {}
    for e in entries:
        rows = e.shape[-2] if len(e.shape) > 1 else 1
        made[e.name] = (torch.randn(e.all_sets(layers, heads), generator=random) / rows**0.5).to(TORCH[e.dtype])
    return made
