"""Calling a flow's methods: their signatures, what they return, and errors at the flow's own lines.

Tracing and the eager oracle call them by the same functions, so that both accept the same flows.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import CodeType
from typing import Any, NoReturn

import numpy as np
import torch

from vortex.errors import (
    BAD_FIELD,
    BAD_FLOW_CLASS,
    BAD_SIGNATURE,
    FIELD_SHAPE,
    FIELD_TWICE,
    FIELD_UNDECLARED,
    FIELD_UNWRITTEN,
    FLOW_RAISED,
    NO_SELECTION,
    OTHER_CACHE,
    SELECTIONS,
    STATE_OF_PAGE,
    STATE_UNDECLARED,
    STATE_UNWRITTEN,
    Loc,
    VortexError,
    nearest,
)
from vortex.flow import purity, source
from vortex.flow.arguments import what_there_is
from vortex.flow.flow import HOW_TO_DECLARE, Field, check_class, vFlow
from vortex.flow.parameter import Parameter, declared_parameters
from vortex.flow.selection import Selection, topk, topp, union
from vortex.flow.shortlist import shortlist
from vortex.flow.tensor import kind, vTensor
from vortex.flow.tracer import Tracer
from vortex.ir.dialects.flow import show
from vortex.spec import Spec

RESERVED = frozenset({"q", "k", "v", "latent", "k_new", "v_new", "latent_new", "plan", "pages", "out", "lse"})
"""Names that the artifact's own tensors have."""


def instantiate(flow: vFlow | type[vFlow]) -> vFlow:
    """A flow from its class; what its constructor raises is an error of the flow."""
    if isinstance(flow, vFlow):
        check_class(type(flow))
        return flow
    check_class(flow, class_loc(flow))
    lacking = _unbound(flow, ())
    if lacking:
        why = f"{flow.__name__}.__init__ cannot be called without arguments: {lacking}"
        hint = f"give its arguments defaults, or give an object: {flow.__name__}(...)"
        raise BAD_FLOW_CLASS.at(def_loc(flow.__init__) or class_loc(flow), why=why, hint=hint)
    with at_the_flow(None, def_loc(flow.__init__) or class_loc(flow)):
        return flow()


def declared_fields(flow: vFlow, spec: Spec) -> dict[str, Field]:
    """What create_cache declares, checked. A flow that says of a field whether it belongs to pages or to blocks is
    asked with the size of pages, another one with that of blocks.
    """
    fields = _declared(flow, spec.in_blocks)
    if spec.page_blocks == 1 or not any(f.per for f in fields.values()):
        return fields
    fields = _declared(flow, spec)
    for name in of_pages(fields, spec):
        if fields[name].state:
            why = f"state '{name}' belongs to pages, of which blocks are selected"
            raise BAD_FIELD.at(fields[name].loc, why=why, hint='state="page", per="block" keeps it for each block')
    return fields


def of_pages(fields: Mapping[str, Field], spec: Spec) -> list[str]:
    """The fields that belong to whole pages of several blocks: none in a flow that says ``per`` nowhere."""
    if spec.page_blocks == 1 or not any(f.per for f in fields.values()):
        return []
    return [name for name, f in fields.items() if f.per != "block" and f.state != "request"]


def _asked(flow: vFlow, spec: Spec) -> Any:
    """What create_cache returns. A flow for MLA whose fields have no size, for there are no latent rows, is told so."""
    try:
        return called(flow, "create_cache", spec)
    except VortexError as e:
        if e.kind is BAD_FIELD and not spec.kv_lora_rank and _is_latent(flow, spec):
            read = "the size of a latent row's parts, as in spec.kv_lora_rank,"
            raise OTHER_CACHE.at(e.loc, read=read, **what_there_is(spec, "page")) from None
        raise


def _is_latent(flow: vFlow, spec: Spec) -> bool:
    """Whether a flow that cannot declare its fields for K and V can for latent rows."""
    try:
        called(flow, "create_cache", Spec.of_latent(page_size=spec.page_size, block_size=spec.block_size))
    except VortexError:
        return False
    return True


