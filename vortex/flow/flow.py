"""Flows: the class to derive from, its fields, and how a flow is found by name."""

from __future__ import annotations

import inspect
import operator
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vortex.errors import (
    BAD_FIELD,
    BAD_FLOW_CLASS,
    DUPLICATE_FLOW,
    UNKNOWN_FLOW,
    Loc,
    nearest,
    nearest_or_all,
)
from vortex.flow import files, purity, source
from vortex.flow.dialect import NATIVE, Dialect
from vortex.ir.dialects.flow import STATES
from vortex.ir.types import DTYPES, MOST_CODE, DType

if TYPE_CHECKING:
    from vortex.flow.selection import Selection
    from vortex.spec import Spec

METHODS = ("create_cache", "forward_cache", "forward_indexer")
HOW_TO_DECLARE = "write vortex.Field(dim, ...) with positive integers"
UNITS = ("page", "block")
"""What a field can belong to, where a page has several blocks."""
STORABLE = ("bf16", "f16", "f32", "fp8_e4m3", "int8", "int4", "uint1")


class Field:
    """A summary kept for every page, or state kept from step to step: its shape and its element type, K's unless given.

    Without ``state`` it is a summary: ``shape`` is that of one page, and forward_cache writes it. With ``state="page"``
    each request has such a tensor for each of its pages, with ``state="request"`` one; forward_indexer reads it and
    returns it updated, and it is ``init`` until then.

    ``int8`` and ``int4`` keep codes, from -127 to 127 and from -7 to 7. With ``scale``, the axes (an integer or
    several) along which scales differ, forward_cache returns numbers, the field keeps ``x / scale`` to nearest even
    and one f16 scale, the largest of ``|x|`` / 127 or / 7, for each index along these axes, and reads as
    ``code * scale``: of ``Field(16, 128, dtype="int4", scale=0)`` each of 16 rows has a scale. Without ``scale``
    forward_cache returns the codes themselves, integers, and they are read as such. ``uint1`` keeps bools.

    int4 packs two codes a byte along the last axis and uint1 eight bits, the first in the lowest bits.

    ``per`` matters where a page has several blocks (``Spec(page_size=64, block_size=16)``): a field belongs to the
    page, unless ``per="block"`` says that each of its blocks has one. A flow that says ``per`` nowhere is written for
    blocks alone, and calls them pages.

    Raises:
        VortexError: VX1016 when a size, the element type, an axis, ``state``, ``init`` or ``per`` is none, or the last
            axis does not fill bytes.
    """

    def __init__(
        self,
        *shape: int,
        dtype: Any = None,
        scale: Any = None,
        state: str | None = None,
        init: Any = None,
        per: str | None = None,
    ) -> None:
        loc = source.here()
        self.per = _per(per, state, loc)
        """What there is one for where pages have several blocks: "page" or "block"; nothing where it is not said."""
        self.state = _state(state, loc)
        self.init = _init(init, self.state, loc)
        self.shape = tuple(_size(d, loc) for d in shape)
        self.dtype, self.loc = _storage(dtype, loc), loc
        self.scale = None if scale is None else _scaled(self, scale)
        """The axes along which scales differ, ascending; None where there are none."""
        if self.state and self.dtype is not None and not self.dtype.is_float:
            hint = "dtype= of state is one of bf16, f16, f32, fp8_e4m3; K's own without it"
            raise BAD_FIELD.at(loc, why=f"state cannot be kept as {self.dtype}", hint=hint)
        each = self.dtype.per_byte if self.dtype is not None else 1
        if each > 1 and (not self.shape or self.shape[-1] % each):
            last = self.shape[-1] if self.shape else "none"
            why = f"{self.dtype} packs {each} elements a byte along the last axis, whose size is {last}"
            hint = f"make it a multiple of {each}: pad with torch.nn.functional.pad, or store int8"
            raise BAD_FIELD.at(loc, why=why, hint=hint)

    def __repr__(self) -> str:
        scale = "" if self.scale is None else f", scale={self.scale}"
        state = f", state={self.state!r}, init={self.init}" if self.state else ""
        per = f", per={self.per!r}" if self.per else ""
        return f"Field({', '.join(map(str, self.shape))}, dtype={self.dtype}{scale}{state}{per})"


