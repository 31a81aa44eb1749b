"""Which pages were read, as pictures: PNGs of some kilobytes that are part of a page.

A picture is rows of levels, from 0 (never) to :data:`LEVELS` (always), and has one colour that is the less transparent
the higher the level is, so that it stands on light and dark alike. Where a needle was missed stands another colour.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vortex.runtime.page_trace import PagesRead, read_page_trace

LEVELS = 35
"""A level is a digit of base 36."""
MISSED = LEVELS + 1
"""The colour of a needle that was missed."""
COLUMNS = 384
"""The most that a picture is wide; of a longer context several pages share a column."""
STEPS = 48
"""The most recorded steps, the last ones, that are shown one by one."""

_READ, _NOT = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)
"""Blue and vermilion of Okabe and Ito, which no kind of colour vision confuses."""
_FAINTEST = 70
"""Alpha of the lowest level that is drawn, of 255."""


@dataclass(slots=True)
class _Row:
    """What a layer's head read of a request.

    Attributes:
        counts: of each page that was read, in how many steps.
        held: of each page, the mass that it held in those steps, added up.
    """

    counts: Counter[int] = field(default_factory=Counter)
    held: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))
    steps: int = 0
    needles: set[int] = field(default_factory=set)

    def add(self, line: PagesRead, r: int, h: int) -> None:
        self.steps += 1
        self.counts.update(line.which[r][h])
        if line.held:
            for page, mass in zip(line.which[r][h], line.held[r][h], strict=True):
                self.held[page] += mass
        if line.needles:
            self.needles.update(p for p in line.needles[r][h] if p < line.pages[r])


@dataclass(slots=True)
class RequestPages:
    """What was read of one request."""

    pages: int = 0
    rows: dict[tuple[int, int], _Row] = field(default_factory=dict)
    """By layer and head, heads from 0."""
    by_step: dict[int, deque[tuple[int, PagesRead, int]]] = field(default_factory=dict)
    """Of each layer the last steps: number, line, and which request of the line."""

    def add(self, line: PagesRead, r: int) -> None:
        """Take in what a layer read in a step, where the request is number ``r``."""
        self.pages = max(self.pages, line.pages[r])
        for h in range(len(line.which[r])):
            self.rows.setdefault((line.layer, h), _Row()).add(line, r, h)
        self.by_step.setdefault(line.layer, deque(maxlen=STEPS)).append((line.step, line, r))


def pages_of(path: Path, requests: Collection[str]) -> dict[str, RequestPages]:
    """What was read of each of ``requests``; raises as reading the file does."""
    made = {name: RequestPages() for name in requests}
    for line in read_page_trace(path)[1]:
        if isinstance(line, PagesRead):
            for r, name in enumerate(line.requests):
                if name in made:
                    made[name].add(line, r)
    return made


@dataclass(frozen=True, slots=True)
class Picture:
    """Rows of levels, each ``columns`` wide; a column stands for ``per_column`` pages. ``needles`` are the places of
    pages that hold a needle, by row.
    """

    levels: tuple[bytes, ...]
    per_column: int
    needles: tuple[tuple[int, ...], ...] = ()

    @property
    def columns(self) -> int:
        return len(self.levels[0])

    def digits(self) -> list[str]:
        """Each row as digits of base 36, ``.`` for a needle that was missed."""
        return ["".join("0123456789abcdefghijklmnopqrstuvwxyz."[level] for level in row) for row in self.levels]

    def png(self) -> bytes:
        """The picture, a pixel for each level."""
        header = struct.pack(">IIBBBBB", self.columns, len(self.levels), 8, 3, 0, 0, 0)
        colours = bytes((*_READ * (LEVELS + 1), *_NOT))
        alphas = bytes([0, *(_FAINTEST + (255 - _FAINTEST) * n // LEVELS for n in range(1, LEVELS + 1)), 255])
        rows = zlib.compress(b"".join(b"\0" + row for row in self.levels), 9)
        parts = ((b"IHDR", header), (b"PLTE", colours), (b"tRNS", alphas), (b"IDAT", rows), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)

    def address(self) -> str:
        """The PNG as an address that needs no file."""
        return f"data:image/png;base64,{base64.b64encode(self.png()).decode()}"


def by_head(request: RequestPages, *, mass: bool = False) -> Picture:
    """A row for each layer and head: how often each page was read, or with ``mass`` the square root of what it held.
    Where several pages share a column it shows the one that was read most, and all of their mass.
    """
    per = _per_column(request)
    rows, needles = [], []
    for _, row in sorted(request.rows.items()):
        shares: defaultdict[int, float] = defaultdict(float)
        for page, held in row.held.items() if mass else ():
            shares[page // per] += held / row.steps
        for page, count in row.counts.items() if not mass else ():
            shares[page // per] = max(shares[page // per], count / row.steps)
        if mass:
            shares = defaultdict(float, {column: math.sqrt(max(0.0, x)) for column, x in shares.items()})
        missed = {p // per for p in row.needles if 2 * row.counts[p] < row.steps}
        rows.append(_levels(request, shares, () if mass else missed))
        needles.append(tuple(sorted({p // per for p in row.needles})))
    return Picture(tuple(rows), per, tuple(needles))


def by_step(request: RequestPages, layer: int) -> tuple[Picture, list[int]]:
    """A row for each of a layer's last recorded steps: by what share of the heads each page was read. And the steps."""
    per = _per_column(request)
    rows, steps = [], []
    for step, line, r in request.by_step[layer]:
        shares: defaultdict[int, float] = defaultdict(float)
        for page, count in Counter(page for which in line.which[r] for page in which).items():
            shares[page // per] = max(shares[page // per], count / len(line.which[r]))
        rows.append(_levels(request, shares))
        steps.append(step)
    return Picture(tuple(rows), per), steps


def _per_column(request: RequestPages) -> int:
    """Pages that share a column."""
    return -(-request.pages // COLUMNS)


def _levels(request: RequestPages, shares: Mapping[int, float], missed: Iterable[int] = ()) -> bytes:
    """Of each column of a request, whose ``shares`` are given; what is there at all has a level of at least 1."""
    made = bytearray(-(-request.pages // _per_column(request)))
    for column, x in shares.items():
        made[column] = min(LEVELS, math.ceil(x * LEVELS))
    for column in missed:
        made[column] = MISSED
    return bytes(made)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
