"""Look into a compilation: one HTML file with what is slow and why, passes, graph, kernels and every text.

A compilation is read from a dump, an artifact, or the folder vortex-crash-.. that an internal error left.

The file needs no network and nothing beside it. With two dumps or artifacts it shows them beside each other.

examples:
  vortex report quest.vxa -o report.html
  vortex report dumps/quest-1a2b3c4d-cpu --shape batch=8,kv_heads=8,tokens=32768,kept=30
  vortex report before.vxa after.vxa -o difference.html
  vortex report quest.vxa --results bench/results/h200/layer.json
  vortex report quest.vxa --sass
  vortex report quest.vxa --redact-locs -o public.html
  vortex report quest.vxa --json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vortex.cli.show import emit_json, say, write_text
from vortex.errors import BAD_OPTION

MOST = 2
"""Compilations that a page shows beside each other."""
DEFAULT_SHAPE = "batch=32,kv_heads=8,tokens=32768,kept=30"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "paths", nargs="+", metavar="DUMP|ARTIFACT", help="a dump, .vxa or vortex-crash-.. folder; at most two"
    )
    parser.add_argument("-o", dest="out", metavar="FILE", type=Path, default=Path("report.html"), help="report.html")
    parser.add_argument("--json", action="store_true", help="print JSON instead; docs/report.md has the schema")
    parser.add_argument(
        "--shape", metavar="SHAPE", help=f"the step that bytes and times are told of (default: {DEFAULT_SHAPE})"
    )
    parser.add_argument("--results", metavar="FILE", type=Path, help="measured times: a file of bench/results")
    parser.add_argument(
        "--sass", action="store_true", help="with machine code, and kin of PTX and it: about 3 s for each GPU kernel"
    )
    parser.add_argument("--redact-locs", action="store_true", help="leave out the flow's source and all paths")
    parser.add_argument("--db", metavar="PATH", type=Path, help="the tuning database (default: as vortex compile's)")


def run(args: argparse.Namespace) -> int:
    """Write the report, or print it."""
    if len(args.paths) > MOST:
        raise BAD_OPTION.at(option="DUMP|ARTIFACT", why=f"{len(args.paths)} are given", hint=f"give at most {MOST}")
    from vortex.compilation.stored import read_stored
    from vortex.report.compilation import Request, describe
    from vortex.report.measured import read_results
    from vortex.report.model import Report
    from vortex.report.page import html
    from vortex.tune.layers import Layers
    from vortex.tune.shapes import read_shape

    stored = [read_stored(path) for path in args.paths]
    shape, layers = read_shape(args.shape or DEFAULT_SHAPE), Layers.default(args.db)
    targets = dict.fromkeys(k.target for s in stored for k in s.kernels)
    rows = read_results(args.results, targets, {s.name for s in stored}) if args.results else []
    request = Request(shape, layers, rows, args.redact_locs, args.sass)
    report = Report(tuple(describe(s, request) for s in stored))
    if args.json:
        emit_json(report.as_json())
        return 0
    write_text(html(report), args.out)
    say(f"wrote {args.out}")
    if not args.redact_locs:
        say("it holds the flow's code and paths of this machine: look before you share it, or give --redact-locs")
    return 0