def _scaled(f: Field, scale: Any) -> tuple[int, ...]:
    """The axes of ``scale=``, ascending."""
    rank = len(f.shape)
    if f.dtype not in MOST_CODE:
        why = f"scale={scale!r} of a field in {f.dtype or 'the type of K'}; codes have scales"
        raise BAD_FIELD.at(f.loc, why=why, hint='leave it out, or write dtype="int8" or dtype="int4"')
    listed = list(scale) if isinstance(scale, tuple | list) else [scale]
    axes = [a for a in listed if isinstance(a, int) and not isinstance(a, bool) and -rank <= a < rank]
    found = tuple(sorted({a % rank for a in axes}))
    if len(found) != len(listed):
        hint = f"name axes from 0 to {rank - 1}, each once; scale=() is one scale a page"
        raise BAD_FIELD.at(f.loc, why=f"scale={scale!r} does not name axes of {list(f.shape)}", hint=hint)
    if all(d == 1 for a, d in enumerate(f.shape) if a not in found):
        hint = "leave out the axis whose numbers share a scale; or store bf16"
        raise BAD_FIELD.at(f.loc, why=f"scale={scale!r} gives every number of {list(f.shape)} its own scale", hint=hint)
    return found


def _state(state: Any, loc: Loc | None) -> str:
    """What the field is state of; nothing for a summary."""
    if state is None:
        return ""
    if not isinstance(state, str) or state not in STATES:
        hint = 'state="page" for a tensor for each page of a request, state="request" for one; a summary without it'
        raise BAD_FIELD.at(loc, why=f"there is no state={state!r}", hint=hint)
    return state


def _per(per: Any, state: Any, loc: Loc | None) -> str:
    """What there is a summary, or state, for; nothing where it is not said."""
    if per is None:
        return ""
    if not isinstance(per, str) or per not in UNITS:
        hint = 'per="page", or per="block" for one for each block of a page'
        raise BAD_FIELD.at(loc, why=f"there is no per={per!r}", hint=hint)
    if state == "request":
        raise BAD_FIELD.at(loc, why=f"per={per!r} of state of the request", hint="leave it out: a request has one")
    return per


def _init(init: Any, state: str, loc: Loc | None) -> float:
    """What state is before it is first written, 0 unless given."""
    if init is None:
        return 0.0
    if not state:
        hint = (
            'a summary is written by forward_cache; state="page" or state="request" makes it state, which has an init'
        )
        raise BAD_FIELD.at(loc, why=f"init={init!r} without state", hint=hint)
    try:
        number = float(init) if not isinstance(init, str | bytes) else float("nan")
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = float("nan")
    if number != number:
        raise BAD_FIELD.at(loc, why=f"state cannot begin as {init!r}", hint="init= is one number, for all elements")
    return number


def _size(d: Any, loc: Loc | None) -> int:
    """A size as an int, from whatever integer it is given as (numpy's too)."""
    try:
        size = 0 if isinstance(d, bool) else operator.index(d)
    except TypeError:
        size = 0
    if size < 1:
        raise BAD_FIELD.at(loc, why=f"a field cannot have size {d!r}", hint=HOW_TO_DECLARE)
    return size


def _storage(dtype: Any, loc: Loc | None) -> DType | None:
    if dtype is None:
        return None
    name = dtype
    if not isinstance(dtype, str | DType):
        from vortex.flow.tracer import DTYPES as BY_TORCH

        name = BY_TORCH.get(dtype, dtype)
    if str(name) not in STORABLE:
        hint = f"dtype= is one of {', '.join(STORABLE)}; K's own without it"
        raise BAD_FIELD.at(loc, why=f"a field cannot be stored as {dtype}", hint=hint)
    return DTYPES[str(name)]


