"""A report as one HTML file that needs no network and nothing beside it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from html import escape
from importlib.resources import files
from typing import Any

from vortex.report.model import Compilation, Report

SCRIPTS = ("lines.js", "diff.js", "kin.js", "panes.js", "sections.js", "page.js", "keys.js")
"""In order: each knows those in front of it."""


def html(report: Report) -> str:
    """The page of ``report``."""
    ours = files("vortex.report")
    script = '"use strict";\n' + "\n".join(ours.joinpath(name).read_text("utf-8") for name in SCRIPTS)
    names = " beside ".join(f"{c.name} ({c.form})" for c in report.compilations)
    return (
        ours.joinpath("page.html")
        .read_text("utf-8")
        .format(
            hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            title=escape(f"vortex report: {names}"),
            style=ours.joinpath("page.css").read_text("utf-8"),
            summary="\n".join(line for n, c in enumerate(report.compilations) for line in _summary(report, n, c)),
            workload=escape(f"Bytes and times are those of {report.compilations[0].workload}"),
            drawings="\n".join(_drawings(report)),
            data=_packed(report),
            script=script,
        )
    )


def _summary(report: Report, n: int, c: Compilation) -> Iterator[str]:
    letter = f"{'AB'[n]} " if len(report.compilations) > 1 else ""
    yield f"<h1>{escape(letter + c.name)}</h1>"
    yield f'<div class="verdict">{"".join(f"<p>{escape(told)}</p>" for told in c.verdict)}</div><dl>'
    facts = {
        "command": c.command or "not kept",
        c.form: c.path,
        "status": f"{c.status}{f': {c.error}' if c.error else ''}",
        "versions": ", ".join(f"{name} {version}" for name, version in c.versions.items()) or "not kept",
        "identity": ", ".join(f"{name} {digest}" for name, digest in c.identity.items()) or "not known",
        "seconds": ", ".join(f"{name} {s:.2f}" for name, s in c.seconds.items()),
        "source": ", ".join(s.name + (f" (not shown: {s.why_not})" if s.why_not else "") for s in c.sources),
    }
    for name, told in facts.items():
        if told:
            shown = f"<code>{escape(told)}</code>" if name in ("command", c.form) else escape(told)
            yield f"<dt>{escape(name)}</dt><dd>{shown}</dd>"
    yield "</dl>"


def _drawings(report: Report) -> Iterator[str]:
    for n, c in enumerate(report.compilations):
        for d in c.drawings:
            title = f"{'AB'[n]} {d.title}" if len(report.compilations) > 1 else d.title
            yield f'<div class="drawing" data-c="{n}" data-title="{escape(title)}">{d.svg}</div>'
    if not any(c.drawings for c in report.compilations):
        yield '<p class="quiet">There is no page program: the compilation did not come that far.</p>'


def _packed(report: Report) -> str:
    """The report in gzip and base64; each line of all texts, and each set of places, is in it once."""
    lines: dict[str, int] = {}
    kin: dict[tuple[int, ...], int] = {(): 0}

    def ids(text: Sequence[str]) -> list[int]:
        return [lines.setdefault(line, len(lines)) for line in text]

    found: dict[str, Any] = asdict(report)
    for c in found["compilations"]:
        del c["drawings"]  # they stand in the page itself
        for s in c["sources"]:
            s["ids"] = ids(s.pop("lines"))
        for t in c["texts"]:
            t["lines"] = _steps(ids(t["lines"]))
            t["places"] = _steps([kin.setdefault(tuple(p), len(kin)) for p in t["places"]])
    packed = {"report": found, "lines": list(lines), "kin": list(kin)}
    text = json.dumps(packed, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def _steps(numbers: Sequence[int]) -> list[int]:
    """Differences of neighbours: those of lines that follow each other are all 1, which packs to nothing."""
    return [b - a for a, b in zip([0, *numbers], numbers, strict=False)]
