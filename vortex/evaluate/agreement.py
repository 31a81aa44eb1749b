"""How far a configuration says what dense attention says, token by token along the dense answer.

Every lane is given the dense answer's tokens, so that all lanes are at the same place of the same text in each step,
and one token that differs is counted once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from vortex.budget import Budget
from vortex.evaluate.decode import step
from vortex.evaluate.lanes import Lanes, Tally
from vortex.evaluate.outcomes import Lane
from vortex.evaluate.prompts import Prompt
from vortex.runtime.mass import best_mass

if TYPE_CHECKING:
    from vortex.evaluate.models import Model

RESERVES = Budget(0)
"""The first and last pages that every lane reads, as budgets have them where nothing else is said."""


@dataclass(frozen=True)
class Configuration:
    """A way to serve: ``pages`` candidate pages by ``flow``, all pages in ``dense_layers`` (the model's numbers)."""

    flow: str
    pages: int
    dense_layers: tuple[int, ...] = ()

    @property
    def lane(self) -> Lane:
        return Lane(self.flow, self.pages)


@dataclass(frozen=True)
class Answer:
    """What dense attention says: ``tokens``, the last of them perhaps one that ends the answer, and of each its
    log-probability in nats.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True)
class Agreement:
    """A configuration beside dense attention, over the tokens of one or several answers.

    Attributes:
        tokens: of the dense answers.
        agreed: of these, those that are the configuration's most probable ones too.
        change: mean change of the dense token's log-probability, in nats; below 0 where it became less probable.
        worst: the change of the token that lost most.
        mass: ``[layers, heads]``, share of dense attention's mass that was read, mean over tokens and a group's heads.
        most: ``[layers, heads]``, the most that as many pages could hold, at the same queries; those that are read
            always are among them.
    """

    tokens: int
    agreed: int
    change: float
    worst: float
    mass: np.ndarray = field(compare=False)
    most: np.ndarray = field(compare=False)

    @property
    def share(self) -> float:
        """Of tokens that agree, 0 to 1."""
        return self.agreed / self.tokens

    def __add__(self, other: Agreement) -> Agreement:
        tokens = self.tokens + other.tokens
        mine, its = self.tokens / tokens, other.tokens / tokens
        return Agreement(
            tokens=tokens,
            agreed=self.agreed + other.agreed,
            change=mine * self.change + its * other.change,
            worst=min(self.worst, other.worst),
            mass=mine * self.mass + its * other.mass,
            most=mine * self.most + its * other.most,
        )


class Held(Tally):
    """A tally that also knows the most mass that as many pages could hold."""

    def __init__(self, lanes: int, layers: int, heads: int, page: int) -> None:
        super().__init__(lanes, layers, heads, (), page)
        self.most = torch.zeros_like(self.mass)

    def add(self, at: int, kept: torch.Tensor, mass: torch.Tensor, out: torch.Tensor, dense: torch.Tensor) -> None:
        super().add(at, kept, mass, out, dense)
        reserved = torch.ones(mass.shape[-1], dtype=torch.bool, device=mass.device)
        reserved[RESERVES.sink : len(reserved) - RESERVES.recent] = False
        self.most[:, at] += best_mass(mass, kept.sum(-1), reserved).double().cpu()


@torch.inference_mode()
def compare(
    model: Model, prompt: Prompt, reading: Lanes, answer: Answer | None, on_token: Callable[[], None] = lambda: None
) -> tuple[Answer, list[Agreement]]:
    """The dense answer, and how each lane of ``reading`` agrees with it; those of lanes that failed say nothing.

    Without an ``answer`` the first lane must be dense: what it says greedily is the answer, up to ``prompt.new_tokens``
    tokens or the end.
    """
    rows = list(range(len(reading.rules)))
    reading.begin()
    tally = Held(len(rows), len(reading.layers), model.kv_heads, reading.pages.page)
    reading.tally = tally
    said: list[int] = []
    known: list[float] = []
    changes: list[torch.Tensor] = []
    agreed = torch.zeros(len(rows), dtype=torch.long)
    for at in range(prompt.new_tokens if answer is None else len(answer.tokens)):
        on_token()
        given = said[-1] if said else prompt.tokens[-1]
        logprobs = step(model, reading, rows, [given] * len(rows), at).log_softmax(-1)
        tally.steps += 1
        said.append(int(logprobs[0].argmax()) if answer is None else answer.tokens[at])
        of_token = logprobs[:, said[-1]].double().cpu()
        known.append(float(of_token[0]) if answer is None else answer.logprobs[at])
        agreed += (logprobs.argmax(-1) == said[-1]).cpu()
        changes.append(of_token - known[-1])
        if said[-1] in model.stop:
            break
    change = torch.stack(changes)
    made = [
        Agreement(
            tokens=len(said),
            agreed=int(agreed[row]),
            change=float(change[:, row].mean()),
            worst=float(change[:, row].min()),
            mass=tally.of(row)["mass"],
            most=(tally.most[row] / tally.steps).numpy(),
        )
        for row in rows
    ]
    return Answer(tuple(said), tuple(known)), made
