"""How a lane chooses the pages that it reads: the baselines, and what all rules have in common."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

import torch

from vortex.budget import Budget
from vortex.evaluate.shared_pages import PAGE, SharedPages


@dataclass(frozen=True)
class Step:
    """One token of a prompt's answer, of all lanes that still decode.

    Attributes:
        length: tokens of a lane, this one included; all lanes have the same.
        first: whether it is the first one after the prompt.
        page: tokens of a page.
    """

    length: int
    first: bool
    page: int = PAGE

    @property
    def pages(self) -> int:
        """Pages of a lane, the last one perhaps partly filled."""
        return -(-self.length // self.page)


@dataclass(frozen=True)
class Read:
    """What a lane read in one layer: ``pages`` bool ``[Hkv, n]``; ``out`` ``[Hq, D]`` where the rule has kernels of
    its own that computed it.
    """

    pages: torch.Tensor
    out: torch.Tensor | None = None


class Rule(Protocol):
    """How one lane reads."""

    own_attention: bool
    """Whether :meth:`read` gives outputs; then it needs no mass."""

    def begin(self, pages: SharedPages, lane: int) -> None:
        """A prompt, and which lane of its pages is this one."""

    def plan(self, step: Step) -> None:
        """A step begins."""

    def read(self, layer: int, q: torch.Tensor, mass: torch.Tensor | None, scale: float) -> Read:
        """Choose for ``q`` ``[Hkv, G, D]``; ``mass`` ``[Hkv, G, n]`` is dense attention's on each page, ``scale`` the
        softmax scale of the layer.
        """


class Baseline:
    """A rule that keeps the first page, the last two, and the candidates of the best scores; a lower page wins ties."""

    own_attention = False

    def __init__(self, budget: int) -> None:
        self.budget = Budget(budget)
        self._step = Step(1, True)

    def begin(self, pages: SharedPages, lane: int) -> None:
        pass

    def plan(self, step: Step) -> None:
        self._step = step

    def read(self, layer: int, q: torch.Tensor, mass: torch.Tensor | None, scale: float) -> Read:
        assert mass is not None
        n = self._step.pages
        kept = torch.ones(mass.shape[0], n, dtype=torch.bool, device=mass.device)
        if n <= self.budget.total(n):
            return Read(kept)
        candidates = slice(self.budget.sink, n - self.budget.recent)
        kept[:, candidates] = False
        best = self.score(layer, mass[..., candidates]).sort(dim=-1, descending=True, stable=True).indices
        kept[:, candidates].scatter_(1, best[:, : self.budget.pages], True)
        return Read(kept)

    def score(self, layer: int, mass: torch.Tensor) -> torch.Tensor:
        """Of candidates ``[Hkv, S]``, from their dense mass ``[Hkv, G, S]``."""
        raise NotImplementedError


class Dense(Baseline):
    """All pages."""

    def __init__(self) -> None:
        super().__init__(0)

    def read(self, layer: int, q: torch.Tensor, mass: torch.Tensor | None, scale: float) -> Read:
        assert mass is not None
        return Read(torch.ones(mass.shape[0], self._step.pages, dtype=torch.bool, device=mass.device))


class Oracle(Baseline):
    """The pages of the largest true mass, mean over the group's heads."""

    def score(self, layer: int, mass: torch.Tensor) -> torch.Tensor:
        return mass.mean(1)


class Recent(Baseline):
    """The last pages."""

    def score(self, layer: int, mass: torch.Tensor) -> torch.Tensor:
        return torch.arange(mass.shape[-1], device=mass.device).expand(mass.shape[0], -1)


class Random(Baseline):
    """Pages at random, which depend on the seed, the prompt, the step and the layer alone."""

    def __init__(self, budget: int, seed: str) -> None:
        super().__init__(budget)
        self._seed = seed

    def score(self, layer: int, mass: torch.Tensor) -> torch.Tensor:
        told = f"{self._seed} {self._step.length} {layer}".encode()
        number = int.from_bytes(hashlib.sha256(told).digest()[:7], "little")
        made = torch.rand(mass.shape[0], mass.shape[-1], generator=torch.Generator().manual_seed(number))
        return made.to(mass.device)


def baseline(rule: str, budget: int, seed: str) -> Rule:
    """One of :data:`vortex.evaluate.outcomes.BASELINES`."""
    if rule == "random":
        return Random(budget, seed)
    return Dense() if rule == "dense" else {"oracle": Oracle, "recent": Recent}[rule](budget)
