"""Where the mass of dense attention lies: what pages hold of it, what those read hold, and what as many could hold.

Sizes: ``B`` requests, ``H`` KV heads of ``G`` query heads each, ``n`` pages.
"""

from __future__ import annotations

import torch


def by_page(weights: torch.Tensor, page: int) -> torch.Tensor:
    """``weights`` ``[..., tokens]`` summed over pages of ``page`` tokens, the last one perhaps partly filled:
    ``[..., n]``.
    """
    n = -(-weights.shape[-1] // page)
    padded = torch.nn.functional.pad(weights, (0, n * page - weights.shape[-1]))
    return padded.view(*weights.shape[:-1], n, page).sum(-1)


def read_mass(mass: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The share of ``mass`` ``[B, H, G, n]`` on the pages ``kept``, bool ``[B, H, n]``, mean over the group's heads:
    ``[B, H]``.
    """
    return (mass * kept[:, :, None]).sum(-1).mean(-1)


def best_mass(mass: torch.Tensor, counts: torch.Tensor, reserved: torch.Tensor) -> torch.Tensor:
    """The largest :func:`read_mass` of any ``counts`` pages, int ``[B, H]``, among them those ``reserved``, bool
    ``[n]``, which are read whatever the scores are: ``[B, H]``. Heads of a group read the same pages, so it is that of
    the pages that are best in the mean over them.
    """
    mean = mass.mean(2)
    order = (mean + 2.0 * reserved).argsort(dim=-1, descending=True)  # no page has a mass above 1
    before = torch.nn.functional.pad(mean.gather(-1, order).cumsum(-1), (1, 0))
    return before.gather(-1, counts.long().clamp(0, mean.shape[-1])[..., None])[..., 0]
