"""Where in a flow's own source something happens, and what its author called the result."""

from __future__ import annotations

import ast
import dis
import linecache
import os
import sys
from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType, FrameType, TracebackType

from vortex.errors import Loc

_FLOW = os.path.dirname(os.path.abspath(__file__))
_VORTEX = os.path.dirname(_FLOW) + os.sep
_LIBRARY = os.path.join(_FLOW, "library") + os.sep
_STDLIB = os.path.dirname(os.path.abspath(os.__file__)) + os.sep
_TORCH = os.sep + os.path.join("site-packages", "torch") + os.sep


def is_user_code(file: str) -> bool:
    """Whether a file may be a flow's: not torch, not Python's own, not this package, except the library of flows."""
    if file.startswith("<frozen") or _TORCH in file:
        return False
    if file.startswith(_STDLIB) and os.sep + "site-packages" + os.sep not in file:
        return False
    return not file.startswith(_VORTEX) or file.startswith(_LIBRARY)


def user_frame() -> FrameType | None:
    """The nearest frame that belongs to the flow."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not is_user_code(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def here() -> Loc | None:
    """The call that the flow is making now."""
    frame = user_frame()
    return locate(frame.f_code, frame.f_lasti) if frame is not None else None


def innermost(tb: TracebackType | None) -> Loc | None:
    """Where in the flow an exception left it: the last frame of the traceback that is the flow's."""
    found = None
    while tb is not None:
        if is_user_code(tb.tb_frame.f_code.co_filename):
            found = locate(tb.tb_frame.f_code, tb.tb_lasti)
        tb = tb.tb_next
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Code:
    """Code as a key: Python holds two of them equal when only their files differ."""

    code: CodeType

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Code) and self.code is other.code

    def __hash__(self) -> int:
        return id(self.code)


def locate(code: CodeType, lasti: int) -> Loc:
    """The source span of one instruction."""
    return _locate(_Code(code), lasti)


