"""Which pages were read: by layer and KV head over the positions of each request, as a table, a page of HTML, or JSON.

FILE is a page trace. Three programs record one:

  vortex run ARTIFACT --trace FILE                      a made-up batch whose heavy pages are known
  vortex eval FLOW --budgets 16 --trace-pages FILE      a real model, whose prompts hold needles
  VORTEX_TRACE=FILE before SGLang's start               a server, every 100th decode step

examples:
  vortex trace trace.jsonl
  vortex trace trace.jsonl -o trace.html
  vortex trace trace.jsonl --json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vortex.cli.show import emit_json, say, table
from vortex.errors import BAD_OPTION

if TYPE_CHECKING:
    from vortex.page_traces.figures import Figures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file", metavar="FILE", type=Path, help="a page trace")
    parser.add_argument("-o", dest="out", metavar="FILE", type=Path, help="also write the page, .html")
    parser.add_argument("--json", action="store_true", help="print JSON; docs/trace.md has the schema")


def run(args: argparse.Namespace) -> int:
    """Print what the trace says, and write its page."""
    if args.out is not None and args.out.suffix != ".html":
        raise BAD_OPTION.at(option="-o", why=f"'{args.out}' is no .html", hint="name the page, e.g. -o trace.html")
    from vortex.page_traces.figures import figures_of

    figures = figures_of(args.file)
    if args.json:
        emit_json(figures.as_json())
    else:
        _print(args.file, figures)
    if args.out is not None:
        from vortex.page_traces.page import write_html

        write_html(args.file, figures, args.out)
        say(f"wrote {args.out}")
    return 0


def _print(file: Path, figures: Figures) -> None:
    from vortex.page_traces.figures import milliseconds
    from vortex.page_traces.tables import cells, columns, headline, note
    from vortex.runtime.page_trace import SERVER, VARIABLE
    from vortex.runtime.wanted import not_yet

    print(f"{headline(figures)}\n")
    if not figures.layers:
        trace, why = figures.trace, "no step was recorded yet"
        print(not_yet("recorded", VARIABLE, file, trace.every) if trace.source == SERVER else why)
        return
    shown = columns(figures.layers)
    table(["layer", *(c.title for c in shown)], [[str(x.layer), *cells(x, shown)] for x in figures.layers])
    print(f"\n{note(shown)}\n")
    if figures.kernels:
        rows = [[name, milliseconds(x)] for name, x in figures.kernels.items()]
        table(["kernel", "a step, all layers"], rows)
        print()
    print(figures.cost())
    if figures.ended:
        print(f"Recording ended early: {figures.ended}.")
