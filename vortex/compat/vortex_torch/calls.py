"""One call of a flow's method: what it was given, what its operators have written so far."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch

from vortex.errors import OPERATOR_CALL, VortexError, nearest
from vortex.flow.flow import Field
from vortex.flow.selection import Selection
from vortex.flow.tensor import vTensor
from vortex.flow.tracer import fail
from vortex.spec import Spec

POOLS = ("k", "v", "latent")
"""What the cache holds without being declared."""


@dataclass(frozen=True)
class Declared:
    """What ``create_cache`` declares, by the author's names: shapes ``(r, c)`` and the names in the IR."""

    spec: Spec
    shapes: dict[str, tuple[int, int]]
    names: dict[str, str]
    state: dict[str, State] = field(default_factory=dict)
    """The fields that ``forward_indexer`` saves."""


@dataclass(frozen=True)
class State:
    """A field that outlives a step, by its names in the IR: what is kept of it, and how it begins.

    It begins as ``init`` where ``forward_cache`` fills it, and else as what that computes: the summary ``begin``, for
    as long as ``kept`` is 0.
    """

    name: str
    init: float = 0.0
    begin: str = ""
    kept: str = ""

    def fields(self, shape: tuple[int, int]) -> dict[str, Field]:
        """What it is for vortex."""
        made = {self.name: Field(*shape, state="page", init=self.init)}
        if self.begin:
            made |= {self.begin: Field(*shape), self.kept: Field(1, 1, state="page")}
        return made


@dataclass
class Call:
    """A running call of ``forward_cache`` or ``forward_indexer``."""

    method: str
    declared: Declared
    written: dict[str, Any] = field(default_factory=dict)
    """Fields that ``forward_cache`` has written, ``[1, r, c]`` each."""
    results: dict[str, Any] = field(default_factory=dict)
    """The same as ``[r, c]``, by their names in the IR."""
    filled: dict[str, float] = field(default_factory=dict)
    """Those of them that Fill has written last, and with what."""
    saved: dict[str, Any] = field(default_factory=dict)
    """Fields that ``forward_indexer`` has saved, ``[S, r, c]`` each."""
    seen: dict[str, Any] = field(default_factory=dict)
    """Fields as ``forward_indexer`` reads them."""
    selection: Selection | None = None
    """What the terminal operator has chosen."""


_running: ContextVar[Call | None] = ContextVar("running_call", default=None)


@contextmanager
def running(call: Call) -> Iterator[Call]:
    """Operators that are called meanwhile write into ``call``."""
    token = _running.set(call)
    try:
        yield call
    finally:
        _running.reset(token)


def current(op: str) -> Call:
    """The call that operator ``op`` belongs to; VX1081 outside of one."""
    call = _running.get()
    if call is None:
        raise refuse(op, "it is called outside forward_cache and forward_indexer", "operators run in those two alone")
    return call


def refuse(op: str, why: str, expected: str) -> VortexError:
    """VX1081 at the flow's line: an operator that is called wrongly."""
    return fail(OPERATOR_CALL, op=op, why=why, expected=expected)


def shape_of(x: Any) -> str:
    """A tensor's shape in words."""
    return "[" + ", ".join(map(str, x.shape)) + "]"


def has_pages(x: Any) -> bool:
    """Whether the leading axis of ``x`` is the pages; known only while tracing, eagerly taken as right."""
    return not isinstance(x, vTensor) or x.type.page_axis == 0


def is_per_page(x: Any) -> bool:
    """Whether the leading axis of ``x`` is known to be the pages."""
    return isinstance(x, vTensor) and x.type.page_axis == 0


def tensor(op: str, x: Any) -> Any:
    """An operand of ``op``: a tensor of three axes; of a field in ``forward_cache``, what was written to it."""
    if isinstance(x, Slot):
        x = x.value
    if not isinstance(x, vTensor | torch.Tensor):
        got = "the output o" if isinstance(x, Output) else f"a {type(x).__name__}"
        raise refuse(op, f"an operand is {got}", "operands are q, fields of the cache and results of operators")
    if x.dim() != 3:
        raise refuse(op, f"an operand is {shape_of(x)}", "tensors have three axes: [1 or S, D0, D1]")
    return x


class Slot:
    """A field in ``forward_cache``: an operator writes it, and operators after that may read what was written."""

    def __init__(self, call: Call, name: str) -> None:
        self._call, self.name = call, name
        self.shape = (1, *call.declared.shapes[name])
        self.ndim = 3

    def dim(self) -> int:
        return 3

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    @property
    def value(self) -> Any:
        """What was written in this call."""
        if self.name not in self._call.written:
            why = f"field '{self.name}' is read before an operator has written it"
            raise refuse("forward_cache", why, "a field is made from its own block: write it first, or read cache['k']")
        return self._call.written[self.name]

    def write(self, op: str, made: Any) -> None:
        """Take the result of operator ``op``."""
        if tuple(made.shape) != self.shape:
            r, c = self.shape[1:]
            why = f"its result is {shape_of(made)}, and field '{self.name}' is declared ({r}, {c})"
            raise refuse(op, why, "the result's last two sizes are the field's in create_cache")
        call = self._call
        call.written[self.name] = made
        call.filled.pop(self.name, None)
        state = call.declared.state.get(self.name)
        name = call.declared.names[self.name] if state is None else state.begin
        if name:
            call.results[name] = made.reshape(self.shape[1:])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.value, name)


class Fields(Mapping[str, Any]):
    """The cache that a method is given, ``cache["name"]``: tensors, and in ``forward_cache`` fields to write."""

    def __init__(self, found: Mapping[str, Any], pools: Any) -> None:
        self._found, self._pools = found, pools

    def __getitem__(self, name: str) -> Any:
        if name in self._found:
            return self._found[name]
        if name in POOLS:
            return self._pools(name)
        why = f"there is no field '{name}'{nearest(str(name), self._found)}"
        raise refuse("cache", why, f"create_cache declares it: return {{'{name}': (r, c)}}")

    def __contains__(self, name: object) -> bool:
        return name in self._found

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


class Output:
    """``o`` of ``forward_indexer``, which a terminal operator writes."""


class Location:
    """``loc`` of ``forward_cache``, which flows pass on."""


class ContextBase:
    """``ctx``, which flows pass on. It knows the block's shape; batches, budgets and layouts are known at run time."""

    def __init__(self, spec: Spec | None = None) -> None:
        if spec is not None:
            self.block_size = self.page_size = spec.page_size
            self.head_dim, self.group_size = spec.head_dim, spec.group

    def __getattr__(self, name: str) -> NoReturn:
        text = f"ctx.{name} has no value while a flow is compiled: batches, budgets and layouts are given at run time"
        raise AttributeError(text)
