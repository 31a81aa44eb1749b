"""What can be compiled for, and how far each target goes.

examples:
  vortex targets
  vortex targets --json
"""

from __future__ import annotations

import argparse

from vortex.cli.show import listing
from vortex.targets.gpu import MACHINES
from vortex.targets.target import ALIASES, TARGETS

FACTS = ("SMs", "TB/s", "shared KiB an SM", "L2 MiB", "KiB in flight an SM")
"""Of a GPU: what its schedules are made for; the last is what keeps its memory busy."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """List the targets."""
    rows = []
    for t in TARGETS.values():
        also = [short for short, full in ALIASES.items() if full == t.name]
        m = MACHINES.get(t.name)
        facts = (
            (m.sms, m.bandwidth / 1e12, m.shared >> 10, m.l2 >> 20, round(m.bytes_needed / 1024)) if m else (None,) * 5
        )
        row = {"target": t.name, "also": also, "stages": list(t.stages), "about": t.about}
        rows.append(row | dict(zip(FACTS, facts, strict=True)))
    listing(rows, args.json)
    return 0
