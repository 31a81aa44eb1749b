"""The figures of a page trace: of each layer and KV head, of each request, and what recording cost."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from vortex.runtime.page_trace import Ended, PagesRead, Recorded, StepTimes, read_page_trace

SCHEMA = 1
"""Of :meth:`Figures.as_json`; docs/trace.md has the table."""
DIGITS = 6


@dataclass(frozen=True, slots=True)
class HeadFigures:
    """Of one layer and KV head, or with ``head`` None of one layer, over its rows: requests in recorded steps. NaN
    stands where there is nothing to tell.

    Attributes:
        rows: how many there are; ``partial`` those where pages were left out.
        read: pages that were read of pages.
        again: pages that the same request, layer and head read in the recorded step before, too, of those read.
        mass, best: the share of attention mass that was read, and the most that as many pages hold, over partial rows.
        needles: pages that hold a needle and were read, of those that hold one.
        complete: rows that read all needles, of rows with needles.
    """

    layer: int
    head: int | None
    rows: int
    partial: int
    read: float
    again: float
    mass: float
    best: float
    needles: float
    complete: float

    def as_json(self) -> dict[str, object]:
        """With six digits, None for NaN; of a layer without ``head``, of a head without ``layer``."""
        left_out = "head" if self.head is None else "layer"
        made = {n: getattr(self, n) for n in self.__slots__ if n != left_out}
        return {n: number(x) if isinstance(x, float) else x for n, x in made.items()}


class _Rows:
    """Sums over rows, and what each is a sum of."""

    def __init__(self) -> None:
        self.rows = self.partial = 0
        self._sums: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def add(self, line: PagesRead, r: int, h: int, before: frozenset[int] | None) -> None:
        """Take in what head ``h`` read of request ``r``, and what it had read in the step before."""
        which, n = line.which[r][h], line.pages[r]
        self.rows += 1
        self._add("read", len(which), n)
        if before is not None:
            self._add("again", sum(p in before for p in which), len(which))
        if len(which) < n:
            self.partial += 1
            if line.mass and line.best:
                self._add("mass", line.mass[r][h])
                self._add("best", line.best[r][h])
        if line.needles and (needles := line.needles[r][h]):
            found = len(set(needles).intersection(which))
            self._add("needles", found, len(needles))
            self._add("complete", found == len(needles))

    def figures(self, layer: int, head: int | None) -> HeadFigures:
        """The means."""
        means = {n: total / many if many else math.nan for n, (total, many) in self._sums.items()}
        names = ("read", "again", "mass", "best", "needles", "complete")
        return HeadFigures(layer, head, self.rows, self.partial, *(means.get(n, math.nan) for n in names))

    def _add(self, name: str, x: float, of: float = 1.0) -> None:
        total = self._sums[name]
        total[0] += x
        total[1] += of


@dataclass(slots=True)
class RequestFigures:
    """One request: its tokens and pages in the last step that was recorded of it, and how many such steps there are."""

    name: str
    tokens: int = 0
    pages: int = 0
    steps: int = 0


@dataclass(frozen=True, slots=True)
class Figures:
    """All of a trace.

    Attributes:
        layers: in order; ``heads`` those of each layer, with the model's numbers of the heads.
        requests: as they came.
        steps: recorded steps.
        kernels: median seconds of each kernel over the recorded steps in which it ran, all layers together.
        recorded, unrecorded: median seconds of steps with and without recording; NaN where they were not measured.
        ended: why recording stopped before the program did; empty where it did not.
    """

    trace: Recorded
    layers: tuple[HeadFigures, ...]
    heads: Mapping[int, tuple[HeadFigures, ...]]
    requests: tuple[RequestFigures, ...]
    steps: int
    kernels: Mapping[str, float]
    recorded: float
    unrecorded: float
    ended: str

    @property
    def overhead(self) -> float:
        """What recording adds to a step, as a share of a step without it; NaN where that is not known."""
        return self.recorded / self.unrecorded - 1 if self.unrecorded else math.nan

    def cost(self) -> str:
        """In a sentence: what recording costs."""
        if math.isnan(self.recorded):
            return "What recording costs was not measured."
        if math.isnan(self.overhead):
            return f"A recorded step took {milliseconds(self.recorded)}; there is none without recording to compare."
        plain = milliseconds(self.unrecorded)
        every = "every step" if self.trace.every == 1 else f"one step in {self.trace.every}"
        return (
            f"A recorded step took {milliseconds(self.recorded)}, one without recording {plain} (medians): recording "
            f"adds {100 * self.overhead:.0f} % to {every}."
        )

    def as_json(self) -> dict[str, object]:
        """Plain JSON: names as in docs/trace.md, six digits, None for NaN."""
        trace = {n: getattr(self.trace, n) for n in self.trace.__slots__}
        layers = []
        for mine in self.layers:
            layers.append({**mine.as_json(), "heads": [h.as_json() for h in self.heads[mine.layer]]})
        return {
            "schema": SCHEMA,
            "trace": trace | {"dense_layers": list(self.trace.dense_layers)},
            "steps": self.steps,
            "requests": [{n: getattr(r, n) for n in r.__slots__} for r in self.requests],
            "layers": layers,
            "kernels": {name: number(x) for name, x in self.kernels.items()},
            "step_seconds": {"recorded": number(self.recorded), "unrecorded": number(self.unrecorded)},
            "overhead": number(self.overhead),
            "ended": self.ended,
        }


def figures_of(path: Path) -> Figures:
    """Those of a file.

    Raises:
        VortexError: as :func:`vortex.runtime.page_trace.read_page_trace` says.
    """
    trace, lines = read_page_trace(path)
    rows: defaultdict[tuple[int, int | None], _Rows] = defaultdict(_Rows)  # by layer and head, None for all of them
    requests: dict[str, RequestFigures] = {}
    before: dict[tuple[str, int, int], frozenset[int]] = {}
    seen: dict[str, int] = {}  # the last step of a request
    steps, times, ended = set[int](), list[StepTimes](), ""
    for line in lines:
        if isinstance(line, StepTimes):
            times.append(line)
            continue
        if isinstance(line, Ended):
            ended = line.ended
            continue
        steps.add(line.step)
        for r, name in enumerate(line.requests):
            mine = requests.setdefault(name, RequestFigures(name))
            if seen.get(name) != line.step:
                seen[name] = line.step
                mine.tokens, mine.pages, mine.steps = line.tokens[r], line.pages[r], mine.steps + 1
            for h, which in enumerate(line.which[r]):
                at = (name, line.layer, h)
                for head in (None, trace.first_head + h):
                    rows[line.layer, head].add(line, r, h, before.get(at))
                before[at] = frozenset(which)
    made = [x.figures(layer, head) for (layer, head), x in rows.items()]
    layers = sorted((x for x in made if x.head is None), key=lambda x: x.layer)
    heads = {x.layer: tuple(h for h in made if h.layer == x.layer and h.head is not None) for x in layers}
    kernels = defaultdict[str, list[float]](list)
    for step in times:
        for name, x in step.kernels.items():
            kernels[name].append(x)
    return Figures(
        trace,
        tuple(layers),
        heads,
        tuple(requests.values()),
        len(steps),
        {name: median(x) for name, x in kernels.items()},
        _median(t.recorded for t in times),
        _median(t.unrecorded for t in times if t.unrecorded is not None),
        ended,
    )


def milliseconds(seconds: float) -> str:
    """With three digits, as ``0.214 ms``."""
    x = 1e3 * seconds
    return f"{x:.{max(0, 2 - math.floor(math.log10(x))) if x > 0 else 0}f} ms"


def number(x: float) -> float | None:
    """With six digits; None for NaN."""
    return None if math.isnan(x) else float(f"{x:.{DIGITS}g}")


def _median(numbers: Iterable[float]) -> float:
    listed = list(numbers)
    return median(listed) if listed else math.nan
