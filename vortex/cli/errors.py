"""Every mistake that vortex reports, with an example of what it says and the way out.

examples:
  vortex errors
  vortex errors VX1002
  vortex errors --json
"""

from __future__ import annotations

import argparse

from vortex.cli.error_examples import example
from vortex.cli.show import emit_json, lines, listing
from vortex.errors import CATALOGUE, UNKNOWN_NAME, ErrorKind, nearest

MARGIN = " " * 7


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("code", nargs="?", metavar="CODE", help="explain this one, e.g. VX1002")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """List or explain."""
    if args.code is None:
        listing([_row(k) for k in CATALOGUE.values()], args.json)
        return 0
    kind = CATALOGUE.get(args.code.upper())
    if kind is None:
        raise UNKNOWN_NAME.at(what="error", name=args.code, nearest=nearest(args.code.upper(), CATALOGUE))
    if args.json:
        emit_json(_row(kind))
        return 0
    message, way_out = example(kind)
    print(f"{kind.code}: {kind.title}\n")
    print(lines(f"  e.g. {message}", MARGIN))
    print(lines(f"  help {way_out or '-'}", MARGIN))
    return 0


def _row(kind: ErrorKind) -> dict[str, str]:
    message, way_out = example(kind)
    return {"code": kind.code, "severity": kind.severity, "what": kind.title, "example": message, "help": way_out}
