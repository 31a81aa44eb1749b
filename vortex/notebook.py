"""How flows, modules, compilations and decoders show themselves in a notebook: a small frame of HTML.

The frame has the notebook's own colours (``currentColor`` and no background), runs nothing, and has no text of a flow
in it that is not escaped.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

LINES = 200
"""The most of a text that are shown."""

FRAME = (
    "border:1px solid currentColor;border-radius:4px;padding:.4em .8em;"
    "display:inline-block;max-width:100%;box-sizing:border-box"
)
CELL = "text-align:left;vertical-align:top;padding:.1em 1em .1em 0;border:0;background:none;color:inherit"
TEXT = "background:none;color:inherit;overflow:auto;max-height:30em;margin:.4em 0 0"


def frame(what: str, name: str, facts: Mapping[str, object], title: str = "", text: str = "") -> str:
    """HTML of an object: ``what`` it is and its ``name``, a line for each of ``facts`` that is not empty, and folded
    under ``title`` a ``text``, of which the first :data:`LINES` lines are shown.
    """
    rows = "".join(
        f'<tr style="background:none"><td style="{CELL}">{escape(key)}</td><td style="{CELL}">{_lines(value)}</td></tr>'
        for key, value in facts.items()
        if str(value)
    )
    folded = ""
    if text:
        lines = text.rstrip("\n").split("\n")
        left = f"\n... {len(lines) - LINES} more lines" if len(lines) > LINES else ""
        shown = escape("\n".join(lines[:LINES]) + left)
        folded = f'<details><summary>{escape(title)}</summary><pre style="{TEXT}">{shown}</pre></details>'
    return (
        f'<div style="{FRAME}"><b>{escape(name)}</b> {escape(what)}'
        f'<table style="border:0;margin:.2em 0 0">{rows}</table>{folded}</div>'
    )


def _lines(value: object) -> str:
    return escape(str(value)).replace("\n", "<br>")