class vFlow:
    """A sparse-attention algorithm, for one request and one KV head: no batch, no page tables."""

    flow_name: str = ""
    dialect: Dialect = NATIVE
    """How its methods are written."""

    def __setattr__(self, name: str, value: Any) -> None:
        if purity.is_forward():
            raise purity.kept_on_self(name)
        super().__setattr__(name, value)

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name.startswith("__") or not purity.is_forward():
            return value
        from vortex.flow.parameter import resolved

        return resolved(value)

    def __delattr__(self, name: str) -> None:
        if purity.is_forward():
            raise purity.kept_on_self(name)
        super().__delattr__(name)

    @classmethod
    def _repr_html_(cls) -> str:
        """How a notebook shows the class, and an object of it: its description, its file and its code, none of which is
        run.
        """
        from vortex.notebook import frame

        try:
            place, code = inspect.getsourcefile(cls) or "", inspect.getsource(cls)
        except (OSError, TypeError, KeyError):  # KeyError: of the inspect that TVM puts in the place of Python's
            place = code = ""  # typed into an interactive session
        about = (inspect.getdoc(cls) or "").partition("\n\n")[0]
        return frame("flow", cls.flow_name or cls.__name__, {"about": about, "file": place}, "code", code)

    def create_cache(self, spec: Spec) -> dict[str, Field]:
        """The summaries kept for a page."""
        raise NotImplementedError

    def forward_cache(self, page: Any) -> dict[str, Any]:
        """The summaries of one full page from ``page.k`` and ``page.v``, ``[page_size, head_dim]``.

        Under MLA from ``page.latent`` ``[page_size, kv_lora_rank + qk_rope_head_dim]``.
        """
        raise NotImplementedError

    def forward_indexer(self, q: Any, cache: Any) -> Selection | tuple[Selection, dict[str, Any]]:
        """Which pages to attend to, from ``q`` ``[group, head_dim]`` and ``cache.<field>`` ``[S, *shape]``.

        A flow with state returns beside them what each state field becomes, ``(selection, {name: new value})``:
        ``[S, *shape]`` for state of pages, ``[*shape]`` for state of the request.

        Under MLA ``q`` is absorbed, ``[heads, kv_lora_rank + qk_rope_head_dim]``.
        """
        raise NotImplementedError


_F = TypeVar("_F", bound=type[vFlow])
_REGISTRY: dict[str, tuple[type[vFlow], Loc | None]] = {}


def register(name: str) -> Callable[[_F], _F]:
    """Class decorator: make the flow known as ``name``.

    Raises:
        VortexError: VX1017 when another flow has the name, VX1019 when the class is not a flow.
    """
    loc = source.here()
    if not isinstance(name, str) or not (name.replace(".", "_").isidentifier() and name.isascii()):
        raise BAD_FLOW_CLASS.at(loc, why=f"a flow cannot be named {name!r}: letters, digits and underscores")

    def declare(cls: _F) -> _F:
        check_class(cls, loc)
        taken = _REGISTRY.get(name)
        if taken is not None and _place(taken[1]) != _place(loc) and not _same_class(taken[0], cls):
            raise DUPLICATE_FLOW.at(loc, name=name, where=_place(taken[1]))
        cls.flow_name = name
        _REGISTRY[name] = cls, loc
        return cls

    return declare


def register_in_file(name: str, cls: type[vFlow], loc: Loc | None, flow_name: str) -> None:
    """Make a flow known as ``name`` of the file of ``loc`` alone: ``FILE.py:name`` finds it, ``name`` does not."""
    cls.flow_name = flow_name
    _REGISTRY[f"{name}@{_place(loc).rpartition(':')[0]}"] = cls, loc


def flows_of(file: str) -> dict[str, type[vFlow]]:
    """The flows that a file has registered so far, by their names in it."""
    found = {n: cls for n, (cls, loc) in _REGISTRY.items() if loc is not None and _same_file(loc.file, file)}
    return {n.partition("@")[0]: cls for n, cls in found.items()}


