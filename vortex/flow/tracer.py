"""The function being traced: ops appended at the flow's own lines, errors raised there."""

from __future__ import annotations

import base64
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from typing import TYPE_CHECKING, Any

import torch

from vortex.errors import BAD_SHAPE, CONSTANT_TOO_BIG, ErrorKind, VortexError
from vortex.flow import purity, source
from vortex.flow.dispatch import wrap
from vortex.flow.integers import Integers, Whole
from vortex.ir import types
from vortex.ir.core import Decl, Function, Module, Op, Value
from vortex.ir.dialects import flow
from vortex.ir.dialects.flow.kinds import PAGES_AND_BLOCKS, TWICE, TWO_AXES
from vortex.ir.types import DType, Sym, TensorType

if TYPE_CHECKING:
    from vortex.flow.tensor import vTensor

CONSTANT_LIMIT = 1 << 20
"""Bytes a captured tensor may have."""

DTYPES: dict[torch.dtype, DType] = {
    torch.float32: types.f32,
    torch.float16: types.f16,
    torch.bfloat16: types.bf16,
    torch.float8_e4m3fn: types.fp8_e4m3,
    torch.int32: types.i32,
    torch.int64: types.i32,
    torch.bool: types.bool_,
}
"""Element types by torch's name. Integers are 32 bits: page and layer numbers fit."""

ANY = "'vortex ops' tells what each function takes"
"""What to do where nothing else is to be said."""
EXPECTED = {
    flow.Binary: "sizes must be equal or 1, counted from the last axis",
    flow.Where: "sizes must be equal or 1, counted from the last axis",
    flow.Dot: "the contracted sizes must be equal, and at most one axis of the result runs over pages",
    flow.Reshape: "keep the page axis an axis of its own and the number of elements per page",
    flow.Broadcast: "only axes of size 1 and new leading axes can be repeated",
    flow.Concat: "all parts have the same sizes beside the joined axis, which is not the page axis",
    flow.Slice: "slice an axis other than the pages, within its size",
    flow.Reduce: "an axis is between -rank and rank - 1 and named once",
    flow.Scan: "a tensor that has axes",
    flow.Gather: "at most one axis of the result runs over pages; torch.take_along_dim(x, index[:, None], 1) takes one "
    "element for each page",
    flow.Conv: "the input is [1, C, S] or [C, S], the weight [O, C / groups, K] with K odd",
}

_current: ContextVar[Tracer | None] = ContextVar("tracer", default=None)


class Tracer:
    """Builds one function of ``module`` while the flow's Python code runs."""

    def __init__(self, module: Module, function: Function) -> None:
        self.module, self.function = module, function
        self.call = ""
        """The torch function being traced, for messages."""
        self.refused: VortexError | None = None
        """The last error raised; C code between it and the flow may replace it by a bare TypeError."""
        self.seen: dict[object, Value] = {}
        self.integers = Integers()
        self.lists: dict[Sym, Value] = {}
        """Which candidates the pages of each shortlist are, by the page axis that it makes (:meth:`listed`)."""
        self.blocks = flow.blocks_of_page(module) if flow.of_pages(module) else 1
        """How many candidates make a page, where the flow knows of blocks."""
        self.named: set[Value] = set()
        """Values that have a variable's name."""
        self.views: dict[Value, tuple[Value, bool]] = {}
        """What is a view in torch though no view op makes it: of which value, and whether an element occurs twice."""
        self.method = purity.method()
        """The method of the flow that is traced, for messages."""
        self._born: list[weakref.ref[vTensor]] = []

    def listed(self, axis: Sym) -> Value | None:
        """Which candidates the pages of a shortlist are, or the blocks of its pages; None where they are all."""
        pages = next((a for a in self.lists if a.in_blocks == axis), None)
        if axis not in self.lists and pages is not None:
            self.lists[axis] = self.function.add(flow.BlocksOf(self.lists[pages]), "blocks", source.here())
        return self.lists.get(axis)

    def bear(self, tensor: weakref.ref[vTensor]) -> int:
        """Count a traced tensor; its place in order."""
        self._born.append(tensor)
        return len(self._born)

    @property
    def births(self) -> int:
        """How many traced tensors were made."""
        return len(self._born)

    def alive(self) -> Iterator[vTensor]:
        """The traced tensors that the flow, or a call that is not over, still holds."""
        return (t for t in (r() for r in self._born) if t is not None)

    def once(self, key: object, op: Op, name: str) -> vTensor:
        """A leaf, made on first use and shared after."""
        if key not in self.seen:
            self.seen[key] = self.function.add(op, name, source.here())
        return wrap(self.seen[key])

    def resource(self, data: torch.Tensor, name: str) -> vTensor:
        """A captured tensor: declared once for each content, in its own type."""
        with torch._C.DisableTorchFunction():  # or what a flow computes in would widen it
            return self._resource(data, name)

    def _resource(self, data: torch.Tensor, name: str) -> vTensor:
        dtype = DTYPES.get(data.dtype)
        if dtype is None:
            if data.dtype == torch.float64:
                return self.resource(data.float(), name)
            if data.dtype not in (torch.int8, torch.int16, torch.uint8):
                raise fail(BAD_SHAPE, op="captured tensor", why=f"no element type for {data.dtype}", expected="float32")
            dtype = types.i32
        data = data.detach().cpu().resolve_conj().resolve_neg().contiguous()
        whole = None
        if not data.dtype.is_floating_point and data.dtype != torch.bool:
            ends = (int(data.min()), int(data.max())) if data.numel() else (0, 0)
            whole = Whole(data.dtype, *ends)
            if not whole.fits:
                why = f"{data.dtype} between {ends[0]} and {ends[1]}; integers have 32 bits here"
                raise fail(BAD_SHAPE, op="captured tensor", why=why, expected="numbers from -2^31 to 2^31 - 1")
            data = data.to(torch.int32)
        type = TensorType(dtype, tuple(data.shape))
        size = data.numel() * dtype.bytes
        if size > CONSTANT_LIMIT:
            raise fail(CONSTANT_TOO_BIG, size=size, limit=CONSTANT_LIMIT)
        raw = data.reshape(-1).view(torch.uint8).numpy().tobytes() if size else b""
        text = base64.b64encode(raw).decode()
        for d in self.module.declared("resource"):
            if d.type == type and d.attrs["data"] == text:
                return self._captured(d.name, type, whole)
        if not name or name in self.module.decls:
            n = len(self.module.declared("resource"))
            name = next(w for i in count(n) if (w := f"w{i}") not in self.module.decls)
        self.module.declare(Decl("resource", name, type, {"data": text}))
        return self._captured(name, type, whole)

    def _captured(self, name: str, type: TensorType, whole: Whole | None) -> vTensor:
        made = self.once((name, whole), flow.Resource(name, type), name)
        if whole is not None:
            self.integers.know(made.value, whole)
        return made


