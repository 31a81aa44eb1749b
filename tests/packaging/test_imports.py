"""Who imports whom is as the table in docs/architecture.md says, nothing imports in a circle, and packages say what
they are.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECTION = "## Modules and who may import whom"
TOP, LAZY, TYPES = "at import time", "in a function", "for types alone"


@dataclass(frozen=True)
class Import:
    """One import statement's one module."""

    module: str
    """The importing one."""
    line: int
    target: str
    """A module of ours, or the first name of another's."""
    when: str

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target} {self.when}"


@dataclass(frozen=True)
class Row:
    """A row of the table: what a part of vortex may import at import time, and beside that in functions."""

    part: str
    imports: frozenset[str]
    lazily: frozenset[str]


@cache
def modules(root: Path = ROOT) -> Mapping[str, Path]:
    """Every module under vortex/ by its name."""
    found = {}
    for file in sorted((root / "vortex").rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports_of(module: str, text: str, known: Mapping[str, Path]) -> Iterator[Import]:
    """The imports in a module's text, those of the standard library aside."""

    def walk(node: ast.AST, when: str) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inner = when
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and when == TOP:
                inner = LAZY
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                inner = TYPES
            names: list[str] = []
            if isinstance(child, ast.Import):
                names = [a.name for a in child.names]
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{module}:{child.lineno}: a relative import"
                full = [f"{child.module}.{a.name}" for a in child.names]
                names = [name if name in known else str(child.module) for name in full]
            for name in dict.fromkeys(names):
                ours = name.split(".")[0] == "vortex"
                assert not ours or name in known, f"{module}:{getattr(child, 'lineno', 0)}: there is no {name}"
                target = name if ours else name.split(".")[0]
                if target not in sys.stdlib_module_names:
                    yield Import(module, getattr(child, "lineno", 0), target, when)
            yield from walk(child, inner)

    return walk(ast.parse(text), TOP)


@cache
def all_imports() -> tuple[Import, ...]:
    return tuple(i for m, file in modules().items() for i in imports_of(m, file.read_text(), modules()))


@cache
def table() -> Mapping[str, Row]:
    """The rows of docs/architecture.md by part, in their order."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    section = text[text.index(SECTION) :].split("\n## ")[0]
    rows = {}
    for line in section.splitlines():
        if not line.startswith("| `"):
            continue
        files, _, imports, lazily = (cell.strip() for cell in line.strip("|").split("|"))
        for file in re.findall(r"`([^`]+)`", files):
            part = file.rstrip("/").removesuffix(".py").replace("/", ".").removesuffix(".__init__")
            named = [frozenset(re.findall(r"[\w.]+", cell)) for cell in (imports, lazily)]
            assert part not in rows, f"{part} is in the table twice"
            rows[part] = Row(part, *named)
    return rows


def part_of(module: str) -> str:
    """The row that a module belongs to: the longest of its own name and those of the packages around it."""
    name = module
    while name != "vortex" and name not in table():
        name = name.rpartition(".")[0]
    if name == "vortex" and module not in ("vortex",):
        return ""
    return name


def shown(part: str) -> str:
    """A part as the table's last columns name it."""
    return part.removeprefix("vortex.")


def test_every_module_belongs_to_a_row() -> None:
    lost = [m for m in modules() if not part_of(m)]
    assert not lost, "docs/architecture.md has no row for these"
    unused = table().keys() - {part_of(m) for m in modules()}
    assert not unused, "docs/architecture.md has rows for what is not there"


@pytest.mark.parametrize("part", table())
def test_imports_are_those_of_the_table(part: str) -> None:
    row, at_top, in_functions = table()[part], set(), set()
    wrong = []
    for i in all_imports():
        target = shown(part_of(i.target)) if i.target in modules() else i.target
        if part_of(i.module) != part or target == shown(part) or i.when == TYPES:
            continue
        (at_top if i.when == TOP else in_functions).add(target)
        if target not in row.imports and (i.when == TOP or target not in row.lazily):
            wrong.append(str(i))
    found = " | ".join(", ".join(sorted(names)) or "-" for names in (at_top, in_functions - at_top))
    assert not wrong, f"the table does not allow it; the code has | {found} |"
    unused = (row.imports - at_top) | (row.lazily - in_functions)
    assert not unused, f"the table lists what is not imported; the code has | {found} |"


def test_parts_import_from_the_rows_above_them() -> None:
    """So there is no circle of parts, through functions neither; imports for types alone point the same way, but for
    the public names, which come from everywhere.
    """
    order = list(table())
    wrong = []
    for i in all_imports():
        if (i.module, i.when) == ("vortex", TYPES):
            continue
        if i.target in modules() and order.index(part_of(i.target)) > order.index(part_of(i.module)):
            wrong.append(str(i))
    assert not wrong


def circles(graph: Mapping[str, set[str]]) -> list[tuple[str, ...]]:
    """Every group of modules that reach each other."""
    reach = {m: set(graph[m]) for m in graph}
    for via in graph:
        for m in graph:
            if via in reach[m]:
                reach[m] |= reach[via]
    return sorted({tuple(sorted(o for o in graph if o in reach[m] and m in reach[o])) for m in graph if m in reach[m]})


@pytest.mark.parametrize("lazy", [False, True], ids=["at import time", "functions included"])
def test_no_module_imports_itself_in_a_circle(lazy: bool) -> None:
    graph: dict[str, set[str]] = {m: set() for m in modules()}
    for i in all_imports():
        if i.target in graph and i.when in ((TOP, LAZY) if lazy else (TOP,)):
            graph[i.module].add(i.target)
    assert not circles(graph)


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [("a", "b", "c")]


def test_imports_are_seen_where_they_are() -> None:
    text = """
from typing import TYPE_CHECKING
import vortex.errors
if TYPE_CHECKING:
    from vortex.spec import Spec
def f():
    from vortex.flow import source
    import torch.nn
"""
    found = [(i.target, i.when) for i in imports_of("vortex.x", text, modules())]
    assert found == [("vortex.errors", TOP), ("vortex.spec", TYPES), ("vortex.flow.source", LAZY), ("torch", LAZY)]


PACKAGES = [m for m, file in modules().items() if file.name == "__init__.py"]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_what_it_is_and_who_may_import_it(package: str) -> None:
    said = ast.get_docstring(ast.parse(modules()[package].read_text())) or ""
    first = said.split("\n\n")[0]
    assert first.endswith("."), "a sentence is needed"
    assert re.search(r"\bimports? (it|them)\b|\bread by\b", first), "who may import it is not said"
