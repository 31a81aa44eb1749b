"""What differs between two modules, as their meaning and their choices have it.

Names of values, locations, comments and the order of independent ops make no difference, nor do the names of workspace
and of the kernels before fusion, which are those of values. Types that follow from others are not told again.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from vortex.errors import Loc
from vortex.ir.core import Decl, Function, Module, Op, Value
from vortex.ir.matching import Graph, Matching, Memory, match_arguments
from vortex.ir.printer import attr, print_op
from vortex.ir.schedule_changes import knob_changes

Sign = Literal["-", "+", "~"]
TEXT_ONLY = ("source",)
"""Attributes of a module that tell which text it was made from, comments included."""
FIRST = ("op", "knob", "argument", "attribute")
"""What is counted first."""
LONGEST = 120
"""Characters of an attribute that are shown; of a longer one its hash."""


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that is in a alone (``-``), in b alone (``+``) or another in b (``~``)."""

    sign: Sign
    what: str
    """``op``, ``argument``, ``attribute``, ``knob``, or the keyword of a declaration; of what else a compilation has
    its own word, such as ``library``."""
    name: str
    """Of the value, attribute, knob or declaration; empty for an op without a result."""
    before: str
    after: str
    loc: Loc | None = None
    """Of an op: the place in the flow that it came from."""
    origin: str = ""
    """Of a knob: who chose it, and who does now."""


@dataclass(frozen=True, slots=True)
class FunctionChange:
    """What differs in one function or kernel; all of it where one side lacks it."""

    sign: Sign
    keyword: str
    name: str
    changes: tuple[Change, ...]

    def __str__(self) -> str:
        """``select (3 ops, 1 knob)``."""
        what = {"-": "gone", "+": "new", "~": _counts(self.changes)}[self.sign]
        return f"{self.name} ({what})"


@dataclass(frozen=True, slots=True)
class ModuleChange:
    """What differs between two modules: in their attributes and declarations, and in each function."""

    changes: tuple[Change, ...]
    functions: tuple[FunctionChange, ...]

    def __bool__(self) -> bool:
        return bool(self.changes or self.functions)

    def __str__(self) -> str:
        """``2 kernels differ: select (3 ops, 1 knob), attend (1 knob); 1 attribute``."""
        said = []
        for keyword, word in (("func", "function"), ("kernel", "kernel")):
            found = [f for f in self.functions if f.keyword == keyword]
            if found:
                many = len(found) != 1
                differ = f"{len(found)} {word}{'s differ' if many else ' differs'}"
                said.append(f"{differ}: {', '.join(map(str, found))}")
        return "; ".join([*said, *filter(None, [_counts(self.changes)])])


def _counts(changes: Sequence[Change]) -> str:
    """How many of what, e.g. ``3 ops, 1 knob``."""
    found = Counter(c.what for c in changes)
    kinds = sorted(found, key=lambda k: (FIRST.index(k) if k in FIRST else len(FIRST), k))
    return ", ".join(f"{found[k]} {k if found[k] == 1 else _plural(k)}" for k in kinds)


def _plural(word: str) -> str:
    return f"{word[:-1]}ies" if word.endswith("ry") else f"{word}es" if word.endswith("s") else f"{word}s"


def compare_modules(a: Module, b: Module) -> ModuleChange:
    """What makes ``b`` another module than ``a``; under the names of a where both have a name for it."""
    called = _other_names(a, b)
    changes = [
        *settings("attribute", {"stage": a.stage, **_told(a)}, {"stage": b.stage, **_told(b)}),
        *_declarations(a, b, called),
    ]
    if a.name != b.name:
        changes.insert(0, Change("~", "attribute", "name", a.name, b.name))
    named = a.decls.keys() | b.decls.keys()
    left, right = Memory(named), Memory(named, called)
    functions = []
    for f, g in _functions(a, b):
        if f is not None and g is not None:
            if found := tuple(_function(f, g, left, right)):
                functions.append(FunctionChange("~", f.keyword, f.name, found))
        elif f is not None:
            functions.append(FunctionChange("-", f.keyword, f.name, tuple(_whole("-", f))))
        elif g is not None:
            functions.append(FunctionChange("+", g.keyword, g.name, tuple(_whole("+", g))))
    return ModuleChange(tuple(changes), tuple(functions))


def _told(m: Module) -> dict[str, object]:
    return {k: v for k, v in m.attrs.items() if k not in TEXT_ONLY}


def settings(what: str, a: Mapping[str, object], b: Mapping[str, object], prefix: str = "") -> Iterator[Change]:
    """Attributes that differ, those of a dict each by itself."""
    for name in dict.fromkeys((*a, *b)):
        x, y = a.get(name), b.get(name)
        if isinstance(x, dict) or isinstance(y, dict):
            inside, there = (z if isinstance(z, dict) else {} for z in (x, y))
            yield from settings(what, inside, there, f"{prefix}{name}.")
        elif x is None or y is None or attr(x) != attr(y):
            sign: Sign = "+" if x is None else "-" if y is None else "~"
            before, after = ("" if z is None else shorten(attr(z)) for z in (x, y))
            yield Change(sign, what, prefix + name, before, after)


