"""Why a compilation is as it is: remarks computed from what was compiled, each with the line of the flow.

passed: something was done. missed: it was not, and costs time; what is in the way, and what would change it. analysis:
what a kernel waits for, where its knobs came from. 'vortex check' tells those that are missed, by the same rules;
docs/explain.md lists them. A flow is explained as its defaults would compile it.

examples:
  vortex explain quest.vxa
  vortex explain quest.vxa --kernel select --target sm_90a
  vortex explain dumps/quest-1a2b3c4d-cpu --json
  vortex explain my_flow.py:mine --page-size 32
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vortex.cli.flow_options import SPEC, add_spec, spec_of
from vortex.cli.show import emit_json, lines, say
from vortex.errors import BAD_OPTION
from vortex.targets.gpu import MACHINES
from vortex.targets.target import parse_targets

if TYPE_CHECKING:
    from vortex.check.explanation import Explanation
    from vortex.ir.core import Function, Module
    from vortex.remarks.decisions import NotTaken


TAKEN = "it was not asked; 'vortex compile' asks it, and takes the measurement that it has"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("what", metavar="ARTIFACT|DUMP|FLOW", help="a .vxa folder, a dump folder, or a flow")
    parser.add_argument("--kernel", metavar="NAME", help="only what is said of one kernel")
    parser.add_argument("--target", metavar="TARGET", help="of one target (default: the GPUs that it has, or sm_90a)")
    parser.add_argument("--json", action="store_true", help="print JSON; docs/explain.md has the schema")
    add_spec(parser)


def run(args: argparse.Namespace) -> int:
    """Explain."""
    found = [e.of(args.kernel) if args.kernel else e for e in _explanations(args)]
    if args.json:
        emit_json([e.as_json() for e in found])
        return 0
    for i, e in enumerate(found):
        of = f"{e.flow} for {e.target}: {', '.join(e.kernels)}"
        print(*([""] if i else []), lines(of, "  "), sep="\n")
        for r in e.remarks:
            print("", *(lines(line, "    ") for line in r.render().splitlines()), sep="\n")
        if e.no_resources:
            print("", lines(f"nothing is said of registers, spills and limiters: {e.no_resources}", "  "), sep="\n")
    return 0


def _explanations(args: argparse.Namespace) -> list[Explanation]:
    from vortex.check.explanation import explain_flow, explain_stored
    from vortex.flow.flow import find_flow, library_names
    from vortex.tune.choose import defaults

    asked = [t.name for t in parse_targets(args.target, say)] if args.target is not None else []
    is_stored = Path(args.what).is_dir() and args.what not in library_names()
    if not is_stored and Path(args.what).suffix != ".vxa":
        flow, spec = find_flow(args.what), spec_of(args)
        return [explain_flow(flow, spec, t, _why_not, defaults()) for t in asked or ["sm_90a"]]
    from vortex.compilation.stored import read_stored

    if given := [o for o in SPEC if getattr(args, o) is not None]:
        option = f"--{given[0].replace('_', '-')}"
        raise BAD_OPTION.at(option=option, why=f"is fixed by '{args.what}'", hint="drop it")
    stored = read_stored(args.what)
    if not stored.programs:
        why = f"'{args.what}' has no page IR: its compilation ended before, or was not from a flow"
        raise BAD_OPTION.at(option="ARTIFACT|DUMP|FLOW", why=why, hint="explain the flow")
    gpus = [t for t in MACHINES if t in stored.programs]
    return [explain_stored(stored, t, _why_not) for t in asked or gpus or list(stored.programs)]


def _why_not(program: Module, f: Function, target: str) -> NotTaken:
    """Why the tuning databases have nothing for a kernel, at the shape that benchmarks mention most."""
    from vortex.remarks.decisions import NotTaken
    from vortex.targets.target import TARGETS
    from vortex.tune.explain import explain
    from vortex.tune.keys import queries
    from vortex.tune.layers import Layers
    from vortex.tune.shapes import PRESETS

    for other, query in queries(program, TARGETS[target], PRESETS["bench"][0]):
        if other.name == f.name:
            found = explain(Layers.default(), query)
            return NotTaken(TAKEN, measured=True) if found.hit is not None else NotTaken(found.reason)
    return NotTaken()
