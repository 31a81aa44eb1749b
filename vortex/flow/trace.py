"""A flow's Python code to a flow module."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import CodeType
from typing import Any, NoReturn

from vortex.errors import (
    BAD_FIELD,
    FIELD_SHAPE,
    FIELD_TWICE,
    FIELD_UNDECLARED,
    FIELD_UNWRITTEN,
    FLOW_RAISED,
    NO_SELECTION,
    OTHER_CACHE,
    PARTIAL_PAGE,
    Loc,
    VortexError,
    nearest,
)
from vortex.flow import source
from vortex.flow.flow import METHODS, Field, check_class, vFlow
from vortex.flow.selection import Selection
from vortex.flow.tensor import lift, vTensor
from vortex.flow.tracer import Tracer, fail, tracing
from vortex.ir.core import Decl, Function, Module, Value
from vortex.ir.dialects import flow as ops
from vortex.ir.types import Dim, S, TensorType, dtype, f32
from vortex.ir.verify import verify
from vortex.spec import Spec

RESERVED = frozenset({"q", "k", "v", "latent", "k_new", "v_new", "latent_new", "plan", "pages", "out", "lse"})
"""Names that the artifact's own tensors have."""


def trace(flow: vFlow | type[vFlow], spec: Spec) -> Module:
    """The flow as a verified module with ``@cache`` and ``@index``.

    Raises:
        VortexError: VX1xxx at the flow's own line.
    """
    made = instantiate(flow)
    cls = type(made)
    attrs = {**spec.attrs(), "source": _source_digest(cls)}
    module = Module("flow", cls.flow_name or cls.__name__, attrs)
    fields = declared_fields(made, spec)
    stored = dtype(spec.dtype)
    for name, f in fields.items():
        module.declare(Decl("field", name, TensorType(f.dtype or stored, f.shape)))
    _trace_cache(made, spec, module, fields)
    _trace_index(made, spec, module, fields)
    verify(module)
    return module


def trace_function(fn: Callable[..., Any], inputs: Mapping[str, TensorType], name: str = "test") -> Module:
    """Any function of traced tensors as a module with one function, ``@index``, that returns its value or values."""
    module = Module("flow", name)
    function = Function("func", "index", [Value(n, t) for n, t in inputs.items()])
    with tracing(module, function) as tracer, _at_the_flow(tracer):
        result = fn(*(vTensor(v) for v in function.args))
        listed = result if isinstance(result, tuple | list) else (result,)
        values = tuple(_value(r) for r in listed)
    function.append(ops.Return(values))
    module.define(function)
    verify(module)
    return module


def _value(result: Any) -> Value:
    if isinstance(result, Selection):
        assert result.value is not None
        return result.value
    return lift(result).value


def instantiate(flow: vFlow | type[vFlow]) -> vFlow:
    """A flow from its class; what its constructor raises is an error of the flow."""
    if isinstance(flow, vFlow):
        check_class(type(flow))
        return flow
    check_class(flow)
    with _at_the_flow(None):
        return flow()


def declared_fields(flow: vFlow, spec: Spec) -> dict[str, Field]:
    """What create_cache declares, checked."""
    with _at_the_flow(None):
        fields = flow.create_cache(spec)
    code = _code(flow.create_cache)
    if not isinstance(fields, Mapping):
        why = f"create_cache returned {_kind(fields)}, not a dict of fields"
        raise BAD_FIELD.at(source.return_loc(code), why=why)
    for name, f in fields.items():
        loc = source.key_loc(code, name) if isinstance(name, str) else None
        loc = loc or source.return_loc(code)
        if not isinstance(f, Field):
            raise BAD_FIELD.at(loc, why=f"field '{name}' is {_kind(f)}, not a vortex.Field")
        if not (isinstance(name, str) and name.isidentifier() and name.isascii()):
            raise BAD_FIELD.at(loc, why=f"a field cannot be named {name!r}")
        if name in RESERVED:
            raise BAD_FIELD.at(loc, why=f"the name '{name}' is taken; {', '.join(sorted(RESERVED))} are")
    return dict(fields)


# the two functions -------------------------------------------------------------------------------


class Page:
    """What forward_cache is given: ``page.k`` and ``page.v`` of one full page, or under MLA ``page.latent``."""

    def __init__(self, spec: Spec, parts: Sequence[Any]) -> None:
        self._spec, self._parts = spec, dict(zip(spec.pools, parts, strict=True))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in self._parts:
            return self._parts[name]
        if name in ("k", "v", "latent"):
            raise fail(OTHER_CACHE, name=name, **_what_there_is(self._spec))
        has = " and ".join(self._spec.pools)
        uses = " and ".join(f"page.{p}" for p in self._spec.pools)
        text = f"a page has {has}, no '{name}'"
        raise fail(FLOW_RAISED, type="AttributeError", text=text, hint=f"summaries are made from {uses}")


def _what_there_is(spec: Spec) -> dict[str, str]:
    """For VX1022: what the cache of this shape holds, and what would do."""
    shape = f"[{spec.page_size}, {spec.head_dim}]"
    if spec.kv_lora_rank:
        use = f"page.latent, {shape}: keys are whole rows, values their first {spec.kv_lora_rank} numbers"
        return {"cache": f"MLA ({spec})", "hint": f"use {use}; or compile for a model with K and V: --heads 32/8"}
    hint = f"use page.k and page.v, {shape}; or compile for MLA: --latent 512+64 --heads 20"
    return {"cache": f"K and V ({spec})", "hint": hint}


