"""The kinds of kernels that programs are made of, in the order of a step, and the templates that each has.

examples:
  vortex kinds
  vortex kinds --json
"""

from __future__ import annotations

import argparse

from vortex.cli.show import listing
from vortex.kinds.kind import KINDS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """List the kernel kinds."""
    from vortex.codegen.templates import TEMPLATES

    rows = []
    for kind in KINDS.values():
        templates = [t.name for (_, name), found in TEMPLATES.items() if name == kind.name for t in found]
        rows.append(
            {
                "kind": kind.name,
                "once for each": kind.domain,
                "launched by": kind.call or "launch",
                "reads pages": kind.pages,
                "time depends on": list(kind.axes),
                "templates": templates,
                "about": kind.about,
            }
        )
    listing(rows, args.json)
    return 0
