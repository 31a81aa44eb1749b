"""Traced tensors, and the page axis whose size has no number."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from vortex.errors import (
    BAD_SHAPE,
    BRANCH,
    CONCRETIZE,
    IN_PLACE,
    NEAR_IS_AN_INDEX,
    STATE,
    SYMBOLIC_SIZE,
    UNKNOWN_TORCH_OP,
)
from vortex.flow import purity, source
from vortex.flow.dispatch import assigned, bound_method, call_function, call_method, fills
from vortex.flow.integers import MOST_PAGES, Whole
from vortex.flow.tracer import DTYPES, Tracer, active, constant, current, fail
from vortex.ir.core import Value
from vortex.ir.dialects import flow
from vortex.ir.types import Dim, Sym, TensorType, i32


class PageDim:
    """The size of a page axis in a shape. Arithmetic with it is traced; as a Python number it is an error."""

    def __init__(self, axis: Sym) -> None:
        self.axis = axis

    def __repr__(self) -> str:
        return str(self.axis)

    def __hash__(self) -> int:
        return hash(self.axis)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, int | float):
            raise fail(SYMBOLIC_SIZE, what=f"comparing S with {other}")
        return isinstance(other, PageDim) and other.axis == self.axis

    def _number(self, *_: object) -> Any:
        raise fail(SYMBOLIC_SIZE, what="this use of S")

    __index__ = __int__ = __float__ = __complex__ = __bool__ = __len__ = __iter__ = _number
    __lt__ = __le__ = __gt__ = __ge__ = __round__ = __floor__ = __ceil__ = __trunc__ = _number

    def __neg__(self) -> vTensor:
        return -lift(self)

    def __pos__(self) -> PageDim:
        return self

    def __abs__(self) -> PageDim:
        return self

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(isinstance(a, vTensor) for a in args):
            return vTensor.__torch_function__(function, types, args, kwargs)
        raise fail(SYMBOLIC_SIZE, what=getattr(function, "__name__", "this function"))


class Size(tuple[Any, ...]):
    """A shape as torch gives it; the page axis is a :class:`PageDim`."""

    def __getitem__(self, key: Any) -> Any:
        part = super().__getitem__(key)
        return Size(part) if isinstance(key, slice) else part

    def numel(self) -> Any:
        known = math.prod(d for d in self if isinstance(d, int))
        pages: Any = next((d for d in self if isinstance(d, PageDim)), None)
        return pages * known if pages is not None else known


def _operator(name: str, swap: bool = False) -> Any:
    def run(self: Any, other: Any) -> Any:
        if not isinstance(other, vTensor | torch.Tensor | int | float | PageDim) and not hasattr(other, "__array__"):
            return NotImplemented
        if swap and isinstance(other, np.ndarray):  # torch's operators take no array before a tensor
            return NotImplemented
        if name == "pow" and not swap and isinstance(other, int | float):
            return call_method(name, (lift(self), other), {})  # torch computes powers of a Python number otherwise
        a, b = (lift(other), lift(self)) if swap else (lift(self), lift(other))
        return call_method(name, (a, b), {})

    return run


def _augmented(name: str, operator: str) -> Any:
    plain = _operator(name)

    def run(self: vTensor, other: Any) -> Any:
        made = plain(self, other)
        return made if made is NotImplemented else assigned(self, made, operator)

    return run


@fills("wrap")
class vTensor:
    """A value of the flow being traced: an element type and a shape, no numbers.

    All names of the object see an augmented assignment, as with torch: it gives the object another value.
    """

    __slots__ = ("__weakref__", "born", "copied", "home", "value")
    __array_ufunc__ = None  # numpy arrays leave their operators to ours
    __hash__ = object.__hash__

    def __init__(self, value: Value) -> None:
        self.value = value
        self.home: Tracer | None = current()
        """The trace that it belongs to."""
        self.copied = False
        """Whether torch would give it memory of its own, though its value is that of another tensor."""
        self.born = self.home.bear(weakref.ref(self)) if self.home is not None else 0
        """Its place in the order in which the tensors of the trace were made."""

    @property
    def type(self) -> TensorType:
        """The type in the IR."""
        assert isinstance(self.value.type, TensorType)
        return self.value.type

    @property
    def dims(self) -> tuple[Dim, ...]:
        """The shape in the IR."""
        return self.type.shape

    @property
    def shape(self) -> Size:
        return Size(PageDim(d) if isinstance(d, Sym) else d for d in self.dims)

    @property
    def ndim(self) -> int:
        return len(self.dims)

    @property
    def dtype(self) -> torch.dtype:
        """fp32 for every float: a flow computes on fp32 copies of what is stored. Integers are what torch has."""
        kind = self.type.dtype
        whole = active().integers.of(self.value)
        return torch.float32 if kind.is_float or whole is None else whole.dtype

    @property
    def device(self) -> torch.device:
        """Where tensors that a flow makes for itself are best made: they become constants."""
        return torch.device("cpu")

    def dim(self) -> int:
        return self.ndim

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> Any:
        return self.shape.numel()

    def is_floating_point(self) -> bool:
        return self.type.dtype.is_float

    def is_complex(self) -> bool:
        return False

    def element_size(self) -> int:
        return 4

    ndimension, nelement = dim, numel
    is_cuda = requires_grad = False

    @property
    def data(self) -> vTensor:
        return self

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return call_function(function, args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in ("T", "mT"):
            return call_method("t" if name == "T" else "adjoint", (self,), {})
        if name in CONCRETE:
            return lambda *_, **__: self._concrete(f".{name}()")
        return bound_method(self, name)

    def _concrete(self, what: str) -> Any:
        raise fail(CONCRETIZE, what=what)

    def __bool__(self) -> bool:
        raise fail(BRANCH, what=f"a traced {self.type}")

    def __contains__(self, item: object) -> bool:
        raise fail(BRANCH, what="'in' on a traced tensor")

    def __len__(self) -> int:
        if self.dims and isinstance(self.dims[0], int):
            return self.dims[0]
        if not self.dims:  # torch has no length of it either, and its own code asks
            raise CONCRETIZE.at(source.here(), what="len(), or torch.tensor() of it,")
        raise SYMBOLIC_SIZE.at(source.here(), what="len()")  # torch's own code asks, and can do without

    def __iter__(self) -> Iterator[vTensor]:
        if self.dims and isinstance(self.dims[0], int):
            return iter([self[i] for i in range(self.dims[0])])
        raise fail(SYMBOLIC_SIZE, what="iterating over pages") if self.dims else fail(CONCRETIZE, what="iterating")

    def __float__(self) -> float:
        return float(self._concrete("float()"))

    def __int__(self) -> int:
        return int(self._concrete("int()"))

    def __complex__(self) -> complex:
        return complex(self._concrete("complex()"))

    def __index__(self) -> int:
        return int(self._concrete("using it as an index or size"))

    def __array__(self, *_: object, **__: object) -> Any:
        self._concrete("numpy")

    def __setitem__(self, key: object, value: object) -> None:
        raise fail(IN_PLACE, name="x[...] = y")

    def __getitem__(self, key: Any) -> vTensor:
        return call_method("__getitem__", (self, key), {})

    def __neg__(self) -> vTensor:
        return self.neg()

    def __pos__(self) -> vTensor:
        return self

    def __abs__(self) -> vTensor:
        return self.abs()

    def __copy__(self) -> vTensor:
        made = vTensor(self.value)
        made.copied = self.copied
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> vTensor:
        return self.clone()

    def __invert__(self) -> vTensor:
        return self.bitwise_not()

    def __repr__(self) -> str:
        return f"vTensor({self.value!r})"

    __add__, __radd__ = _operator("add"), _operator("add", swap=True)
    __sub__, __rsub__ = _operator("sub"), _operator("sub", swap=True)
    __mul__, __rmul__ = _operator("mul"), _operator("mul", swap=True)
    __truediv__, __rtruediv__ = _operator("div"), _operator("div", swap=True)
    __floordiv__, __rfloordiv__ = _operator("floor_divide"), _operator("floor_divide", swap=True)
    __mod__, __rmod__ = _operator("remainder"), _operator("remainder", swap=True)
    __pow__, __rpow__ = _operator("pow"), _operator("pow", swap=True)
    __matmul__, __rmatmul__ = _operator("matmul"), _operator("matmul", swap=True)
    __and__, __rand__ = _operator("bitwise_and"), _operator("bitwise_and", swap=True)
    __or__, __ror__ = _operator("bitwise_or"), _operator("bitwise_or", swap=True)
    __xor__, __rxor__ = _operator("bitwise_xor"), _operator("bitwise_xor", swap=True)
    __lshift__, __rlshift__ = _operator("bitwise_left_shift"), _operator("bitwise_left_shift", swap=True)
    __rshift__, __rrshift__ = _operator("bitwise_right_shift"), _operator("bitwise_right_shift", swap=True)
    __lt__, __le__, __gt__, __ge__ = _operator("lt"), _operator("le"), _operator("gt"), _operator("ge")
    __eq__, __ne__ = _operator("eq"), _operator("ne")

    __iadd__, __isub__ = _augmented("add", "+"), _augmented("sub", "-")
    __imul__, __itruediv__ = _augmented("mul", "*"), _augmented("div", "/")
    __ifloordiv__, __imod__ = _augmented("floor_divide", "//"), _augmented("remainder", "%")
    __ipow__ = _augmented("pow", "**")
    __iand__, __ior__ = _augmented("bitwise_and", "&"), _augmented("bitwise_or", "|")
    __ixor__ = _augmented("bitwise_xor", "^")


CONCRETE = frozenset({"item", "tolist", "numpy", "data_ptr", "storage", "equal", "allclose", "is_nonzero", "nonzero"})
"""Methods whose result is a Python value, or whose shape depends on the data."""

for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    for _side in ("", "r"):
        setattr(PageDim, f"__{_side}{_name}__", vTensor.__dict__[f"__{_side}{_name}__"])


class Withheld:
    """Something that is no tensor here, though torch has one: only its use is an error."""

    def refusal(self) -> Exception:
        """The error of using it."""
        raise NotImplementedError

    def _use(self, *_: object, **__: object) -> Any:
        raise self.refusal()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._use()

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return call_function(function, args, kwargs or {})

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __getitem__ = _use
    __lt__ = __le__ = __gt__ = __ge__ = __iter__ = __len__ = __int__ = __float__ = __index__ = __bool__ = _use
    __pow__ = __rpow__ = __matmul__ = __rmatmul__ = __neg__ = __abs__ = __mod__ = __floordiv__ = _use


class NoIndices(Withheld):
    """The indices beside a maximum over pages: not computed."""

    def __init__(self, call: str) -> None:
        self._call = call

    def refusal(self) -> Exception:
        return fail(UNKNOWN_TORCH_OP, name=f"the indices of {self._call}", nearest="; its values can")


class Near(Withheld):
    """The pages of a shortlist, as an index: ``x[near]`` is what ``x`` holds at those pages. It is no tensor."""

    __hash__ = object.__hash__

    def refusal(self) -> Exception:
        return fail(NEAR_IS_AN_INDEX)

    __eq__ = __ne__ = __rpow__ = __invert__ = __and__ = __or__ = __contains__ = Withheld._use


def foreign(x: vTensor) -> Exception:
    """VX1023 for a tensor that was kept beyond the call that made it."""
    made = x.home.method if x.home is not None else ""
    loc = x.value.owner.loc if x.value.owner is not None else None
    now = purity.method()
    when = "an earlier run of the flow" if made == now else made or "a trace that has ended"
    where = f", at {loc}," if loc is not None else ""
    return fail(
        STATE,
        what=f"a tensor made in {when}{where} is used in {now or 'other code'}",
        hint="kept on self in forward_cache, or in a global: make it a field, one for each page: declare it in "
        "create_cache, return it from forward_cache, read it as cache.<name>"
        if made == "forward_cache"
        else purity.HINTS["forward_indexer"],
    )


def lift(x: Any) -> vTensor:
    """Whatever a flow may write where torch takes a tensor, as a traced one; real tensors become constants."""
    if isinstance(x, vTensor):
        if x.home is not current() or x.home is None:
            raise foreign(x)
        return x
    if isinstance(x, PageDim):
        pages = active().once("S", flow.PageCount(TensorType(i32)), "page_count")
        active().integers.know(pages.value, Whole(torch.int64, 0, MOST_PAGES, python=True))
        if x.axis.blocks > 1:
            pages = pages // x.axis.blocks
        if not x.axis.limit:
            return pages
        most = constant(x.axis.limit)
        made = active().once(x.axis, flow.Minimum(pages.value, most.value), "page_count")
        active().integers.know(made.value, Whole(torch.int64, 0, x.axis.limit, python=True))
        return made
    if isinstance(x, Withheld):
        raise x.refusal()
    if isinstance(x, np.generic):
        x = x.item()
    if hasattr(x, "__array__") and not isinstance(x, torch.Tensor):
        x = torch.as_tensor(x)
    if isinstance(x, torch.Tensor):
        if x.ndim == 0 and x.dtype in DTYPES:
            return constant(x.item(), x.dtype)
        return active().resource(x, source.variable_of(x))
    if isinstance(x, bool | int | float):
        return constant(x)
    what = f"got {type(x).__name__} where a tensor is needed"
    raise fail(BAD_SHAPE, op=active().call or "flow", why=what, expected="a tensor or a number")


def kind(x: Any) -> str:
    """A value in words."""
    if isinstance(x, vTensor):
        return f"a tensor {x.type}"
    return "None" if x is None else f"{'an' if type(x).__name__[0] in 'aeiou' else 'a'} {type(x).__name__}"
