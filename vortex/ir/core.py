"""Values, operations, functions and modules: the whole data structure of the IR.

Operations are declared as classes (see :func:`op`); their operands, attributes, parser, printer and
verifier all follow from the declaration.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar, dataclass_transform

from vortex.errors import IR_ATTRIBUTE, IR_OPERANDS, IR_REDEFINED, ErrorKind, Loc
from vortex.ir.names import Names
from vortex.ir.types import Sym, Type

Attr = Any
"""int, float, bool, str, DType, Sym, Type, or a tuple or dict of these; immutable once in an op."""


@dataclass(eq=False, slots=True)
class Value:
    """An SSA value. ``name`` is a hint from the flow's source; a Function makes it unique."""

    name: str
    type: Type
    owner: Op | None = None

    def __repr__(self) -> str:
        return f"%{self.name}: {self.type}"


@dataclass(frozen=True, slots=True)
class OpForm:
    """What the declaration of an op says: which fields are operands, which attributes."""

    operands: tuple[str, ...]
    variadic: str | None
    attrs: tuple[dataclasses.Field[Any], ...]
    has_type: bool
    """The op takes its result type as the attribute ``type`` instead of computing it."""


Role = Literal["elementwise", "view", "leaf", "nest", "selection", "effect"]
"""``elementwise``: one number from one of each operand. ``view``: only renames elements; computing it again costs
nothing. ``leaf``: a value from outside. ``nest``: loops of its own. ``selection``: the pages a row attends to.
``effect``: writes memory, ends a function, or is a kernel of its own."""


class Op:
    """Base of all operations; subclasses are declared with :func:`op`."""

    name: ClassVar[str]
    form: ClassVar[OpForm]
    result: Value | None
    loc: Loc | None
    notes: dict[str, Attr]
    """Discardable facts later passes attach (stage, slot); no part of the op's meaning or hash."""

    # What is true of every op of a class. Passes and templates ask for these facts and keep no lists of ops.
    role: ClassVar[Role]
    """How results come about; every class has one, by itself or by the class it derives from."""
    repeats: ClassVar[int] = 1
    """How often the emitted expression names each operand: nested, what is named twice grows exponentially."""
    branches: ClassVar[bool] = False
    """The emitted expression looks at some operand only under a condition: on a GPU loads would diverge."""
    rereads: ClassVar[bool] = False
    """The op looks at one element of an operand more than once."""
    widens: ClassVar[bool] = False
    """The op takes narrow floats and computes in fp32 by itself, so that a cast in front of it does nothing."""
    folds: ClassVar[Literal["", "sum", "prod", "max", "min"]] = ""
    """How an op that folds many elements into one takes in an element, and so what it starts from."""
    commutes: ClassVar[bool] = False
    """Bit-equal under exchange of the operands; maximum(0, -0) depends on the order, so it does not commute."""
    increasing: ClassVar[bool] = False
    """Strictly increasing over all reals. Log is not (NaN below zero), nor are clamp, relu and floor (they tie)."""
    positive: ClassVar[Literal["never", "with operands", "always"]] = "never"
    """When the result is above zero and finite for every finite input, over the reals."""
    rounds: ClassVar[bool] = True
    """The result may need more digits than the operands; otherwise it is one of them, its negative or zero."""
    rewritten_by: ClassVar[str] = ""
    """The pass that must have rewritten the op before code is generated, where there is one."""
    emitter: ClassVar[str] = ""
    """Under which name vortex.codegen.scalar has the emitter of an elementwise op; the op's name unless given."""

    def __post_init__(self) -> None:
        self.loc = None
        self.notes = {}
        self.result = None
        for f in self.form.attrs:
            self.require(_fits(getattr(self, f.name), str(f.type)), f"'{f.name}' must be {f.type}", IR_ATTRIBUTE)
        inferred = self.infer()
        if inferred is not None:
            self.result = Value(self.name.rsplit(".", 1)[-1], inferred, self)

    def infer(self) -> Type | None:
        """The type of the result from operands and attributes; None when the op has no result.

        Raises:
            VortexError: the operands or attributes do not fit.
        """
        raise NotImplementedError

    def evaluate(self, *operands: Any) -> Any:
        """The op's meaning on numpy arrays: the reference every kernel is held to."""
        raise NotImplementedError(self.name)

    def evaluate_in(self, row: Any, *operands: Any) -> Any:
        """The same in a row (vortex.ir.interpret.Row), at which only ops that read their surroundings look."""
        return self.evaluate(*operands)

    def crosses_pages(self) -> bool:
        """Whether one page's result depends on other pages, so that a page loop must end before it."""
        return False

    def carries(self) -> bool:
        """Whether the op walks the pages with a running result, as folds and scans do; a convolution has none."""
        return self.crosses_pages()

    def require(self, ok: bool, why: str, kind: ErrorKind = IR_OPERANDS) -> None:
        if not ok:
            raise kind.at(self.__dict__.get("loc"), op=self.name, why=why, expected="")

    @property
    def operands(self) -> tuple[Value, ...]:
        fixed = tuple(getattr(self, n) for n in self.form.operands)
        return fixed + (tuple(getattr(self, self.form.variadic)) if self.form.variadic else ())

    @property
    def attrs(self) -> dict[str, Attr]:
        """Attributes by name, the result type (``type``) excluded."""
        return {f.name: getattr(self, f.name) for f in self.form.attrs if f.name != "type"}

    @property
    def value(self) -> Value:
        """The result, for ops known to have one."""
        assert self.result is not None, f"{self.name} has no result"
        return self.result

    def with_operands(self, operands: Iterable[Value], **changed: Attr) -> Op:
        """The same op on other operands: same location and name, same attributes but those ``changed``, type inferred
        anew.
        """
        new = list(operands)
        kwargs = {f.name: getattr(self, f.name) for f in self.form.attrs} | changed
        for n in self.form.operands:
            kwargs[n] = new.pop(0)
        if self.form.variadic:
            kwargs[self.form.variadic] = tuple(new)
        made = type(self)(**kwargs)
        made.loc, made.notes = self.loc, dict(self.notes)
        if made.result is not None and self.result is not None:
            made.result.name = self.result.name
        return made


