"""Entry of the ``vortex`` command: finds the subcommand, runs it, turns mistakes into exit codes.

Nothing heavy is imported before a subcommand asks for it, so that ``vortex --help`` answers at once.
"""

from __future__ import annotations

import argparse
import codecs
import errno
import importlib
import io
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType
from typing import Any, NoReturn, TextIO

from vortex import prints
from vortex.cli.exit_codes import EXIT_CODES, INTERNAL_ERROR, INTERRUPTED, OK, USER_ERROR
from vortex.errors import (
    BAD_OPTION,
    CANNOT_WRITE,
    DISK_FULL,
    NO_SUCH_FILE,
    UNKNOWN_NAME,
    VortexError,
    VortexWarning,
    nearest,
    nearest_or_all,
)

COMMANDS = {
    "compile": "compile a flow into an artifact, or any part of the way",
    "check": "is a flow right at all shapes, what does it cost, what is slow and why",
    "opt": "run passes over an IR file",
    "reduce": "shrink IR or a flow while a test still holds, such as that it fails",
    "tune": "measure which configuration of each kernel is fastest, here or elsewhere",
    "db": "the database of tuning results: look, share, merge",
    "run": "decode a small random batch with an artifact and check it",
    "demo": "compile quest, decode a ragged batch, print what it kept and cost",
    "eval": "how many of a real model's answers a flow keeps",
    "advise": "which flow, budget and dense layers keep the answers to your own prompts",
    "capture": "record decoding steps of a real model, for vortex eval --trace",
    "trace": "which pages were read, by layer and head over positions, as a picture",
    "probe": "what a served flow reads of the attention mass, by layer and head",
    "info": "what an artifact holds, or what this machine has",
    "explain": "why kernels are as they are: remarks with the lines of the flow",
    "report": "look into a compilation: one HTML file with what is slow and why, passes, graph and texts",
    "diff": "what two IR files, artifacts or dumps differ in, but for names",
    "ops": "what a flow may use, and the operations of the IR",
    "explain-cache": "what decides a flow's artifact, and why a cache lacks it",
    "passes": "the passes, their options and contracts",
    "kinds": "the kinds of kernels, and the templates that each has",
    "errors": "every error and the way out of it",
    "targets": "what can be compiled for, and how far",
    "toolchain": "the environment in which an engine's start compiles flows",
    "completion": "a script that completes all of this in bash, zsh or fish",
}
"""Subcommands in the order of use; ``compile`` lives in ``vortex/cli/compile.py`` and so on, see :func:`module_of`."""

ABOUT = """\
vortex compiles sparse-attention algorithms, written as plain torch code, into paged decoding kernels.

usage: vortex COMMAND ...

{commands}

examples:
  vortex compile quest --target cpu -o quest.vxa
  vortex compile quest --to page --print-after fuse
  vortex opt dumps/quest-1a2b3c4d-cpu/*-trace.flow --passes=canonicalize,cse
  vortex run quest.vxa

exit codes:
{exit_codes}

'vortex COMMAND --help' tells more. Data goes to stdout, messages to stderr.
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
            # the hint names --help anyway; as a guess at what was meant it would mislead
            known = [s for a in self._actions for s in a.option_strings if s not in ("-h", "--help")]
            name = rest[0].split("=")[0]
            what = "is not an option" if name.startswith("-") else "is one argument too many"
            what += f" of '{self.prog}'"
            raise BAD_OPTION.at(option=rest[0], why=f"{what}{nearest(name, known)}", hint=f"{self.prog} --help")
        return found, []

    def _print_message(self, message: str, file: Any = None) -> None:
        """As argparse's, but a stream that takes no more is an error here as everywhere, and not passed over."""
        if message:
            (sys.stderr if file is None else file).write(message)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            near = nearest_or_all(value, action.choices)
            raise UNKNOWN_NAME.at(what=f"verb of '{self.prog}'", name=value, nearest=near)
        super()._check_value(action, value)


def entry() -> int:
    """The process's own command line; the exit code. An interrupt that comes after the work is done changes nothing."""
    return main(after=signal.SIG_IGN)


