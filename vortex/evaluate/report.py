"""The report of an evaluation: one HTML file that needs no network and nothing beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from html import escape
from importlib.resources import files
from pathlib import Path

from vortex.errors import writing
from vortex.evaluate import plots
from vortex.evaluate.outcomes import BASELINES
from vortex.evaluate.statistics import Summary, Total
from vortex.evaluate.tables import Table, share, tables
from vortex.html_page import html_page


def write_html(summary: Summary, path: Path) -> None:
    """Write the report; ``docs/eval.md`` says how to read it.

    Raises:
        VortexError: VX7004 when the disk refuses.
    """
    with writing(path):
        path.write_text(html(summary), encoding="utf-8")


def html(summary: Summary) -> str:
    """The report's text. The summary's JSON is in it too, in ``<script id="summary">``."""
    flows = [r for r in summary.rules if r not in BASELINES]
    title = f"vortex eval: {', '.join(flows[:4])}{' ...' if len(flows) > 4 else ''} on {summary.settings.model}"
    ours = files("vortex.evaluate")
    colours = "".join(f".q{n}{{fill:{plots.colour(n / (plots.STEPS - 1))}}}" for n in range(plots.STEPS))
    scale = ",".join(plots.colour(n / 4) for n in range(5))
    colours += f".scale{{background:linear-gradient(90deg,{scale})}}"
    # no text of a flow may end the element or begin a comment in it
    data = json.dumps(summary.as_json(), allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        data = data.replace(sign, f"\\u{ord(sign):04x}")
    after = f'<div id="tip"></div>\n<script type="application/json" id="summary">{data}</script>'
    return html_page(
        title=title,
        style=ours.joinpath("report.css").read_text("utf-8") + colours,
        body="\n".join([*_body(summary, title), after]),
        script=ours.joinpath("report.js").read_text("utf-8"),
    )


def _body(summary: Summary, title: str) -> Iterator[str]:
    yield f"<h1>{escape(title)}</h1>"
    yield from (f"<p>{line}</p>" for line in _findings(summary))
    yield '<div class="plots">'
    for of, unit, text in (
        (lambda c: c.bytes / 1e6, "MB", "answers against bytes of a layer's step (MB)"),
        (lambda c: c.microseconds, "us", "answers against predicted time of a layer's step (us)"),
    ):
        yield f"<figure>{plots.pareto(summary, of, unit, text)}</figure>"
    yield "</div>"
    at = escape(str(summary.settings.workload))
    yield (
        f'<p class="note">Numbers beside marks are budgets: candidate pages of a KV head. Costs: {at}. '
        "The dashed line is dense attention; grey rules are baselines.</p>"
    )
    for t in tables(summary):
        yield _table(t)
    yield from _heat(summary)
    yield from _settings(summary)


def _findings(summary: Summary) -> Iterator[str]:
    """In sentences: how it was asked, what dense attention does, and the least that keeps nine answers in ten."""
    s, prompts = summary.settings, sum(t.prompts for t in summary.tasks)
    scored = [t for t in summary.tasks if t.informative]
    yield (
        f"{prompts} prompts of {len(summary.tasks)} tasks and lengths, {len(scored)} of them informative; "
        f"pages of {s.page_size} tokens, attention {escape(s.backend)} on {escape(s.device)}."
    )
    if dense := summary.total("dense"):
        yield f"Dense attention answers {share(dense.figures.answers)}."
    good = [t for t in summary.totals if not t.baseline and t.cost and t.figures.of_dense >= 0.9]
    if good:
        best = min(good, key=_bytes)
        yield (
            f"For the fewest bytes, <b>{escape(str(best.lane))}</b> keeps {share(best.figures.of_dense)} of these "
            f"answers: {_bytes(best) / 1e6:.0f} MB a layer's step."
        )
    elif any(not t.baseline and not math.isnan(t.figures.of_dense) for t in summary.totals):
        yield "No flow keeps nine in ten of these answers at these budgets."
    if summary.failures:
        yield f"{len(summary.failures)} failed: see the table at the end."


def _bytes(t: Total) -> float:
    return t.cost.bytes if t.cost else math.inf


def _table(t: Table) -> str:
    numeric = [column not in ("rule", "task", "why", "front") for column in t.head]
    long = [column == "why" for column in t.head]

    def cell(text: str, n: int) -> str:
        kind = ' class="n"' if numeric[n] else ' class="long"' if long[n] else ""
        return f"<td{kind}>{escape(text)}</td>"

    head = "".join(
        f'<th{" class=n" if n else ""}><button type="button">{escape(c)}</button></th>'
        for c, n in zip(t.head, numeric, strict=True)
    )
    rows = "".join(
        f"<tr{' class=off' if row[0] in BASELINES else ''}>{''.join(cell(c, n) for n, c in enumerate(row))}</tr>\n"
        for row in t.rows
    )
    note = f'<p class="note">{escape(t.note)}</p>' if t.note else ""
    return (
        f'<h2>{escape(t.title)}</h2>{note}<div class="scroll"><table class="sortable"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _heat(summary: Summary) -> Iterator[str]:
    """A map for each flow, oracle and recent pages, budgets side by side."""
    shown = [t for t in summary.totals if t.lane.rule not in ("dense", "random") and t.figures.mass.size]
    if not shown:
        return
    yield (
        '<h2>Attention mass by layer and head</h2><p class="note">Layers across, KV heads down: the share of dense '
        'attention\'s mass that was read, 0 <span class="scale"></span> 1. Point at a cell for its number.</p>'
    )
    budgets = sorted({t.lane.budget for t in shown})
    head = "".join(f"<th>{b} pages</th>" for b in budgets)
    yield f'<div class="scroll"><table class="heats"><thead><tr><th>rule</th>{head}</tr></thead><tbody>'
    for rule in dict.fromkeys(t.lane.rule for t in shown):
        cells = {t.lane.budget: _map(summary, t) for t in shown if t.lane.rule == rule}
        maps = "".join(f"<td>{cells.get(b, '')}</td>" for b in budgets)
        yield f"<tr><td>{escape(rule)}</td>{maps}</tr>"
    yield "</tbody></table></div>"


def _map(summary: Summary, t: Total) -> str:
    layers = [summary.layer(n) for n in range(t.figures.mass.shape[0])]
    row, head, least = t.figures.worst
    told = f"mean {share(t.figures.mean_mass)}, worst {share(least)} (layer {summary.layer(row)}, head {head})"
    return f"{plots.heat_map(t.figures.mass, layers, f'{t.lane}: {told}')}<span class=note>{told}</span>"


def _settings(summary: Summary) -> Iterator[str]:
    s = asdict(summary.settings)
    versions = s.pop("versions")
    s["workload"] = str(summary.settings.workload)
    s["layers"] = ", ".join(map(str, summary.settings.layers)) or "all"
    yield "<h2>Settings</h2><dl>"
    for name, value in s.items():
        shown = f"<code>{escape(str(value))}</code>" if name == "command" else escape(str(value))
        yield f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{shown}</dd>"
    told = ", ".join(f"{name} {version or 'none'}" for name, version in versions.items())
    yield f"<dt>versions</dt><dd>{escape(told)}</dd></dl>"