def _fits(value: Attr, annotation: str) -> bool:
    """Whether an attribute read from text has the type its declaration asks for."""
    if annotation.startswith("tuple["):
        return isinstance(value, tuple) and all(_fits(v, annotation[6:].split(",")[0]) for v in value)
    if annotation == "float":
        return isinstance(value, float | int) and not isinstance(value, bool)
    if annotation == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation == "Dim":
        return isinstance(value, int | Sym) and not isinstance(value, bool)
    return type(value).__name__ == annotation


OPS: dict[str, type[Op]] = {}
_T = TypeVar("_T", bound=type[Op])


@dataclass_transform(eq_default=False)
def op(name: str) -> Callable[[_T], _T]:
    """Declare an operation: ``Value`` fields are operands, the others attributes.

    A ``tuple[Value, ...]`` field takes the remaining operands. An attribute called ``type`` is the
    type of the result and is written after the colon.
    """

    def declare(cls: _T) -> _T:
        assert name not in OPS, f"op {name} is declared twice"
        made: Any = dataclass(eq=False, repr=False)(cls)
        hints = inspect.get_annotations(cls)
        operands, attrs, variadic = [], [], None
        for f in dataclasses.fields(made):
            hint = str(f.type if isinstance(f.type, str) else hints.get(f.name, f.type))
            if hint == "Value":
                operands.append(f.name)
            elif hint == "tuple[Value, ...]":
                variadic = f.name
            else:
                attrs.append(f)
        hidden = {f.name for f in dataclasses.fields(made)} & {*vars(Op), "form", "result", "loc", "notes"}
        assert not hidden, f"fields {hidden} of {name} would hide what every op has"
        made.name = name
        made.emitter = vars(cls).get("emitter", name if getattr(made, "role", "") == "elementwise" else "")
        made.form = OpForm(tuple(operands), variadic, tuple(attrs), any(f.name == "type" for f in attrs))
        OPS[name] = made
        return made

    return declare


class _Named:
    """The names of a function's values, and of which arguments and ops they are."""

    def __init__(self, names: Names, args: list[Value], ops: list[Op]) -> None:
        self.names = names
        self._args, self._ops = args, ops
        self._counts, self._last = (len(args), len(ops)), ops[-1] if ops else None

    def of(self, f: Function) -> bool:
        """Whether the function has the same arguments and ops, by what is seen without a look at each."""
        same = f.args is self._args and f.ops is self._ops and (f.ops[-1] if f.ops else None) is self._last
        return same and (len(f.args), len(f.ops)) == self._counts