def shorten(text: str) -> str:
    """``text``, or what stands for one that is too long to be read, such as the data of a tensor."""
    if len(text) <= LONGEST:
        return text
    return f"<{len(text)} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()[:12]}>"


# --- declarations and names ------------------------------------------------------------------------------------


def _other_names(a: Module, b: Module) -> dict[str, str]:
    """Workspace of b that a has under another name: in order, where type and attributes are the same."""
    mine = [d for d in _workspace(a) if d.name not in b.decls]
    found = {}
    for d in _workspace(b):
        same = [x for x in mine if (x.type, x.attrs) == (d.type, d.attrs)] if d.name not in a.decls else []
        if same:
            found[d.name] = same[0].name
            mine.remove(same[0])
    return found


def _workspace(m: Module) -> list[Decl]:
    return [d for d in m.decls.values() if d.attrs.get("role") == "workspace"]


def _declarations(a: Module, b: Module, called: Mapping[str, str]) -> Iterator[Change]:
    theirs = {called.get(d.name, d.name): d for d in b.decls.values()}
    for name in dict.fromkeys((*a.decls, *theirs)):
        x, y = a.decls.get(name), theirs.get(name)
        before, after = _text(x), _text(y)
        if before != after:
            sign: Sign = "+" if x is None else "-" if y is None else "~"
            yield Change(sign, (x or theirs[name]).keyword, name, before, after)


def _text(d: Decl | None) -> str:
    """A declaration's type and attributes."""
    if d is None:
        return ""
    return " ".join([str(d.type), *(f"{k}={shorten(attr(v))}" for k, v in sorted(d.attrs.items()))])


def _functions(a: Module, b: Module) -> Iterator[tuple[Function | None, Function | None]]:
    """Functions by name, then in order those with the same ops."""
    new = [g for g in b.functions.values() if g.name not in a.functions]
    for f in a.functions.values():
        g = b.functions.get(f.name) or next((g for g in new if _ops(f) == _ops(g)), None)
        if g in new:
            new.remove(g)
        yield f, g
    yield from ((None, g) for g in new)


def _ops(f: Function) -> object:
    return f.keyword, f.attrs.get("kind"), Counter(o.name for o in f.ops)


# --- functions -------------------------------------------------------------------------------------------------


def _function(f: Function, g: Function, left: Memory, right: Memory) -> Iterator[Change]:
    mine, theirs = ({k: v for k, v in x.attrs.items() if k != "schedule"} for x in (f, g))
    yield from settings("attribute", mine, theirs)
    for sign, knob, before, after, origin in knob_changes(f.attrs.get("schedule", {}), g.attrs.get("schedule", {})):
        yield Change(sign, "knob", knob, before, after, origin=origin)
    arguments = match_arguments(f, g)
    for i, v in enumerate(f.args):
        other = g.args[arguments[i]] if i in arguments else None
        if other is None or other.type != v.type:
            after = str(other.type) if other is not None else ""
            yield Change("~" if after else "-", "argument", v.name, str(v.type), after)
    for j, v in enumerate(g.args):
        if j not in arguments.values():
            yield Change("+", "argument", v.name, "", str(v.type))
    a, b = Graph(f, left), Graph(g, right)
    m = Matching(a, b, arguments)
    with _under(g, _names(m)):
        for x, y in m.in_order():
            if x is not None and y is not None:
                one, two = a.op(x), b.op(y)
                if a.labels[x] != b.labels[y] or one.notes != two.notes or m.rewired(x, y):
                    yield _op("~", one, two)
            elif x is not None:
                yield _op("-", a.op(x), None)
            elif y is not None:
                yield _op("+", None, b.op(y))


def _op(sign: Sign, a: Op | None, b: Op | None) -> Change:
    shown = a or b
    assert shown is not None
    name = shown.result.name if shown.result is not None else ""
    before, after = (print_op(o) if o is not None else "" for o in (a, b))
    return Change(sign, "op", name, before, after, shown.loc)


def _whole(sign: Sign, f: Function) -> Iterator[Change]:
    yield from (_op(sign, o, None) if sign == "-" else _op(sign, None, o) for o in f.ops)


def _names(m: Matching) -> dict[Value, str]:
    """What the values of b are called: as their partners in a; with a prime where a has the name for another."""
    mine = [*m.a.f.args, *(o.result for o in m.a.f.ops)]
    theirs = [*m.b.f.args, *(o.result for o in m.b.f.ops)]
    taken = {v.name for v in mine if v is not None}
    found = {}
    for j, v in enumerate(theirs):
        partner = mine[m.back[j]] if j in m.back else None
        if v is not None:
            found[v] = partner.name if partner is not None else v.name + "'" * (v.name in taken)
    return found


@contextmanager
def _under(f: Function, names: Mapping[Value, str]) -> Iterator[None]:
    """The values of ``f`` have other names inside."""
    kept = [(v, v.name) for v in f.values()]
    try:
        for v, name in names.items():
            v.name = name
        yield
    finally:
        for v, name in kept:
            v.name = name
