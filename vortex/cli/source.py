"""Reading what the user named: IR files, or standard input as ``-``."""

from __future__ import annotations

import sys
from pathlib import Path

from vortex.errors import IR_SYNTAX, NO_SUCH_FILE, Loc

STDIN: list[str] = []
"""What was read from standard input, kept for a crash report."""


def read_text(name: str) -> tuple[str, str]:
    """The text of file ``name`` (``-``: standard input) and the name to show for it.

    Raises:
        VortexError: VX7002 when there is no such file, VX2001 when it is not text.
    """
    if name == "-":
        STDIN.append(sys.stdin.read())
        return STDIN[-1], "<stdin>"
    path = Path(name)
    if path.is_dir():
        raise NO_SUCH_FILE.at(path=name, why="is a folder; a file is needed")
    try:
        return path.read_text(encoding="utf-8"), name
    except FileNotFoundError:
        raise NO_SUCH_FILE.at(path=name, why="does not exist") from None
    except OSError as e:
        raise NO_SUCH_FILE.at(path=name, why=f"cannot be read: {e.strerror}") from None
    except UnicodeDecodeError as e:
        raise IR_SYNTAX.at(
            Loc(name, 1), source="", expected="text", found=f"bytes that are no UTF-8 at {e.start}"
        ) from None
