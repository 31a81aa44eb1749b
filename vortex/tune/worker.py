"""The process that runs candidates: it may crash or hang, and then :mod:`vortex.tune.measure` starts another.

It says what it is about to touch before it does, so that whoever listens knows which candidate it died of.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

QUICK = 3
"""Launches of the first look at a candidate."""

HOPELESS = 1.25
"""A candidate this many times slower than the best so far is not measured further."""

CHECK_TOKENS = (5, 200, 1000, 6000)
"""Requests of the check against the oracle: short ones, and one of several work items."""
CHECK_HEADS, CHECK_PAGES = 2, 8


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
    """``time.time()`` at which rounds end."""


def main(connection: Connection, path: str) -> None:
    """Serve tasks until there are no more; messages are ``(what, candidate, data)``."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    worker = _Worker(connection, Path(path))
    connection.send(("machine", -1, worker.machine()))
    while (task := connection.recv()) is not None:
        worker.run(task)
        connection.send(("end", -1, None))


class _Worker:
    def __init__(self, connection: Connection, path: Path) -> None:
        from vortex.tune.bundle import read_bundle

        self.say = connection.send
        self.bundle = read_bundle(path)
        self._stage: tuple[object, object] = (None, None)
        self._oracles: dict[str, object] = {}

    def machine(self) -> dict[str, object]:
        """Silicon and provenance."""
        import torch

        from vortex.target import TARGETS
        from vortex.tune.silicon import silicon_of

        target = TARGETS[self.bundle.target]
        if target.kind == "cpu":
            return {"silicon": silicon_of(target).to_json(), "by": {"gpu": "", "torch": torch.__version__}}
        about = torch.cuda.get_device_properties(0)
        smem = getattr(about, "shared_memory_per_block_optin", 232448)
        silicon = {"arch": target.arch, "sms": about.multi_processor_count, "smem": int(smem)}
        return {"silicon": silicon, "by": {"gpu": about.name, "torch": torch.__version__}}

    def run(self, task: Task) -> None:
        from vortex.runtime.library import open_library
        from vortex.tune.shapes import Shape
        from vortex.tune.stage import Stage, with_kernel

        self.say(("stage", -1, None))
        base = open_library(self.bundle.base(task.flow), self.bundle.target)
        at = task.flow, task.shape
        if self._stage[0] != at:
            self._stage = (None, None)  # the old one's memory is free before the new one takes its own
            self._stage = at, Stage(base, Shape(*task.shape))
        stage = self._stage[1]
        assert isinstance(stage, Stage)
        timers: dict[int, dict[str, Callable[[], float]]] = {}
        times: dict[int, dict[str, list[float]]] = {}
        for i in task.candidates:
            c = self.bundle.candidates[i]
            self.say(("begin", i, None))
            try:
                found = open_library(self.bundle.path / c.artifact, self.bundle.target)
                kernel = next(k for k in found.target.kernels if k.symbol == c.symbol)
                library = with_kernel(base, kernel, found.functions[c.symbol])
                why = "" if i in task.proven else self._against_oracle(task.flow, library)
                call = stage.call(task.kind, stage.decoder(library))
                why = why or stage.wrong(task.kind, call)
                if why:
                    self.say(("wrong", i, why))
                    continue
                self.say(("proven", i, None))
                every = tuple(range(stage.layers))
                timers[i] = {"cold" if stage.cuda else "none": stage.timer(call, every)}
                if stage.cuda:
                    timers[i]["warm"] = stage.timer(call, (0,) * stage.layers)
                times[i] = {name: [once() for _ in range(QUICK)] for name, once in timers[i].items()}
                self.say(("quick", i, {name: min(t) for name, t in times[i].items()}))
            except Exception as e:
                self.say(("launch", i, f"{type(e).__name__}: {str(e)[:300]}"))
                stage.synchronize()  # a broken context raises here, and another worker goes on
        self._rounds(task, timers, times)

    def _rounds(
        self, task: Task, timers: dict[int, dict[str, Callable[[], float]]], times: dict[int, dict[str, list[float]]]
    ) -> None:
        """Candidates in turn, again and again: what drifts, drifts for all."""
        if not timers:
            return
        first = {i: min(next(iter(t.values()))) for i, t in times.items()}
        best = min(first.values())
        near = [i for i in timers if first[i] <= HOPELESS * best]
        for turn in range(task.rounds):
            if turn and time.time() > task.deadline:
                break
            for i in near:
                self.say(("round", i, None))
                for name, once in timers[i].items():
                    if not turn:
                        times[i][name].clear()  # the quick look may have been at a cold clock
                    times[i][name] += [once() for _ in range(3)]
        for i, t in times.items():
            self.say(("times", i, {name: _percentiles(x) for name, x in t.items()}))

    def _against_oracle(self, flow: str, library: object) -> str:
        """What differs from the flow's own IR, interpreted, on a few small requests."""
        from vortex.budget import Budget
        from vortex.runtime.decoder import Decoder
        from vortex.runtime.library import Library
        from vortex.trial import Trial

        assert isinstance(library, Library)
        decoder = Decoder(library, budget=Budget(CHECK_PAGES))
        spec = decoder.spec
        heads = 1 if spec.kv_lora_rank else CHECK_HEADS
        trial = Trial(decoder, heads, sum(-(-(n + 2) // spec.page_size) for n in CHECK_TOKENS), seed=1)
        for r, n in enumerate(CHECK_TOKENS):
            trial.join(f"r{r}", n)
        trial.step()
        reference = self._oracle(flow)
        for name in trial.requests:
            seen = trial.check(name, reference)  # type: ignore[arg-type]
            if seen.differing or not seen.error <= TOLERANCE[spec.dtype]:
                return f"request of {seen.length} tokens: error {seen.error:.1e}, {seen.differing} other pages"
        return ""

    def _oracle(self, flow: str) -> object:
        """The flow's IR interpreted; the trials are all the same, so each request is judged once."""
        if flow not in self._oracles:
            from vortex.artifact import read_file, read_manifest
            from vortex.ir.parser import parse_module
            from vortex.reference import interpreted

            path = self.bundle.base(flow)
            manifest = read_manifest(path)
            name = next(n for n in manifest.files if n.endswith(".flow"))
            judge = interpreted(parse_module(read_file(path, manifest, name).decode()), manifest.spec)
            known: dict[tuple[object, ...], object] = {}

            def remembered(q, k, v, budget):  # type: ignore[no-untyped-def]
                at = len(k), float(q.double().sum()), float(k.double().sum())
                if at not in known:
                    known[at] = judge(q, k, v, budget)
                return known[at]

            self._oracles[flow] = remembered
        return self._oracles[flow]


TOLERANCE = {"bf16": 2e-2, "f16": 4e-3, "f32": 1e-4}
"""Largest difference from the oracle, where values are about 1."""


def _percentiles(times: Sequence[float]) -> tuple[float, float, float, int]:
    """10th, 50th and 90th, and how many there are."""
    order = sorted(times)
    at = [order[min(len(order) - 1, round(q * (len(order) - 1)))] for q in (0.1, 0.9)]
    return at[0], statistics.median_low(order), at[1], len(order)