@dataclass(eq=False, repr=False)
class Function:
    """A straight line of ops: ``func`` in flow IR, ``kernel`` in page IR."""

    keyword: str
    name: str
    args: list[Value] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    attrs: dict[str, Attr] = field(default_factory=dict)
    loc: Loc | None = None
    _named: _Named | None = field(default=None, init=False)

    def add(self, new: Op, name: str = "", loc: Loc | None = None) -> Value:
        """Append ``new`` and return its result under a name no other value of this function has."""
        self.append(new, name, loc)
        return new.value

    def append(self, new: Op, name: str = "", loc: Loc | None = None) -> None:
        """Append an op that may have no result."""
        if loc is not None:
            new.loc = loc
        names = self._names()
        self.ops.append(new)
        if new.result is not None:
            new.result.name = names.take(name or new.result.name)
        self._named = _Named(names, self.args, self.ops)

    def fresh(self, hint: str) -> str:
        """``hint``, or ``hint_1`` and so on when a value of this function has that name."""
        return self._names().unused(hint)

    def rename(self, value: Value, hint: str) -> None:
        """Call a value of this function ``hint``, or ``hint_1`` and so on when another one has that name."""
        names = self._names()
        names.release(value.name)
        value.name = names.take(hint)

    def forget_names(self) -> None:
        """Values are given other names, or ops others' places, by whoever calls this: names are counted anew."""
        self._named = None

    def _names(self) -> Names:
        """The names in use, counted anew only where ops or arguments came or went by other ways than these methods."""
        if self._named is None or not self._named.of(self):
            self._named = _Named(Names(v.name for v in self.values()), self.args, self.ops)
        return self._named.names

    def group(self, ops: Sequence[Op], call: str) -> None:
        """Say of several ops that they are one ``call`` together, numbered where others of the name are there; ops
        that belong to another call already stay as they are.
        """
        taken = {o.loc.call for o in self.ops if o.loc is not None}
        name, number = call, 1
        while name in taken:
            number += 1
            name = f"{call}.{number}"
        for o in ops:
            if o.loc is not None and not o.loc.call:
                o.loc = dataclasses.replace(o.loc, call=name)

    def __repr__(self) -> str:
        return f"<{self.keyword} @{self.name}, ops: {len(self.ops)}>"

    def values(self) -> Iterator[Value]:
        """All values in order of definition, arguments first."""
        yield from self.args
        yield from (o.result for o in self.ops if o.result is not None)

    def users(self) -> dict[Value, list[Op]]:
        """The ops that use each value, in program order."""
        found: dict[Value, list[Op]] = {v: [] for v in self.values()}
        for o in self.ops:
            for v in dict.fromkeys(o.operands):
                found.setdefault(v, []).append(o)
        return found


@dataclass(eq=False)
class Decl:
    """Something a module names: a ``field``, a ``buffer``, a ``resource`` (constant data) or a ``param``."""

    keyword: str
    name: str
    type: Type
    attrs: dict[str, Attr] = field(default_factory=dict)


@dataclass(eq=False, repr=False)
class Module:
    """A ``flow.module`` or ``page.program``: declarations, then functions."""

    stage: str
    name: str
    attrs: dict[str, Attr] = field(default_factory=dict)
    decls: dict[str, Decl] = field(default_factory=dict)
    functions: dict[str, Function] = field(default_factory=dict)

    def declare(self, decl: Decl) -> Decl:
        if decl.name in self.decls:
            raise IR_REDEFINED.at(what=decl.keyword, name=decl.name)
        self.decls[decl.name] = decl
        return decl

    def define(self, function: Function) -> Function:
        if function.name in self.functions:
            raise IR_REDEFINED.at(what=function.keyword, name=function.name)
        self.functions[function.name] = function
        return function

    def declared(self, keyword: str) -> list[Decl]:
        return [d for d in self.decls.values() if d.keyword == keyword]

    def __repr__(self) -> str:
        """A line; :func:`str` is the text."""
        of = ", ".join(f"{f.keyword} @{f.name}" for f in self.functions.values())
        return f"<Module {self.name} of stage {self.stage}: {of or 'empty'}>"

    def __str__(self) -> str:
        """The module's text, as the parser reads it back."""
        from vortex.ir.printer import print_module

        return print_module(self)

    def _repr_html_(self) -> str:
        """How a notebook shows it: its functions, and its text without locations."""
        from vortex.ir.printer import print_module
        from vortex.notebook import frame

        of = {f"{f.keyword} @{f.name}": len(f.ops) for f in self.functions.values()}
        facts = {name: f"{ops} operation{'' if ops == 1 else 's'}" for name, ops in of.items()}
        declared = {d.keyword: ", ".join(x.name for x in self.declared(d.keyword)) for d in self.decls.values()}
        return frame(
            f"module of stage {self.stage}", self.name, declared | facts, "text", print_module(self, locs=False)
        )