def _declared(flow: vFlow, spec: Spec) -> dict[str, Field]:
    fields = _asked(flow, spec)
    at_return = return_loc(flow, "create_cache")
    code = code_of(flow.create_cache)
    if not isinstance(fields, Mapping):
        why = f"create_cache returned {kind(fields)}, not a dict of fields"
        raise BAD_FIELD.at(at_return, why=why, hint='return {"name": vortex.Field(dim, ...)}')
    for name, f in fields.items():
        loc = source.key_loc(code, name) if code is not None and isinstance(name, str) else None
        loc = loc or at_return
        if not (isinstance(name, str) and name.isidentifier() and name.isascii()) or name.startswith("__"):
            hint = "name it as a variable is named: ASCII letters, digits and underscores, not two at the front"
            raise BAD_FIELD.at(loc, why=f"a field cannot be named {name!r}", hint=hint)
        if not isinstance(f, Field):
            raise BAD_FIELD.at(loc, why=f"field '{name}' is {kind(f)}, not a vortex.Field", hint=HOW_TO_DECLARE)
        if name in RESERVED:
            hint = f"choose another name; the artifact's own tensors are called {', '.join(sorted(RESERVED))}"
            raise BAD_FIELD.at(loc, why=f"the name '{name}' is taken", hint=hint)
    for name, f in fields.items():
        if f.scale is not None and f"{name}_scale" in fields:
            why = f"the name '{name}_scale' is taken by the scales of '{name}'"
            raise BAD_FIELD.at(fields[f"{name}_scale"].loc or at_return, why=why, hint="choose another name")
    return dict(fields)


def weights_of(flow: vFlow, fields: Mapping[str, Field]) -> dict[str, Parameter]:
    """The parameters that a flow declares, by name, once create_cache has run; VX1040."""
    own = dict.fromkeys(RESERVED, "the artifact's own tensors are called so")
    return declared_parameters(flow, {**own, **dict.fromkeys(fields, "a field is called so")})


def summaries_of(flow: vFlow, declared: Mapping[str, Field], page: Any, tracer: Tracer | None = None) -> dict[str, Any]:
    """What forward_cache returns for a page, one tensor or number for each declared summary, in declared order.

    Raises:
        VortexError: VX1007 to VX1009, VX1062, or what the flow raises.
    """
    code, at_return = code_of(flow.forward_cache), return_loc(flow, "forward_cache")
    fields = {name: f for name, f in declared.items() if not f.state}
    for name in fields:
        twice = source.key_loc(code, name, nth=1) if code is not None else None
        if twice is not None:
            raise FIELD_TWICE.at(twice, name=name)
    returned = called(flow, "forward_cache", page, tracer=tracer)
    if not isinstance(returned, Mapping):
        what = f"forward_cache returned {kind(returned)}, not a dict of fields"
        if not fields:
            raise FLOW_RAISED.at(at_return, type="TypeError", text=what, hint="return {}: the flow declares no field")
        raise FIELD_UNWRITTEN.at(at_return, name=next(iter(fields))).note(what)
    for name in returned:
        if name in declared and name not in fields:
            raise STATE_OF_PAGE.at(key_loc(flow, name), name=name)
        if name not in fields:
            raise FIELD_UNDECLARED.at(key_loc(flow, name), name=name, nearest=nearest(str(name), fields))
    for name in fields:
        if name not in returned:
            raise FIELD_UNWRITTEN.at(at_return, name=name)
        x = returned[name]
        if not isinstance(x, vTensor | torch.Tensor | np.ndarray | np.generic | bool | int | float):
            text = f"forward_cache returns {kind(x)} for field '{name}'"
            raise FLOW_RAISED.at(
                key_loc(flow, name), type="TypeError", text=text, hint="return a tensor for each field"
            )
    return {name: returned[name] for name in fields}


def indexed(
    flow: vFlow, declared: Mapping[str, Field], q: Any, cache: Any, tracer: Tracer | None = None
) -> tuple[Selection, dict[str, Any]]:
    """What forward_indexer returns: the selection, and each state field as it becomes, in declared order.

    Raises:
        VortexError: VX1011 without a selection, VX1072 with several, VX1060 and VX1061 for state that is missing
            and for what is not state, or what the flow raises.
    """
    returned = called(flow, "forward_indexer", q, cache, tracer=tracer)
    at_return = return_loc(flow, "forward_indexer")
    selected: Any = returned
    new: Any = {}
    if isinstance(returned, tuple | list) and sum(isinstance(x, Selection) for x in returned) > 1:
        raise SELECTIONS.at(at_return, got=f"{len(returned)} selections")
    if isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[0], Selection):
        selected, new = returned
        if not isinstance(new, Mapping):
            raise NO_SELECTION.at(at_return, got=f"a selection and {kind(new)}, which is not a dict of state,")
    if not isinstance(selected, Selection):
        raise NO_SELECTION.at(at_return, got=kind(selected))
    state = {name: f for name, f in declared.items() if f.state}
    for name in new:
        if name not in state:
            raise _not_state(flow, name, declared, state)
    for name in state:
        if name not in new:
            raise STATE_UNWRITTEN.at(at_return, name=name)
        if not isinstance(new[name], vTensor | torch.Tensor | np.ndarray | np.generic | bool | int | float):
            text, hint = f"forward_indexer returns {kind(new[name])} for state '{name}'", "return a tensor for it"
            raise FLOW_RAISED.at(key_loc(flow, name, "forward_indexer"), type="TypeError", text=text, hint=hint)
    return selected, {name: new[name] for name in state}


