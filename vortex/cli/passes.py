"""The passes in the order of the way down; with a name, its contract and options; with 'schedule',
the knobs of every kernel too.

examples:
  vortex passes
  vortex passes fuse
  vortex passes schedule
  vortex passes --json
"""

from __future__ import annotations

import argparse
from itertools import groupby

from vortex.cli.show import emit_json, listing
from vortex.errors import UNKNOWN_PASS, nearest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("name", nargs="?", metavar="PASS", help="explain this one")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """List or explain."""
    from dataclasses import asdict

    from vortex.passes.manager import DEFAULT_PIPELINE
    from vortex.passes.manager import listing as passes
    from vortex.schedules.template import listing as knob_listing

    known = {p.name: p for p in passes()}
    if args.name is None:
        if args.json:
            emit_json({"passes": [asdict(p) for p in known.values()], "default": DEFAULT_PIPELINE})
            return 0
        rows = [
            {
                "pass": p.name,
                "stage": p.stage,
                "tag": p.tag,
                "options": options(p),
                "does": p.doc.split("\n\n")[0].replace("\n", " "),
            }
            for p in known.values()
        ]
        listing(rows, False)
        return 0
    if args.name not in known:
        raise UNKNOWN_PASS.at(name=args.name, nearest=nearest(args.name, known))
    p = known[args.name]
    knobs = knob_listing() if p.name == "schedule" else []
    if args.json:
        emit_json({**asdict(p), **({"knobs": knobs} if knobs else {})})
        return 0
    print(f"{p.name}: reads {p.stage} IR, {p.tag}, version {p.version}\n\n{p.doc}\n")
    for o in p.options:
        print(f"option {o.name}: {o.type} = {o.default or '(none)'}")
    _print_knobs(knobs)
    return 0


def _print_knobs(knobs: list[dict[str, str]]) -> None:
    """The knobs of each template in a block of its own."""
    for (kernel, targets), group in groupby(knobs, lambda k: (k["kernel"], k["targets"])):
        print(f"\nknobs of {kernel} on {targets}")
        for k in group:
            print(f"  {k['knob']}: {k['type']} = {k['default']}\n      {k['meaning']}; {k['values']}")


def options(p: object) -> str:
    """The options of a pass with their defaults, as a pipeline writes them."""
    found = getattr(p, "options", ())
    return ",".join(f"{o.name}={o.default}" for o in found if o.default) or "-"
