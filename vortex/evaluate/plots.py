"""Plots of an evaluation as inline SVG: answers against cost, and attention mass by layer and head."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np

from vortex.evaluate.cost import Cost
from vortex.evaluate.outcomes import BASELINES
from vortex.evaluate.statistics import Summary, Total

COLOURS, SHAPES = 6, ("circle", "square", "triangle", "diamond")
"""Of flows: the six of Okabe and Ito that are seen on white and on black, and shapes where there are more flows."""
WIDTH, LEFT, PLOT, TOP, LINE = 640, 52, 390, 14, 17
"""Pixels: the whole, left of the plot, across it, above it, and of a line of text."""
STEPS = 24
"""Colours of a heat map; ``.q0`` to ``.q23`` of report.css are made from :data:`SCALE`."""
SCALE = ((0.0, "#440154"), (0.25, "#3b528b"), (0.5, "#21918c"), (0.75, "#5ec962"), (1.0, "#fde725"))
"""Viridis: as readable without colour, for lightness rises all the way."""


@dataclass(frozen=True)
class _Point:
    x: float
    y: float
    text: str
    budget: int


def style_of(summary: Summary, rule: str) -> tuple[str, str]:
    """Class of the colour and shape of a rule's marks."""
    if rule in BASELINES:
        return "base", SHAPES[BASELINES.index(rule)]
    n = [r for r in summary.rules if r not in BASELINES].index(rule)
    return f"c{n % COLOURS}", SHAPES[n // COLOURS % len(SHAPES)]


def pareto(summary: Summary, of: Callable[[Cost], float], unit: str, title: str) -> str:
    """Answers against a cost, logarithmic; a line joins the budgets of a rule, and its name stands beside the plot."""
    lanes = [
        (t, of(t.cost))
        for t in summary.totals
        if t.cost is not None and not math.isnan(t.figures.answers) and of(t.cost)
    ]
    if not lanes:
        return ""
    low, high = _decades([c for _, c in lanes])
    rules = list(dict.fromkeys(t.lane.rule for t, _ in lanes))
    height = max(320, LINE * len(rules) + 8)

    def x(cost: float) -> float:
        return LEFT + PLOT * (math.log10(cost) - low) / (high - low)

    def y(answers: float) -> float:
        return TOP + height * (1 - answers)

    parts = [*_grid(low, high, x, y)]
    dense = next((t for t, _ in lanes if t.lane.rule == "dense"), None)
    if dense:
        at = y(dense.figures.answers)
        parts.append(f'<path class="dense" d="M{LEFT} {at:.1f}H{LEFT + PLOT}"/>')
    lines = {
        rule: [_point(t, x(c), y(t.figures.answers), c, unit) for t, c in lanes if t.lane.rule == rule]
        for rule in rules
    }
    ends = sorted(rules, key=lambda rule: (lines[rule][-1].y, lines[rule][-1].x))
    for rule, label in zip(ends, _apart([lines[r][-1].y for r in ends], TOP + height), strict=True):
        colour, shape = style_of(summary, rule)
        parts.append(_series(rule, lines[rule], label, colour, shape))
    taken = [(p.x, p.y) for points in lines.values() for p in points]
    parts += _budgets([p for points in lines.values() for p in points], taken)
    bottom = TOP + height
    return (
        f'<svg viewBox="0 0 {WIDTH} {bottom + 44}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}"
        f'<text class="axis" x="{LEFT + PLOT / 2:.0f}" y="{bottom + 38}" text-anchor="middle">{escape(title)}</text>'
        "</svg>"
    )


def _point(t: Total, x: float, y: float, cost: float, unit: str) -> _Point:
    f = t.figures
    text = f"{t.lane}: answers {f.answers:.3f}, {cost:.4g} {unit}"
    if t.lane.rule != "dense":
        text += f", {f.pairs.better} better and {f.pairs.worse} worse than dense (p = {f.pairs.p:.3f})"
    return _Point(x, y, text, t.lane.budget)


def _grid(low: float, high: float, x: Callable[[float], float], y: Callable[[float], float]) -> Iterator[str]:
    """Lines of round answers and costs; the unit of costs is in the plot's title, which stands under the axis."""
    for n in range(6):
        at = y(n / 5)
        yield f'<path class="grid" d="M{LEFT} {at:.1f}H{LEFT + PLOT}"/>'
        yield f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{n / 5:.1f}</text>'
    yield f'<text class="axis" transform="translate(13 {y(0.5):.0f}) rotate(-90)" text-anchor="middle">answers</text>'
    for cost in _ticks(low, high):
        at = x(cost)
        yield f'<path class="grid" d="M{at:.1f} {y(1):.1f}V{y(0):.1f}"/>'
        yield f'<text class="tick" x="{at:.1f}" y="{y(0) + 17:.1f}" text-anchor="middle">{cost:g}</text>'


def _ticks(low: float, high: float) -> list[float]:
    """Round costs between two powers of 10: those that begin with 1, 2 or 5 where there is room for them, decades on a
    longer axis, and equal steps on one so short that fewer than three of those lie on it.
    """
    leading = (1, 2, 5) if high - low < 3.2 else (1,)
    every = (n * 10.0**decade for decade in range(math.floor(low), math.ceil(high) + 1) for n in leading)
    ticks = [t for t in every if low - 1e-9 <= math.log10(t) <= high + 1e-9]
    if len(ticks) < 3:
        first, last = 10.0**low, 10.0**high
        rough = (last - first) / 5
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(n * unit for n in (1, 2, 5, 10) if n * unit >= rough)
        ticks = [step * n for n in range(math.ceil(first / step), math.floor(last / step) + 1)]
    return ticks


def _decades(costs: Sequence[float]) -> tuple[float, float]:
    """Ends of the axis, as powers of 10, with room beside the outer points."""
    low, high = math.log10(min(costs)), math.log10(max(costs))
    room = max(0.06 * (high - low), 0.05)
    return low - room, high + room


def _apart(wanted: Sequence[float], bottom: float) -> list[float]:
    """Heights of labels near those wanted, which rise, no two closer than a line and none below ``bottom``."""
    placed: list[float] = []
    for at in wanted:
        placed.append(max(at, placed[-1] + LINE if placed else TOP))
    limit = bottom
    for n in reversed(range(len(placed))):
        placed[n] = min(placed[n], limit)
        limit = placed[n] - LINE
    return placed


def _series(rule: str, points: Sequence[_Point], label: float, colour: str, shape: str) -> str:
    """A rule's line, marks, and its name at the right with a thin line to the last mark."""
    path = "M" + "L".join(f"{p.x:.1f} {p.y:.1f}" for p in points)
    marks = "".join(f"{_mark(shape, p.x, p.y)}<title>{escape(p.text)}</title></path>" for p in points)
    end, right = points[-1], LEFT + PLOT
    name = escape(rule if len(rule) <= 26 else f"{rule[:25]}…")
    return (
        f'<g class="{colour}"><path class="leader" d="M{end.x:.1f} {end.y:.1f}L{right + 4} {label:.1f}H{right + 10}"/>'
        f'<path class="line" d="{path}"/>{marks}{_mark(shape, right + 17, label)}</path>'
        f'<text x="{right + 27}" y="{label + 4:.1f}">{name}<title>{escape(rule)}</title></text></g>'
    )


def _mark(shape: str, x: float, y: float) -> str:
    """An open path element; its end tag is the caller's."""
    d = {
        "circle": f"M{x - 4.5:.1f} {y:.1f}a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z",
        "square": f"M{x - 4:.1f} {y - 4:.1f}h8v8h-8z",
        "triangle": f"M{x:.1f} {y - 5.2:.1f}l5 9h-10z",
        "diamond": f"M{x:.1f} {y - 5.5:.1f}l5.5 5.5l-5.5 5.5l-5.5 -5.5z",
    }[shape]
    return f'<path class="mark" d="{d}">'


def _budgets(points: Sequence[_Point], taken: list[tuple[float, float]]) -> Iterator[str]:
    """The budget beside each mark that has room for it, above or below; a mark's title tells it anyway."""
    boxes = [(x, y, 6.0, 6.0) for x, y in taken]
    for p in points:
        text = str(p.budget) if p.budget else ""
        half = 3.2 * len(text)
        for dx, dy in ((0, -13), (0, 14), (-9 - half, 0), (9 + half, 0)) if text else ():
            box = (p.x + dx, p.y + dy, half, 6.0)
            inside = box[1] > TOP + 4
            if inside and not any(
                abs(box[0] - b[0]) < box[2] + b[2] and abs(box[1] - b[1]) < box[3] + b[3] for b in boxes
            ):
                boxes.append(box)
                yield f'<text class="budget" x="{box[0]:.1f}" y="{box[1] + 3.5:.1f}" text-anchor="middle">{text}</text>'
                break


def heat_map(mass: np.ndarray, layers: Sequence[int], title: str) -> str:
    """Mass of each layer (across) and KV head (down); the numbers are in ``data-mass``, layer by layer.

    Cells of a colour are one path, so that many maps make a small page.
    """
    size, (across, down) = 14, mass.shape
    paths: dict[int, list[str]] = {}
    for (layer, head), x in np.ndenumerate(mass):
        step = -1 if math.isnan(x) else min(STEPS - 1, max(0, int(x * STEPS)))
        paths.setdefault(step, []).append(f"M{layer} {head}h1v1h-1z")
    drawn = "".join(f'<path class="q{"n" if n < 0 else n}" d="' + "".join(d) + '"/>' for n, d in sorted(paths.items()))
    numbers = " ".join("nan" if math.isnan(x) else f"{x:.2f}" for x in mass.ravel())
    return (
        f'<svg class="heat" width="{across * size}" height="{down * size}" viewBox="0 0 {across} {down}" role="img" '
        f'aria-label="{escape(title)}" data-mass="{numbers}" data-layers="{" ".join(map(str, layers))}">{drawn}</svg>'
    )


def colour(share: float) -> str:
    """Of :data:`SCALE`, as ``#rrggbb``."""
    (a, one), (b, other) = next(pair for pair in pairwise(SCALE) if share <= pair[1][0])
    w = (share - a) / (b - a)
    mixed = (round((1 - w) * int(one[i : i + 2], 16) + w * int(other[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{c:02x}" for c in mixed)