def _not_state(flow: vFlow, name: str, declared: Mapping[str, Field], state: Mapping[str, Field]) -> VortexError:
    """VX1061 for a name that forward_indexer may not return."""
    if name in declared:
        why, hint = (
            "is a summary",
            "summaries are written by forward_cache alone; declare what steps change with state=",
        )
    else:
        why = f"is not declared in create_cache{nearest(str(name), state)}"
        hint = 'declare it: vortex.Field(shape, state="page") or state="request"'
    return STATE_UNDECLARED.at(key_loc(flow, name, "forward_indexer"), name=name, why=why, hint=hint)


def require_shape(flow: vFlow, name: str, declared: object, got: object, method: str = "forward_cache") -> None:
    """VX1012 where a field is not returned in the shape that it is declared with."""
    if declared != got:
        declared, got = (show(x) if isinstance(x, tuple) else x for x in (declared, got))
        raise FIELD_SHAPE.at(key_loc(flow, name, method), name=name, declared=declared, got=got, method=method)


# calls -------------------------------------------------------------------------------------------


def called(flow: vFlow, name: str, *args: Any, tracer: Tracer | None = None) -> Any:
    """The result of a method of the flow; VX1025 when it does not take these arguments or is not a plain function."""
    method, dialect = getattr(flow, name), flow.dialect
    loc, expected = method_loc(flow, name), dialect.expected[name]
    if not callable(method):
        raise BAD_SIGNATURE.at(loc, why=f"{name} is {kind(method)}, not a method", method=expected)
    with at_the_flow(tracer, loc):
        args = dialect.arguments(flow, name, args)
    lacking = _unbound(method, args)
    if lacking:
        shown = expected.replace("self, ", "")
        why = f"{name} is called as {shown}, but {lacking}"
        raise BAD_SIGNATURE.at(loc, why=why, method=expected)
    plain = _inner(method)
    for is_one, what in (
        (inspect.iscoroutinefunction, "a coroutine (async def)"),
        (inspect.isgeneratorfunction, "a generator (it has yield)"),
        (inspect.isasyncgenfunction, "an asynchronous generator"),
    ):
        if is_one(plain):
            raise BAD_SIGNATURE.at(loc, why=f"{name} is {what}; it must return its result", method=expected)
    with at_the_flow(tracer, loc), purity.running(name):
        result = dialect.call(flow, name, method, args)
    if inspect.iscoroutine(result):
        result.close()
        raise BAD_SIGNATURE.at(loc, why=f"{name} returns a coroutine", method=expected)
    return result


def _unbound(function: Callable[..., Any], args: tuple[Any, ...]) -> str:
    """Why a function does not take ``args``, in words; nothing when it does or cannot be asked."""
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return ""
    try:
        signature.bind(*args)
    except TypeError as e:
        whole = _whole_signature(function, signature)
        return f"it is written ({whole}): {e}"
    return ""


def _whole_signature(function: Callable[..., Any], bound: inspect.Signature) -> str:
    """The parameters by name, ``self`` included."""
    under = getattr(function, "__func__", function)
    try:
        parameters = inspect.signature(under).parameters.values() if not isinstance(under, type) else None
    except (ValueError, TypeError):
        parameters = None
    shown = bound.parameters.values() if parameters is None else parameters
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in shown]
    return ", ".join(map(str, bare))


def _inner(function: Any) -> Any:
    """The plain function under bound methods, partials, wrappers and compiled helpers."""
    for _ in range(100):
        for attribute in ("__wrapped__", "_torchdynamo_orig_callable", "__func__"):
            under = getattr(function, attribute, None)
            if callable(under):
                break
        else:
            if isinstance(function, functools.partial | functools.partialmethod):
                under = function.func
            elif hasattr(function, "__code__") or isinstance(function, type):
                return function
            else:
                under = vars(type(function)).get("__call__")
                if not hasattr(under, "__code__"):
                    return function
        function = under
    return function


def code_of(method: Any) -> CodeType | None:
    """The code of a method as the flow's author wrote it; None where there is none in Python."""
    code = getattr(_inner(method), "__code__", None)
    return code if isinstance(code, CodeType) else None


# places ------------------------------------------------------------------------------------------


def def_loc(method: Any) -> Loc | None:
    """The line on which a method of the flow is defined; None where it is not the flow's."""
    code = code_of(method)
    if code is None or not source.is_user_code(code.co_filename):
        return None
    return source.def_loc(code)


