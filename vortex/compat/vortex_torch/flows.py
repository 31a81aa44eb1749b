"""``vortex_torch.flow``: the classes that flows of that package derive from, and their names."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch

from vortex.compat.vortex_torch import calls, learned
from vortex.compat.vortex_torch.cache import Context as CacheContext
from vortex.compat.vortex_torch.calls import Call, Declared, Fields, Location, Output, Slot, State
from vortex.compat.vortex_torch.indexer import Context as IndexerContext
from vortex.errors import BAD_FIELD, BAD_FLOW_CLASS, NO_TERMINAL, OPERATOR_CALL, OTHER_BASE, Loc
from vortex.flow import flow as native
from vortex.flow import purity, source
from vortex.flow.arguments import Cache, Page
from vortex.flow.dialect import Dialect
from vortex.flow.flow import Field
from vortex.flow.methods import RESERVED, class_loc, code_of, method_loc, return_loc
from vortex.flow.parameter import declaration
from vortex.flow.tensor import kind, vTensor
from vortex.flow.tracer import tracing
from vortex.ir.core import Function, Module, Value
from vortex.ir.types import S, TensorType, f32
from vortex.spec import Spec

_F = TypeVar("_F", bound=type[native.vFlow])
TORCH = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
_SHAPE = 'return {"name": (r, c)} with positive integers'


class Package(Dialect):
    """Methods as vortex_torch calls them: sizes instead of a Spec, ``loc``, ``ctx`` and ``o``, views of three axes."""

    expected: Mapping[str, str] = {
        "create_cache": "create_cache(self, block_size, head_dim)",
        "forward_cache": "forward_cache(self, cache, loc, ctx)",
        "forward_indexer": "forward_indexer(self, q, o, cache, ctx)",
    }
    pools: tuple[str, ...] = ("k", "v")
    reserved: tuple[str, ...] = ("k", "v")

    def sizes(self, flow: Any, spec: Spec) -> tuple[int, ...]:
        """What create_cache is given; VX1082 for a flow of the other kind of cache."""
        if spec.kv_lora_rank:
            hint = "compile it without --latent, or derive the flow from vFlowMLA and read cache['latent']"
            raise _other_base(flow, "vFlow, of K and V", spec, hint)
        return spec.page_size, spec.head_dim

    def arguments(self, flow: Any, method: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if method == "create_cache":
            flow.__dict__["_spec"] = args[0]
            return self.sizes(flow, args[0])
        declared: Declared = flow.__dict__["_declared"]
        flow.__dict__["_call"] = call = Call(method, declared)
        if method == "forward_cache":
            (page,) = args
            slots = {name: Slot(call, name) for name in declared.names}
            cache = Fields(slots, lambda pool: getattr(page, pool)[None])
            return cache, Location(), CacheContext(declared.spec)
        q, given = args
        call.seen = {name: _read(declared, name, given) for name in declared.names}
        cache = Fields(call.seen, lambda pool: getattr(given, pool))
        rows = q[None]
        if isinstance(rows, vTensor) and rows.value.owner is not None:
            rows.value.owner.loc = method_loc(flow, method)  # no line of the flow makes it
        return rows, Output(), cache, IndexerContext(declared.spec)

    def call(self, flow: Any, method: str, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        if method == "create_cache":
            return self._declared(flow, function, args)
        with calls.running(flow.__dict__["_call"]) as call:
            function(*args)
        if method == "forward_cache":
            self._all_written(flow, call)
            return call.results
        if call.selection is None:
            raise NO_TERMINAL.at(return_loc(flow, method))
        new: dict[str, Any] = {}
        for name, x in call.saved.items():
            state = call.declared.state[name]
            new |= {state.name: x} | ({state.kept: _ones(x)} if state.begin else {})
        return (call.selection, new) if new else call.selection

    def _all_written(self, flow: Any, call: Call) -> None:
        for name in call.declared.names:
            if name not in call.written and name not in call.declared.state:
                why = f"field '{name}' of create_cache is written by no operator"
                how = f"give it to one as its output: op(x, cache['{name}'], loc=loc, ctx=ctx)"
                raise OPERATOR_CALL.at(return_loc(flow, call.method), op=call.method, why=why, expected=how)

    def _declared(self, flow: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> dict[str, Field]:
        spec: Spec = flow.__dict__["_spec"]
        stored = TORCH[spec.dtype]
        flow.__dict__.pop("_returned", None)
        flow.initialize(*args, stored, stored, stored)
        # a flow whose own initialize leaves out that of its base
        raw = flow.__dict__["_returned"] if "_returned" in flow.__dict__ else function(*args)
        at_return = return_loc(flow, "create_cache")
        if not isinstance(raw, Mapping):
            raise BAD_FIELD.at(at_return, why=f"create_cache returned {kind(raw)}, not a dict of shapes", hint=_SHAPE)
        _refuse_request_fields(flow, args)
        fields: dict[str, Field] = {}
        names: dict[str, str] = {}
        shapes: dict[str, tuple[int, int]] = {}
        code = code_of(function)
        for name, shape in raw.items():
            loc = (source.key_loc(code, name) if code is not None and isinstance(name, str) else None) or at_return
            shapes[name] = self._shape(name, shape, loc)
            names[name] = _ir_name(name, names.values())
        flow.cache_meta_info = {name: (shape, flow.intermediate_dtype) for name, shape in shapes.items()}
        learned.declare(flow, names.values())
        declared = flow.__dict__["_declared"] = Declared(spec, shapes, names)
        declared.state.update(self._state(flow, spec, declared))
        for name, shape in shapes.items():
            state = declared.state.get(name)
            fields |= {names[name]: Field(*shape)} if state is None else state.fields(shape)
        return fields

    def _state(self, flow: Any, spec: Spec, declared: Declared) -> dict[str, State]:
        """Which fields forward_indexer saves, and how they begin, as a trace of both methods on trial tells.

        What goes wrong in it goes wrong again, and is told, when the methods are traced in earnest.
        """
        tile = TensorType(f32, (spec.page_size, spec.head_dim))
        values = [Value(n, tile) for n in spec.pools]
        values.append(Value("q", TensorType(f32, (spec.group, spec.head_dim))))
        values += [Value(declared.names[n], TensorType(f32, (S, *s))) for n, s in declared.shapes.items()]
        values += [Value(f"all_{n}", TensorType(f32, (S, *tile.shape))) for n in spec.pools]
        function = Function("func", "index", values)
        module = Module("flow", "trial")
        for p in flow.__dict__["_parameters"].values():
            module.declare(declaration(p, spec))
        with tracing(module, function), contextlib.suppress(Exception):
            held = {a.name: vTensor(a) for a in function.args}
            made = [held[n] for n in spec.pools]
            given = Cache(spec, {n: held[n] for n in declared.names.values()}, lambda name: held[f"all_{name}"])
            calls_made: list[Call] = []
            for method, args in (("forward_cache", (Page(spec, made),)), ("forward_indexer", (held["q"], given))):
                with purity.running(method):
                    args = self.arguments(flow, method, args)
                    calls_made.append(flow.__dict__["_call"])
                    with calls.running(calls_made[-1]):
                        getattr(flow, method)(*args)
            written, saved = calls_made
            taken = list(declared.names.values())
            state = {}
            for name in saved.saved:
                ir = declared.names[name]
                if name in written.filled or name not in written.written:
                    state[name] = State(ir, init=written.filled.get(name, 0.0))
                else:
                    begin, kept = _ir_name(f"{ir}_begin", taken), _ir_name(f"{ir}_kept", taken)
                    state[name] = State(ir, begin=begin, kept=kept)
            return state
        return {}

    def _shape(self, name: Any, shape: Any, loc: Loc | None) -> tuple[int, int]:
        if name in self.reserved:
            hint = f"cache['{name}'] is there without being declared" if name in self.pools else "choose another name"
            raise BAD_FIELD.at(loc, why=f"create_cache must not declare '{name}'", hint=hint)
        sizes = tuple(shape) if isinstance(shape, tuple | list) else ()
        if len(sizes) != 2 or not all(hasattr(s, "__index__") and not isinstance(s, bool) and s > 0 for s in sizes):
            raise BAD_FIELD.at(loc, why=f"field '{name}' is declared as {shape!r}", hint=_SHAPE)
        return int(sizes[0]), int(sizes[1])


class LatentPackage(Package):
    """The same for multi-head latent attention."""

    expected: Mapping[str, str] = {
        **Package.expected,
        "create_cache": "create_cache(self, block_size, kv_lora_rank, qk_rope_head_dim)",
    }
    pools = ("latent",)
    reserved = ("latent", "k", "v", "kv_c", "k_pe")

    def sizes(self, flow: Any, spec: Spec) -> tuple[int, ...]:
        if not spec.kv_lora_rank:
            hint = "compile it with --latent 512+64 --heads 20, or derive the flow from vFlow"
            raise _other_base(flow, "vFlowMLA, of latent rows", spec, hint)
        return spec.page_size, spec.kv_lora_rank, spec.qk_rope_head_dim


def _other_base(flow: Any, base: str, spec: Spec, hint: str) -> Exception:
    return OTHER_BASE.at(class_loc(type(flow)), flow=type(flow).__name__, base=base, spec=spec, hint=hint)


def _read(declared: Declared, name: str, given: Any) -> Any:
    """A field as forward_indexer sees it."""
    state = declared.state.get(name)
    if state is None or not state.begin:
        return given[declared.names[name]]
    return torch.where(given[state.kept] > 0, given[state.name], given[state.begin])


def _ones(x: Any) -> Any:
    """1 for each page of ``x``, ``[S, 1, 1]``."""
    return torch.ones_like(x[:, :1, :1])


def _refuse_request_fields(flow: Any, args: tuple[Any, ...]) -> None:
    """VX1016 for a flow with fields that live as long as a request, whatever it declares of them."""
    own = getattr(flow, "create_request_cache", None)
    if own is None:
        return
    try:
        bound = own(*args)
    except TypeError:  # it asks for other numbers than create_cache does
        bound = "fields"
    if not bound:
        return
    named = next(iter(bound)) if isinstance(bound, Mapping) else None
    loc = return_loc(flow, "create_request_cache")
    code = code_of(own)
    if code is not None and isinstance(named, str):
        loc = source.key_loc(code, named) or loc
    what = f"declares '{named}'" if named is not None else "declares fields"
    why = f"create_request_cache {what}, which live as long as a request; such fields are not supported"
    hint = "declare them in create_cache and write them by Save: each block of each request then has its own"
    raise BAD_FIELD.at(loc, why=why, hint=hint)


def _ir_name(name: Any, taken: Any) -> str:
    """A field's name that the IR can have: theirs, with underscores where it may not be."""
    made = re.sub(r"[^A-Za-z0-9_]", "_", str(name)).lstrip("_") or "field"
    if made[0].isdigit():
        made = f"f{made}"
    while made in RESERVED or made in taken:
        made += "_"
    return made


