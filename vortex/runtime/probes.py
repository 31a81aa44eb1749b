"""Probes of decode steps: what asks for them, the lines that an engine writes, and what to make of them.

The first line says what was served, each other one what a layer read in one step. JSON, a line each; names are stable,
new ones may be added, and ``vortex_probe`` grows when one goes or changes its meaning. docs/sglang.md has the table.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from vortex.errors import BAD_PROBE, NOT_A_PROBE
from vortex.runtime.json_lines import read_json_lines
from vortex.runtime.wanted import Watched, read_wanted
from vortex.untrusted_json import JsonError, Length, Partial, Range, parse, read

SCHEMA = 1

DIFFUSE = 0.8
"""A layer is diffuse where the best choice of as many pages holds less than this share of its mass, mean over heads."""
MISSED = 0.03
"""A flow scores a layer badly where what it read holds this much less than as many pages could, mean over heads."""

FINE = "fine"
"""What is said of a layer that is neither."""

VARIABLE = "VORTEX_PROBE"

Share = Annotated[float, Range(-1e-3, 1.001)]
Heads = Annotated[tuple[Share, ...], Length(1, 1 << 12)]
Requests = Annotated[tuple[Heads, ...], Length(0, 1 << 16)]
Count = Annotated[int, Range(0, 2**31 - 1)]
Counts = Annotated[tuple[Annotated[tuple[Count, ...], Length(1, 1 << 12)], ...], Length(0, 1 << 16)]


@dataclass(frozen=True, slots=True)
class Wanted(Watched):
    """What the variable asks for: with ``pages`` their numbers too."""

    pages: bool = False

    @classmethod
    def read(cls, text: str | None = None) -> Wanted | None:
        """From ``text``, by default the environment's; None where that is empty. VX9010 for what cannot be read, and
        for a file that cannot be written.
        """
        found = read_wanted(text, VARIABLE, BAD_PROBE, {"pages": "pages"})
        return None if found is None else cls(found.file, found.every, "pages" in found.more)


@dataclass(frozen=True, slots=True)
class LayerRead:
    """What one layer read in one decode step; lists have an entry for each request, and in it one for each KV head.

    Attributes:
        step: which decode step of the process, from 1.
        requests: what the engine calls them.
        tokens, pages: of each request, in this step.
        read: pages that were read.
        mass: the share of dense attention's mass on them, mean over the query heads that share a KV head.
        best: the most of it that any so many pages hold, among them the first and last ones that are always read.
        reserved: what of it lies on those.
        which: the pages themselves, ascending, where they were asked for.
    """

    step: Count
    layer: Annotated[int, Range(0, 1 << 16)]
    requests: Annotated[tuple[Annotated[str, Length(0, 4096)], ...], Length(0, 1 << 16)]
    tokens: Annotated[tuple[Count, ...], Length(0, 1 << 16)]
    pages: Annotated[tuple[Count, ...], Length(0, 1 << 16)]
    read: Counts
    mass: Requests
    best: Requests
    reserved: Requests
    which: Annotated[tuple[tuple[Annotated[tuple[Count, ...], Length(0, 1 << 22)], ...], ...], Length(0, 1 << 16)] = ()

    def line(self) -> str:
        """As the file has it."""
        made = asdict(self)
        if not self.which:
            del made["which"]
        return json.dumps(made, separators=(",", ":")) + "\n"


@dataclass(frozen=True, slots=True)
class Served:
    """The file's first line, but for ``vortex_probe``: what ran. ``first_head`` is the model's number of the file's
    first KV head, on tensor-parallel ranks; ``block_size`` the tokens of what the lines call pages.
    """

    flow: str
    layers: Annotated[int, Range(1, 1 << 16)]
    dense_layers: Annotated[tuple[Count, ...], Length(0, 1 << 16)]
    page_size: Count
    block_size: Count
    budget_pages: Count
    budget_tokens: Count
    every: Count
    first_head: Count = 0


def head_line(facts: Mapping[str, Any], every: int, first_head: int) -> str:
    """The first line, of what ``vortex.runtime.sglang.about`` says is served."""
    return json.dumps({"vortex_probe": SCHEMA, **facts, "every": every, "first_head": first_head}) + "\n"


def read_probe(path: Path) -> tuple[Served, Iterator[LayerRead]]:
    """What was served, and the lines as they come. An engine that still runs may have written half of the last one,
    which is left out.

    Raises:
        VortexError: VX7002 for a file that cannot be read, VX9011 for one that is no probe, on the way as well.
    """
    served, lines = read_json_lines(path, "vortex_probe", SCHEMA, Served, NOT_A_PROBE)
    return served, _layers(path, lines)


def _layers(path: Path, lines: Iterable[str]) -> Iterator[LayerRead]:
    for number, line in enumerate(lines, 2):
        try:
            made = read(Annotated[LayerRead, Partial(more=True)], parse(line))
        except JsonError as error:
            raise NOT_A_PROBE.at(path=str(path), why=f"line {number}: {error}") from None
        sizes = {len(x) for x in (made.requests, made.tokens, made.pages, made.read, made.mass, made.best)}
        heads = {len(x) for lists in (made.read, made.mass, made.best, made.reserved) for x in lists}
        if len(sizes | {len(made.reserved)}) > 1 or len(heads) > 1:
            raise NOT_A_PROBE.at(path=str(path), why=f"line {number}: its lists are not of one length")
        yield made


@dataclass(frozen=True, slots=True)
class HeadMass:
    """Of one layer and KV head, means over the rows (requests in steps) where pages were left out; ``rows`` is how many
    those are. NaN without any.
    """

    layer: int
    head: int
    rows: int
    mass: float
    best: float
    reserved: float

    @property
    def missed(self) -> float:
        """What the best choice of as many pages would have held more."""
        return self.best - self.mass


def by_head(lines: Iterable[LayerRead], first_head: int = 0) -> list[HeadMass]:
    """In the order of layers and heads. A row that read all its pages says nothing of them, and is not counted."""
    sums: dict[tuple[int, int], list[float]] = {}
    for line in lines:
        for r, pages in enumerate(line.pages):
            for h, count in enumerate(line.read[r]):
                at = sums.setdefault((line.layer, first_head + h), [0, 0.0, 0.0, 0.0])
                if count < pages:
                    for i, x in enumerate((1, line.mass[r][h], line.best[r][h], line.reserved[r][h])):
                        at[i] += x
    made = []
    for (layer, head), (rows, *total) in sorted(sums.items()):
        means = [x / rows if rows else float("nan") for x in total]
        made.append(HeadMass(layer, head, int(rows), *means))
    return made


def verdict(heads: Sequence[HeadMass]) -> str:
    """Of one layer, in a few words: what to do about it."""
    seen = [h for h in heads if h.rows]
    if not seen:
        return "all pages were read"
    return judged(sum(h.missed for h in seen) / len(seen), sum(h.best for h in seen) / len(seen))


def judged(missed: float, best: float) -> str:
    """Of a layer whose pages hold ``missed`` less of the mass than ``best``, what as many pages could: means over its
    heads.
    """
    says = []
    if missed > MISSED:
        says.append("the flow scores badly: try another")
    if best < DIFFUSE:
        says.append("diffuse: make it dense, or read more")
    return "; ".join(says) or FINE
