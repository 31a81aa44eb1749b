"""What a worker ends with, said again by the process that started it, below all that SGLang prints.

A worker that ends in an error logs a traceback and sends its parent SIGQUIT, upon which that logs more, kills all of
its processes and itself. So a worker leaves the sentence in a file whose name it has from its parent, and the parent
prints it when the others are dead.
"""

from __future__ import annotations

import atexit
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from vortex.errors import VortexError

VARIABLE = "VORTEX_LAST_WORD"
"""Where workers leave it; set by their parent."""

_awaited: list[Path] = []
"""The file, in the process that started the workers."""


def expect() -> None:
    """Say last what the workers leave that this process starts."""
    if _awaited:
        return
    path = Path(tempfile.gettempdir()) / f"vortex-last-word-{secrets.token_hex(8)}"
    _awaited.append(path)
    os.environ[VARIABLE] = str(path)
    atexit.register(path.unlink, missing_ok=True)


def leave(*_: Any, **__: Any) -> None:
    """Before SGLang logs the exception that ends a process: keep ours, the first of all ranks."""
    error: BaseException | None = sys.exc_info()[1]
    while error is not None and not isinstance(error, VortexError):
        error = error.__cause__ or error.__context__
    if error is not None and (name := os.environ.get(VARIABLE)):
        with suppress(OSError), Path(name).open("x", encoding="utf-8") as file:
            file.write(error.render() + "\n")


def say() -> bool:
    """Print what was left, once; whether anything was."""
    said = False
    for path in _awaited:
        with suppress(OSError):
            text = path.read_text(encoding="utf-8")
            path.unlink()
            print(text, end="", file=sys.stderr, flush=True)
            said = True
    return said


def before_the_end(kill: Callable[..., Any], *args: Any, **more: Any) -> Any:
    """Around SGLang's ``kill_process_tree``: where this process is about to kill itself, its workers go first."""
    given = dict(zip(("parent_pid", "include_parent"), args, strict=False)) | more
    if _awaited and given.get("parent_pid") == os.getpid() and given.get("include_parent", True):
        with suppress(RuntimeError):  # one that does not end in time
            kill(os.getpid(), include_parent=False)
        if say():
            os.kill(os.getpid(), signal.SIGKILL)  # as SGLang does, which would log that first
    return kill(*args, **more)


def alone() -> None:
    """For a program that SGLang's command line started: an error of ours is its sentence, without a traceback."""
    usual = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if isinstance(error, VortexError):
            print(error.render(), file=sys.stderr, flush=True)
            return
        usual(kind, error, trace)
        say()

    sys.excepthook = show
