"""Probes: in every n-th decode step, what mass of dense attention the pages hold that were read (VORTEX_PROBE).

    VORTEX_PROBE=probe.jsonl                       every 100th step
    VORTEX_PROBE=probe.jsonl:every 20 steps        or :20
    VORTEX_PROBE=probe.jsonl:20:pages              with the numbers of the pages

A probed step reads all keys of its requests in plain torch, and takes as long as dense attention in torch does; what
else it costs, ``watch`` says.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from vortex.runtime.mass import read_mass
from vortex.runtime.pages_read import DIGITS, mass_read, reserved
from vortex.runtime.probes import VARIABLE, LayerRead, Wanted, head_line
from vortex.runtime.sglang.about import About
from vortex.runtime.sglang.watch import Seen, Watch, WatchedStep

logger = logging.getLogger(__name__)


class Probe(Watch):
    """The probes of one process; with ``pages`` the numbers of pages are written too."""

    what, variable = "probes", VARIABLE

    def __init__(self, wanted: Wanted, about: About, rank: int = 0, first_head: int = 0) -> None:
        super().__init__(wanted.every)
        self._path, self.pages = wanted.of_rank(rank), wanted.pages
        self._write(head_line(about.facts(), self.every, first_head), "w")
        logger.info("vortex: every %d decode steps one is probed, without CUDA graphs, to %s", self.every, self._path)

    def look(self, step: WatchedStep, seen: Seen, layer: int, q: torch.Tensor, scale: float) -> None:
        figures: dict[str, list[Any]] = {n: [] for n in ("pages", "read", "mass", "best", "reserved", "which")}
        for which, (row, tokens) in zip(step.which(seen.tokens), seen.tokens.items(), strict=True):
            mass = step.mass(layer, q[row], scale, row, tokens)
            n, heads = mass.shape[-1], len(which)
            found = mass_read(mass, which, step.candidates(n))
            always = reserved(step.candidates(n), n, mass.device).expand(heads, n)
            figures["pages"].append(n)
            figures["read"].append([len(pages) for pages in which])
            figures["mass"].append(found.mass)
            figures["best"].append(found.best)
            figures["reserved"].append([round(x, DIGITS) for x in read_mass(mass[None], always[None])[0].tolist()])
            if self.pages:
                figures["which"].append(which)
        lists = {name: tuple(x) for name, x in figures.items()}
        read = LayerRead(self.steps, layer, seen.names, tuple(seen.tokens.values()), **lists)
        self._write(read.line(), "a")

    def _write(self, text: str, mode: str) -> None:
        if self.broken:
            return
        try:
            with self._path.open(mode, encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            self.stop(f"'{self._path}' cannot be written: {error.strerror}")
