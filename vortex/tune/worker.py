"""The process that runs candidates: it may crash or hang, and then :mod:`vortex.tune.measure` starts another.

It says what it is about to touch before it does, so that whoever listens knows which candidate it died of. What
candidates of one shape share is made once: memory, inputs, the oracle's verdicts, opened libraries.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from vortex.errors import WRONG_DEVICE, VortexError
from vortex.tune.successive_halving import race

if TYPE_CHECKING:
    from vortex.runtime.library import Library
    from vortex.tune.bench_setup import Stage
    from vortex.tune.correctness import Judge


@dataclass(frozen=True, slots=True)
class Task:
    """Candidates of one kernel at one shape, by position in the bundle."""

    kind: str
    flow: str
    shape: tuple[int, int, int, int]
    candidates: tuple[int, ...]
    rounds: int
    proven: frozenset[int]
    """Those that agreed with the oracle before."""
    deadline: float
    """``time.time()`` at which no candidate is taken up any more and turns end."""
    default: int = -1
    """The one that is measured to the end however slow it is: what the others are compared with."""


def main(connection: Connection, path: str) -> None:
    """Serve tasks until there are no more; messages are ``(what, candidate, data)``."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    worker = _Worker(connection, Path(path))
    try:
        machine = worker.machine()
    except Exception as e:  # torch raises what it likes where a driver is missing
        connection.send(("refused", -1, e.message if isinstance(e, VortexError) else f"{type(e).__name__}: {e}"))
        return
    # torch may collect garbage before each capture of a CUDA graph: what was imported need not be looked through again
    gc.freeze()
    connection.send(("machine", -1, machine))
    while (task := connection.recv()) is not None:
        worker.run(task)
        connection.send(("end", -1, None))


class _Worker:
    def __init__(self, connection: Connection, path: Path) -> None:
        from vortex.tune.bundle import read_bundle

        self.say = connection.send
        self.bundle = read_bundle(path)
        self._stage: tuple[object, Stage | None] = (None, None)
        self._judges: dict[str, Judge] = {}
        self._opened: dict[Path, Library] = {}

    def machine(self) -> dict[str, object]:
        """Its key and provenance; VX6009 where the bundle's target does not run: a measurement says what it was of."""
        import torch

        from vortex.runtime.device import why_not_here
        from vortex.targets.target import TARGETS
        from vortex.tune.keys import machine_key

        target = TARGETS[self.bundle.target]
        if target.kind == "cpu":
            return {"machine": machine_key(target).to_json(), "by": {"gpu": "", "torch": torch.__version__}}
        if where := why_not_here(target.name):
            raise WRONG_DEVICE.at(what=f"'{self.bundle.path}'", target=target.name, where=where)
        about = torch.cuda.get_device_properties(torch.cuda.current_device())
        smem = getattr(about, "shared_memory_per_block_optin", 232448)
        machine = {"arch": target.arch, "sms": about.multi_processor_count, "smem": int(smem)}
        return {"machine": machine, "by": {"gpu": about.name, "torch": torch.__version__}}

    def run(self, task: Task) -> None:
        self.say(("stage", -1, None))
        base = self._open(self.bundle.base(task.flow))
        stage = self._stage_of(task, base)
        runs: dict[int, _Run] = {}
        for i in task.candidates:
            if time.time() > task.deadline:
                break
            self.say(("begin", i, None))
            try:
                library = self._with(base, i)
                why = "" if i in task.proven else self._judge(task.flow, base).wrong(task.kind, library)
                call = stage.call(task.kind, stage.decoder(library))
                if why := why or stage.wrong(task.kind, call):
                    self.say(("wrong", i, why))
                    continue
                self.say(("proven", i, None))
                runs[i] = _Run(stage, call)
            except Exception as e:
                self.say(("launch", i, f"{type(e).__name__}: {str(e)[:300]}"))
                stage.synchronize()  # a broken context raises here, and another worker goes on
        race(runs, lambda i: self.say(("round", i, None)), task.default, task.rounds, task.deadline)
        for i, run in runs.items():
            if run.cold:
                self.say(("times", i, {name: _percentiles(x) for name, x in run.times.items()}))

    def _open(self, path: Path) -> Library:
        from vortex.runtime.library import open_library

        if path not in self._opened:
            self._opened[path] = open_library(path, self.bundle.target)
        return self._opened[path]

    def _with(self, base: Library, i: int) -> Library:
        """``base`` with the kernel of candidate ``i``."""
        from vortex.tune.bench_setup import with_kernel

        c = self.bundle.candidates[i]
        found = self._open(self.bundle.path / c.artifact)
        kernel = next(k for k in found.target.kernels if k.symbol == c.symbol)
        return with_kernel(base, kernel, found.functions[c.symbol])

    def _stage_of(self, task: Task, base: Library) -> Stage:
        from vortex.tune.bench_setup import Stage
        from vortex.tune.shapes import Shape

        at = task.flow, task.shape
        if self._stage[0] != at or self._stage[1] is None:
            self._stage = (None, None)  # the old one's memory is free before the new one takes its own
            self._stage = at, Stage(base, Shape(*task.shape))
        assert self._stage[1] is not None
        return self._stage[1]

    def _judge(self, flow: str, base: Library) -> Judge:
        from vortex.tune.correctness import Judge

        if flow not in self._judges:
            self._judges[flow] = Judge(self.bundle, flow, base)
        return self._judges[flow]


class _Run:
    """A candidate that is being timed: microseconds of each launch by what the L2 cache held."""

    def __init__(self, stage: Stage, call: Callable[[int], None]) -> None:
        self._stage, self._call = stage, call
        self._policy = "cold" if stage.cuda else "none"
        self._timers = {self._policy: stage.timer(call, tuple(range(stage.layers)))}
        self.times: dict[str, list[float]] = {}

    @property
    def cold(self) -> list[float]:
        """The times that choices are made by."""
        return self.times.setdefault(self._policy, [])

    def turn(self, *, warm: bool) -> None:
        """Run once; with a ``warm`` cache too where there is one to speak of."""
        if warm and self._stage.cuda and "warm" not in self._timers:
            self._timers["warm"] = self._stage.timer(self._call, (0,) * self._stage.layers)
        for name, once in self._timers.items():
            self.times.setdefault(name, []).append(once())


def _percentiles(times: Sequence[float]) -> tuple[float, float, float, int]:
    """10th, 50th and 90th, and how many there are."""
    order = sorted(times)
    at = [order[min(len(order) - 1, round(q * (len(order) - 1)))] for q in (0.1, 0.9)]
    return at[0], statistics.median_low(order), at[1], len(order)
