"""Text to IR. Whatever the text, the outcome is a verified module or a VortexError that points into it.

Grammar::

    module := ("flow.module" | "page.program") @name dict? "{" decl* function* "}"
    decl   := ("field" | "buffer" | "resource" | "param") @name ":" type dict?
    func   := ("func" | "kernel") @name "(" (%name ":" type),* ")" dict? "{" loc? op* "}"
    op     := (%name "=")? op.name "(" %name,* ")" dict? notes? (":" type)? loc?
    dict   := "{" (key "=" attr),* "}"          notes := "<" (key "=" attr),* ">"
    type   := dtype "[" dim,* "]" | "selection"
    dim    := size | "S" | name "<=" pages       loc := "@" "file" ":" line ":" col ("-" end)? ("in" name)?
"""

from __future__ import annotations

import dataclasses
import json
import re
from bisect import bisect_left
from typing import Any, NamedTuple

from vortex.errors import (
    IR_ATTRIBUTE,
    IR_REDEFINED,
    IR_STAGE,
    IR_SYNTAX,
    IR_TYPE,
    IR_UNDEFINED,
    IR_UNKNOWN_OP,
    Loc,
    VortexError,
    nearest,
)
from vortex.ir.core import OPS, Attr, Decl, Function, Module, Op, Value
from vortex.ir.dialects import flow, page  # noqa: F401 - their ops register themselves
from vortex.ir.printer import HEAD, VERSION
from vortex.ir.types import (
    DTYPES,
    MOST_BLOCKS,
    MOST_LISTED,
    Dim,
    DType,
    Sym,
    TensorType,
    Type,
    selection,
    whole_pages,
)
from vortex.ir.verify import verify

TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+|//[^\n]*)|(?P<string>"(?:[^"\\\n]|\\.)*")
    |(?P<number>-?(?:\d+\.\d*(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+|\d+)|-inf\b)
    |(?P<value>%\w+)|(?P<symbol>@[\w.]+)|(?P<word>[A-Za-z_][\w.]*)|(?P<arrow>->)|(?P<punct>[{}()\[\]<>=,:@/-])""",
    re.VERBOSE | re.ASCII,
)
DEPTH = 16
"""How deep attributes may nest."""
AXIS = re.compile(r"S[1-9]\d*", re.ASCII)
"""The name of a shortlist's page axis."""
RANK = 16
"""How many axes a tensor may have."""
DIGITS = 18
"""Longest integer read, so that every number fits 64 bits."""
INTEGER = re.compile(rf"-?\d{{1,{DIGITS}}}", re.ASCII)


class Token(NamedTuple):
    kind: str
    text: str
    at: int


def parse_module(text: str, file: str = "<text>") -> Module:
    """The verified module that ``text`` describes.

    Raises:
        VortexError: VX2001 to VX2009, located in ``file``.
    """
    return _Parser(text, file).module()


class _Parser:
    def __init__(self, text: str, file: str) -> None:
        self.text, self.file = text, file
        self.line_ends = [m.start() for m in re.finditer("\n", text)]
        self.tokens = self._tokenize()
        self.next = 0

    # tokens

    def _tokenize(self) -> list[Token]:
        head = re.match(r"// vortex-ir (\d{1,6})\b", self.text)
        if head and int(head[1]) != VERSION:
            version, hint = f"version {VERSION}", "compile the flow again with this vortex"
            raise IR_STAGE.at(self._at(0), source=self.text, got=f"version {head[1]}", expected=version, hint=hint)
        tokens, at = [], 0
        for m in TOKEN.finditer(self.text):
            if m.start() != at:
                break
            if m.lastgroup != "space":
                tokens.append(Token(m.lastgroup or "", m[0], at))
            at = m.end()
        if at < len(self.text):
            raise IR_SYNTAX.at(self._at(at), source=self.text, expected="IR text", found=repr(self.text[at]))
        return [*tokens, Token("end", "the end of the text", len(self.text))]

    def _at(self, at: int, length: int = 1) -> Loc:
        line = bisect_left(self.line_ends, at)
        col = at - (self.line_ends[line - 1] if line else -1)
        return Loc(self.file, line + 1, col, col + length)

    def _here(self) -> Loc:
        t = self.tokens[self.next]
        return self._at(t.at, 1 if t.kind == "end" else len(t.text))

    def _fail(self, expected: str) -> VortexError:
        t = self.tokens[self.next]
        found = t.text if t.kind == "end" else f"'{t.text[:40]}'"
        return IR_SYNTAX.at(self._here(), source=self.text, expected=expected, found=found)

    def _peek(self, text: str) -> bool:
        t = self.tokens[self.next]
        return t.text == text and t.kind not in ("string", "end")

    def _accept(self, text: str) -> bool:
        if self._peek(text):
            self.next += 1
            return True
        return False

    def _expect(self, text: str) -> None:
        if not self._accept(text):
            raise self._fail(f"'{text}'")

    def _take(self, kind: str, what: str) -> str:
        t = self.tokens[self.next]
        if t.kind != kind:
            raise self._fail(what)
        self.next += 1
        return t.text

    def _int(self, what: str) -> int:
        text = self.tokens[self.next].text
        if self.tokens[self.next].kind != "number" or not INTEGER.fullmatch(text):
            raise self._fail(what)
        self.next += 1
        return int(text)

    # structure

    def module(self) -> Module:
        stage = next((s for s, word in HEAD.items() if self._accept(word)), None)
        if stage is None:
            raise self._fail("'flow.module' or 'page.program'")
        m = Module(stage, self._symbol(), self._dict())
        self._expect("{")
        while not self._accept("}"):
            if self.tokens[self.next].text in ("field", "buffer", "resource", "param"):
                self._defined(m, self._decl)
            elif self.tokens[self.next].text in ("func", "kernel"):
                self._defined(m, self._function)
            else:
                raise self._fail("a declaration, a function or '}'")
        if self.tokens[self.next].kind != "end":
            raise self._fail("the end of the text")
        try:
            verify(m)
        except VortexError as e:
            raise self._located(e, Loc(self.file, 1)) from None
        return m

    def _defined(self, m: Module, read: object) -> None:
        where = self._here()
        made = read()  # type: ignore[operator]
        try:
            m.declare(made) if isinstance(made, Decl) else m.define(made)
        except VortexError as e:
            raise self._located(e, where) from None

    def _located(self, e: VortexError, where: Loc) -> VortexError:
        """Point the error into this text, wherever else it points."""
        if e.loc is not None and e.loc.file != self.file:
            e.note(f"from {e.loc}")
        if e.loc is None or e.loc.file != self.file:
            e.loc, e.source = where, self.text
        return e

    def _symbol(self) -> str:
        return self._take("symbol", "a name such as '@quest'")[1:]

    def _decl(self) -> Decl:
        keyword = self._take("word", "a declaration")
        name = self._symbol()
        self._expect(":")
        return Decl(keyword, name, self._type(), self._dict())

    def _function(self) -> Function:
        f = Function(self._take("word", "a function"), self._symbol())
        self._expect("(")
        scope: dict[str, Value] = {}
        while not self._accept(")"):
            where = self._here()
            name = self._take("value", "an argument such as '%q'")[1:]
            self._expect(":")
            self._define(scope, Value(name, self._type()), where)
            if not self._peek(")"):
                self._expect(",")
        f.args = list(scope.values())
        f.attrs = self._dict()
        self._expect("{")
        f.loc = self._loc()
        while not self._accept("}"):
            f.ops.append(self._op(scope))
        return f

    def _define(self, scope: dict[str, Value], value: Value, where: Loc) -> None:
        if value.name in scope:
            raise IR_REDEFINED.at(where, source=self.text, what="value", name=value.name)
        scope[value.name] = value

    def _op(self, scope: dict[str, Value]) -> Op:
        start = self._here()
        target = None
        if self.tokens[self.next].kind == "value":
            target = self._take("value", "a value")[1:]
            self._expect("=")
        where = self._here()
        name = self._take("word", "an operation")
        if name not in OPS:
            raise IR_UNKNOWN_OP.at(where, source=self.text, name=name, nearest=nearest(name, OPS))
        operands = self._operands(scope)
        attrs = self._dict()
        notes = self._notes()
        declared = self._type() if self._accept(":") else None
        loc = self._loc()
        made = self._construct(OPS[name], operands, attrs, declared, where)
        made.loc, made.notes = loc, notes
        result = made.result
        if (result is None) != (target is None):
            raise IR_SYNTAX.at(
                start, source=self.text, expected="a result" if result else f"no result from {name}", found=name
            )
        if result is not None and target is not None:
            if declared != result.type:
                raise IR_TYPE.at(where, source=self.text, op=name, inferred=result.type, declared=declared or "nothing")
            result.name = target
            self._define(scope, result, start)
        return made

    def _operands(self, scope: dict[str, Value]) -> list[Value]:
        found: list[Value] = []
        self._expect("(")
        while not self._accept(")"):
            where = self._here()
            name = self._take("value", "an operand such as '%x'")[1:]
            if name not in scope:
                raise IR_UNDEFINED.at(where, source=self.text, name=name, nearest=nearest(name, scope))
            found.append(scope[name])
            if not self._peek(")"):
                self._expect(",")
        return found

    def _construct(
        self, cls: type[Op], operands: list[Value], attrs: dict[str, Attr], declared: Type | None, where: Loc
    ) -> Op:
        known = {f.name: f for f in cls.form.attrs if f.name != "type"}
        for k in attrs:
            if k not in known:
                why = f"no attribute '{k}'{nearest(k, known)}"
                raise IR_ATTRIBUTE.at(where, source=self.text, op=cls.name, why=why)
        missing = [n for n, f in known.items() if n not in attrs and f.default is dataclasses.MISSING]
        if missing:
            why = f"attribute '{missing[0]}' is missing"
            raise IR_ATTRIBUTE.at(where, source=self.text, op=cls.name, why=why)
        fixed = len(cls.form.operands)
        if len(operands) < fixed or (len(operands) > fixed and not cls.form.variadic):
            why = f"{len(operands)} operands, {fixed} are needed"
            raise IR_ATTRIBUTE.at(where, source=self.text, op=cls.name, why=why)
        kwargs: dict[str, Any] = {**dict(zip(cls.form.operands, operands, strict=False)), **attrs}
        if cls.form.variadic:
            kwargs[cls.form.variadic] = tuple(operands[fixed:])
        if cls.form.has_type:
            kwargs["type"] = declared
        try:
            return cls(**kwargs)
        except VortexError as e:
            raise self._located(e, where) from None
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as e:
            raise IR_ATTRIBUTE.at(where, source=self.text, op=cls.name, why=str(e)) from None

    # leaves

    def _loc(self) -> Loc | None:
        if not self._accept("@"):
            return None
        file = self._string()
        self._expect(":")
        line = self._int("a line")
        self._expect(":")
        col = self._int("a column")
        # "12-40" lexes as two numbers, the second negative
        end = -self._int("a column") if self.tokens[self.next].text.startswith("-") else 0
        call = self._take("word", "the name of a function") if self._accept("in") else ""
        return Loc(file, line, col, end, call)

    def _string(self) -> str:
        where = self._here()
        try:
            return str(json.loads(self._take("string", "a string")))
        except ValueError:
            raise IR_SYNTAX.at(where, source=self.text, expected="a string", found="a bad escape") from None

    def _type(self) -> Type:
        where = self._here()
        name = self._take("word", "a type such as 'f32[S, 4]'")
        if name == "selection":
            return selection
        if name not in DTYPES:
            hint = nearest(name, DTYPES)
            raise IR_SYNTAX.at(where, source=self.text, expected="a type such as 'f32[S, 4]'", found=f"'{name}'{hint}")
        self._expect("[")
        dims: list[Dim] = []
        while not self._accept("]"):
            if (pages := self._pages()) is not None:
                dims.append(pages)
            else:
                dims.append(self._int("a size or S"))
                if dims[-1] < 0:  # type: ignore[operator]
                    self.next -= 1
                    raise self._fail("a size that is not negative")
            if len(dims) > RANK:
                raise self._fail(f"at most {RANK} axes")
            if not self._peek("]"):
                self._expect(",")
        return TensorType(DTYPES[name], tuple(dims))

    def _pages(self) -> Sym | None:
        """A page axis, if one is next: ``S``, that of a shortlist, ``S1<=64``, or either of whole pages, ``S/4``."""
        if self._accept("S"):
            return whole_pages(self._blocks())
        if not AXIS.fullmatch(self.tokens[self.next].text):
            return None
        name = self._take("word", "a page axis")
        blocks = self._blocks()
        self._expect("<")
        self._expect("=")
        limit = self._int("how many pages a shortlist has")
        if not 1 <= limit <= MOST_LISTED * MOST_BLOCKS:
            self.next -= 1
            raise self._fail(f"1 to {MOST_LISTED} pages")
        return Sym(name, limit, blocks)

    def _blocks(self) -> int:
        """How many candidates an element of a page axis stands for, where that is said."""
        if not self._accept("/"):
            return 1
        blocks = self._int("the blocks of a page")
        if not 2 <= blocks <= MOST_BLOCKS:
            self.next -= 1
            raise self._fail(f"2 to {MOST_BLOCKS} blocks")
        return blocks

    def _dict(self) -> dict[str, Attr]:
        # a function's or module's body opens with '{' too: a dict has 'key =' inside
        if not (self._peek("{") and self.tokens[self.next + 1].kind == "word" and self._is_key(self.next + 2)):
            return {}
        self._expect("{")
        return self._entries("}", 0)

    def _is_key(self, at: int) -> bool:
        return at < len(self.tokens) and self.tokens[at].text == "="

    def _notes(self) -> dict[str, Attr]:
        return self._entries(">", 0) if self._accept("<") else {}

    def _entries(self, close: str, depth: int) -> dict[str, Attr]:
        found: dict[str, Attr] = {}
        while not self._accept(close):
            where = self._here()
            key = self._take("word", f"a key or '{close}'")
            if key in found:
                raise IR_REDEFINED.at(where, source=self.text, what="attribute", name=key)
            self._expect("=")
            found[key] = self._attr(depth + 1)
            if not self._peek(close):
                self._expect(",")
        return found

    def _attr(self, depth: int) -> Attr:
        if depth > DEPTH:
            raise self._fail(f"at most {DEPTH} nested attributes")
        t = self.tokens[self.next]
        if t.kind == "string":
            return self._string()
        if t.kind == "number":
            return self._number()
        if self._accept("["):
            items: list[Attr] = []
            while not self._accept("]"):
                items.append(self._attr(depth + 1))
                if not self._peek("]"):
                    self._expect(",")
            return tuple(items)
        if self._accept("{"):
            return self._entries("}", depth)
        return self._word()

    def _number(self) -> int | float:
        text = self.tokens[self.next].text
        if text.lstrip("-").isdecimal():
            return self._int(f"a number of at most {DIGITS} digits")
        self.next += 1
        return float(text)

    def _word(self) -> Attr:
        t = self.tokens[self.next]
        if t.kind != "word":
            raise self._fail("an attribute value")
        after = self.tokens[self.next + 1].text
        if t.text == "selection" or (t.text in DTYPES and after == "["):
            return self._type()
        if (pages := self._pages()) is not None:
            return pages
        constants: dict[str, bool | float | DType] = {
            "true": True, "false": False, "inf": float("inf"), "nan": float("nan"), **DTYPES,
        }  # fmt: skip
        if t.text not in constants:
            raise self._fail("an attribute value")
        self.next += 1
        return constants[t.text]