def main(argv: Sequence[str] | None = None, *, after: signal.Handlers | None = None) -> int:
    """Run one command line; the exit code. ``after`` handles an interrupt that comes later; else who did before."""
    args = list(sys.argv[1:] if argv is None else argv)
    _open_closed()
    _printable()
    with _interrupts(after) as interrupted:
        code, message = _guarded(args, interrupted)
    if code != OK:
        # what was printed before the mistake is shown before the message; here, for at exit it is too late to be quiet
        _quietly(sys.stdout, "")
    if message:
        _quietly(sys.stderr, message + "\n")
    return code


def _guarded(args: list[str], interrupted: list[int]) -> tuple[int, str]:
    """The exit code and what to say on stderr; nothing is raised."""
    try:
        with _warnings_shown(), prints.aside():
            code = dispatch(args)
        sys.stdout.flush()
        return code, ""
    except KeyboardInterrupt:
        return INTERRUPTED, "interrupted"
    except BrokenPipeError:
        _to_nowhere(sys.stdout)  # the reader went away (head, less): not a mistake
        return OK, ""
    except Exception as e:
        # a compiler in between may have made another error of the KeyboardInterrupt, or its tool died of the signal
        if interrupted:
            return INTERRUPTED, "interrupted"
        if isinstance(e, OSError) and e.errno in DISK_FULL:
            e = CANNOT_WRITE.at(path=e.filename or "a file or standard output", why=e.strerror)
        if isinstance(e, OSError) and e.errno == errno.ENAMETOOLONG:
            e = NO_SUCH_FILE.at(path=e.filename, why="is longer than a file's name can be")
        if isinstance(e, VortexError):
            return USER_ERROR, _coloured(e.render())
        from vortex.cli.crash import report

        return INTERNAL_ERROR, report(args, e)


@contextmanager
def _warnings_shown() -> Iterator[None]:
    """Shows our warnings as errors are shown, each once; others as Python shows them."""
    shown: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("always", VortexWarning)
        others = warnings.showwarning

        def show(message: Warning | str, *rest: Any, **more: Any) -> None:
            if not isinstance(message, VortexWarning):
                others(message, *rest, **more)
            elif str(message) not in shown:
                shown.add(str(message))
                _quietly(sys.stderr, _coloured(str(message)) + "\n")

        warnings.showwarning = show
        yield


def _open_closed() -> None:
    """Standard streams that the caller closed (``>&-``) lead nowhere; else the next file would be taken for them."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - it lives as long as the process


def _printable() -> None:
    """What stdout's encoding has no sign for is shown as its number, as on stderr: a locale is no mistake."""
    if isinstance(sys.stdout, io.TextIOWrapper) and codecs.lookup(sys.stdout.encoding).name != "utf-8":
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def _interrupts(after: signal.Handlers | None) -> Iterator[list[int]]:
    """Collects the interrupts (Ctrl-C) that come inside; each is a KeyboardInterrupt too, as without this."""
    came: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.default_int_handler(number, frame)

    # another's handler stays, and only the main thread may set one
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler or current_thread() is not main_thread():
        yield came
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield came
    finally:
        # at exit Python gives SIGINT its default action again, which kills a process that has said it is done
        signal.signal(signal.SIGINT, before if after is None else after)


def _quietly(stream: TextIO, text: str) -> None:
    """Write ``text``; a stream that takes no more is led nowhere."""
    try:
        stream.write(text)
        stream.flush()
    except (OSError, ValueError):
        _to_nowhere(stream)


def _to_nowhere(stream: TextIO) -> None:
    """Keep the interpreter from complaining, when it flushes at exit, of what cannot be written."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (OSError, ValueError):  # a stream without a file, as in tests and notebooks
        return


def dispatch(args: list[str]) -> int:
    """Run one command; its exit code, and whatever it raises."""
    if not args or args[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        listed = "\n".join(f"  {n:<{width}}  {about}" for n, about in COMMANDS.items())
        codes = "\n".join(f"  {n:>3}  {meaning}" for n, meaning in EXIT_CODES.items())
        print(ABOUT.format(commands=listed, exit_codes=codes), end="")
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
    return int(command.run(parsed))


def _coloured(text: str) -> str:
    if "NO_COLOR" in os.environ or not sys.stderr.isatty():
        return text
    head, _, tail = text.partition(":")
    colour = 33 if head.startswith("warning") else 31
    return f"\033[1;{colour}m{head}\033[0m:{tail}"


if __name__ == "__main__":
    sys.exit(main())
