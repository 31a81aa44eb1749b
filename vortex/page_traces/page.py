"""The page of a trace: one HTML file that needs no network and nothing beside it, below 2 MB."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from vortex.errors import writing
from vortex.html_page import html_page
from vortex.page_traces.figures import Figures, RequestFigures, milliseconds
from vortex.page_traces.pictures import Picture, RequestPages, by_head, by_step, pages_of
from vortex.page_traces.tables import cells, columns, headline, note, share

REQUESTS = 4
"""The most whose pages are drawn, those with the most recorded steps; figures are of all."""
ROOM = 1_500_000
"""Characters of pictures after which no other request is drawn."""

WIDTH, LEFT, TOP, BOTTOM, RIGHT = 960, 60, 4, 34, 20
"""Pixels: of a picture, and around it."""
LINE = 13
"""Pixels between two labels of rows, at least."""


def write_html(trace: Path, figures: Figures, path: Path) -> None:
    """Write the page of ``trace``, whose ``figures`` are known.

    Raises:
        VortexError: VX7004 when the disk refuses; as reading the trace does.
    """
    chosen = sorted(figures.requests, key=lambda r: (-r.steps, -r.pages))[:REQUESTS]
    text = html(figures, pages_of(trace, [r.name for r in chosen]), chosen)
    with writing(path):
        path.write_text(text, encoding="utf-8")


def html(figures: Figures, pages: dict[str, RequestPages], chosen: Sequence[RequestFigures]) -> str:
    """The page's text, with pictures of the requests that were ``chosen``."""
    ours = files("vortex.page_traces")
    return html_page(
        title=f"vortex trace: {figures.trace.flow}",
        style=ours.joinpath("page.css").read_text("utf-8"),
        body="\n".join(_body(figures, pages, chosen)),
        script=ours.joinpath("page.js").read_text("utf-8"),
    )


def _body(figures: Figures, pages: dict[str, RequestPages], chosen: Sequence[RequestFigures]) -> Iterator[str]:
    yield f"<h1>Pages read by <b>{escape(figures.trace.flow)}</b></h1>"
    yield f"<p>{escape(headline(figures))}.</p>"
    yield f"<p>{escape(figures.cost())}</p>"
    if figures.ended:
        yield f"<p><b>Recording ended early: {escape(figures.ended)}.</b></p>"
    if not figures.layers:
        yield "<p>No step was recorded yet.</p>"
        return
    drawn: list[str] = []
    for request in chosen:
        if sum(map(len, drawn)) < ROOM:
            drawn.append("\n".join(_request(figures, request, pages[request.name])))
    if len(drawn) < len(figures.requests):
        first = "One request is" if len(drawn) == 1 else f"{len(drawn)} requests are"
        yield f'<p class="note">{first} drawn of {len(figures.requests)}: those with the most recorded steps.</p>'
    yield from drawn
    yield from _layers(figures)
    if figures.kernels:
        yield from _kernels(figures)


def _request(figures: Figures, request: RequestFigures, pages: RequestPages) -> Iterator[str]:
    name, trace = request.name, figures.trace
    yield (
        f'<section><h2>Request {escape(name)}</h2><p class="note">{request.tokens} tokens, {request.pages} pages of '
        f"{trace.block_size}, {request.steps} recorded steps</p>"
    )
    heads = [(layer, trace.first_head + h) for layer, h in sorted(pages.rows)]
    layers = [(at, f"{layer}") for at, (layer, _) in enumerate(heads) if at == 0 or heads[at - 1][0] != layer]
    names = " ".join(f"{layer}.{head}" for layer, head in heads)
    picture = by_head(pages)
    title = "How often each page was read: layers and their KV heads downwards, positions to the right"
    yield _figure(picture, title, layers, trace.block_size, names=names, needles=True)
    if trace.mass:
        title = "The attention mass of the pages that were read, as its square root"
        yield _figure(by_head(pages, mass=True), title, layers, trace.block_size, names=names)
    yield "<details><summary>Step by step, layer by layer</summary>"
    for layer in sorted(pages.by_step):
        made, steps = by_step(pages, layer)
        labels = [(at, str(step)) for at, step in enumerate(steps)]
        title = f"Layer {layer}: what share of its KV heads read each page; steps downwards"
        yield _figure(made, title, labels, trace.block_size)
    yield "</details></section>"


