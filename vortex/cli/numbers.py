"""Options that take integers between commas, or a time."""

from __future__ import annotations

import argparse
import math
import re

from vortex.budget import natural
from vortex.errors import BAD_OPTION

UNITS = {"s": 1, "m": 60, "h": 3600, "": 1}
"""Seconds of each."""


def integers(option: str, text: str, hint: str, least: int = 1) -> list[int]:
    """The integers of ``text``, as they come, each at least ``least`` (0 or 1); VX7001 for anything else."""
    parts = [natural(p.strip()) for p in text.split(",")]
    found = [n for n in parts if n is not None and n >= least]
    if len(found) < len(parts):
        kind = "positive integers" if least else "numbers"
        raise BAD_OPTION.at(option=option, why=f"'{text}' is not a list of {kind}", hint=hint)
    return found


def bounded(args: argparse.Namespace, option: str, least: int, most: float = math.inf) -> None:
    """Refuse an integer that was given to an option and lies outside ``least`` to ``most``; VX7001."""
    given = getattr(args, option)
    if given is not None and not least <= given <= most:
        hint = f"at least {least}" if given < least else f"at most {most}"
        raise BAD_OPTION.at(option=f"--{option.replace('_', '-')}", why=f"is {given}", hint=hint)


def seconds(option: str, text: str, *, none: bool = False) -> float:
    """The seconds of ``text``, e.g. 10m; ``none`` says whether that may be 0. VX7001 for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if not found or not (none or float(found[1])):
        raise BAD_OPTION.at(option=option, why=f"'{text}' is not a time", hint="e.g. 90s, 10m or 1h")
    return float(found[1]) * UNITS[found[2]]
