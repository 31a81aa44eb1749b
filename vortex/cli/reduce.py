"""Shrink IR, or a flow, to the little of it that still shows a failure.

COMMAND is the test, a line for the shell. It is run on one candidate after another, whose file stands for {} in it, or
comes last where there is no {}. It exits with 0 where the candidate still shows what you look for, and with anything
else where it does not, as tests of llvm-reduce, creduce and 'git bisect run' do. It must exit with 0 for FILE itself.

With --error COMMAND begins with 'vortex', and the test is that it ends in that error: a code such as VX4006, or the
class of the exception behind an 'internal error'. It runs in this process, which spares the start of a new one each
time; a compilation leaves no dumps or artifacts.

Only IR that verifies is tried. Of functions, operations (their users take an operand, an earlier value or a constant
instead), fields, outputs, declarations, attributes and sizes it leaves out all, halves, quarters and single ones, until
nothing more can go. The same FILE and test give the same result.

examples:
  vortex reduce 00-trace.flow --test './still_wrong.sh {}' -o small.flow
  vortex reduce 12-fuse.page --test '! vortex opt {} --passes=plan-memory'
  vortex reduce my_flow.py:mine --head-dim 64 --test 'vortex compile {} --to tir' --error VX4006
  vortex reduce quest --test 'vortex opt {} --passes=outline,fuse' --error AssertionError --time-limit 60
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from vortex.cli.flow_options import SPEC, add_spec, spec_of
from vortex.cli.show import check_out, progress, say, write_text
from vortex.cli.source import read_text
from vortex.errors import BAD_OPTION, CATALOGUE, UNKNOWN_NAME, nearest
from vortex.install.scratch import scratch_folder

if TYPE_CHECKING:
    from vortex.cli.show import Progress
    from vortex.ir.core import Module
    from vortex.reduce.command import ErrorTest, ShellTest
    from vortex.reduce.reducer import Reducer

INTERRUPTED = 130
IR = (".flow", ".page")
LINES = 10
"""How much of what a command says an error shows."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "file", metavar="FILE", help="a .flow or .page file, - for standard input, or a flow as for vortex compile"
    )
    parser.add_argument(
        "--test", metavar="COMMAND", required=True, help="exits with 0 where a candidate still shows it"
    )
    parser.add_argument("--error", metavar="NAME", help="VXnnnn or an exception's class: what 'vortex ...' must end in")
    parser.add_argument("--time-limit", metavar="SECONDS", type=float, help="stop then, with the smallest so far")
    parser.add_argument("-o", dest="out", metavar="PATH", type=Path, help="write the result here instead of stdout")
    add_spec(parser)


def run(args: argparse.Namespace) -> int:
    """Reduce and print."""
    from vortex.reduce.reducer import Reducer, op_count

    if args.time_limit is not None and not args.time_limit > 0:
        raise BAD_OPTION.at(option="--time-limit", why=f"is {args.time_limit:g}", hint="give seconds, more than 0")
    check_out(args.out)
    if args.error is not None:
        _check_error(args.error, args.test)
    module = _module(args)
    with scratch_folder() as folder:
        file = folder / f"{module.name}.{module.stage}"
        test = _error_test(args.test, args.error, file) if args.error else _shell_test(args.test, file)
        reducer = Reducer(module, test, args.time_limit)
        _check_original(test, reducer.text, args)
        before, start, interrupted = op_count(module), time.monotonic(), False
        with progress(f"reducing {args.file}, {before} ops", before) as advance:
            reducer.on_smaller = _reporter(reducer, before, advance)
            try:
                reducer.reduce()
            except KeyboardInterrupt:
                interrupted = True
    took = time.monotonic() - start
    why = "interrupted: " if interrupted else "time is up: " if reducer.out_of_time else ""
    say(
        f"{why}{before} ops to {op_count(reducer.module)} in {took:.1f} s; "
        f"{reducer.tested} candidates tested, {reducer.invalid} did not verify"
    )
    if args.out:
        write_text(reducer.text, args.out)
    else:
        print(reducer.text, end="")
    return INTERRUPTED if interrupted else 0