def _same_class(a: type, b: type) -> bool:
    """Whether a class is defined again, as a notebook's cell does when it runs again."""
    return (a.__module__, a.__qualname__) == (b.__module__, b.__qualname__)


def _place(loc: Loc | None) -> str:
    if loc is not None and loc.file.startswith("<"):
        return f"{loc.file}:{loc.line}"
    return f"{os.path.abspath(loc.file)}:{loc.line}" if loc is not None else "an interactive session"


def check_class(cls: Any, loc: Loc | None = None) -> None:
    """VX1019 unless ``cls`` derives from vFlow and has the three methods."""
    if not (isinstance(cls, type) and issubclass(cls, vFlow)):
        raise BAD_FLOW_CLASS.at(loc, why=f"{getattr(cls, '__name__', cls)!s} does not derive from vortex.vFlow")
    lacking = [m for m in METHODS if getattr(cls, m) is getattr(vFlow, m)]
    if lacking:
        raise BAD_FLOW_CLASS.at(loc, why=f"{cls.__name__} has no {' and no '.join(lacking)}")


def library_names() -> list[str]:
    """The flows that come with vortex."""
    folder = Path(__file__).parent / "library"
    return sorted(p.stem for p in folder.glob("*.py") if p.stem != "__init__")


def flow_names() -> list[str]:
    """Every flow that can be found by name alone."""
    return sorted({*library_names(), *(n for n in _REGISTRY if "@" not in n)})


def file_of(text: str) -> str:
    """The file of the flow that ``FILE.py`` or ``FILE.py:NAME`` stands for, empty for a name."""
    file = text if text.endswith(".py") else text.rpartition(":")[0]
    return file if file.endswith(".py") else ""


def find_flow(text: str) -> type[vFlow]:
    """The flow that ``NAME``, ``FILE.py`` or ``FILE.py:NAME`` stands for.

    Raises:
        VortexError: VX1018 when there is none, VX7002 when the file is missing, or what the file itself raises.
    """
    if file := file_of(text):
        return _from_file(file, text[len(file) + 1 :])
    if text not in _REGISTRY and text in library_names():
        import_module(f"vortex.flow.library.{text}")
    if text not in _REGISTRY:
        raise UNKNOWN_FLOW.at(why=f"no flow named '{text}'{nearest(text, flow_names())}")
    return _REGISTRY[text][0]


def _from_file(file: str, name: str) -> type[vFlow]:
    found = _load(file)
    if name in found:
        return found[name]
    if not name and len(found) == 1:
        return next(iter(found.values()))
    nameless = [cls for cls in _defined_in(file) if cls not in found.values() and name in ("", cls.__name__)]
    if nameless and (name or not found):
        cls = nameless[0].__name__
        why = f'class {cls} is not registered, write @vortex.register("{cls}") above it'
        raise UNKNOWN_FLOW.at(why=f"no flow named '{name or cls}' in {file}; {why}")
    if name:
        raise UNKNOWN_FLOW.at(why=f"no flow named '{name}' in {file}{nearest_or_all(name, found) if found else ''}")
    has = f"has {len(found)} flows, {', '.join(found)}: say which" if found else "registers no flow"
    raise UNKNOWN_FLOW.at(why=f"{file} {has}")


def _defined_in(file: str) -> list[type[vFlow]]:
    """The flows whose classes stand in a file that was run, registered or not."""
    ran = files.loaded(file)
    if ran is None:
        return []
    every = vars(ran.module).values()
    return [c for c in every if isinstance(c, type) and issubclass(c, vFlow) and c.__module__ == ran.name]


def _load(file: str) -> dict[str, type[vFlow]]:
    """Run a file anew and return the flows it registers; so far, when it is the file that asks."""
    if files.loading(file) is None:
        for name in [n for n, (_, loc) in _REGISTRY.items() if loc is not None and _same_file(loc.file, file)]:
            del _REGISTRY[name]
        from vortex.flow.surroundings import plain

        with plain():
            files.load(file)
    return flows_of(file)


def _same_file(a: str, b: str) -> bool:
    return os.path.abspath(a) == os.path.abspath(b)
