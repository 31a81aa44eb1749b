"""Run passes over an IR file and print the result. Every pass is verified before and after.

examples:
  vortex opt quest.flow --passes=canonicalize,cse
  vortex opt quest.flow --passes=outline,fuse --print-after all --time-passes
  vortex opt quest.flow --passes=canonicalize,cse,outline --print-changed --no-locs
  vortex opt quest.flow --passes=canonicalize,cse,outline --bisect-limit 1
  vortex opt dump/*-fuse.page --passes=plan-memory --no-locs

With --split-input-file the parts between lines '// -----' are modules of their own. With --verify-diagnostics nothing
is printed: each part must end in the error, or in none, that its comments '// expected-error@+1 {{text}}' say; the exit
code is 1 when one does not.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vortex.cli import pass_texts
from vortex.cli.diagnostics import expected_errors, unmet
from vortex.cli.pass_texts import PassTexts, bisected, check_print_after
from vortex.cli.show import say, write_text
from vortex.cli.source import read_text
from vortex.errors import BAD_OPTION, VortexError
from vortex.targets.target import Target, parse_targets

if TYPE_CHECKING:
    from vortex.passes.manager import PassCall

SEPARATOR = "// -----"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file", metavar="FILE", help="a .flow or .page file; - for standard input")
    parser.add_argument(
        "--passes", metavar="TEXT", default="", help="e.g. 'cse,fuse{max-live=8}'; none: verify and print"
    )
    parser.add_argument("--target", metavar="NAME", help="what target-dependent passes (schedule) work for")
    pass_texts.add_arguments(parser, "--time")
    parser.add_argument("--split-input-file", action="store_true", help=f"work on each part between '{SEPARATOR}'")
    parser.add_argument("--verify-diagnostics", action="store_true", help="check the errors that comments expect")
    parser.add_argument("-o", dest="out", metavar="FILE", help="write here instead of stdout")


def run(args: argparse.Namespace) -> int:
    """Parse, run, print."""
    from vortex.passes.manager import parse_pipeline

    calls = parse_pipeline(args.passes)
    check_print_after(args.print_after, [c.name for c in calls])
    targets = parse_targets(args.target) if args.target is not None else ()
    if len(targets) > 1:
        raise BAD_OPTION.at(option="--target", why="names several targets", hint="vortex opt works for one")
    if args.verify_diagnostics and args.out:
        raise BAD_OPTION.at(option="-o", why="has nothing to write under --verify-diagnostics", hint="drop it")
    calls = bisected(calls, args.bisect_limit)
    target = targets[0] if targets else None
    text, name = read_text(args.file)
    parts = list(_split(text)) if args.split_input_file else [text]
    if args.verify_diagnostics:
        wrong = [w for part in parts for w in _checked(part, name, calls, target, args)]
        for sentence in wrong:
            say(sentence)
        return int(bool(wrong))
    printed = f"\n{SEPARATOR}\n\n".join(_passed(part, name, calls, target, args) for part in parts)
    if args.out:
        write_text(printed, Path(args.out))
    else:
        print(printed, end="")
    return 0


def _split(text: str) -> Iterator[str]:
    """The parts of a file, each below an empty line for every line above it: errors have the lines of the file."""
    above = 0
    for part in re.split(rf"^{SEPARATOR}[ \t]*\n", text, flags=re.M):
        yield "\n" * above + part
        above += part.count("\n") + 1


def _passed(text: str, name: str, calls: list[PassCall], target: Target | None, args: argparse.Namespace) -> str:
    """The text of the module in ``text`` after the passes."""
    from vortex.ir.parser import parse_module
    from vortex.ir.printer import print_module
    from vortex.passes.manager import PassContext, Ran, run_pipeline

    start = time.perf_counter()
    module = parse_module(text, name)
    shown = PassTexts(args)
    if args.time_passes:
        say(f"{(time.perf_counter() - start) * 1e3:9.2f} ms  parse")

    def on_pass(ran: Ran) -> None:
        shown.ran(str(ran.call), ran.before, ran.after, f" (#{ran.number})")

    shown.begin()
    made = run_pipeline(module, calls, PassContext(target), on_pass if shown.wanted else None)
    return print_module(made, locs=not args.no_locs)


def _checked(text: str, name: str, calls: list[PassCall], target: Target | None, args: argparse.Namespace) -> list[str]:
    """In which ways the error that the passes end in is not what the comments expect."""
    expected, error = expected_errors(text, name), None
    try:
        _passed(text, name, calls, target, args)
    except VortexError as e:
        error = e
    return unmet(expected, error, name)