def _module(args: argparse.Namespace) -> Module:
    """What is reduced: the IR of the file, or the traced flow."""
    if args.file == "-" or Path(args.file).suffix in IR:
        if given := [o for o in SPEC if getattr(args, o) is not None]:
            option = f"--{given[0].replace('_', '-')}"
            raise BAD_OPTION.at(option=option, why="is fixed by the IR that is reduced", hint="drop it")
        from vortex.ir.parser import parse_module

        return parse_module(*read_text(args.file))
    from vortex.driver import compile_flow

    made = compile_flow(args.file, spec=spec_of(args), passes=(), to="flow").flow
    assert made is not None
    return made


def _check_error(name: str, command: str) -> None:
    """What ``--error`` may be, and that the test is a command of ours."""
    if re.fullmatch(r"VX\d+", name) and name not in CATALOGUE:
        raise UNKNOWN_NAME.at(
            what="error", name=name, nearest=nearest(name, CATALOGUE) or "; 'vortex errors' lists them"
        )
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise BAD_OPTION.at(option="--error", why=f"'{name}' is no code and no class", hint="VX4006, or AssertionError")
    if _words(command)[:1] != ["vortex"]:
        why = "is not a command of vortex, whose error could be seen"
        raise BAD_OPTION.at(option="--test", why=why, hint="begin it with 'vortex', or leave out --error")


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError as e:
        raise BAD_OPTION.at(
            option="--test", why=f"cannot be split into words: {e}", hint="quote it as for sh"
        ) from None


def _shell_test(command: str, file: Path) -> ShellTest:
    from vortex.reduce.command import ShellTest

    return ShellTest(command, file)


def _error_test(command: str, error: str, file: Path) -> ErrorTest:
    from vortex.cli.main import dispatch
    from vortex.reduce.command import ErrorTest

    def quietly(arguments: list[str]) -> None:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            dispatch(arguments)

    arguments = _words(command)[1:]
    if arguments[:1] == ["compile"]:
        arguments += [] if {"--no-dump", "--dump-dir"} & set(arguments) else ["--no-dump"]
        arguments += [] if "-o" in arguments else ["-o", str(file.with_name("made"))]
    if not any("{}" in a for a in arguments):
        arguments.append("{}")
    return ErrorTest(quietly, arguments, error, file)


def _check_original(test: ShellTest | ErrorTest, text: str, args: argparse.Namespace) -> None:
    """VX7001 where the test does not hold of what is to be reduced."""
    from vortex.reduce.command import ErrorTest

    if isinstance(test, ErrorTest):
        got = test.outcome(text)
        if got != args.error:
            ends = f"ends in {got}" if got else "ends without an error"
            raise BAD_OPTION.at(
                option="--error", why=f"on {args.file} itself the command {ends}", hint="look there first"
            )
        return
    try:
        code, said = test.run(text, args.time_limit)
    except TimeoutError:
        why = f"one run on {args.file} itself takes longer than that"
        raise BAD_OPTION.at(option="--time-limit", why=why, hint="give many times of it") from None
    if code:
        why = f"exits with {code} on {args.file} itself"
        error = BAD_OPTION.at(option="--test", why=why, hint="0 must mean that it still shows what you look for")
        raise error.note("it said:\n" + "\n".join(said.strip().splitlines()[-LINES:])) if said.strip() else error


def _reporter(reducer: Reducer, before: int, advance: Progress) -> Callable[[str], None]:
    """Moves the bar on a terminal; elsewhere says a line when the operations have become fewer by a quarter."""
    from vortex.reduce.reducer import op_count

    said = before

    def on_smaller(kind: str) -> None:
        nonlocal said
        left = op_count(reducer.module)
        advance(before - left, f"{left} ops, {reducer.tested} candidates tested, fewer {kind}")
        if not sys.stderr.isatty() and left <= said * 3 / 4:
            said = left
            say(f"{left} ops after {reducer.tested} candidates")

    return on_smaller
