"""Page traces: in every n-th decode step, which pages were read, and what the step and its kernels took (VORTEX_TRACE).

    VORTEX_TRACE=trace.jsonl                       every 100th step
    VORTEX_TRACE=trace.jsonl:every 20 steps        or :20
    VORTEX_TRACE=trace.jsonl:20:mass:8 MB          with attention mass, which reads all keys; up to 8 MB

A step's time is from its beginning to that of the next one, so no step waits for the device because it is timed; what
else a recorded step costs, ``watch`` says.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable
from statistics import median

import torch

from vortex.runtime.library import Library
from vortex.runtime.page_trace import SERVER, VARIABLE, Line, PagesRead, Recorded, StepTimes, Wanted, Writer
from vortex.runtime.pages_read import mass_read
from vortex.runtime.sglang.about import About
from vortex.runtime.sglang.watch import Seen, Watch, WatchedStep
from vortex.runtime.stopwatch import Stopwatch

MOST_OTHERS = 1000
"""Steps without recording whose times are kept for their median."""

logger = logging.getLogger(__name__)


class PageTrace(Watch):
    """The page trace of one process.

    Attributes:
        library: for steps without graphs; its kernels are timed in the steps that are recorded.
    """

    what, variable = "pages", VARIABLE

    def __init__(
        self, wanted: Wanted, about: About, library: Library, kv_heads: int, rank: int = 0, first_head: int = 0
    ) -> None:
        super().__init__(wanted.every)
        self._stopwatch = Stopwatch(library)
        self.library = self._stopwatch.library
        self._begun = self._recorded = False  # whether this step is recorded, and whether the last one was
        self._began: float | None = None  # when the last one began
        self._kernels: dict[str, float] = {}  # what those of the last recorded one took
        self._others: deque[float] = deque(maxlen=MOST_OTHERS)
        self._mass, path = wanted.mass, wanted.of_rank(rank)
        recorded = Recorded(
            source=SERVER,
            flow=about.flow,
            target=about.target,
            page_size=about.page_size,
            block_size=about.block_size,
            budget_pages=about.pages,
            budget_tokens=about.tokens,
            layers=about.layers,
            kv_heads=kv_heads,
            dense_layers=about.dense_layers,
            first_head=first_head,
            every=wanted.every,
            mass=wanted.mass,
        )
        try:
            self._writer = Writer(path, recorded, wanted.limit)
        except OSError as error:
            self.stop(f"'{path}' cannot be written: {error.strerror}")
        logger.info("vortex: pages of every %d-th decode step, without CUDA graphs, go to %s", self.every, path)

    def begin(self) -> None:
        self._begun = self._stopwatch.on = True

    def rest(self) -> None:
        if self._stopwatch.on:
            self._stopwatch.on, self._kernels = False, self._stopwatch.read()

    def count(self) -> None:
        super().count()
        now, began = time.perf_counter(), self._began
        if self._recorded and began is not None and not self.broken:
            if not self._begun:
                self.rest()  # a pass that replays a graph does not rest
            without = median(self._others) if self._others else None
            self._others.clear()
            self._add([StepTimes(self.steps - 1, now - began, without, self._kernels)])
        elif began is not None:
            self._others.append(now - began)
        self._began, self._recorded, self._begun = now, self._begun, False

    def look(self, step: WatchedStep, seen: Seen, layer: int, q: torch.Tensor, scale: float) -> None:
        which, found = step.which(seen.tokens), []
        for mine, (row, tokens) in zip(which, seen.tokens.items(), strict=True) if self._mass else ():
            mass = step.mass(layer, q[row], scale, row, tokens)
            found.append(mass_read(mass, mine, step.candidates(step.pages(tokens))))
        line = PagesRead(
            self.steps,
            layer,
            seen.names,
            tuple(seen.tokens.values()),
            tuple(step.pages(tokens) for tokens in seen.tokens.values()),
            tuple(which),
            tuple(x.mass for x in found),
            tuple(x.best for x in found),
            tuple(x.held for x in found),
        )
        self._add([line])

    def _add(self, lines: Iterable[Line]) -> None:
        try:
            self._writer.add(lines)
        except OSError as error:
            self.stop(f"'{self._writer.path}' cannot be written: {error.strerror}")
        if self._writer.full:
            self.stop(f"'{self._writer.path}' has {self._writer.limit} MB, its limit")
