"""The environment in which an engine's start compiles flows: an engine pins other versions than the compiler.

  install   make it, in ~/.cache/vortex/toolchain: 6 GB with torch, 0.7 GB with --share-torch
  show      which compiler an engine's start would use

pip's own variables (PIP_INDEX_URL, PIP_FIND_LINKS, ...) count. VORTEX_COMPILER names another environment's Python.

examples:
  vortex toolchain install
  vortex toolchain install --share-torch --no-cuda
  vortex toolchain install --from dist/vortex-0.1.0-py3-none-any.whl
  vortex toolchain show
"""

from __future__ import annotations

import argparse
import shlex
import time

from vortex.cli.show import say, table
from vortex.errors import UNKNOWN_NAME, nearest_or_all
from vortex.install import toolchain

VERBS = ("install", "show")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("verb", metavar="VERB", help=f"one of {', '.join(VERBS)}")
    parser.add_argument(
        "--from", dest="source", metavar="PATH", help="vortex from a checkout or a wheel (default: as installed here)"
    )
    parser.add_argument("--python", metavar="PYTHON", help="the interpreter of the environment (default: this one)")
    parser.add_argument("--no-cuda", action="store_true", help="without nvcc: compile for CPUs only")
    parser.add_argument("--share-torch", action="store_true", help="use this environment's torch, do not download one")
    parser.add_argument("--force", action="store_true", help="make it anew where there is one")
    parser.add_argument("--dry-run", action="store_true", help="print the commands instead")


def run(args: argparse.Namespace) -> int:
    """Do what the verb says."""
    if args.verb not in VERBS:
        hint = nearest_or_all(args.verb, VERBS)
        raise UNKNOWN_NAME.at(what="verb of 'vortex toolchain'", name=args.verb, nearest=hint)
    return _install(args) if args.verb == "install" else _show()


def _install(args: argparse.Namespace) -> int:
    wanted = toolchain.requirement(args.source, cuda=not args.no_cuda)
    python = args.python or toolchain.default_python()
    made = toolchain.Installation(toolchain.folder(), python, wanted, args.share_torch)
    if args.dry_run:
        for words in made.commands().values():
            print(shlex.join(words))
        return 0
    if toolchain.installed() and not args.force:
        say(f"{made.where} has it already; --force makes it anew")
        return 0
    began = time.monotonic()
    made.run(lambda step: say(f"{step} ..."))
    say(f"installed in {time.monotonic() - began:.0f} s; an engine's start finds it in {made.where}")
    return 0


def _show() -> int:
    # the engine's own rule, which works without the engine
    from vortex.runtime.compiled import COMPILER, compiler

    words = compiler()
    rows = [
        ["folder", str(toolchain.folder())],
        ["its vortex", toolchain.version() or "not installed"],
        ["a start uses", words[0] if words else f"nothing: install it, or set {COMPILER}"],
    ]
    table(("what", "is"), rows)
    return 0
