"""What passes did, said on stderr while they run: the options that ``vortex opt`` and ``vortex compile`` share."""

from __future__ import annotations

import argparse
import difflib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vortex.cli.show import say
from vortex.errors import BAD_OPTION, nearest

if TYPE_CHECKING:
    from vortex.passes.manager import PassCall


def add_arguments(parser: argparse.ArgumentParser, *times: str) -> None:
    """Declare the options; ``times`` are other names of ``--time-passes``."""
    parser.add_argument("--print-after", metavar="PASS", help="print the IR after this pass, or all, to stderr")
    parser.add_argument("--print-changed", action="store_true", help="print what each pass changed to stderr")
    parser.add_argument(
        "--bisect-limit", metavar="N", type=int,
        help="run the first N passes alone, and those without which nothing is compiled; -1 runs all and numbers them",
    )  # fmt: skip
    parser.add_argument("--time-passes", *times, action="store_true", help="print how long each pass took, to stderr")
    parser.add_argument("--no-locs", action="store_true", help="leave out source locations in what is printed")


class PassTexts:
    """Follows passes as they run and says what was asked for."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._after: str | None = args.print_after
        self._changed: bool = args.print_changed
        self._timed: bool = args.time_passes
        self._locs: bool = not args.no_locs
        self._seen: list[str] = []
        self._start = time.perf_counter()

    @property
    def wanted(self) -> bool:
        """Whether anything is to be said."""
        return bool(self._after or self._changed or self._timed)

    def begin(self) -> None:
        """What comes next is the first pass."""
        self._start = time.perf_counter()

    def ran(self, name: str, before: str, text: str, of: str = "") -> None:
        """A step called ``name``, options included, made ``text`` of ``before``; ``of`` says more of it in words."""
        took = time.perf_counter() - self._start
        short = name.partition("{")[0]
        self._seen.append(short)
        if self._after in ("all", short) or self._changed:
            self._show(f"// ---- after {name}{of}", before, text, whole=self._after in ("all", short))
        if self._timed:
            say(f"{took * 1e3:9.2f} ms  {name}{of}")
        self._start = time.perf_counter()

    def close(self) -> None:
        """VX7001 where no pass ran of the name that ``--print-after`` has."""
        check_print_after(self._after, self._seen)

    def _show(self, head: str, before: str, text: str, *, whole: bool) -> None:
        if text == before:
            say(f"{head}, unchanged")
            return
        shown = self._text(text)
        if whole:
            say(f"{head}\n{shown}".rstrip("\n"))
        if self._changed:
            lines = difflib.unified_diff(self._text(before).splitlines(), shown.splitlines(), lineterm="", n=2)
            # the two lines with names of files say nothing here
            say("\n".join(["" if whole else head, *list(lines)[2:]]).lstrip("\n"))

    def _text(self, text: str) -> str:
        if self._locs or not text:
            return text
        from vortex.ir.parser import parse_module
        from vortex.ir.printer import print_module

        return print_module(parse_module(text), locs=False)


def check_print_after(name: str | None, known: Sequence[str]) -> None:
    """VX7001 when ``--print-after`` names no pass that runs."""
    if name not in (None, "all") and name not in known:
        hint = f"these run: {', '.join(known) or 'none'}"
        raise BAD_OPTION.at(
            option="--print-after", why=f"no pass '{name}' runs here{nearest(str(name), known)}", hint=hint
        )


def bisected(calls: Sequence[PassCall], limit: int | None) -> list[PassCall]:
    """The passes that ``--bisect-limit`` leaves, and of each, on stderr, its number and whether it runs."""
    if limit is None:
        return list(calls)
    from vortex.passes.manager import find

    if limit < -1:
        raise BAD_OPTION.at(option="--bisect-limit", why=f"is {limit}", hint="a number of passes, or -1 for all")
    kept = []
    for number, call in enumerate(calls, 1):
        runs, needed = limit < 0 or number <= limit, find(call.name).needed
        if runs or needed:
            kept.append(call)
        why = "runs" if runs else "runs, for nothing is compiled without it" if needed else "is left out"
        say(f"pass {number} of {len(calls)}: {call} {why}")
    return kept
