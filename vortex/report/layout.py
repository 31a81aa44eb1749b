"""A layered drawing of a directed acyclic graph: every edge goes down, and long ones go around what lies between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

ROUNDS = 6
"""Of ordering layers by their neighbours; more change little."""
GAP, ROW = 18.0, 58.0
"""Pixels between neighbours of a layer, and from a layer to the next."""
BEND = 6.0
"""Width that an edge takes in a layer that it goes through."""
BAND = 22.0
"""Pixels above the first layer of a band."""


@dataclass(frozen=True, slots=True)
class Box:
    """What is to be placed: its width in pixels, and the band that it belongs to; edges never lead to a lower band."""

    width: float
    band: int = 0
    late: bool = False
    """Whether it stands as close to what takes it as it can: constants and loads."""


@dataclass(slots=True)
class Layout:
    """Centres of boxes and the points that edges go through, in pixels from the upper left corner."""

    centres: list[tuple[float, float]]
    routes: dict[tuple[int, int], list[tuple[float, float]]]
    width: float
    height: float
    bands: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Upper and lower edge of each band."""


def lay_out(boxes: Sequence[Box], edges: Sequence[tuple[int, int]]) -> Layout:
    """Place ``boxes``, which stand in an order in which all ``edges`` lead forward."""
    layer = _layers(boxes, edges)
    widths = [b.width for b in boxes]
    chains: dict[tuple[int, int], list[int]] = {}
    links: list[tuple[int, int]] = []
    for a, b in dict.fromkeys(edges):
        chain = [a]
        for between in range(layer[a] + 1, layer[b]):
            widths.append(BEND)
            layer.append(between)
            chain.append(len(widths) - 1)
        chain.append(b)
        chains[a, b] = chain
        links += pairwise(chain)
    rows: list[list[int]] = [[] for _ in range(max(layer, default=0) + 1)]
    for n, at in enumerate(layer):
        rows[at].append(n)
    _order(rows, links)
    x = _columns(rows, links, widths)
    tops = _tops(boxes, layer, len(rows))
    centres = [(x[n], tops[layer[n]]) for n in range(len(widths))]
    width = max((x[n] + widths[n] / 2 for n in range(len(widths))), default=0.0)
    height = tops[-1] + ROW / 2 if tops else 0.0
    bands: dict[int, tuple[float, float]] = {}
    for box, row in zip(boxes, layer, strict=False):  # layer goes on with what edges go through
        low, high = bands.get(box.band, (tops[row], tops[row]))
        bands[box.band] = (min(low, tops[row]), max(high, tops[row]))
    routes = {edge: [centres[n] for n in chain] for edge, chain in chains.items()}
    return Layout(centres[: len(boxes)], routes, width, height, bands)


def _layers(boxes: Sequence[Box], edges: Sequence[tuple[int, int]]) -> list[int]:
    """The row of each box: below all that it takes, and below all boxes of lower bands."""
    takes: dict[int, list[int]] = {}
    for a, b in edges:
        takes.setdefault(b, []).append(a)
    layer, base = [0] * len(boxes), 0
    for band in sorted({b.band for b in boxes}):
        members = [n for n, b in enumerate(boxes) if b.band == band]
        for n in members:
            layer[n] = max([base, *(layer[m] + 1 for m in takes.get(n, ()))])
        base = max(layer[n] for n in members) + 1
    users: dict[int, list[int]] = {}
    for a, b in edges:
        users.setdefault(a, []).append(b)
    for n in reversed(range(len(boxes))):
        beside = [layer[m] for m in users.get(n, ()) if boxes[m].band == boxes[n].band]
        if boxes[n].late and not takes.get(n) and beside:
            layer[n] = max(layer[n], min(beside) - 1)
    return layer


def _order(rows: list[list[int]], links: Sequence[tuple[int, int]]) -> None:
    """Sort each row by the mean position of its neighbours, downwards and upwards in turn."""
    above, below = _neighbours(links)
    at = {n: i for row in rows for i, n in enumerate(row)}
    for turn in range(ROUNDS):
        near = above if turn % 2 == 0 else below
        for row in rows if turn % 2 == 0 else reversed(rows):
            mean = {n: sum(at[m] for m in near[n]) / len(near[n]) if near.get(n) else float(at[n]) for n in row}
            row.sort(key=lambda n: mean[n])
            at |= {n: i for i, n in enumerate(row)}


def _columns(rows: list[list[int]], links: Sequence[tuple[int, int]], widths: Sequence[float]) -> dict[int, float]:
    """The centre of each box in its row: near its neighbours, and clear of those beside it."""
    above, below = _neighbours(links)
    x: dict[int, float] = {}
    for row in rows:
        right = 0.0
        for n in row:
            x[n] = right + widths[n] / 2
            right += widths[n] + GAP
    for _ in range(ROUNDS):
        for row in rows:
            wanted = {}
            for n in row:
                near = [x[m] for m in (*above.get(n, ()), *below.get(n, ()))]
                wanted[n] = sum(near) / len(near) if near else x[n]
            x |= _apart(row, wanted, widths)
    left = min((x[n] - widths[n] / 2 for n in x), default=0.0)
    return {n: at - left for n, at in x.items()}


def _apart(row: Sequence[int], wanted: Mapping[int, float], widths: Sequence[float]) -> dict[int, float]:
    """The wanted centres, moved apart as little as keeps the order: the mean of both ways to push."""
    forward, backward = dict(wanted), dict(wanted)
    for a, b in pairwise(row):
        forward[b] = max(forward[b], forward[a] + (widths[a] + widths[b]) / 2 + GAP)
    for b, a in pairwise(reversed(row)):
        backward[a] = min(backward[a], backward[b] - (widths[a] + widths[b]) / 2 - GAP)
    return {n: (forward[n] + backward[n]) / 2 for n in row}


def _neighbours(links: Sequence[tuple[int, int]]) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    above: dict[int, list[int]] = {}
    below: dict[int, list[int]] = {}
    for a, b in links:
        above.setdefault(b, []).append(a)
        below.setdefault(a, []).append(b)
    return above, below


def _tops(boxes: Sequence[Box], layer: Sequence[int], rows: int) -> list[float]:
    """The height of each layer, with room for the name of a band above its first."""
    first: dict[int, int] = {}
    for n, b in enumerate(boxes):
        first[b.band] = min(first.get(b.band, rows), layer[n])
    starts = set(first.values()) if len(first) > 1 else set()
    y, tops = ROW / 2, []
    for row in range(rows):
        y += BAND if row in starts else 0.0
        tops.append(y)
        y += ROW
    return tops
