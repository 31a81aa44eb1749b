"""Fills the generated parts of docs/*.md from registries and docstrings; with --check, says which are out of date."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from reference import ARGUMENTS, reference

from vortex.cli.ops import ir_ops
from vortex.passes.manager import listing
from vortex.schedules.template import listing as knob_listing

BLOCK = re.compile(r"(<!-- generated:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def ops() -> str:
    """All operations of both dialects."""
    rows = ((f"`{o['name']}`", _code(o["operands"]), _code(o["attributes"]), o["does"]) for o in ir_ops())
    return table(("operation", "operands", "attributes", "meaning"), rows)


def passes() -> str:
    """All passes in the order of the way down, then the contract of each."""
    rows = []
    for p in listing():
        options = ", ".join(f"`{o.name}={o.default}`" for o in p.options)
        rows.append((f"`{p.name}`", p.stage, p.tag, str(p.version), options, p.doc.partition("\n")[0]))
    contracts = "".join(f"\n`{p.name}`\n\n```\n{p.doc}\n```\n" for p in listing() if "->" in p.doc)
    return table(("pass", "reads", "tag", "version", "options", "what it does"), rows) + contracts


def knobs() -> str:
    """The knobs of all templates."""
    names = ("kernel", "targets", "knob", "type", "values", "default", "meaning")
    rows = ({**k, "knob": f"`{k['knob']}`", "type": f"`{k['type']}`"} for k in knob_listing())
    return table(names, (tuple(row[n] for n in names) for row in rows))


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


TABLES: dict[str, Callable[[], str]] = {"ops": ops, "passes": passes, "knobs": knobs, "api": reference, **ARGUMENTS}


def filled(text: str) -> str:
    """The page with its generated blocks made anew."""
    return BLOCK.sub(lambda m: f"{m[1]}{TABLES[m[2]]()}{m[3]}", text)


def main() -> int:
    """Rewrite, or check."""
    stale = []
    for path in sorted(Path(__file__).parent.glob("*.md")):
        text = path.read_text()
        if filled(text) != text:
            stale.append(path)
            if "--check" not in sys.argv:
                path.write_text(filled(text))
    for path in stale:
        print(f"{path}: {'out of date; run python docs/generate.py' if '--check' in sys.argv else 'written'}")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
