"""Tuning on this machine: candidates are built and measured in turns, so that any budget leaves something measured.

The first turn has the default of each kernel and the point that the model thinks best; each further one has up to
twice as many, neighbours of the best so far among them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from math import inf

from vortex.errors import CANNOT_MEASURE
from vortex.targets.target import Target
from vortex.tune.build import Told as Built
from vortex.tune.measure import Session
from vortex.tune.measure import Told as Said
from vortex.tune.record import Record
from vortex.tune.tuner import Tuner

FIRST = 2
"""Candidates of a kernel in the first turn."""
LEAST = 10.0
"""Seconds that the first turn is measured for, however long its building took."""
TIMEOUT = 60.0
"""Seconds that one candidate may take."""

Building = Callable[[str], AbstractContextManager[Built]]
"""What shows how far a turn is built, under a title."""


def require_device(target: Target) -> None:
    """VX8009 where a GPU's target does not run: it is said before anything is built."""
    from vortex.runtime.device import why_not_here

    if target.kind == "cuda" and (where := why_not_here(target.name)):
        hint = "build here with --bundle out.vxb, and measure on the machine with the GPU, as 'vortex tune --help' says"
        raise CANNOT_MEASURE.at(why=f"candidates for {target.name} run on no device here: {where}", hint=hint)


def tune_here(
    tuner: Tuner, keep: Callable[[Record], object], building: Building, said: Said, seconds: float, rounds: int
) -> list[Record]:
    """All records of about ``seconds`` of tuning, each given to ``keep`` as it is made.

    The first turn is built and measured in any case. After it nothing is begun to be built that there would be no time
    to measure, going by what the turn before took.

    Raises:
        VortexError: what building and measuring raise.
    """
    end = time.monotonic() + seconds
    made: list[Record] = []

    def kept(record: Record) -> None:
        made.append(record)
        keep(record)

    most, until, measuring = FIRST, inf, LEAST
    while time.monotonic() < until:
        before = len(made)
        left = max(0.0, end - time.monotonic())
        with building(f"building candidates for {tuner.target.name}, {left:.0f} s of the budget left") as told:
            bundle = tuner.bundle(told, min(most, tuner.most), until)
        start = time.monotonic()
        known, page = {r.id for r in made}, tuner.spec.block_size
        Session(bundle, kept, said, max(end - start, measuring), TIMEOUT, rounds, known, page).run()
        if len(made) == before:
            break
        took = time.monotonic() - start
        most, until, measuring = 2 * most, end - took, 0.0
        tuner.known = list(made)
    return made
