"""Measure a bundle's candidates on this machine: torch, apache-tvm-ffi and vortex are all it needs.

    python -m vortex.tune.measure out.vxb -o results.jsonl [--minutes 3]

Each candidate runs in a worker process that may crash or hang without ending the run, and is checked against the
oracle before it is timed. Results are written as they come; a second run skips what the file has already.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any

from vortex.errors import BAD_OPTION, CANNOT_MEASURE, VortexError
from vortex.tune.bundle import Bundle, Candidate, read_bundle
from vortex.tune.exchange import read_bytes, read_lines
from vortex.tune.record import Key, MachineKey, Measure, Record, Sample
from vortex.tune.shapes import Shape
from vortex.tune.worker import Task, main

Told = Callable[[str], None]

START_SECONDS = 180.0
"""For a worker to import torch, find the device and fill its memory."""


@dataclass
class Session:
    """One run of measurements; ``keep`` is given each record as it is made."""

    bundle: Bundle
    keep: Callable[[Record], None]
    told: Told = lambda text: None
    seconds: float = 600.0
    """From when a worker is there."""
    timeout: float = 30.0
    rounds: int = 5
    known: set[str] = field(default_factory=set)
    """Ids that need no measurement any more."""
    page_size: int = 16
    machine: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._began = time.time()
        self._run = secrets.token_hex(4)
        self._proven: set[int] = set()
        self._worker: _Process | None = None

    def run(self) -> dict[str, int]:
        """Measure all there is time for; how many records ended how.

        Raises:
            VortexError: VX8009 when the device is not there.
        """
        try:
            self._start()
            self._began = time.time()  # a worker imports torch for as long as it takes
            self._build_failures()
            tasks = list(self._tasks())
            for i, (kind, flow, shape, todo) in enumerate(tasks):
                took = time.time() - self._began
                if took > self.seconds:
                    self.told(f"time is up; {len(tasks) - i} of {len(tasks)} kernels and shapes are not measured")
                    break
                if i:
                    left = min(took / i * (len(tasks) - i), self.seconds - took)
                    self.told(f"measured {i} of {len(tasks)} kernels and shapes, about {left:.0f} s left")
                self._measure(kind, flow, shape, todo)
        finally:
            self._stop()
        return self.counts

    def _tasks(self) -> Iterator[tuple[str, str, Shape, list[int]]]:
        """Every kernel at every shape whose bucket was not measured yet."""
        done: set[tuple[str, str, object]] = set()
        for shape in self.bundle.shapes:
            groups: dict[tuple[str, str, str], list[int]] = {}
            for i, c in enumerate(self.bundle.candidates):
                if c.symbol:
                    groups.setdefault((c.kind, c.flow, c.ir), []).append(i)
            for (kind, flow, ir), members in groups.items():
                bucket = shape.bucket(kind, self.page_size)
                if (kind, ir, bucket) in done:
                    continue
                done.add((kind, ir, bucket))
                todo = [i for i in members if self._record(i, shape, self._policy, _FAILED).id not in self.known]
                if todo:
                    yield kind, flow, shape, todo

    @property
    def _policy(self) -> Measure:
        return Measure("wall", "none") if self.bundle.target == "cpu" else Measure("cudagraph", "cold")

    def _measure(self, kind: str, flow: str, shape: Shape, todo: list[int]) -> None:
        """One task, begun anew without the candidate that a worker died of."""
        began, total, first = time.time(), len(todo), self.bundle.candidates[todo[0]]
        best: tuple[bool, float, int] | None = None
        while todo:
            worker = self._worker or self._start()
            deadline = self._began + self.seconds
            size = (shape.batch, shape.kv_heads, shape.tokens, shape.kept)
            default = next(i for i, c in enumerate(self.bundle.candidates) if c.ir == first.ir)
            worker.send(Task(kind, flow, size, tuple(todo), self.rounds, frozenset(self._proven), deadline, default))
            current, limit = -1, START_SECONDS
            while True:
                said = worker.listen(limit)
                if isinstance(said, str):
                    self._stop()
                    if current < 0:
                        self.told(f"{kind} at {shape}: no memory for it, or no device ({said})")
                        return
                    self._fail(current, shape, said, f"the worker ended while it ran: {said}")
                    todo = [i for i in todo if i != current]
                    break
                what, i, data = said
                limit = self.timeout if what != "stage" else START_SECONDS
                if what in ("begin", "round"):
                    current = i
                elif what == "proven":
                    self._proven.add(i)
                elif what in ("wrong", "launch"):
                    self._fail(i, shape, what, data)
                    todo = [x for x in todo if x != i]
                elif what == "times":
                    todo = [x for x in todo if x != i]
                    sample = self._keep_times(i, shape, data)
                    if sample.us is not None and sample.us[0] > 0:  # as 'vortex db best' and a compilation choose
                        made = sample.noisy, sample.us[1], i
                        best = min(best, made) if best else made
                elif what == "end":
                    todo = []
                    break
        took = time.time() - began
        if best is not None:
            noisy, us, i = best
            config = " ".join(f"{k}={v}" for k, v in self.bundle.candidates[i].config.items())
            unsteady = ", unsteady" if noisy else ""
            self.told(
                f"{kind} of {flow} at {shape}: {total} candidates, best {us:.2f} us{unsteady} ({config}), {took:.0f} s"
            )

    def _build_failures(self) -> None:
        """What did not build fails at every shape."""
        for i, c in enumerate(self.bundle.candidates):
            for shape in self.bundle.shapes if c.error else ():
                if self._record(i, shape, self._policy, _FAILED).id not in self.known:
                    self._fail(i, shape, "build", c.error)

    def _fail(self, i: int, shape: Shape, status: str, why: str) -> None:
        self.told(f"{status}: {self.bundle.candidates[i].kind} {dict(self.bundle.candidates[i].config)}: {why[:160]}")
        self._put(self._record(i, shape, self._policy, Sample(status, by=self._by)))

    def _keep_times(self, i: int, shape: Shape, data: Mapping[str, tuple[float, float, float, int]]) -> Sample:
        """Keep what was measured; the sample that choices are made by."""
        made = {}
        for l2, (p10, p50, p90, n) in data.items():
            us = round(p10, 3), round(p50, 3), round(p90, 3)
            made[l2] = Sample("ok", True, us, n, self._by)
            if us[0] > 0:
                self._put(self._record(i, shape, Measure(self._policy.mode, l2), made[l2]))
        return made[self._policy.l2]

    def _put(self, record: Record) -> None:
        self.counts[record.samples[0].status] = self.counts.get(record.samples[0].status, 0) + 1
        self.known.add(record.id)
        self.keep(record)

    def _record(self, i: int, shape: Shape, measure: Measure, sample: Sample) -> Record:
        c: Candidate = self.bundle.candidates[i]
        key = Key(c.kind, c.ir, shape.bucket(c.kind, self.page_size), c.dtypes)
        env = {**self.bundle.env, "template": c.template}
        return Record.make(key, MachineKey(**self.machine["machine"]), env, measure, c.config, [sample])

    @property
    def _by(self) -> tuple[tuple[str, str], ...]:
        known = {k: str(v)[:100] for k, v in self.machine["by"].items() if v}
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return tuple(sorted({**known, "at": at, "run": self._run, "tool": "vortex.tune.measure"}.items()))

    def _start(self) -> _Process:
        self._worker = _Process(self.bundle.path)
        said = self._worker.listen(START_SECONDS)
        if isinstance(said, str) or said[0] == "refused":
            self._stop()
            said = said if isinstance(said, str) else said[2]
            hint = "a machine with the GPU, torch and apache-tvm-ffi" if self.bundle.target != "cpu" else "see above"
            raise CANNOT_MEASURE.at(why=f"no worker for {self.bundle.target} starts: {said}", hint=hint)
        self.machine = said[2]
        return self._worker

    def _stop(self) -> None:
        if self._worker is not None:
            self._worker.stop()
        self._worker = None


_FAILED = Sample("launch")


class _Process:
    """A worker and the line to it."""

    def __init__(self, path: Path) -> None:
        context: SpawnContext = multiprocessing.get_context("spawn")
        self._line: Connection
        self._line, theirs = context.Pipe()
        self._process: SpawnProcess = context.Process(target=main, args=(theirs, str(path)), daemon=True)
        self._process.start()
        theirs.close()

    def send(self, task: Task) -> None:
        self._line.send(task)

    def listen(self, seconds: float) -> tuple[str, int, Any] | str:
        """The next message; ``timeout`` when there is none in time, ``crash`` when the worker is gone."""
        try:
            if not self._line.poll(seconds):
                return "timeout"
            message: tuple[str, int, Any] = self._line.recv()
            return message
        except (EOFError, OSError):
            return "crash"

    def stop(self) -> None:
        """End it, whatever it does."""
        with contextlib.suppress(OSError):
            self._line.send(None)
        self._process.join(0.5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(10)
        self._line.close()


def measure(
    bundle: Bundle,
    out: Path,
    *,
    minutes: float = 10.0,
    timeout: float = 30.0,
    rounds: int = 5,
    told: Told = lambda text: None,
) -> dict[str, int]:
    """Measure ``bundle`` and add the records to the JSON Lines file ``out``; how many ended how.

    Raises:
        VortexError: VX8009 without the device, VX7002 when ``out`` cannot be written.
    """
    from vortex.artifact.folder import read_manifest

    known = {r.id for r in read_lines(read_bytes(out)).records} if out.exists() else set()
    flow = next((c.flow for c in bundle.candidates), None)
    if flow is None:
        return {}
    size = read_manifest(bundle.base(flow)).spec.block_size
    with out.open("a", encoding="ascii") as lines:

        def keep(record: Record) -> None:
            lines.write(record.to_line() + "\n")
            lines.flush()

        session = Session(bundle, keep, told, minutes * 60, timeout, rounds, known, size)
        return session.run()


def command(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    about = (__doc__ or "").partition("\n\nEach")[0]
    parser = argparse.ArgumentParser(
        prog="python -m vortex.tune.measure", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", metavar="BUNDLE.vxb", type=Path)
    parser.add_argument("-o", dest="out", metavar="FILE", type=Path, default=Path("results.jsonl"))
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="stop taking up shapes after this long (default: 10)"
    )
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds that one candidate may take (default: 30)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds of 3 launches each (default: 5)")
    args = parser.parse_args(argv)
    try:
        if args.rounds < 1 or args.minutes <= 0 or args.timeout <= 0:
            raise BAD_OPTION.at(option="--rounds, --minutes, --timeout", why="must be positive", hint="leave them out")
        say: Told = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
        counts = measure(
            read_bundle(args.bundle), args.out, minutes=args.minutes, timeout=args.timeout, rounds=args.rounds, told=say
        )
    except VortexError as e:
        print(e.render(), file=sys.stderr)
        return 2
    print(f"wrote {args.out}: " + (", ".join(f"{n} {s}" for s, n in sorted(counts.items())) or "nothing new"))
    return 0


if __name__ == "__main__":
    sys.exit(command())
