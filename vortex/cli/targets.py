"""What can be compiled for, and how far each target goes.

examples:
  vortex targets
  vortex targets --json
"""

from __future__ import annotations

import argparse

from vortex.cli.show import listing
from vortex.target import ALIASES, TARGETS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """List the targets."""
    rows = []
    for t in TARGETS.values():
        also = [short for short, full in ALIASES.items() if full == t.name]
        rows.append({"target": t.name, "also": ", ".join(also) or "-", "stages": " ".join(t.stages), "about": t.about})
    listing(rows, args.json)
    return 0
