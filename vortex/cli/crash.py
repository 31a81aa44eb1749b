"""What is written when vortex itself fails: a folder from which the failure can be repeated."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

from vortex.cli.source import STDIN
from vortex.install.versions import versions

MAX_INPUT = 16 << 20
"""Larger inputs and dumps are named, not copied."""


def report(argv: list[str], error: BaseException) -> str:
    """Write the reproducer; the message that names it."""
    from vortex.compilation.reproducer import DUMP_OF

    trace = "".join(traceback.format_exception(error))
    last = f"{type(error).__name__}: {error}".splitlines()[0]
    try:
        folder = _write(argv, trace, getattr(error, DUMP_OF, None))
    except OSError as e:
        return f"{trace}\ninternal error: {last}\n   = note: no reproducer was written: {e}"
    return (
        f"internal error: {last}\n"
        f"   = note: this is a mistake in vortex, not in your input\n"
        f"   = note: written to {folder}: the command, its inputs, the traceback, the versions\n"
        f"   = help: sh {folder}/repro.sh repeats it; attach the folder to a bug report (it holds your flow's code)\n"
        f"   = help: vortex report {folder} shows how far it came"
    )


def _write(argv: list[str], trace: str, dump: Path | None) -> Path:
    from vortex.compilation.reproducer import DUMP, REPORT, TRACEBACK

    told = f"{shlex.join(argv)}{trace}".encode(errors="surrogateescape")
    name = f"vortex-crash-{hashlib.sha256(told).hexdigest()[:8]}"
    folder = Path(name)
    try:
        folder.mkdir(exist_ok=True)
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    repeated = [_kept(arg, folder) for arg in argv]
    if dump is not None and sum(f.stat().st_size for f in dump.iterdir()) <= MAX_INPUT:
        shutil.copytree(dump, folder / DUMP, dirs_exist_ok=True)
    (folder / TRACEBACK).write_text(trace, encoding="utf-8", errors="surrogateescape")
    (folder / REPORT).write_text(json.dumps({"argv": argv, "versions": versions()}, indent=2) + "\n", encoding="utf-8")
    command = f'cd "$(dirname "$0")"\n{shlex.quote(sys.executable)} -m vortex {shlex.join(repeated)}\n'
    (folder / "repro.sh").write_text(command, encoding="utf-8", errors="surrogateescape")
    return folder


def _kept(arg: str, folder: Path) -> str:
    """``arg`` with the input file it names replaced by a copy inside the reproducer."""
    from vortex.compilation.reproducer import INPUTS

    if arg == "-" and STDIN:
        (folder / INPUTS).mkdir(exist_ok=True)
        (folder / INPUTS / "stdin").write_text(STDIN[-1], encoding="utf-8", errors="surrogateescape")
        return f"{INPUTS}/stdin"
    head, equals, tail = arg.partition("=") if arg.startswith("--") else ("", "", arg)
    path, colon, name = tail.partition(":")
    source = Path(path)
    if not source.is_file() or source.stat().st_size > MAX_INPUT:
        return arg
    copy = folder / INPUTS / source.name
    copy.parent.mkdir(exist_ok=True)
    shutil.copyfile(source, copy)
    return f"{head}{equals}{INPUTS}/{source.name}{colon}{name}"
