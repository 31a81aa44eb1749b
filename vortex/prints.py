"""Where it goes what a flow prints: to stdout as usual, or to stderr where stdout is the data of a command."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_aside = False
"""Whether a command runs. As ``sys.stdout`` it is the process's: a command runs its flows one after another."""


@contextmanager
def aside() -> Iterator[None]:
    """Inside, flows print to stderr: a command runs, and stdout is for its data, such as its JSON."""
    global _aside
    before, _aside = _aside, True
    try:
        yield
    finally:
        _aside = before


@contextmanager
def of_flow() -> Iterator[None]:
    """A flow runs inside."""
    before, other = sys.stdout, sys.stderr
    if not _aside or before is other:
        yield
        return
    sys.stdout = other
    try:
        yield
    finally:
        if sys.stdout is other:  # else the flow itself has set it since
            sys.stdout = before