class Cache:
    """What forward_indexer is given: the fields of all candidate pages, ``cache.<field>`` or ``cache["<field>"]``."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = dict(fields)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in self._fields:
            return self._fields[name]
        if name in ("k", "v", "latent"):
            raise fail(PARTIAL_PAGE, what=f"forward_indexer reads cache.{name}")
        raise fail(FIELD_UNDECLARED, name=name, nearest=nearest(name, self._fields))

    def __getitem__(self, name: str) -> Any:
        return self.__getattr__(str(name))

    def __contains__(self, name: object) -> bool:
        return name in self._fields

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def keys(self) -> Any:
        return self._fields.keys()

    def items(self) -> Any:
        return self._fields.items()


def _trace_cache(flow: vFlow, spec: Spec, module: Module, fields: dict[str, Field]) -> None:
    code = _code(flow.forward_cache)
    for name in fields:
        twice = source.key_loc(code, name, nth=1)
        if twice is not None:
            raise FIELD_TWICE.at(twice, name=name)
    # byte * scale is a number of fp32, and of no narrower type
    type = TensorType(f32 if spec.scaled else dtype(spec.dtype), (spec.page_size, spec.head_dim))
    function = _function("cache", code, [Value(name, type) for name in spec.pools])
    with tracing(module, function) as tracer, _at_the_flow(tracer):
        returned = flow.forward_cache(Page(spec, [vTensor(a) for a in function.args]))
        values = _checked_fields(returned, fields, code, tracer)
    function.append(ops.Return(tuple(values.values()), names=tuple(values)), loc=source.return_loc(code))
    module.define(function)


def _checked_fields(returned: Any, fields: dict[str, Field], code: CodeType, tracer: Tracer) -> dict[str, Value]:
    """The returned summaries by name, in declared order, each of its declared shape."""
    if not isinstance(returned, Mapping):
        error = FIELD_UNWRITTEN.at(source.return_loc(code), name=next(iter(fields), ""))
        raise error.note(f"forward_cache returned {_kind(returned)}, not a dict of fields")
    for name in returned:
        if name not in fields:
            loc = source.key_loc(code, name) or source.return_loc(code)
            raise FIELD_UNDECLARED.at(loc, name=name, nearest=nearest(str(name), fields))
    values: dict[str, Value] = {}
    for name, f in fields.items():
        loc = source.key_loc(code, name) or source.return_loc(code)
        if name not in returned:
            raise FIELD_UNWRITTEN.at(loc, name=name)
        x = lift(returned[name])
        if x.dims != f.shape:
            raise FIELD_SHAPE.at(loc, name=name, declared=_shown(f.shape), got=_shown(x.dims))
        values[name] = x.value
        _name_after(x.value, name, tracer)
    return values


def _name_after(value: Value, name: str, tracer: Tracer) -> None:
    """Call a summary by its field's name, unless the flow has a variable for it."""
    if value.owner is not None and value not in tracer.named:
        tracer.named.add(value)
        value.name = tracer.function.fresh(name, value)


def _trace_index(flow: vFlow, spec: Spec, module: Module, fields: dict[str, Field]) -> None:
    code = _code(flow.forward_indexer)
    stored = dtype(spec.dtype)
    args = [Value("q", TensorType(stored, (spec.group, spec.head_dim)))]
    args += [Value(n, TensorType(f.dtype or stored, (S, *f.shape))) for n, f in fields.items()]
    function = _function("index", code, args)
    with tracing(module, function) as tracer, _at_the_flow(tracer):
        q, *summaries = (vTensor(a) for a in function.args)
        selected = flow.forward_indexer(q, Cache(dict(zip(fields, summaries, strict=True))))
    if not isinstance(selected, Selection) or selected.value is None:
        raise NO_SELECTION.at(source.return_loc(code), got=_kind(selected))
    function.append(ops.Return((selected.value,)), loc=source.return_loc(code))
    module.define(function)


def _function(name: str, code: CodeType, args: list[Value]) -> Function:
    return Function("func", name, args, loc=Loc(code.co_filename, code.co_firstlineno))


# errors ------------------------------------------------------------------------------------------


@contextmanager
def _at_the_flow(tracer: Tracer | None) -> Iterator[None]:
    """Whatever the flow's code raises leaves as a VortexError at the flow's line."""
    try:
        yield
    except VortexError as e:
        e.loc = e.loc or source.innermost(e.__traceback__)
        raise
    except Exception as e:
        _raised(e, tracer)


def _raised(e: Exception, tracer: Tracer | None) -> NoReturn:
    loc = source.innermost(e.__traceback__)
    if loc is None:
        raise e  # no line of the flow's has part in it: an error of ours
    refused = tracer.refused if tracer is not None else None
    if refused is not None and refused.loc is not None and (refused.loc.file, refused.loc.line) == (loc.file, loc.line):
        raise refused from e  # C code replaced our error by its own
    hint = "the flow runs once on traced tensors; 'vortex ops' lists what it can call on them"
    raise FLOW_RAISED.at(loc, type=type(e).__name__, text=_first_line(e), hint=hint) from e


def _first_line(e: Exception) -> str:
    return (str(e).strip().splitlines() or [""])[0]


def _code(method: Any) -> CodeType:
    code = inspect.unwrap(method).__code__
    assert isinstance(code, CodeType)
    return code


def _kind(x: Any) -> str:
    if isinstance(x, vTensor):
        return f"a tensor {x.type}"
    return "None" if x is None else f"a {type(x).__name__}"


def _shown(shape: tuple[Dim, ...]) -> str:
    return ops.show(shape)


def _source_digest(cls: type[vFlow]) -> str:
    methods = [getattr(cls, m) for m in METHODS]
    try:
        # not of the class: that looks its module up, which a flow file has none of, and TVM patches the looking up
        text = "".join(map(inspect.getsource, methods))
    except (OSError, TypeError):
        text = "".join(_code(m).co_code.hex() for m in methods)
    return hashlib.sha256(text.encode()).hexdigest()
