"""Compare two IR files, or two artifacts (or dump folders) file by file. Libraries are compared by hash, never loaded.

examples:
  vortex diff 00-trace.flow 04-reassociate.flow
  vortex diff old.vxa new.vxa

The exit code is 0 whether or not they differ; --exit-code makes it 1 when they do.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
from pathlib import Path

from vortex.cli.source import read_text
from vortex.errors import NO_SUCH_FILE

TEXT = (".flow", ".page", ".tir", ".ll", ".json", ".sh", ".py", ".cu", ".txt")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("a", metavar="A", help="an IR file, an artifact or a dump folder")
    parser.add_argument("b", metavar="B", help="what to compare it with")
    parser.add_argument("--no-locs", action="store_true", help="leave source locations of IR files out of it")
    parser.add_argument("--exit-code", action="store_true", help="exit with 1 when they differ")


def run(args: argparse.Namespace) -> int:
    """Print the difference."""
    a, b = Path(args.a), Path(args.b)
    if a.is_dir() and b.is_dir():
        found = _folders(a, b, args.no_locs)
    elif a.is_dir() or b.is_dir():
        folder, other = (a, b) if a.is_dir() else (b, a)
        raise NO_SUCH_FILE.at(path=str(other), why=f"is not a folder, and '{folder}' is one: compare like with like")
    else:
        found = _texts(args.a, args.b, args.no_locs)
    print("".join(found), end="")
    return int(args.exit_code and bool(found))


def _folders(a: Path, b: Path, no_locs: bool) -> list[str]:
    names = sorted({str(f.relative_to(root)) for root in (a, b) for f in root.rglob("*") if f.is_file()})
    out: list[str] = []
    for name in names:
        left, right = a / name, b / name
        if not left.is_file() or not right.is_file():
            out.append(f"only in {a if left.is_file() else b}: {name}\n")
        elif left.suffix in TEXT:
            out += _texts(str(left), str(right), no_locs)
        elif _digest(left) != _digest(right):
            out.append(f"differ: {left} {_digest(left)}, {right} {_digest(right)}\n")
    return out


def _texts(a: str, b: str, no_locs: bool) -> list[str]:
    return list(difflib.unified_diff(_lines(a, no_locs), _lines(b, no_locs), a, b))


def _lines(name: str, no_locs: bool) -> list[str]:
    text, shown = read_text(name)
    if no_locs and name.endswith((".flow", ".page")):
        from vortex.ir.parser import parse_module
        from vortex.ir.printer import print_module

        text = print_module(parse_module(text, shown), locs=False)
    return text.splitlines(keepends=True)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
