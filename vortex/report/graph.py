"""A page program as inline SVG: kernels are frames, their sweeps bands, ops boxes that know their line of the flow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

from vortex.ir.core import Function, Module, Op
from vortex.ir.dialects import flow, page
from vortex.ir.printer import print_op
from vortex.report.layout import Box, Layout, lay_out
from vortex.report.model import Drawing
from vortex.report.places import Places, loc_of

CROWDED = 150
"""Ops of a kernel from which on only the drawing by lines is made: more are not read, and take seconds to place."""
CHARACTER = 6.7
"""Pixels of a character at the size of the labels."""
HEAD_CHARACTER = 8.3
"""The same of a kernel's head."""
MARGIN, HEAD, NODE, ACROSS = 14.0, 34.0, 36.0, 1500.0
"""Pixels: around a kernel, its head, the height of a box, and how wide kernels stand beside each other."""
MANY = 120
"""Boxes of a kernel above which sweeps become a box each."""


@dataclass(frozen=True, slots=True)
class _Node:
    """One box: an op, or several from one line of the flow."""

    ops: tuple[Op, ...]
    band: int
    label: str
    about: str
    look: str
    places: tuple[int, ...]


def draw(program: Module, target: str, places: Places) -> list[Drawing]:
    """Drawings of ``program``: op by op where that can be read, and by lines of the flow."""
    kernels = list(program.functions.values())
    title = f"{program.name}{f' for {target}' if target else ''}"
    made = []
    if max((len(f.ops) for f in kernels), default=0) <= CROWDED:
        made.append(Drawing(f"{title}, each op", _svg(program, [(f, _each(f, places)) for f in kernels])))
    made.append(Drawing(f"{title}, by lines of the flow", _svg(program, [(f, _lines(f, places)) for f in kernels])))
    return made


def _bands(f: Function) -> dict[Op, int]:
    """The sweep of each op: its own, else that of the first op that takes its result, else of what it takes."""
    users, bands = f.users(), dict[Op, int]()
    for o in reversed(f.ops):
        own = o.notes.get("pass")
        later = [bands[u] for u in users.get(o.result, ())] if o.result is not None else []
        bands[o] = own if isinstance(own, int) else min(later, default=0)
    for o in f.ops:  # no edge may lead back
        bands[o] = max([bands[o], *(bands[v.owner] for v in o.operands if v.owner in bands)])
    return bands


def _each(f: Function, places: Places) -> list[_Node]:
    bands, users = _bands(f), f.users()
    return [_Node((o,), bands[o], _name(o), _type(o), _look(o), places.all_of(loc_of(o, users))) for o in f.ops]


def _lines(f: Function, places: Places) -> list[_Node]:
    """Neighbours from one line of the flow as one box; a sweep as one where those are too many."""
    bands, users = _bands(f), f.users()

    def line(o: Op) -> tuple[object, ...]:
        return (o.loc.file, o.loc.line, bands[o]) if o.loc is not None else (_name(o), bands[o])

    # by sweeps, which no edge leads back from; within one in the order of the program
    ordered = sorted(f.ops, key=lambda o: bands[o])
    runs = [list(g) for _, g in groupby(ordered, key=line)]
    if len(runs) > MANY:
        runs = [list(g) for _, g in groupby(ordered, key=lambda o: bands[o])]
    made = []
    for ops in runs:
        placed = [o for o in ops if o.loc is not None]
        whole = len({(o.loc.file, o.loc.line) for o in placed if o.loc is not None}) == 1 and len(placed) == len(ops)
        last = ops[-1]
        if len(ops) == 1:
            label, about = _name(last), _type(last)
        else:
            calls = dict.fromkeys(o.loc.call for o in placed if o.loc is not None and o.loc.call)
            label = f"line {placed[0].loc.line} {' '.join(calls)}" if whole and placed[0].loc else f"{len(ops)} ops"
            about = ", ".join(dict.fromkeys(_short(o) for o in ops))
        looks = {_look(o) for o in ops}
        look = next((x for x in ("selection", "contraction", "reduction") if x in looks), _look(last))
        shown = about if len(about) <= 44 else f"{about[:41]}..."
        own = places.all_of(*(loc_of(o, users) for o in ops))
        made.append(_Node(tuple(ops), bands[last], label, shown, look, own))
    return made


def _name(o: Op) -> str:
    buffer = o.attrs.get("buffer")
    if isinstance(buffer, str):
        return f"{_short(o)} {buffer}"
    if isinstance(o, flow.Constant):
        return f"{o.attrs['number']:.4g}"
    return f"%{o.result.name} = {_short(o)}" if o.result is not None and o.result.name != _short(o) else _short(o)


def _short(o: Op) -> str:
    return o.name.rpartition(".")[2]


def _type(o: Op) -> str:
    return str(o.result.type) if o.result is not None else ""


def _look(o: Op) -> str:
    """The class that a box is coloured by."""
    if isinstance(o, flow.Dot | page.Attend):
        return "contraction"
    if isinstance(o, flow.Reduce) or o.crosses_pages():
        return "reduction"
    if o.role == "selection":
        return "selection"
    return "memory" if o.name.startswith("page.") else "leaf" if o.role in ("leaf", "view") else "elementwise"


