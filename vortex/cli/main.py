"""Entry of the ``vortex`` command: finds the subcommand, runs it, turns mistakes into exit codes.

Nothing heavy is imported before a subcommand asks for it, so that ``vortex --help`` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from vortex.errors import BAD_OPTION, UNKNOWN_NAME, VortexError, nearest

OK, USER_ERROR, INTERNAL_ERROR, INTERRUPTED = 0, 2, 70, 130

COMMANDS = {
    "compile": "compile a flow into an artifact, or any part of the way",
    "opt": "run passes over an IR file",
    "tune": "measure which configuration of each kernel is fastest, here or elsewhere",
    "db": "the database of tuning results: look, share, merge",
    "run": "decode a small random batch with an artifact and check it",
    "demo": "compile quest, decode a ragged batch, print what it kept and cost",
    "info": "what an artifact holds, or what this machine has",
    "diff": "compare two IR files or two artifacts",
    "ops": "what a flow may use, and the operations of the IR",
    "explain-cache": "what decides a flow's artifact, and why a cache lacks it",
    "passes": "the passes, their options and contracts",
    "kinds": "the kinds of kernels, and the templates that each has",
    "errors": "every error and the way out of it",
    "targets": "what can be compiled for, and how far",
    "toolchain": "the environment in which an engine's start compiles flows",
}
"""Subcommands in the order of use; ``compile`` lives in ``vortex/cli/compile.py`` and so on, see :func:`module_of`."""

ABOUT = """\
vortex compiles sparse-attention algorithms, written as plain torch code, into paged decoding kernels.

usage: vortex COMMAND ...

{commands}

examples:
  vortex compile quest --target cpu -o quest.vxa
  vortex compile quest --to page --print-after fuse
  vortex opt dumps/quest-1a2b3c4d/00-trace.flow --passes=canonicalize,cse
  vortex run quest.vxa

'vortex COMMAND --help' tells more. Data goes to stdout, messages to stderr; the exit code is 0, 2 for a
mistake of yours, 70 for one of ours.
"""


def module_of(command: str) -> str:
    """The module that a subcommand lives in."""
    return f"vortex.cli.{command.replace('-', '_')}"


class Parser(argparse.ArgumentParser):
    """An argparse parser whose mistakes are :class:`VortexError` and name the nearest option."""

    def __init__(self, name: str = "", about: str = "", **rest: Any) -> None:
        """``rest`` is what argparse gives the parser of a verb, beside what is the same for all."""
        given = {"prog": f"vortex {name}", "description": about, **rest}
        super().__init__(**given, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        option, _, why = message.removeprefix("argument ").partition(": ")
        if not why or not message.startswith("argument "):
            option, why = self.prog, message
        raise BAD_OPTION.at(option=option, why=why, hint=f"{self.prog} --help")

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """As argparse's, but nothing is left over: an unknown option is an error with a "did you mean"."""
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            known = [s for a in self._actions for s in a.option_strings]
            name = rest[0].split("=")[0]
            what = "is not an option" if name.startswith("-") else "is one argument too many"
            what += f" of '{self.prog}'"
            raise BAD_OPTION.at(option=rest[0], why=f"{what}{nearest(name, known)}", hint=f"{self.prog} --help")
        return found, []

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            hint = nearest(value, action.choices) or f"; there are {', '.join(action.choices)}"
            raise UNKNOWN_NAME.at(what=f"verb of '{self.prog}'", name=value, nearest=hint)
        super()._check_value(action, value)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(args)
    except VortexError as e:
        print(_coloured(e.render()), file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # the reader went away (head, less): not a mistake; keep the interpreter from complaining at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as e:
        from vortex.cli.crash import report

        print(report(args, e), file=sys.stderr)
        return INTERNAL_ERROR


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        print(ABOUT.format(commands="\n".join(f"  {n:<{width}}  {about}" for n, about in COMMANDS.items())), end="")
        return OK
    if args[0] in ("-V", "--version"):
        from vortex.install.versions import vortex_version

        print(f"vortex {vortex_version()}")
        return OK
    name, rest = args[0], args[1:]
    if name not in COMMANDS:
        hint = nearest(name, COMMANDS) or "; 'vortex --help' lists them"
        raise UNKNOWN_NAME.at(what="command", name=name, nearest=hint)
    command = importlib.import_module(module_of(name))
    parser = Parser(name, command.__doc__ or "")
    command.add_arguments(parser)
    try:
        parsed = parser.parse_args(rest)
    except SystemExit as e:  # --help
        return int(e.code or OK)
    parsed.argv = rest
    code = int(command.run(parsed))
    sys.stdout.flush()
    return code


def _coloured(text: str) -> str:
    if "NO_COLOR" in os.environ or not sys.stderr.isatty():
        return text
    head, _, tail = text.partition(":")
    return f"\033[1;31m{head}\033[0m:{tail}"


if __name__ == "__main__":
    sys.exit(main())