@lru_cache(maxsize=4096)
def _locate(key: _Code, lasti: int) -> Loc:
    code = key.code
    line, end_line, col, end = _positions(key)[max(lasti, 0) // 2]
    if line is None or col is None or end is None:
        return Loc(code.co_filename, line or code.co_firstlineno)
    return span(code.co_filename, line, col, end_line or line, end)


@lru_cache(maxsize=64)
def _positions(key: _Code) -> list[tuple[int | None, int | None, int | None, int | None]]:
    """Of each instruction; made once, because a long function asks for each of its own."""
    return list(key.code.co_positions())


def span(file: str, line: int, col: int, end_line: int, end: int) -> Loc:
    """From Python's positions (UTF-8 bytes, from 0) to ours; a span over several lines keeps its first."""
    text = linecache.getline(file, line).rstrip("\n")
    if not text:  # of exec, which keeps none: all that is known is where it was
        return Loc(file, line, col + 1, (end if end_line == line else col) + 1)
    data = text.encode()
    first = len(data[:col].decode(errors="ignore"))
    last = len(data[:end].decode(errors="ignore")) if end_line == line else len(text)
    return Loc(file, line, first + 1, max(last, first) + 1)


def node_loc(file: str, node: ast.stmt | ast.expr) -> Loc:
    """The source span of a syntax node."""
    end_line, end = node.end_lineno or node.lineno, node.end_col_offset or node.col_offset
    return span(file, node.lineno, node.col_offset, end_line, end)


def assigned_names(frame: FrameType) -> tuple[str, ...]:
    """The variables that the running call's result goes straight into: one, several when unpacked, or none."""
    offsets, names = _stores(frame.f_code)
    at = bisect_right(offsets, frame.f_lasti) - 1  # a call may be resumed in its inline cache
    return names[at] if at >= 0 else ()


@lru_cache(maxsize=512)
def _stores(code: CodeType) -> tuple[list[int], list[tuple[str, ...]]]:
    """For every instruction, the variables stored to directly after it."""
    steps = list(dis.get_instructions(code))
    names: list[tuple[str, ...]] = []
    for i in range(len(steps)):
        first, count = i + 1, 1
        if first < len(steps) and steps[first].opname == "UNPACK_SEQUENCE":
            first, count = first + 1, steps[first].arg or 0
        stored = steps[first : first + count]
        ok = stored and all(s.opname in ("STORE_FAST", "STORE_NAME", "STORE_DEREF", "STORE_GLOBAL") for s in stored)
        names.append(tuple(str(s.argval) for s in stored) if ok else ())
    return [s.offset for s in steps], names


def drops_result(frame: FrameType) -> bool:
    """Whether the running call is a statement of its own, whose result goes nowhere."""
    offsets, dropped = _drops(frame.f_code)
    at = bisect_right(offsets, frame.f_lasti) - 1
    return at >= 0 and dropped[at]


@lru_cache(maxsize=512)
def _drops(code: CodeType) -> tuple[list[int], list[bool]]:
    """For every instruction, whether what it leaves is dropped directly after it."""
    steps = list(dis.get_instructions(code))
    dropped = [s.opname == "POP_TOP" for s in steps[1:]] + [False]
    return [s.offset for s in steps], dropped


def variable_of(x: object) -> str:
    """What the flow calls an object that it captures: a variable in sight, or an attribute of self; else nothing."""
    frame = user_frame()
    if frame is None:
        return ""
    holder = frame.f_locals.get("self")
    own = [getattr(holder, "__dict__", {}), getattr(type(holder), "__dict__", {})]
    for names in (frame.f_locals, frame.f_globals, *own):
        for name, value in names.items():
            if value is x and name.isascii() and name.isidentifier() and name.strip("_"):
                return name
    return ""


FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


def function_node(code: CodeType) -> FunctionNode | None:
    """The syntax of a function, positions as in its file; None where there is no source."""
    for node in _functions(code.co_filename):
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        if node.name == code.co_name and first == code.co_firstlineno:
            return node
    return None


@lru_cache(maxsize=16)
def _parsed(file: str, text: str) -> tuple[FunctionNode, ...]:
    return tuple(n for n in ast.walk(ast.parse(text, file)) if isinstance(n, FunctionNode))


def _functions(file: str) -> tuple[FunctionNode, ...]:
    try:
        return _parsed(file, "".join(linecache.getlines(file)))
    except (SyntaxError, ValueError):
        return ()


def def_loc(code: CodeType) -> Loc:
    """The line that names the function, below its decorators."""
    node = function_node(code)
    return node_loc(code.co_filename, node) if node is not None else Loc(code.co_filename, code.co_firstlineno)


def mention(code: CodeType, name: str) -> Loc | None:
    """The first line of a function that writes a variable or attribute ``name``, else one that reads it."""
    node = function_node(code)
    if node is None:
        return None
    found = [n for n in ast.walk(node) if getattr(n, "id", getattr(n, "attr", None)) == name]
    written = [n for n in found if isinstance(n, ast.Name | ast.Attribute) and isinstance(n.ctx, ast.Store)]
    read = [n for n in found if isinstance(n, ast.Name | ast.Attribute)]
    best = (written or read)[:1]
    return node_loc(code.co_filename, best[0]) if best else None


def return_loc(code: CodeType) -> Loc:
    """The function's last ``return``, else its first line."""
    node = function_node(code)
    if node is None:
        return Loc(code.co_filename, code.co_firstlineno)
    returns = [n for n in ast.walk(node) if isinstance(n, ast.Return)]
    return node_loc(code.co_filename, max(returns, key=lambda n: n.lineno, default=node))


def key_loc(code: CodeType, key: str, nth: int = 0) -> Loc | None:
    """The ``nth`` place where a dict literal of the function has ``key``; None when there are fewer."""
    node = function_node(code)
    if node is None:
        return None
    for literal in ast.walk(node):
        if isinstance(literal, ast.Dict):
            keys = [k for k in literal.keys if isinstance(k, ast.Constant) and k.value == key]
            if len(keys) > nth:
                return node_loc(code.co_filename, keys[nth])
    return None