def _figure(
    picture: Picture,
    title: str,
    labels: Sequence[tuple[int, str]],
    page: int,
    *,
    names: str = "",
    needles: bool = False,
) -> str:
    """A picture with its axes: ``labels`` of rows, positions in tokens, ``page`` of them a page. With ``names`` of its
    rows it can be asked for what stands under the pointer, or under a cursor that the arrow keys move. Those with
    ``needles`` show how often pages were read, the others mass.
    """
    rows = len(picture.levels)
    height = max(min(14 * rows, 480), 3 * rows, 14)
    asked = ""
    if names:
        kind = "read" if needles else "mass"
        places = ";".join(",".join(map(str, row)) for row in picture.needles) if needles else ""
        asked = (
            f' tabindex="0" data-kind="{kind}" data-rows="{names}" data-levels="{" ".join(picture.digits())}"'
            f' data-per="{picture.per_column}" data-page="{page}" data-needles="{places}"'
        )
    box = f"{LEFT + WIDTH + RIGHT} {TOP + height + BOTTOM}"
    parts = [
        f'<image x="{LEFT}" y="{TOP}" width="{WIDTH}" height="{height}" preserveAspectRatio="none" '
        f'href="{picture.address()}"/>',
        f'<path class="frame" d="M{LEFT} {TOP}h{WIDTH}v{height}h-{WIDTH}z"/>',
        *_rows(labels, height / rows),
        *_positions(picture, page, height),
    ]
    legend = ""
    if names:
        parts.append('<rect class="cursor" width="0" height="0"/>')
        missed = '<span class="missed"></span> a needle, missed in most steps' if any(picture.needles) else ""
        legend = f'<span class="legend"><span class="scale"></span> never to always {missed}</span>' if needles else ""
    return (
        f'<figure><figcaption>{escape(title)} {legend}</figcaption><svg class="map" viewBox="0 0 {box}" role="img" '
        f'aria-label="{escape(title)}"{asked}>{"".join(parts)}</svg>'
        f"{'<output></output>' if names else ''}</figure>"
    )


def _rows(labels: Sequence[tuple[int, str]], height: float) -> Iterator[str]:
    """A label beside each row that has one and is not too near to the last, and a line above it."""
    last = float(-LINE)
    for at, text in labels:
        y = TOP + at * height
        yield f'<path class="frame" d="M{LEFT - 4} {y:.1f}h{WIDTH + 4}"/>'
        if y - last >= LINE or height >= LINE:
            last = y
            middle = y + min(height, LINE) / 2 + 4
            yield f'<text x="{LEFT - 6}" y="{middle:.1f}" text-anchor="end">{escape(text)}</text>'


def _positions(picture: Picture, page: int, height: float) -> Iterator[str]:
    """The axis below, in tokens: marks at a page times a power of two."""
    tokens, every = picture.columns * picture.per_column * page, page
    while tokens > 12 * every:
        every *= 2
    for at in range(0, tokens + 1, every):
        x, anchor = LEFT + WIDTH * at / tokens, "middle" if at else "start"
        yield f'<text x="{x:.1f}" y="{TOP + height + 15:.1f}" text-anchor="{anchor}">{at}</text>'
    middle = LEFT + WIDTH / 2
    yield f'<text class="axis" x="{middle}" y="{TOP + height + 30:.1f}" text-anchor="middle">position in tokens</text>'


def _layers(figures: Figures) -> Iterator[str]:
    """A table of layers, with the figures of their heads beside them."""
    shown = columns(figures.layers)
    yield f'<h2>By layer</h2><p class="note">{escape(note(shown))} Of the heads of a layer the first stands first.</p>'
    head = "".join(f"<th scope=col>{escape(c.title)}</th>" for c in shown)
    by_head = "".join(f"<th scope=col>{escape(c.title)} by head</th>" for c in shown)
    yield f'<div class="scroll"><table><thead><tr><th scope=col>layer</th>{head}{by_head}</tr></thead><tbody>'
    for x in figures.layers:
        own = "".join(f"<td>{cell}</td>" for cell in cells(x, shown))
        heads = "".join(f"<td>{' '.join(share(c.of(h)) for h in figures.heads[x.layer])}</td>" for c in shown)
        yield f"<tr><th scope=row>{x.layer}</th>{own}{heads}</tr>"
    yield "</tbody></table></div>"


def _kernels(figures: Figures) -> Iterator[str]:
    total = sum(figures.kernels.values()) or 1.0
    rows = "".join(
        f"<tr><th scope=row>{escape(name)}</th><td>{milliseconds(x)}</td><td>{share(x / total)}</td></tr>"
        for name, x in figures.kernels.items()
    )
    yield (
        '<h2>By kernel</h2><p class="note">Medians over the recorded steps in which it ran, all layers '
        "together; on a GPU with some microseconds of each launch.</p>"
        f"<table><thead><tr><th scope=col>kernel</th><th scope=col>time</th><th scope=col>share</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )
