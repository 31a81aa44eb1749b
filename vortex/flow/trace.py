"""A flow's Python code to a flow module."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any

from vortex.errors import PAGE_AND_BLOCK, STATE, UNREPEATABLE, Loc, VortexError
from vortex.flow import narrow, purity, source
from vortex.flow.arguments import Cache, Page
from vortex.flow.arithmetic import Fp32Arithmetic
from vortex.flow.files import at_home
from vortex.flow.flow import METHODS, Field, vFlow
from vortex.flow.likely_mistakes import warn_of_rows, warn_of_scale
from vortex.flow.methods import (
    at_the_flow,
    code_of,
    declared_fields,
    indexed,
    instantiate,
    key_loc,
    method_loc,
    of_pages,
    require_shape,
    return_loc,
    summaries_of,
    weights_of,
)
from vortex.flow.parameter import declaration
from vortex.flow.selection import Selection, by_row
from vortex.flow.surroundings import plain, seeded
from vortex.flow.tensor import lift, vTensor
from vortex.flow.tracer import Tracer, tracing
from vortex.ir.core import Decl, Function, Module, Value
from vortex.ir.dialects import flow as ops
from vortex.ir.digest import structural
from vortex.ir.printer import print_op
from vortex.ir.rewrite import behind
from vortex.ir.types import Dim, S, TensorType, dtype, f32, whole_pages
from vortex.ir.verify import verify
from vortex.spec import Spec


def trace(flow: vFlow | type[vFlow], spec: Spec) -> Module:
    """The flow as a verified module with ``@cache`` and ``@index``.

    The flow runs three times, the last time from its constructor on: one that keeps something between calls or draws
    numbers that no seed fixes does not give the same program each time, and is refused.

    Raises:
        VortexError: VX1xxx at the flow's own line.
    """
    with at_home(flow), plain():
        with seeded(1):
            made = instantiate(flow)
            fields = declared_fields(made, spec)
            module = _traced(made, spec, fields)
        with seeded(2):
            before = purity.held(made)
            _same(module, _traced(made, spec, fields), AGAIN)
            _unchanged(made, before, purity.held(made))
        with seeded(3):
            other = instantiate(flow)
            _same(module, _traced(other, spec, declared_fields(other, spec)), ANEW)
    verify(module)
    warn_of_rows(module, spec)
    return module


AGAIN = (
    "keep nothing on self, in globals or in containers, and draw no random numbers in forward_cache and "
    "forward_indexer; constants are set in __init__ or create_cache"
)
ANEW = (
    "draw from a generator with a seed of its own: torch.randn(..., generator=torch.Generator().manual_seed(0)), or "
    "numpy.random.default_rng(0)"
)
"""The ways out of VX1024: for what differs from call to call, and from object to object."""


def _traced(made: vFlow, spec: Spec, fields: dict[str, Field]) -> Module:
    cls = type(made)
    module = Module("flow", cls.flow_name or cls.__name__, {**spec.attrs(), "source": _source_digest(made)})
    element, whole = dtype(spec.dtype), of_pages(fields, spec)
    for name, f in fields.items():
        more = {"state": f.state, "init": f.init} if f.state else {"per": "page"} if name in whole else {}
        for kept, tile in narrow.kept(name, f, element).items():
            module.declare(Decl("field", kept, tile, dict(more)))
    for p in weights_of(made, fields).values():
        module.declare(declaration(p, spec))
    stored = _trace_cache(made, spec, module, fields)
    _trace_index(made, spec, module, fields)
    warn_of_scale(module.functions["index"], stored)
    return module


def _unchanged(made: vFlow, before: dict[str, object], after: dict[str, object]) -> None:
    """VX1023 where something that outlives a call is another after it."""
    for name, now in after.items():
        if name in before and before[name] != now:
            code = [c for m in METHODS[1:] if (c := code_of(getattr(made, m))) is not None]
            loc = next(filter(None, (source.mention(c, name.rpartition(".")[2]) for c in code)), None)
            hint = purity.HINTS["forward_indexer"]
            raise STATE.at(loc or method_loc(made, "forward_indexer"), what=f"a call changes {name}", hint=hint)


def _same(first: Module, second: Module, hint: str) -> None:
    """VX1024 at the first op that two runs of a flow do not share."""
    if structural(first) == structural(second):
        return
    for name, f in first.functions.items():
        for a, b in zip(f.ops, second.functions[name].ops, strict=False):
            if _shown_op(first, a) != _shown_op(second, b):
                raise UNREPEATABLE.at(a.loc or f.loc, what=f"this gives another {_what(a)}", hint=hint)
    raise UNREPEATABLE.at(first.functions["index"].loc, what="the flow computes something else", hint=hint)


def _shown_op(module: Module, o: Any) -> str:
    data = module.decls[o.symbol].attrs["data"] if isinstance(o, ops.Resource) else ""
    return f"{print_op(o, notes=False)} {data}"


def _what(o: Any) -> str:
    return "constant" if isinstance(o, ops.Resource | ops.Constant) else "computation"


def trace_function(fn: Callable[..., Any], inputs: Mapping[str, TensorType], name: str = "test") -> Module:
    """Any function of traced tensors as a module with one function, ``@index``, that returns its value or values."""
    module = Module("flow", name)
    function = Function("func", "index", [Value(n, t) for n, t in inputs.items()])
    with plain(), tracing(module, function) as tracer:
        with at_the_flow(tracer), Fp32Arithmetic():
            result = fn(*(vTensor(v) for v in function.args))
        listed = result if isinstance(result, tuple | list) else (result,)
        values = tuple(_value(r, function) for r in listed)
    function.append(ops.Return(values))
    module.define(function)
    verify(module)
    return module


def _value(result: Any, function: Function) -> Value:
    return result.op(function) if isinstance(result, Selection) else lift(result).value


# the two functions -------------------------------------------------------------------------------


def _trace_cache(flow: vFlow, spec: Spec, module: Module, fields: dict[str, Field]) -> dict[str, Value]:
    """Define ``@cache``; what the flow gave for each field, before it is stored."""
    # byte * scale is a number of fp32, and of no narrower type
    kind, whole = f32 if spec.scaled else dtype(spec.dtype), of_pages(fields, spec)
    args = [Value(name, TensorType(kind, (spec.block_size, spec.head_dim))) for name in spec.pools]
    if whole:
        args += [Value(f"page_{name}", TensorType(kind, (spec.page_size, spec.head_dim))) for name in spec.pools]
    function = _function("cache", flow, "forward_cache", args)
    with purity.running("forward_cache"), tracing(module, function) as tracer:
        block = page = Page(spec, [vTensor(a) for a in args[: len(spec.pools)]])
        if whole:
            page = Page(spec, [vTensor(a) for a in args[len(spec.pools) :]], block)
        given: dict[str, Value] = {}
        values: dict[str, Value] = {}
        with Fp32Arithmetic():
            written = summaries_of(flow, fields, page, tracer)
        for name, x in written.items():
            try:
                made = lift(x)
            except VortexError as e:
                e.loc = key_loc(flow, name)
                raise
            require_shape(flow, name, fields[name].shape, made.dims)
            given[name] = made.value
            try:
                narrow.require_codes(name, f := fields[name], made)
            except VortexError as e:
                e.loc = key_loc(flow, name)
                raise
            before = len(function.ops)
            parts = narrow.written(name, f, made)
            narrow.explain(tracer, function.ops[before:], name, key_loc(flow, name))
            if whole:
                others = args[: len(spec.pools)] if name in whole else args[len(spec.pools) :]
                _require_own_rows(flow, name, [part.value for part in parts.values()], others, of_page=name in whole)
            for kept, part in parts.items():
                values[kept] = part.value
                _name_after(part.value, kept, tracer)
    function.append(ops.Return(tuple(values.values()), names=tuple(values)), loc=return_loc(flow, "forward_cache"))
    module.define(function)
    return given


def _require_own_rows(flow: vFlow, name: str, parts: list[Value], others: list[Value], *, of_page: bool) -> None:
    """VX1093 where a field of pages is made from the rows of a block, or one of blocks from those of the page."""
    if not behind(*parts).intersection(others):
        return
    said = (
        ("its page", "the rows of a block, page.block") if of_page else ("a block", "the rows of the whole page, page")
    )
    hint = "make it from page.k and page.v (or page.latent); or declare it with per='block'" if of_page else (
        "make it from page.block.k and page.block.v (or page.block.latent); or leave out per='block'"
    )  # fmt: skip
    raise PAGE_AND_BLOCK.at(key_loc(flow, name), name=name, of=said[0], rows=said[1], hint=hint)


def _name_after(value: Value, name: str, tracer: Tracer) -> None:
    """Call a summary by its field's name, unless the flow has a variable for it."""
    if value.owner is not None and value not in tracer.named:
        tracer.named.add(value)
        tracer.function.rename(value, name)


def _trace_index(flow: vFlow, spec: Spec, module: Module, fields: dict[str, Field]) -> None:
    stored = dtype(spec.dtype)
    args = [Value("q", TensorType(stored, (spec.group, spec.head_dim)))]
    whole = of_pages(fields, spec)
    for n, f in fields.items():
        tiles, axis = narrow.kept(n, f, stored), whole_pages(spec.page_blocks if n in whole else 1)
        args += [
            Value(k, TensorType(t.dtype, t.shape if f.state == "request" else (axis, *t.shape)))
            for k, t in tiles.items()
        ]
    function = _function("index", flow, "forward_indexer", args)
    with purity.running("forward_indexer"), tracing(module, function) as tracer:
        q, *held = (vTensor(a) for a in function.args)
        given = {x.value.name: x for x in held}
        read = {n: narrow.read(n, f, given) for n, f in fields.items()}
        cache = Cache(spec, read, lambda name: _rows(name, spec, tracer))
        for o in function.ops:
            narrow.explain(tracer, [o], o.operands[0].name, fields[o.operands[0].name].loc)
        with Fp32Arithmetic():
            selection, new = indexed(flow, fields, q, cache, tracer)
        with at_the_flow(tracer, return_loc(flow, "forward_indexer")):
            if spec.budget_table:
                selection = by_row(selection)
            selected = selection.op(function)
        state: dict[str, Value] = {}
        for name, x in new.items():
            with at_the_flow(tracer, key_loc(flow, name, "forward_indexer")):
                made = lift(x)
            require_shape(flow, name, _seen(fields[name]), made.dims, "forward_indexer")
            state[name] = made.value
    names = (ops.SELECTED, *state) if state else ()
    end = ops.Return((selected, *state.values()), names=names)
    function.append(end, loc=return_loc(flow, "forward_indexer"))
    module.define(function)


def _rows(name: str, spec: Spec, tracer: Tracer) -> vTensor:
    """The candidates' own rows in a pool, an argument from the first time on that the flow asks for them."""
    function = tracer.function
    if name not in tracer.seen:
        dtype_of_rows = f32 if spec.scaled else dtype(spec.dtype)
        made = Value(name, TensorType(dtype_of_rows, (S, spec.block_size, spec.head_dim)))
        taken = [v for v in function.values() if v.name == name]
        function.args.append(made)
        for v in taken:  # of the flow's own: the pool's name is the one that kernels have it by
            function.rename(v, name)
        tracer.seen[name] = made
    return vTensor(tracer.seen[name])


def _seen(f: Field) -> tuple[Dim, ...]:
    """The shape that forward_indexer sees a field in, and returns it in where it is state."""
    return f.shape if f.state == "request" else (S, *f.shape)


def _function(name: str, flow: vFlow, method: str, args: list[Value]) -> Function:
    code = code_of(getattr(flow, method))
    loc = Loc(code.co_filename, code.co_firstlineno) if code is not None else method_loc(flow, method)
    return Function("func", name, args, loc=loc)


def _source_digest(flow: vFlow) -> str:
    methods = [getattr(flow, m) for m in METHODS]
    try:
        # not of the class: that looks its module up, which a flow file has none of, and TVM patches the looking up
        text = "".join(inspect.getsource(code) for m in methods if (code := code_of(m)) is not None)
    except (OSError, TypeError):
        text = "".join(_bytes(code) for m in methods if (code := code_of(m)) is not None)
    return hashlib.sha256(text.encode()).hexdigest()


def _bytes(code: CodeType) -> str:
    """What a function without source does, as text."""
    constants = [_bytes(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return f"{code.co_code.hex()} {constants} {code.co_names}"
