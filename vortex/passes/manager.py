"""Passes by name: what a pass is, where each lives, pipelines as text, and running them.

Importing this file imports no pass; a pass's module is imported when the pass is first asked for.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from vortex.errors import PASS_OPTION, PASS_STAGE, PIPELINE_SYNTAX, UNKNOWN_PASS, Loc, VortexError, nearest
from vortex.ir.core import Attr, Function, Module
from vortex.ir.printer import print_module
from vortex.ir.rewrite import copy_module
from vortex.ir.verify import verify
from vortex.kinds.buckets import Bucket

if TYPE_CHECKING:
    from vortex.targets.target import Target

DEFAULT_PIPELINE = {
    "flow": "canonicalize,cse,split-bound,reassociate,move-scales,drop-monotone,canonicalize,cse,dce,outline",
    "page": "expand-softmax,fuse,cse,dce,softmax-sums,plan-memory,schedule",
}
"""What runs on IR of each stage when nobody says otherwise; ``flow`` ends in page IR."""

MODULES = {
    "canonicalize": "vortex.passes.canonicalize",
    "cse": "vortex.passes.cse",
    "dce": "vortex.passes.dce",
    "split-bound": "vortex.passes.split_bound",
    "reassociate": "vortex.passes.reassociate",
    "move-scales": "vortex.passes.move_scales",
    "drop-monotone": "vortex.passes.drop_monotone",
    "outline": "vortex.passes.outline",
    "expand-softmax": "vortex.passes.expand_softmax",
    "fuse": "vortex.passes.fuse",
    "softmax-sums": "vortex.passes.softmax_sums",
    "plan-memory": "vortex.passes.plan_memory",
    "schedule": "vortex.passes.schedule",
}
"""Where each pass lives, in the order of the way down."""

PASSES: dict[str, type[Pass]] = {}
"""Passes imported so far."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Knobs of one kernel, and where they came from: ``db:ID``, ``transfer:ID``, ``model`` or ``heuristic``.

    Where one choice does not do for all shapes, ``serves`` are the buckets that this one is for, and ``others`` are
    variants for other buckets.
    """

    config: Mapping[str, int]
    origin: str
    serves: tuple[Bucket, ...] = ()
    others: tuple[Choice, ...] = ()

    @property
    def attrs(self) -> dict[str, Attr]:
        """As a schedule has them."""
        made: dict[str, Attr] = {**self.config, "from": self.origin}
        if self.serves:
            made["serves"] = tuple((b.rows, b.columns, b.kept) for b in self.serves)
        return made


Choose = Callable[[Module, Function, "Target"], Choice | None]
"""What a tuning database has to say of a kernel of a program on a target; as text, what is asked of which databases."""


@dataclass(frozen=True, slots=True)
class PassContext:
    """All that a pass may know beside the module."""

    target: Target | None = None
    choose: Choose | None = None


@dataclass(frozen=True, slots=True)
class Pass:
    """A rewrite of modules; options are the dataclass fields of the subclass.

    ``stage`` is the IR it reads (``flow``, ``page`` or ``any``); ``tag`` is ``exact`` when results stay
    bit-equal under the interpreter and ``real`` when they stay equal over the reals; ``version`` grows with
    every change of what it makes, and enters tuning keys. Without a pass that is ``needed`` nothing can be compiled.
    """

    name: ClassVar[str]
    stage: ClassVar[str]
    tag: ClassVar[str]
    version: ClassVar[int]
    needed: ClassVar[bool]

    def run(self, module: Module, ctx: PassContext) -> Module:
        """The rewritten module; ``module`` is the pass's own and may be changed in place."""
        raise NotImplementedError


_P = TypeVar("_P", bound=type[Pass])


def register(name: str, *, stage: str, tag: str, version: int, needed: bool = False) -> Callable[[_P], _P]:
    """Declare a pass; its class is a frozen dataclass whose fields are its options."""
    assert stage in ("flow", "page", "any"), stage
    assert tag in ("exact", "real"), tag

    def declare(cls: _P) -> _P:
        assert name not in PASSES, f"pass {name} is declared twice"
        cls.name, cls.stage, cls.tag, cls.version, cls.needed = name, stage, tag, version, needed
        PASSES[name] = cls
        return cls

    return declare


def find(name: str) -> type[Pass]:
    """The class of the pass called ``name``.

    Raises:
        VortexError: VX3001 when there is none.
    """
    if name not in PASSES and name not in MODULES:
        raise UNKNOWN_PASS.at(name=name, nearest=nearest(name, MODULES))
    if name not in PASSES:
        importlib.import_module(MODULES[name])
    return PASSES[name]


