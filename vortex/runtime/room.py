"""How much all layers of a decoder have room for: as much as the smallest of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from vortex.artifact.manifest import Manifest

Layers = Mapping[int, Mapping[str, object]]
"""The arguments that each layer was bound to, by name."""


@dataclass(frozen=True, slots=True)
class Room:
    """Of the memory that the layers were bound to."""

    pages: int
    """Of the pools."""
    columns: int
    """Pages of a request that state of pages has room for; 2^31 where there is none."""
    slots: int
    """Requests that state has room for; 0 where there is none."""

    @classmethod
    def of(cls, manifest: Manifest, layers: Layers) -> Room:
        """That of ``layers``, which may be none yet."""
        states = {f"state.{s.name}": s.per for s in manifest.states}
        of_pages = [name for name, per in states.items() if per == "page"]
        return cls(
            pages=min(_sizes(layers, manifest.spec.pools[:1], 0), default=0),
            columns=min(_sizes(layers, of_pages, 2), default=2**31),
            slots=min(_sizes(layers, states, 0), default=0),
        )


def _sizes(layers: Layers, names: Collection[str], axis: int) -> list[int]:
    """How long an axis of these arguments is, in each layer."""
    held = [own[name] for own in layers.values() for name in names if name in own]
    return [int(x.shape[axis]) for x in held if isinstance(x, torch.Tensor)]