class _Base(native.vFlow):
    """What both kinds of flows have. Attributes may be set at any time, as that package allows."""

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)

    block_size: int | None = None
    kv_cache_dtype: Any = None
    q_data_type: Any = None
    intermediate_dtype: Any = None
    cache_meta_info: Any = None

    def _initialize(self, sizes: tuple[int, ...], kv: Any, q: Any, intermediate: Any) -> None:
        self.block_size, self.kv_cache_dtype, self.q_data_type = sizes[0], kv, q
        self.intermediate_dtype = intermediate
        create: Any = self.create_cache
        self._returned = create(*sizes)

    def get_cache_meta_info(self) -> Any:
        """Shape and type of every declared field."""
        return self.cache_meta_info


class vFlow(_Base):
    """A flow over K and V."""

    dialect = Package()
    head_dim: int | None = None

    def initialize(
        self,
        block_size: int,
        head_dim: int,
        kv_cache_dtype: Any,
        q_data_type: Any,
        intermediate_dtype: Any = torch.bfloat16,
        **_: Any,
    ) -> None:
        """Set the sizes, then call create_cache."""
        self.head_dim = head_dim
        self._initialize((block_size, head_dim), kv_cache_dtype, q_data_type, intermediate_dtype)


class vFlowMLA(_Base):
    """A flow over latent rows, ``cache["latent"]``."""

    dialect = LatentPackage()
    kv_lora_rank: int | None = None
    qk_rope_head_dim: int | None = None
    latent_dim: int | None = None

    def initialize(
        self,
        block_size: int,
        kv_lora_rank: int,
        qk_rope_head_dim: int,
        kv_cache_dtype: Any,
        q_data_type: Any,
        intermediate_dtype: Any = torch.bfloat16,
        **_: Any,
    ) -> None:
        """Set the sizes, then call create_cache."""
        self.kv_lora_rank, self.qk_rope_head_dim = kv_lora_rank, qk_rope_head_dim
        self.latent_dim = kv_lora_rank + qk_rope_head_dim
        sizes = block_size, kv_lora_rank, qk_rope_head_dim
        self._initialize(sizes, kv_cache_dtype, q_data_type, intermediate_dtype)


def register(name: str) -> Callable[[_F], _F]:
    """Class decorator: make a flow known as ``name`` in its file, whatever other files and the library call theirs."""
    loc = source.here()
    if not isinstance(name, str) or not name:
        raise BAD_FLOW_CLASS.at(loc, why=f"a flow cannot be named {name!r}: a string is needed")

    def declare(cls: _F) -> _F:
        native.check_class(cls, loc)
        native.register_in_file(name, cls, loc, re.sub(r"[^A-Za-z0-9_]", "_", name))
        return cls

    return declare


class Registered(Mapping[str, Any]):
    """The flows that the running file has registered."""

    def _found(self) -> dict[str, Any]:
        loc = source.here()
        return native.flows_of(loc.file) if loc is not None else {}

    def __getitem__(self, name: str) -> Any:
        return self._found()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found())

    def __len__(self) -> int:
        return len(self._found())


def build_vflow(name: str, user_file: str | None = None, **_: Any) -> Any:
    """A flow as an object, by its name in this file or in another."""
    return native.find_flow(f"{user_file}:{name}")() if user_file else Registered()[name]()
