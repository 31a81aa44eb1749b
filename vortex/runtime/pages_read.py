"""What a request's KV heads read in one layer, as plain numbers: the pages, and the attention mass that they hold.

Sizes: ``H`` KV heads of ``G`` query heads each, ``n`` pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from vortex.runtime.mass import best_mass, read_mass

DIGITS = 6

Which = tuple[tuple[int, ...], ...]
"""Of each KV head the pages that it read, ascending."""


def listed(pages: torch.Tensor, counts: torch.Tensor) -> Which:
    """Of a request's selection, ``pages`` int ``[H, K]`` of which ``counts`` int ``[H]`` count."""
    rows = zip(pages.tolist(), counts.tolist(), strict=True)
    return tuple(tuple(row[:count]) for row, count in rows)


def kept(which: Sequence[Sequence[int]], n: int, device: torch.device) -> torch.Tensor:
    """The same pages as bool ``[H, n]``."""
    made = torch.zeros(len(which), n, dtype=torch.bool, device=device)
    for head, pages in enumerate(which):
        made[head, torch.tensor(pages, dtype=torch.int64, device=device)] = True
    return made


def reserved(candidates: range, n: int, device: torch.device) -> torch.Tensor:
    """The pages that are read whatever the scores are, bool ``[n]``: all but the ``candidates``."""
    made = torch.ones(n, dtype=torch.bool, device=device)
    made[candidates.start : candidates.stop] = False
    return made


@dataclass(frozen=True, slots=True)
class MassRead:
    """Of each KV head: the mass of the pages read, the most that as many could hold, and of each page its own."""

    mass: tuple[float, ...]
    best: tuple[float, ...]
    held: tuple[tuple[float, ...], ...]


def mass_read(mass: torch.Tensor, which: Which, candidates: range) -> MassRead:
    """Of dense attention's ``mass`` ``[H, G, n]`` on each page."""
    n, device = mass.shape[-1], mass.device
    counts = torch.tensor([[len(row) for row in which]], device=device)
    best = best_mass(mass[None], counts, reserved(candidates, n, device))[0]
    by_page = mass.mean(1).tolist()
    return MassRead(
        _rounded(read_mass(mass[None], kept(which, n, device)[None])[0].tolist()),
        _rounded(best.tolist()),
        tuple(_rounded(by_page[h][p] for p in pages) for h, pages in enumerate(which)),
    )


def _rounded(numbers: Iterable[float]) -> tuple[float, ...]:
    return tuple(round(x, DIGITS) for x in numbers)