@dataclass(frozen=True, slots=True)
class PassCall:
    """One pass of a pipeline as written: its name and its options as text."""

    name: str
    options: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        inside = ",".join(f"{k}={v}" for k, v in self.options.items())
        return f"{self.name}{{{inside}}}" if inside else self.name

    def build(self) -> Pass:
        """The pass with these options.

        Raises:
            VortexError: VX3002 when an option is unknown or its value has another type.
        """
        cls = find(self.name)
        known = {f.name.replace("_", "-"): f for f in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for option, text in self.options.items():
            if option not in known:
                why = f"no option '{option}'{nearest(option, known)}"
                raise PASS_OPTION.at(name=self.name, why=why)
            f = known[option]
            values[f.name] = self._read(option, text, str(f.type))
        return cls(**values)

    def _read(self, option: str, text: str, kind: str) -> int | float | bool | str:
        try:
            if kind == "bool":
                return {"true": True, "false": False}[text]
            return {"int": int, "float": float, "str": str}[kind](text)
        except (ValueError, KeyError):
            raise PASS_OPTION.at(name=self.name, why=f"'{option}' is {kind}, got '{text}'") from None


_CALL = re.compile(r"\s*(?P<name>[\w-]*)\s*(?:\{(?P<options>[^{}]*)\})?\s*", re.ASCII)
_OPTION = re.compile(r"\s*(?P<key>[\w-]+)\s*=\s*(?P<value>[^\s,=]+)\s*", re.ASCII)


def parse_pipeline(text: str) -> list[PassCall]:
    """The passes of a pipeline such as ``canonicalize,fuse{max-live=8}``.

    Raises:
        VortexError: VX3001 for an unknown name, VX3003 when the text does not parse.
    """
    calls: list[PassCall] = []
    at = 0
    while text.strip():
        m = _CALL.match(text, at)
        assert m is not None  # the pattern matches the empty string
        if not m["name"]:
            raise _syntax(text, m.start("name"), "a pass name")
        if m["name"] not in MODULES and m["name"] not in PASSES:
            where, close = _place(m.start("name"), m.end("name")), nearest(m["name"], MODULES)
            raise UNKNOWN_PASS.at(where, source=text, name=m["name"], nearest=close)
        calls.append(PassCall(m["name"], _options(text, m)))
        if m.end() == len(text):
            break
        if text[m.end()] != ",":
            raise _syntax(text, m.end(), "',' or the end")
        at = m.end() + 1
    return calls


def _options(text: str, call: re.Match[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    if not (call["options"] or "").strip():
        return found
    at, end = call.start("options"), call.end("options")
    while True:
        m = _OPTION.match(text, at, end)
        if m is None:
            raise _syntax(text, at, "an option such as 'max-live=8'")
        if m["key"] in found:
            raise PASS_OPTION.at(name=call["name"], why=f"option '{m['key']}' is given twice")
        found[m["key"]] = m["value"]
        if m.end() == end:
            return found
        if text[m.end()] != ",":
            raise _syntax(text, m.end(), "',' or '}'")
        at = m.end() + 1


def _place(at: int, end: int = 0) -> Loc:
    return Loc("<passes>", 1, at + 1, max(end, at + 1) + 1)


def _syntax(text: str, at: int, expected: str) -> VortexError:
    found = f"'{text[at]}'" if at < len(text) else "the end"
    return PIPELINE_SYNTAX.at(_place(at), source=text, why=f"expected {expected}, found {found}")


@dataclass(frozen=True, slots=True)
class Ran:
    """A pass that ran, for whoever follows a pipeline: ``before`` and ``after`` are the IR's texts."""

    call: PassCall
    number: int
    """Place in the pipeline, from 1."""
    stage: str
    """Of the IR that came out: ``flow`` or ``page``."""
    before: str
    after: str


OnPass = Callable[[Ran], None]


def run_pipeline(
    module: Module, pipeline: str | Sequence[PassCall], ctx: PassContext, on_pass: OnPass | None = None
) -> Module:
    """``module`` after the passes of ``pipeline`` (its text, or what :func:`parse_pipeline` made of it), verified after
    each; the argument itself stays as it is.

    Raises:
        VortexError: VX3001 to VX3004; an invalid result carries a note naming the pass and its number.
    """
    calls = parse_pipeline(pipeline) if isinstance(pipeline, str) else pipeline
    passes = [call.build() for call in calls]
    module = copy_module(module)
    before = print_module(module) if on_pass else ""
    for i, (call, p) in enumerate(zip(calls, passes, strict=True), 1):
        if p.stage not in ("any", module.stage):
            raise PASS_STAGE.at(name=p.name, needs=p.stage, got=module.stage)
        where = f"pass '{p.name}' (#{i} of {len(passes)})"
        try:
            module = p.run(module, ctx)
        except VortexError as e:
            raise e.note(f"in {where}") from None
        try:
            verify(module)
        except VortexError as e:
            raise e.note(f"the input of {where} verified; its output does not") from None
        if on_pass:
            after = print_module(module)
            on_pass(Ran(call, i, module.stage, before, after))
            before = after
    return module


@dataclass(frozen=True, slots=True)
class OptionInfo:
    """An option of a pass, as users write it."""

    name: str
    type: str
    default: str


@dataclass(frozen=True, slots=True)
class PassInfo:
    """What ``vortex passes`` shows of a pass."""

    name: str
    stage: str
    tag: str
    version: int
    options: tuple[OptionInfo, ...]
    doc: str


def listing() -> list[PassInfo]:
    """All passes in the order of the way down."""
    return [_info(find(name)) for name in dict.fromkeys([*MODULES, *PASSES])]


def _info(cls: type[Pass]) -> PassInfo:
    options = tuple(
        OptionInfo(f.name.replace("_", "-"), str(f.type), _shown(f.default)) for f in dataclasses.fields(cls)
    )
    return PassInfo(cls.name, cls.stage, cls.tag, cls.version, options, inspect.getdoc(cls) or "")


def _shown(default: object) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)
