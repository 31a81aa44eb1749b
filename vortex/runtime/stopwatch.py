"""The time of each kernel, measured around its launches where that is asked for."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import replace

import torch

from vortex.runtime.library import Kernel, Library


class Stopwatch:
    """A library whose kernels are timed while ``on`` is true.

    On a CPU a launch returns when its kernel has run. On a GPU a pair of events stands around each launch, so that a
    kernel's time has some microseconds of its launch, and kernels that would overlap do not.

    Attributes:
        library: for decoders whose kernels are to be timed; the one that was given stays as it is.
    """

    def __init__(self, library: Library) -> None:
        self.on = False
        self._events = library.device.kind == "cuda"
        self._pairs: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds: defaultdict[str, float] = defaultdict(float)
        names = {k.symbol: k.name for k in library.target.kernels}
        timed = {s: self._timed(names[s], f) if s in names else f for s, f in library.functions.items()}
        self.library = replace(library, functions=timed)

    def read(self) -> dict[str, float]:
        """Seconds of each kernel that ran since the last call, in the order of first launches; on a GPU this waits for
        them.
        """
        for name, begin, end in self._pairs:
            end.synchronize()
            self._seconds[name] += begin.elapsed_time(end) / 1e3
        made = dict(self._seconds)
        self._pairs.clear()
        self._seconds.clear()
        return made

    def _timed(self, name: str, function: Kernel) -> Kernel:
        def run(*arguments: object) -> object:
            if not self.on:
                return function(*arguments)
            if self._events:
                begin, end = _event(), _event()
                begin.record()
                made = function(*arguments)
                end.record()
                self._pairs.append((name, begin, end))
                return made
            start = time.perf_counter()
            made = function(*arguments)
            self._seconds[name] += time.perf_counter() - start
            return made

        return run


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