def _svg(program: Module, kernels: Sequence[tuple[Function, list[_Node]]]) -> str:
    x = y = tallest = widest = 0.0
    parts: list[str] = []
    at: dict[Op, tuple[float, float]] = {}
    for f, nodes in kernels:
        boxes = [Box(_width(n), n.band, n.look in ("leaf", "memory")) for n in nodes]
        found = lay_out(boxes, _edges(nodes))
        head = _head(f, nodes)
        width = max(found.width, HEAD_CHARACTER * len(head)) + 2 * MARGIN
        height = found.height + HEAD + MARGIN
        if x and x + width > ACROSS:
            x, y, tallest = 0.0, y + tallest + 2 * MARGIN, 0.0
        parts += _kernel(f, head, nodes, boxes, found, (x, y), (width, height))
        for n, (cx, cy) in zip(nodes, found.centres, strict=True):
            at |= dict.fromkeys(n.ops, (x + MARGIN + cx, y + HEAD + cy))
        x, tallest, widest = x + width + 2 * MARGIN, max(tallest, height), max(widest, x + width)
    parts += _through_buffers(program, at)
    size = f'viewBox="-4 -4 {widest + 8:.0f} {y + tallest + 8:.0f}" width="{widest + 8:.0f}"'
    label = escape(f"kernels of {program.name}")
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _edges(nodes: Sequence[_Node]) -> list[tuple[int, int]]:
    node_of = {o: n for n, node in enumerate(nodes) for o in node.ops}
    found = {
        (node_of[v.owner], b): None
        for b, node in enumerate(nodes)
        for o in node.ops
        for v in o.operands
        if v.owner in node_of and node_of[v.owner] != b
    }
    return list(found)


def _width(n: _Node) -> float:
    return CHARACTER * max(len(n.label), len(n.about), 4) + 16


def _head(f: Function, nodes: Sequence[_Node]) -> str:
    sweeps = len({n.band for n in nodes})
    over = f", {sweeps} sweeps" if f.attrs.get("domain") == "rows" and sweeps > 1 else ""
    return f"{f.name}: for each of {f.attrs.get('domain', '?')}{over}"


def _kernel(
    f: Function, head: str, nodes: Sequence[_Node], boxes: Sequence[Box], found: Layout,
    corner: tuple[float, float], size: tuple[float, float],
) -> Iterator[str]:  # fmt: skip
    (x, y), (width, height) = corner, size
    yield f'<g class="kernel" data-kernel="{escape(f.name)}" transform="translate({x:.0f} {y:.0f})">'
    yield f'<rect class="frame" width="{width:.0f}" height="{height:.0f}" rx="8"/>'
    yield f'<text class="head" x="{MARGIN:.0f}" y="22">{escape(head)}</text>'
    if len(found.bands) > 1:
        for band, (top, bottom) in found.bands.items():
            y0, high = HEAD + top - NODE / 2 - 20, bottom - top + NODE + 24
            yield f'<rect class="band" x="4" y="{y0:.0f}" width="{width - 8:.0f}" height="{high:.0f}" rx="5"/>'
            yield f'<text class="sweep" x="10" y="{y0 + 13:.0f}">sweep {band}</text>'
    yield f'<g transform="translate({MARGIN:.0f} {HEAD:.0f})">'
    for route in found.routes.values():
        yield f'<path class="edge" d="{_curve(route)}"/>'
    for n, b, (cx, cy) in zip(nodes, boxes, found.centres, strict=True):
        place = f' data-p="{" ".join(map(str, n.places))}"' if n.places else ""
        text = escape("\n".join(print_op(o) for o in n.ops[:40]))
        yield f'<g class="op {n.look}" tabindex="-1"{place}><title>{text}</title>'
        left, top = cx - b.width / 2, cy - NODE / 2
        yield f'<rect x="{left:.1f}" y="{top:.1f}" width="{b.width:.1f}" height="{NODE:.0f}" rx="5"/>'
        yield f'<text x="{cx:.1f}" y="{cy - 2:.1f}">{escape(n.label)}</text>'
        yield f'<text class="type" x="{cx:.1f}" y="{cy + 12:.1f}">{escape(n.about)}</text></g>'
    yield "</g></g>"


def _curve(points: Sequence[tuple[float, float]]) -> str:
    (x, y), *rest = points
    y += NODE / 2
    out = [f"M{x:.0f} {y:.0f}"]
    for n, (a, b) in enumerate(rest):
        end = b - (NODE / 2 if n == len(rest) - 1 else 0)
        middle = (y + end) / 2
        out.append(f"C{x:.0f} {middle:.0f} {a:.0f} {middle:.0f} {a:.0f} {end:.0f}")
        x, y = a, end
    return "".join(out)


def _through_buffers(program: Module, at: Mapping[Op, tuple[float, float]]) -> Iterator[str]:
    """Dashed edges for what kernels leave to later ones."""
    stores: dict[str, Op] = {}
    for f in program.functions.values():
        for o in f.ops:
            buffer = o.attrs.get("buffer")
            if isinstance(o, page.Load | page.LoadSelection) and buffer in stores and stores[buffer] not in f.ops:
                (a, b), (c, d) = at[stores[buffer]], at[o]
                b, d = b + NODE / 2, d - NODE / 2
                curve = f"M{a:.0f} {b:.0f}C{a + 140:.0f} {b:.0f} {c - 140:.0f} {d:.0f} {c:.0f} {d:.0f}"
                yield f'<path class="buffer" d="{curve}"><title>{escape(str(buffer))}</title></path>'
        stores |= {str(o.attrs["buffer"]): o for o in f.ops if isinstance(o, page.Store | page.Scatter)}
