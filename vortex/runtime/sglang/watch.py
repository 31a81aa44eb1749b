"""Decode steps that are looked at, every n-th one: what probes and page traces have in common.

Without a variable that asks for it a backend has no Watch and none of its steps is a :class:`WatchedStep`. With one,
steps between two looks cost an addition, and a step that is looked at runs without a CUDA graph and waits for the
device. Of a larger batch sixteen requests are looked at.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from vortex.runtime.mass import by_page
from vortex.runtime.pages_read import Which, listed
from vortex.runtime.sglang.step import Step

REQUESTS = 16
"""The most that are looked at in a step, so that it never takes seconds; the next look is at others."""

PAGES_AT_ONCE = 1024
"""Of keys that are made f32 together."""

logger = logging.getLogger(__name__)


class Watch(ABC):
    """What looks at every ``every``-th decode step of one process.

    Attributes:
        what: it takes, for the log; ``variable`` of the environment asks for it.
        steps: decode steps that have begun.
        requests: what the engine calls those of the next pass.
    """

    what: ClassVar[str]
    variable: ClassVar[str]

    def __init__(self, every: int) -> None:
        self.every = every
        self.steps, self.requests = 0, tuple[str, ...]()
        self._broken = False

    @property
    def due(self) -> bool:
        """Whether the next decode step is to be looked at. All ranks say the same, whatever became of their files: a
        step is eager on all of them or on none.
        """
        return (self.steps + 1) % self.every == 0

    @property
    def broken(self) -> bool:
        """Whether nothing more is taken, which was said once."""
        return self._broken

    def some(self, batch: int) -> list[int]:
        """Which requests of a batch are looked at: all, or as many as may be, others at each look."""
        first = self.steps // self.every * REQUESTS
        return sorted((first + i) % batch for i in range(min(batch, REQUESTS)))

    def count(self) -> None:
        """A decode step has begun."""
        self.steps += 1

    def names(self, slots: list[int]) -> tuple[str, ...]:
        """What the requests of a pass are called: as the engine does, or by their rows of ``req_to_token``."""
        mine = self.requests[len(self.requests) - len(slots) :]
        return mine if len(mine) == len(slots) else tuple(f"row {n}" for n in slots)

    def begin(self) -> None:  # noqa: B027 - what has nothing to prepare leaves it out
        """A pass that is looked at is about to be planned."""

    def rest(self) -> None:  # noqa: B027
        """A pass without a graph begins, which may be looked at or not."""

    @abstractmethod
    def look(self, step: WatchedStep, seen: Seen, layer: int, q: torch.Tensor, scale: float) -> None:
        """Take what a layer of ``step`` that has just attended with ``q`` ``[B, Hq, D]`` read of requests."""

    def stop(self, why: object) -> None:
        """Take nothing more, and say why; serving goes on."""
        if not self._broken:
            self._broken = True
            logger.warning("vortex: no more %s are taken (%s), serving goes on: %s", self.what, self.variable, why)


@dataclass(frozen=True, slots=True)
class Seen:
    """The requests of a pass that are looked at: what they are called, and in the same order tokens by planned row."""

    names: tuple[str, ...]
    tokens: Mapping[int, int]


class WatchedStep(Step):
    """A Step of passes without CUDA graphs; where a look is due, each layer that does not read everything is seen."""

    def __init__(self, watches: tuple[Watch, ...], *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._watches = watches
        self._seen: dict[Watch, Seen] = {}
        self._first = 0  # planned row

    def begin(self, requests: torch.Tensor, lengths: torch.Tensor, live: int | None = None) -> None:
        super().begin(requests, lengths, live)
        self._seen, self._requests = {}, requests
        for watch in self._watches:
            watch.rest()

    def plan_decode(self, rows: int | None = None) -> None:
        due = [watch for watch in self._watches if watch.due and not watch.broken]
        for watch in due:
            watch.begin()
        super().plan_decode(rows)
        if due:
            self._first = 0 if rows is None else len(self.lengths) - rows
            tokens, slots = self.lengths[self._first :].tolist(), self._requests[self._first :].tolist()
            for watch in due:
                names, looked = watch.names(slots), watch.some(len(tokens))
                mine = {row: tokens[row] for row in looked}
                self._seen[watch] = Seen(tuple(names[row] for row in looked), mine)

    def attend(
        self, layer: int, q: torch.Tensor, out: torch.Tensor, scale: float, loc: torch.Tensor | None = None
    ) -> None:
        super().attend(layer, q, out, scale, loc)
        if self._layers[layer].dense:
            return
        for watch, seen in self._seen.items():
            if not watch.broken:
                try:
                    watch.look(self, seen, layer, q, scale)
                except RuntimeError as error:  # such as no memory for the keys of a long request
                    watch.stop(error)

    def pages(self, tokens: int) -> int:
        """Of a request, in units of what is selected."""
        return -(-tokens // self._decode.spec.block_size)

    def candidates(self, n: int) -> range:
        """The pages that are read by score alone, of ``n``."""
        budget = self._decode.budget
        assert budget is not None
        return self._decode.library.manifest.cap.candidates(budget, n)

    def which(self, rows: Iterable[int]) -> list[Which]:
        """The pages of each of these planned rows that the layer which has just attended read."""
        pages, counts, mine = self._decode.pages, self._decode.counts, list(rows)
        assert pages is not None and counts is not None
        # to the host at once: each row by itself would wait for the device
        return [listed(*row) for row in zip(pages[mine].cpu(), counts[mine].cpu(), strict=True)]

    def mass(self, layer: int, q: torch.Tensor, scale: float, row: int, tokens: int) -> torch.Tensor:
        """Dense attention's on each page of a planned row, of its ``q`` ``[Hq, D]``: f32 ``[Hkv, G, n]``."""
        weights = self._weights(layer, q, scale, self.table[self._first + row], tokens)
        return by_page(weights, self._decode.spec.block_size)

    def _weights(self, layer: int, q: torch.Tensor, scale: float, table: torch.Tensor, tokens: int) -> torch.Tensor:
        """Dense attention's of one request's ``q`` ``[Hq, D]``: f32 ``[Hkv, G, tokens]``."""
        k = self._layers[layer].k
        asked = q.float().view(k.shape[1], -1, q.shape[-1]) * self._layers[layer].k_scale
        pages = table[: -(-tokens // self._page)].long()
        parts = []
        for first in range(0, len(pages), PAGES_AT_ONCE):
            keys = k[pages[first : first + PAGES_AT_ONCE]].float().transpose(0, 1).flatten(1, 2)
            parts.append(asked @ keys.transpose(1, 2))
        return (torch.cat(parts, -1)[..., :tokens] * scale).softmax(-1)