@contextmanager
def tracing(module: Module, function: Function) -> Iterator[Tracer]:
    """Make a tracer the current one while the flow runs."""
    tracer = Tracer(module, function)
    token = _current.set(tracer)
    try:
        yield tracer
    finally:
        _current.reset(token)


def current() -> Tracer | None:
    """The tracer at work, None when the flow runs eagerly."""
    return _current.get()


def active() -> Tracer:
    tracer = _current.get()
    assert tracer is not None, "a traced tensor outlived its trace"
    return tracer


def fail(kind: ErrorKind, **fields: Any) -> VortexError:
    """The error at the flow's line being run."""
    error = kind.at(source.here(), **fields)
    tracer = _current.get()
    if tracer is not None:
        tracer.refused = error
    return error


def refuse(why: str, expected: str = ANY) -> VortexError:
    """VX1005 for the torch function being traced."""
    return fail(BAD_SHAPE, op=active().call, why=why, expected=expected)


def emit(op: type[Op], *operands: vTensor | tuple[vTensor, ...], **attrs: Any) -> vTensor:
    """Append an op at the flow's current line; what the op refuses is refused there."""
    tracer = active()
    values = [tuple(p.value for p in x) if isinstance(x, tuple) else x.value for x in operands]
    try:
        made = op(*values, **attrs)
    except VortexError as e:
        why = str(e.fields["why"])
        if why.startswith(TWO_AXES):
            raise refuse(
                why, "x[near] is what x, over all candidates S, holds at the pages of a shortlist, S1"
            ) from None
        if why.startswith(PAGES_AND_BLOCKS):
            works = "a score of pages makes a shortlist; what is computed at cache.f[near] is of blocks where f is"
            raise refuse(why, works) from None
        if why == TWICE and issubclass(op, flow.Binary | flow.Where):
            raise refuse(why, "reduce the pages of one operand first, such as x.amax(0, keepdim=True)") from None
        raise refuse(why, next((text for c, text in EXPECTED.items() if issubclass(op, c)), ANY)) from None
    _check_integers(made)
    return wrap(tracer.function.add(made, "", source.here()))


def _check_integers(made: Op) -> None:
    """Know the integer that an op makes; refuse one that int32 may not hold where torch would."""
    known = active().integers
    meet = isinstance(made, flow.Binary | flow.Where) and all(known.whole(v) for v in made.operands)
    if meet and any(known.too_big(v) for v in made.operands):
        raise refuse("a number beyond 32 bits meets integers", TO_FIT)
    what = known.infer(made)
    if what is None:
        return
    if not what.fits:
        kind = "a Python integer" if what.python else str(what.dtype)
        summed = isinstance(made, flow.Reduce | flow.Scan)
        works = (
            "dtype=torch.int32, which wraps; or x.clamp(low, high) or x % n first, which bound x" if summed else TO_FIT
        )
        raise refuse(f"{kind} between {what.low} and {what.high}; integers have 32 bits here", works)
    known.know(made.value, what)


LARGEST = torch.finfo(torch.float32).max
TO_FIT = "x.int(), which wraps as torch's int32; x.clamp(low, high) or % n, which bound x; or x.float()"


def constant(number: float, of: torch.dtype | None = None) -> vTensor:
    """A Python number as torch reads it beside a tensor: bool, int32 or fp32. The only element of a tensor without axes
    is of a type ``of`` its own, which counts beside another such tensor.
    """
    dtype = types.bool_ if isinstance(number, bool) else types.i32 if isinstance(number, int) else types.f32
    big = dtype == types.i32 and not -(2**31) <= number < 2**31
    if big and not -(2**63) <= number < 2**64:
        raise fail(BAD_SHAPE, op=active().call or "flow", why=f"{number} has more than 64 bits", expected="a float")
    if big:
        dtype = types.f32
    whole = of if dtype in (types.bool_, types.i32) else None
    if dtype == types.f32 and abs(number) > LARGEST:
        number = torch.tensor(float(number), dtype=torch.float32).item()  # beyond fp32 it is infinite, as in torch
    key = (repr(number), dtype, whole)
    name = f"c{int(number)}" if number == number and 0 <= number < 1000 and number == int(number) else "c"
    value = number if dtype == types.i32 else float(number)
    made = active().once(key, flow.Constant(value, type=TensorType(dtype)), name)
    if big:
        active().integers.big.add(made.value)
    elif dtype != types.f32:
        kind = whole or (torch.bool if dtype == types.bool_ else torch.int64)
        active().integers.know(made.value, Whole(kind, int(number), int(number), python=whole is None))
    return made
