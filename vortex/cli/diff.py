"""Compare two IR files, two artifacts or two dump folders by what they mean, not by how they are written.

Names of values, locations and the order of independent ops make no difference. What does is told by function: '-' is
in A alone, '+' in B alone, '~' is another in B; knobs with who chose them. Of dumps it is also told after which pass
they diverge first. Libraries are compared by hash, never loaded. --text compares line by line, as other files always
are.

examples:
  vortex diff dump/*-trace.flow dump/*-reassociate.flow
  vortex diff old.vxa new.vxa
  vortex diff dumps/quest-1a2b3c4d-sm_90a dumps/quest-1a2b3c4d-sm_100a --all
  vortex diff old.vxa new.vxa --json

The exit code is 0 whether or not they differ; --exit-code makes it 1 when they do.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from vortex.cli.show import emit_json
from vortex.cli.source import read_text
from vortex.errors import NO_SUCH_FILE

if TYPE_CHECKING:
    from vortex.compilation.compare import Part
    from vortex.ir.compare import Change, FunctionChange

IR = (".flow", ".page")
TEXT = (*IR, ".tir", ".ll", ".json", ".sh", ".py", ".cu", ".txt")
MOST = 24
"""Lines of one function that are shown without --all."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("a", metavar="A", help="an IR file, an artifact or a dump folder")
    parser.add_argument("b", metavar="B", help="what to compare it with")
    parser.add_argument("--text", action="store_true", help="compare line by line, folders file by file")
    parser.add_argument("--no-locs", action="store_true", help="with --text: leave source locations of IR files out")
    parser.add_argument("--all", action="store_true", help=f"show all of a function, not the first {MOST} lines")
    parser.add_argument("--json", action="store_true", help="print the difference as JSON")
    parser.add_argument("--exit-code", action="store_true", help="exit with 1 when they differ")


def run(args: argparse.Namespace) -> int:
    """Print the difference."""
    a, b = Path(args.a), Path(args.b)
    if a.is_dir() != b.is_dir():
        folder, other = (a, b) if a.is_dir() else (b, a)
        raise NO_SUCH_FILE.at(path=str(other), why=f"is not a folder, and '{folder}' is one: compare like with like")
    if args.text or not (a.is_dir() or (_is_ir(args.a) and _is_ir(args.b))):
        lines = _folders(a, b, args.no_locs) if a.is_dir() else _texts(args.a, args.b, args.no_locs)
        if args.json:
            emit_json({"a": args.a, "b": args.b, "differ": bool(lines), "lines": [x.rstrip("\n") for x in lines]})
        else:
            print("".join(lines), end="")
        return int(args.exit_code and bool(lines))
    parts = _parts(args.a, args.b)
    if args.json:
        found = [{"title": p.title, **asdict(p.change)} for p in parts]
        emit_json({"a": args.a, "b": args.b, "differ": bool(parts), "summary": _summary(parts), "parts": found})
    else:
        print(_summary(parts))
        for part in parts:
            print("\n".join(_shown(part, MOST if not args.all else 0)))
    return int(args.exit_code and bool(parts))


def _is_ir(name: str) -> bool:
    return name == "-" or name.endswith(IR)


# --- by meaning ----------------------------------------------------------------------------------------------------


def _parts(a: str, b: str) -> list[Part]:
    from vortex.compilation.compare import Part, compare_stored

    if Path(a).is_dir():
        from vortex.compilation.stored import read_stored

        return compare_stored(read_stored(a), read_stored(b))
    from vortex.ir.compare import compare_modules
    from vortex.ir.parser import parse_module

    found = compare_modules(*(parse_module(*read_text(name)) for name in (a, b)))
    return [Part("", found)] if found else []


def _summary(parts: Sequence[Part]) -> str:
    """One line; parts that differ alike are named together."""
    said: dict[str, list[str]] = {}
    for part in parts:
        said.setdefault(str(part.change), []).append(part.title)
    return "; ".join(": ".join(filter(None, (", ".join(who), what))) for what, who in said.items()) or "no difference"


def _shown(part: Part, most: int) -> Iterator[str]:
    """The lines of one part; ``most`` of each function, 0 for all."""
    if part.title:
        yield f"\n{part.title}"
    yield from _cut([line for c in part.change.changes for line in _lines(c)], most)
    for f in part.change.functions:
        yield f"\n{_head(f)}"
        yield from _cut([line for c in f.changes for line in _lines(c)], most)


def _head(f: FunctionChange) -> str:
    return f"{'' if f.sign == '~' else f.sign + ' '}{f.keyword} @{f}"


def _cut(lines: list[str], most: int) -> Iterator[str]:
    shown = lines if not most or len(lines) <= most else lines[:most]
    yield from (f"  {line}" for line in shown)
    if len(shown) < len(lines):
        yield f"  ... {len(lines) - len(shown)} more lines (--all)"


def _lines(c: Change) -> Iterator[str]:
    """A change as it is shown: an op under the names of A, anything else in one line."""
    if c.what == "op":
        place = f"  {Path(c.loc.file).name}:{c.loc.line}" if c.loc is not None else ""
        yield f"{c.sign} {c.before or c.after}{place}"
        if c.sign == "~":
            yield f"    -> {c.after}"
        return
    what = c.name if c.what in ("knob", "attribute") else f"{c.what} {c.name}".rstrip()
    values = f"{c.before} -> {c.after}" if c.sign == "~" else c.before or c.after
    yield f"{c.sign} {what} {values}" + (f" ({c.origin})" if c.origin else "")


# --- by lines ------------------------------------------------------------------------------------------------------


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
    return list(difflib.unified_diff(_lines_of(a, no_locs), _lines_of(b, no_locs), a, b))


def _lines_of(name: str, no_locs: bool) -> list[str]:
    text, shown = read_text(name)
    if no_locs and name.endswith(IR):
        from vortex.ir.parser import parse_module
        from vortex.ir.printer import print_module

        text = print_module(parse_module(text, shown), locs=False)
    return text.splitlines(keepends=True)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