def class_loc(cls: type) -> Loc | None:
    """The first line of the first method that the class has in Python."""
    return next((loc for m in vars(cls).values() if (loc := def_loc(m)) is not None), None)


def method_loc(flow: vFlow, name: str) -> Loc | None:
    """The line of a method's definition, else something of its class."""
    return def_loc(getattr(flow, name, None)) or class_loc(type(flow))


def return_loc(flow: vFlow, name: str) -> Loc | None:
    """The last ``return`` of a method."""
    code = code_of(getattr(flow, name))
    return source.return_loc(code) if code is not None else class_loc(type(flow))


def key_loc(flow: vFlow, name: object, method: str = "forward_cache") -> Loc | None:
    """Where a method writes a field into the dict that it returns, else its ``return``."""
    code = code_of(getattr(flow, method))
    found = source.key_loc(code, name) if code is not None and isinstance(name, str) else None
    return found or return_loc(flow, method)


# errors ------------------------------------------------------------------------------------------


@contextmanager
def at_the_flow(tracer: Tracer | None, loc: Loc | None = None) -> Iterator[None]:
    """Whatever the flow's code raises leaves as a VortexError at the flow's line, or at ``loc`` where it has none.

    What was refused while tracing stays refused, though the flow catches the error: eagerly it would not be raised.
    """
    try:
        yield
    except VortexError as e:
        e.loc = e.loc or source.innermost(e.__traceback__)
        raise
    except (Exception, SystemExit) as e:
        _raised(e, tracer, loc)
    if tracer is not None and tracer.refused is not None:
        raise tracer.refused


OWN_MISTAKE = "Python raises this at the line above, whatever is compiled: correct the flow there"
"""The way out of what has nothing to do with traced tensors."""


def _raised(e: BaseException, tracer: Tracer | None, fallback: Loc | None) -> NoReturn:
    loc = source.innermost(e.__traceback__) or fallback
    if loc is None:
        raise e  # no line of the flow's has part in it: an error of ours
    refused = tracer.refused if tracer is not None else None
    if refused is not None and refused.loc is not None and (refused.loc.file, refused.loc.line) == (loc.file, loc.line):
        raise refused from e  # C code replaced our error by its own
    hint = "the flow runs once on traced tensors; 'vortex ops' lists what it can call on them"
    if "torch.jit" in type(e).__module__ or _in_script(e):
        hint = "code compiled by torch.jit cannot be traced: call the plain Python function"
    elif isinstance(e, TypeError) and (way := _way_to_call(e)):
        hint = way
    elif isinstance(e, AttributeError) and isinstance(e.obj, Spec):
        has = [f.name for f in dataclasses.fields(Spec)]
        hint = f"a spec has {', '.join(has)}{nearest(str(e.name), has)}"
    elif "does not support ufuncs" in str(e):
        hint = "numpy's functions take no traced tensors: call torch's, such as torch.exp(x)"
    elif "doesn't apply to a 'vTensor'" in str(e):
        hint = "call it as a method: x.sum(1), not torch.Tensor.sum(x, 1)"
    elif "'TensorType' object is not callable" in str(e):
        hint = "x.to(dtype) is x as another element type, x.dtype its own"
    elif str(e).startswith("vmap("):
        hint = "torch.vmap takes no traced tensors: functions broadcast over the page axis, so write it on the whole"
    elif isinstance(e, NameError):
        hint = "define it, or import it at the top of the file"
    elif isinstance(e, LookupError | ArithmeticError | AssertionError | ImportError):
        hint = OWN_MISTAKE
    raise FLOW_RAISED.at(loc, type=type(e).__name__, text=first_line(e), hint=hint) from e


def _way_to_call(e: TypeError) -> str:
    """How a function of vortex is called, where Python says that it does not take these arguments; else nothing."""
    name, call, wrong = first_line(e).partition("() ")
    function: Any = {f.__name__: f for f in (topk, topp, union, shortlist)}.get(name)
    if name == "Field.__init__":
        name, function = "Field", Field
    if function is None or not call or not wrong.startswith(("takes ", "got ", "missing ")) or '"' in wrong:
        return ""  # torch, which has a topk too, quotes so
    frame = e.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    if frame is not None and frame.tb_frame.f_globals.get(name, function) is not function:
        return ""  # one of the flow's own
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in inspect.signature(function).parameters.values()]
    named = "; what follows the * is given by name, such as pages=8" if wrong.startswith("takes ") else ""
    return f"it is vortex.{name}{inspect.Signature(bare)}{named}"


def _in_script(e: BaseException) -> bool:
    return "vTensor" in str(e) and ("Expected a value of type" in str(e) or "torchscript" in str(e).lower())


def first_line(e: BaseException) -> str:
    """What an exception says, in a line."""
    return (str(e).strip().splitlines() or [""])[0]
