"""Page traces: the pages that each layer and KV head read in decode steps, as ``vortex run``, ``vortex eval`` and an
engine record them, and as ``vortex trace`` reads them.

A file of JSON, a line each. The first line says what ran, each other one what a layer read in one step, what the step
took, or why the recording ended. Names are stable, new ones may be added, and ``vortex_trace`` grows when one goes or
changes its meaning. docs/trace.md has the tables.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypeVar

from vortex.errors import BAD_PAGE_TRACE, NOT_A_PAGE_TRACE
from vortex.runtime.json_lines import read_json_lines
from vortex.runtime.wanted import Watched, read_wanted
from vortex.untrusted_json import JsonError, Length, Partial, Range, parse, read

SCHEMA = 1

VARIABLE = "VORTEX_TRACE"

SERVER = "SGLang"
"""The ``source`` of what an engine recorded."""

LIMIT = 32
"""Megabytes of a file, where nothing else is said; what is recorded after them is left out."""

Share = Annotated[float, Range(-1e-3, 1.001)]
Seconds = Annotated[float, Range(0, 1e9)]
Count = Annotated[int, Range(0, 2**31 - 1)]
Layer = Annotated[int, Range(0, 1 << 16)]
Text = Annotated[str, Length(0, 4096)]

T = TypeVar("T")
Pages = Annotated[tuple[T, ...], Length(0, 1 << 22)]
Heads = Annotated[tuple[T, ...], Length(1, 1 << 12)]
Requests = Annotated[tuple[T, ...], Length(0, 1 << 16)]


@dataclass(frozen=True, slots=True)
class Wanted(Watched):
    """What the variable asks of an engine: with ``mass`` attention mass too, in a file of up to ``limit`` megabytes."""

    mass: bool = False
    limit: int = LIMIT

    @classmethod
    def read(cls, text: str | None = None) -> Wanted | None:
        """From ``text``, by default the environment's; None where that is empty. VX9015 for what cannot be read, and
        for a file that cannot be written.
        """
        found = read_wanted(text, VARIABLE, BAD_PAGE_TRACE, {"mass": "mass", "N MB": "([1-9][0-9]{0,5}) ?MB"})
        if found is None:
            return None
        limit = int(found.more["N MB"][1]) if "N MB" in found.more else LIMIT
        return cls(found.file, found.every, "mass" in found.more, limit)


@dataclass(frozen=True, slots=True)
class Recorded:
    """The file's first line, but for ``vortex_trace``: what ran.

    Attributes:
        source: what recorded it: ``vortex run``, ``vortex eval`` or ``SGLang``.
        target: whose kernels ran; ``eager`` for the flow's own torch code.
        page_size: tokens of the engine's pages; ``block_size`` those of what the lines call pages.
        budget_pages: the most that a KV head reads of a long context, reserved ones included; ``budget_tokens`` their
            tokens. A ratio, or budgets of requests' own, may make them more.
        layers: how many the model has, those in ``dense_layers`` included, of which nothing is recorded.
        kv_heads: of this process; ``first_head`` is the model's number of the first one.
        every: how many steps lie from one recorded step to the next.
        mass: whether attention mass was recorded.
    """

    source: Text
    flow: Text
    target: Text
    page_size: Count
    block_size: Annotated[int, Range(1, 2**31 - 1)]
    budget_pages: Count
    budget_tokens: Count
    layers: Annotated[int, Range(1, 1 << 16)]
    kv_heads: Annotated[int, Range(1, 1 << 12)]
    dense_layers: Requests[Count] = ()
    first_head: Count = 0
    every: Count = 1
    mass: bool = False

    def line(self) -> str:
        """As the file has it."""
        return _line({"vortex_trace": SCHEMA, **asdict(self)})


@dataclass(frozen=True, slots=True)
class PagesRead:
    """What one layer read in one step; lists have an entry for each request, and in it one for each KV head.

    Attributes:
        step: which decode step, from 1.
        tokens, pages: of each request, in this step.
        which: the pages that were read, ascending.
        mass: the share of dense attention's mass on them, mean over the query heads of the KV head.
        best: the most of it that any so many pages hold, among them those that are always read.
        held: of each page in ``which``, its share of the mass.
        needles: the pages that must be read to answer, where that is known.
    """

    step: Count
    layer: Layer
    requests: Requests[Text]
    tokens: Requests[Count]
    pages: Requests[Annotated[int, Range(1, 2**31 - 1)]]
    which: Requests[Heads[Pages[Count]]]
    mass: Requests[Heads[Share]] = ()
    best: Requests[Heads[Share]] = ()
    held: Requests[Heads[Pages[Share]]] = ()
    needles: Requests[Heads[Pages[Count]]] = ()

    def line(self) -> str:
        """As the file has it: without lists that nothing was recorded in."""
        made = asdict(self)
        return _line({name: x for name, x in made.items() if x != () or name in ("requests", "tokens", "pages")})

    def whole(self) -> str:
        """What is wrong with the lists of a line that was read; empty for nothing."""
        by_head: list[Sequence[Sequence[object]]] = [self.which, self.mass, self.best, self.held, self.needles]
        by_head = [self.which, *(lists for lists in by_head[1:] if lists)]
        requests = {len(self.requests), len(self.tokens), len(self.pages), *map(len, by_head)}
        if len(requests) > 1 or len({len(x) for lists in by_head for x in lists}) > 1:
            return "its lists are not of one length"
        for r, n in enumerate(self.pages):
            for h, mine in enumerate(self.which[r]):
                if any(a >= b for a, b in pairwise(mine)) or (mine and mine[-1] >= n):
                    return f"pages of request {r}, head {h} are not ascending numbers below {n}"
                if self.held and len(self.held[r][h]) != len(mine):
                    return "its lists are not of one length"
        return ""


@dataclass(frozen=True, slots=True)
class StepTimes:
    """What a recorded step took.

    Attributes:
        recorded: its seconds, recording included.
        unrecorded: the median of those of the steps without recording since the last recorded one; None for none.
        kernels: seconds of each kernel in the recorded step, all layers together, where they were measured.
    """

    step: Count
    recorded: Seconds
    unrecorded: Seconds | None = None
    kernels: Annotated[Mapping[str, Seconds], Length(0, 4096)] = field(default_factory=dict)

    def line(self) -> str:
        """As the file has it."""
        kernels = {name: _short(x) for name, x in self.kernels.items()}
        without = None if self.unrecorded is None else _short(self.unrecorded)
        return _line({"step": self.step, "recorded": _short(self.recorded), "unrecorded": without, "kernels": kernels})


@dataclass(frozen=True, slots=True)
class Ended:
    """Why nothing more was recorded."""

    ended: Text

    def line(self) -> str:
        """As the file has it."""
        return _line({"ended": self.ended})


Line = PagesRead | StepTimes | Ended


class Writer:
    """Writes one file, anew, up to ``limit`` megabytes.

    Raises:
        OSError: from every method, where the file cannot be written.
    """

    def __init__(self, path: Path, recorded: Recorded, limit: int = LIMIT) -> None:
        self.path, self.recorded, self.limit = path, recorded, limit
        self._left = limit * 1_000_000
        self.full = False
        self._write(recorded.line(), "w")

    def add(self, lines: Iterable[Line]) -> None:
        """Write ``lines``. Where they are more than the limit leaves room for, none of them is, and a last line says
        so: ``full`` is true from then on.
        """
        if self.full:
            return
        text = "".join(line.line() for line in lines)
        self._left -= len(text)
        if self._left < 0:
            self.full = True
            text = Ended(f"the limit of {self.limit} MB was reached").line()
        self._write(text, "a")

    def _write(self, text: str, mode: str) -> None:
        # opened anew each time: who moves the file away or removes it is no reason to write into nothing
        with self.path.open(mode, encoding="utf-8") as file:
            file.write(text)


def read_page_trace(path: Path) -> tuple[Recorded, Iterator[Line]]:
    """What ran, and the lines as they come. A program that still runs may have written half of the last one, which is
    left out.

    Raises:
        VortexError: VX7002 for a file that cannot be read, VX9016 for one that is no page trace, on the way as well.
    """
    recorded, lines = read_json_lines(path, "vortex_trace", SCHEMA, Recorded, NOT_A_PAGE_TRACE)
    return recorded, _lines(path, recorded, lines)


def _lines(path: Path, recorded: Recorded, lines: Iterable[str]) -> Iterator[Line]:
    for number, text in enumerate(lines, 2):
        try:
            found = parse(text)
            kind = _kind(found)
            made: Line = read(Annotated[kind, Partial(more=True)], found)
            why = made.whole() if isinstance(made, PagesRead) else ""
            if isinstance(made, PagesRead) and any(len(x) != recorded.kv_heads for x in made.which):
                why = f"it has not {recorded.kv_heads} KV heads, as line 1 says"
        except JsonError as error:
            why = str(error)
        if why:
            raise NOT_A_PAGE_TRACE.at(path=str(path), why=f"line {number}: {why}")
        yield made


def _kind(found: object) -> Any:
    keys = found if isinstance(found, dict) else {}
    return Ended if "ended" in keys else StepTimes if "recorded" in keys else PagesRead


def _line(value: object) -> str:
    return json.dumps(value, separators=(",", ":")) + "\n"


def _short(seconds: float) -> float:
    """To a tenth of a microsecond."""
    return round(seconds, 7)
