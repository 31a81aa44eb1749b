"""Selections that outlast the call that made them: taken by other layers of the step, or by later steps.

A *kept* selection lies where every step finds it, of the largest step's width. With it stands what it was made for:

    state   0: steps since it was made, itself included; 0 for none   1: requests of its last step
            2 ..: slots of those requests                             2 + most requests ..: their tokens then

Everything here is torch on the device, so that a CUDA graph captures it and follows the lengths and slots of each
replay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Kept:
    """The kept selection of one layer, as a step of some size sees it."""

    pages: torch.Tensor
    """i32 ``[B, Hkv, K]``."""
    counts: torch.Tensor
    """i32 ``[B, Hkv]``."""
    state: torch.Tensor

    @classmethod
    def of(cls, views: dict[str, torch.Tensor], layer: int) -> Kept:
        """Taken out of the buffers of a step."""
        return cls(*(views.pop(f"kept.{layer}.{part}") for part in ("pages", "counts", "state")))

    def holds(self, slots: torch.Tensor, lengths: torch.Tensor, every: int) -> torch.Tensor:
        """Whether it stands for the step of these requests, each with one token more than in the step before, in the
        same rows, and is not ``every`` steps old; a bool. The step is then the last one that it knows.
        """
        batch, most = len(slots), (len(self.state) - 2) // 2
        age, requests = self.state[0], self.state[1]
        seen, tokens = self.state[2 : 2 + batch], self.state[2 + most : 2 + most + batch]
        grown = (lengths == tokens + (lengths > 0)) | (slots < 0)  # a padded row stays one
        same = ((seen == slots) & grown).all() & (requests == batch) & (age > 0) & (age < every)
        age.copy_(torch.where(same, age + 1, 1))
        requests.fill_(batch)
        seen.copy_(slots)
        tokens.copy_(lengths)
        return same

    def move(self, plan: torch.Tensor, recent: torch.Tensor) -> None:
        """Let the reserved pages at the end be those of now: the last ``recent`` entries of each row become the last
        pages of its request, and a row that keeps all its pages keeps all. What was just made stays as it is.
        ``recent`` is a number, or one for each request, ``[B, 1, 1]``.

        pages 0 3 7 | 8 9 of 10, recent = 2     request grown to 12     0 3 7 | 10 11
        """
        n, scored = plan[0, :, None], plan[3, :, None]
        at = torch.arange(self.pages.shape[2], dtype=torch.int32, device=self.pages.device)
        back = self.counts[..., None] - at  # 1 for the last entry
        moved = torch.where((back > 0) & (back <= recent), n[..., None] - back, self.pages)
        self.pages.copy_(torch.where(scored[..., None] == 0, at, moved))
        self.counts.copy_(torch.where(scored == 0, n.clamp(max=len(at)), self.counts))

    def forget(self) -> None:
        """Stand for no step."""
        self.state[0].zero_()


def paused(work: torch.Tensor, saved: torch.Tensor, holds: torch.Tensor) -> None:
    """Leave ``select`` no items of its work list where the kept selection ``holds``; :func:`resumed` undoes it."""
    saved.copy_(work[0, :1])
    work[0, :1].mul_(~holds)


def resumed(work: torch.Tensor, saved: torch.Tensor) -> None:
    """The work list as it was planned."""
    work[0, :1].copy_(saved)


def mapped(source: Mapping[str, torch.Tensor], heads: torch.Tensor, target: Mapping[str, torch.Tensor]) -> None:
    """The selection in which KV head h has the pages of head ``heads[h]`` of another."""
    for name, x in target.items():
        torch.index_select(source[name], 1, heads, out=x)
