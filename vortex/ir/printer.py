"""IR to text; :mod:`vortex.ir.parser` reads it back."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from vortex.errors import Loc
from vortex.ir.types import DType, SelectionType, Sym, TensorType

if TYPE_CHECKING:
    from vortex.ir.core import Attr, Decl, Function, Module, Op

VERSION = 1
HEAD = {"flow": "flow.module", "page": "page.program"}
WIDTH = 120
"""Columns of the heads of modules and functions; an op is one line, however long."""
_PIECE = re.compile(r"""(?:"(?:[^"\\]|\\.)*"|[\[{(][^\[\]{}()"]{0,60}[\])}]|[^",])*,?""")
"""What a line is not broken inside of: up to the next comma, that of a string or a short list aside."""


def print_module(module: Module, *, locs: bool = True, notes: bool = True) -> str:
    """The module's text, ending in a newline."""
    lines = [f"// vortex-ir {VERSION} | stage {module.stage}"]
    lines += _wrapped(f"{HEAD[module.stage]} @{module.name}{_dict(module.attrs)} {{", WIDTH)
    lines += [f"  {_decl(d)}" for d in module.decls.values()]
    for f in module.functions.values():
        lines += ["", *("  " + line for line in print_function(f, locs=locs, notes=notes))]
    return "\n".join([*lines, "}", ""])


def print_function(f: Function, *, locs: bool = True, notes: bool = True) -> list[str]:
    """The lines of one function, unindented."""
    args = ", ".join(f"%{a.name}: {a.type}" for a in f.args)
    lines = _wrapped(f"{f.keyword} @{f.name}({args}){_dict(f.attrs)} {{{_loc(f.loc) if locs else ''}", WIDTH - 2)
    body = [(print_op(o, notes=notes), _loc(o.loc) if locs else "") for o in f.ops]
    width = min(96, max((len(text) for text, loc in body if loc), default=0))
    lines += [f"  {text.ljust(width) if loc else text}{loc}" for text, loc in body]
    return [*lines, "}"]


def _wrapped(line: str, width: int) -> list[str]:
    """``line`` broken behind commas where it is wider; what follows is indented, the deeper nested the more."""
    if len(line) <= width:
        return [line]
    lines = [""]
    depth = 0
    for piece in (m[0] for m in _PIECE.finditer(line) if m[0]):
        if lines[-1] and len(lines[-1] + piece) > width:
            lines.append("  " * (depth + 1) + piece.lstrip())
        else:
            lines[-1] += piece
        bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", piece)
        depth += sum(bare.count(c) for c in "[{(") - sum(bare.count(c) for c in ")}]")
    return lines


def print_op(o: Op, *, notes: bool = True) -> str:
    """One op without its location."""
    left = f"%{o.result.name} = " if o.result is not None else ""
    operands = ", ".join(f"%{v.name}" for v in o.operands)
    shown = {f.name: getattr(o, f.name) for f in o.form.attrs if f.name != "type" and getattr(o, f.name) != f.default}
    right = f" : {o.result.type}" if o.result is not None else ""
    extra = f" <{', '.join(f'{k} = {attr(v)}' for k, v in o.notes.items())}>" if notes and o.notes else ""
    return f"{left}{o.name}({operands}){_dict(shown)}{extra}{right}"


def attr(value: Attr) -> str:
    """One attribute value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, int | float | DType | Sym | TensorType | SelectionType):
        return str(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(attr, value))}]"
    assert isinstance(value, dict), f"{value!r} is not an attribute"
    return f"{{{', '.join(f'{k} = {attr(v)}' for k, v in value.items())}}}"


def _decl(d: Decl) -> str:
    return f"{d.keyword} @{d.name} : {d.type}{_dict(d.attrs)}"


def _dict(attrs: dict[str, Attr]) -> str:
    return f" {attr(attrs)}" if attrs else ""


def _loc(loc: Loc | None) -> str:
    if loc is None:
        return ""
    end = f"-{loc.end}" if loc.end else ""
    return f"  @ {json.dumps(loc.file)}:{loc.line}:{loc.col}{end}" + (f" in {loc.call}" if loc.call else "")
