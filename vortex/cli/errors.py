"""Every mistake that vortex reports, with what it says and the way out.

examples:
  vortex errors
  vortex errors VX1002
  vortex errors --json
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from vortex.cli.show import emit_json, listing
from vortex.errors import CATALOGUE, UNKNOWN_NAME, nearest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("code", nargs="?", metavar="CODE", help="explain this one, e.g. VX1002")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """List or explain."""
    if args.code is None:
        rows = [asdict(k) for k in CATALOGUE.values()]
        listing(
            rows if args.json else [{"code": r["code"], "what": r["title"], "help": r["help"]} for r in rows], args.json
        )
        return 0
    kind = CATALOGUE.get(args.code.upper())
    if kind is None:
        raise UNKNOWN_NAME.at(what="error", name=args.code, nearest=nearest(args.code.upper(), CATALOGUE))
    if args.json:
        emit_json(asdict(kind))
    else:
        print(f"{kind.code}: {kind.title}\n\n  message: {kind.message}\n  help:    {kind.help or '-'}")
    return 0
