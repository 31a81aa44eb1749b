"""What decides the artifact of a flow, part by part, and whether an engine's start finds it compiled.

For a miss, the parts that differ from the nearest artifact in the cache say why it is compiled again.

examples:
  vortex explain-cache quest --target sm_90
  vortex explain-cache my_flow.py:mine --heads 32/8 --head-dim 128 --page-size 16 --json
"""

from __future__ import annotations

import argparse

from vortex.cli.flow_options import add_spec, spec_of
from vortex.cli.show import emit_json, lines, say, table
from vortex.targets.target import parse_targets


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("flow", metavar="FLOW", help="name, file.py or file.py:name")
    parser.add_argument("--target", metavar="NAME", help="the target to compile for (default: cpu)")
    add_spec(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the parts, and how the nearest artifact differs where there is none of just these."""
    from vortex.runtime.compiled import entries, entry, identity_of

    target = parse_targets("cpu" if args.target is None else args.target, say)[0].name
    identity = identity_of(args.flow, spec_of(args), target)
    path, kept = entry(args.flow, identity), entries()
    hit = path.exists()
    near = None if hit else identity.nearest(kept.values())
    file = next((p for p, other in kept.items() if other is near), None)
    odd = identity.differences(near) if near else {}
    if args.json:
        found = {"key": identity.key, "artifact": path, "hit": hit, "parts": dict(identity.parts)}
        emit_json(found | {"nearest": file, "differs": {k: {"here": a, "there": b} for k, (a, b) in odd.items()}})
        return 0
    table(["part", "is"], [[name, value] for name, value in sorted(identity.parts.items())])
    if hit:
        print(f"\nhit: {path}")
        return 0
    print(f"\nmiss: no {path}")
    if file is not None:
        print(lines(f"the nearest is {file}, which differs in {', '.join(odd)}:") + "\n")
        table(["part", "here", "there"], [[name, here, there] for name, (here, there) in odd.items()])
    return 0
