"""Run passes over an IR file and print the result. Every pass is verified before and after.

examples:
  vortex opt 00-trace.flow --passes=canonicalize,cse
  vortex opt 00-trace.flow --passes=outline,fuse --print-after all --time
  vortex opt - --no-locs < 10-outline.page
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from vortex.cli.show import write_text
from vortex.cli.source import read_text
from vortex.errors import BAD_OPTION, nearest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file", metavar="FILE", help="a .flow or .page file; - for standard input")
    parser.add_argument(
        "--passes", metavar="TEXT", default="", help="e.g. 'cse,fuse{max-live=8}'; none: verify and print"
    )
    parser.add_argument("--target", metavar="NAME", help="what target-dependent passes (schedule) work for")
    parser.add_argument("--print-after", metavar="PASS", help="also print the IR after this pass, or all, to stderr")
    parser.add_argument("--time", action="store_true", help="print how long each pass took, to stderr")
    parser.add_argument("--no-locs", action="store_true", help="leave out source locations")
    parser.add_argument("-o", dest="out", metavar="FILE", help="write here instead of stdout")


def run(args: argparse.Namespace) -> int:
    """Parse, run, print."""
    from vortex.ir.parser import parse_module
    from vortex.ir.printer import print_module
    from vortex.passes.manager import PassContext, Ran, parse_pipeline, run_pipeline
    from vortex.targets.target import parse_targets

    calls = parse_pipeline(args.passes)
    check_print_after(args.print_after, [c.name for c in calls])
    targets = parse_targets(args.target) if args.target else ()
    if len(targets) > 1:
        raise BAD_OPTION.at(option="--target", why="names several targets", hint="vortex opt works for one")
    text, name = read_text(args.file)
    start = time.perf_counter()
    module = parse_module(text, name)
    times = [("parse", time.perf_counter() - start)]

    def on_pass(ran: Ran) -> None:
        nonlocal start
        times.append((str(ran.call), time.perf_counter() - start))
        if args.print_after in ("all", ran.call.name):
            note = "" if ran.after != ran.before else ", unchanged"
            print(f"// ---- after {ran.call} (#{ran.number}){note}", file=sys.stderr)
            print(ran.after, end="", file=sys.stderr)
        start = time.perf_counter()

    watch = on_pass if args.time or args.print_after else None
    start = time.perf_counter()
    made = run_pipeline(module, calls, PassContext(targets[0] if targets else None), watch)
    if args.time:
        for what, seconds in times:
            print(f"{seconds * 1e3:9.2f} ms  {what}", file=sys.stderr)
    printed = print_module(made, locs=not args.no_locs)
    if args.out:
        write_text(printed, Path(args.out))
    else:
        print(printed, end="")
    return 0


def check_print_after(name: str | None, known: list[str]) -> None:
    """VX7001 when ``--print-after`` names no pass that runs."""
    if name not in (None, "all") and name not in known:
        hint = f"these run: {', '.join(known) or 'none'}"
        raise BAD_OPTION.at(
            option="--print-after", why=f"no pass '{name}' runs here{nearest(str(name), known)}", hint=hint
        )
