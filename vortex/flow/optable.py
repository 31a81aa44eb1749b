"""The one table of what a flow may call: torch functions and methods, and the handlers that trace them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

import torch

from vortex.errors import IN_PLACE, UNKNOWN_TORCH_OP, nearest
from vortex.flow import refusals, source
from vortex.flow.dispatch import fills
from vortex.flow.inplace import fresh
from vortex.flow.tensor import vTensor
from vortex.flow.tracer import active, fail, refuse

F = torch.nn.functional
_MODULES = (
    "logic",
    "casts",
    "elementwise",
    "activations",
    "reductions",
    "norms",
    "linear",
    "shapes",
    "indexing",
    "repetition",
    "joins",
    "creation",
    "gathers",
    "ordering",
    "windows",
    "convolution",
)
_ALIASES = {"axis": "dim", "keepdims": "keepdim", "split_size": "split_size_or_sections"}
"""Names that torch takes for its own, for numpy's sake or in methods."""
_LISTED = ("dims", "size", "shape", "repeats")
"""What torch calls the numbers that it takes one by one as well, of which a function has at most one list."""
_H = TypeVar("_H", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Entry:
    """How one torch function is traced."""

    name: str
    handler: Callable[..., Any]
    function: Callable[..., Any]
    """What torch has under that name."""
    lowers_to: str
    signature: inspect.Signature

    @property
    def arguments(self) -> str:
        """The arguments it takes, as in a call."""
        bare = [p.replace(annotation=inspect.Parameter.empty) for p in self.signature.parameters.values()]
        return str(inspect.Signature(bare))

    @property
    def doc(self) -> str:
        return (self.handler.__doc__ or self.lowers_to).splitlines()[0]


INSTEAD = {
    "nanmedian nanquantile mode": "median, quantile, mean and amax summarise an axis",
    "scatter index_add": "torch.where and comparisons with an index choose: (index[:, None] == torch.arange(n)).sum(0)",
    "masked_select nonzero argwhere unique": "torch.where(mask, x, other) keeps the shape",
    "scaled_dot_product_attention": "score with q @ k.T and softmax; attending is vortex's part",
    "rand_like randn_like randint_like bernoulli multinomial dropout": "a flow gives the same answer every time",
    "lp_pool1d adaptive_avg_pool1d adaptive_max_pool1d avg_pool2d max_pool2d": "F.avg_pool1d and F.max_pool1d pool "
    "neighbouring pages (stride=1, padding=size // 2); x.unflatten(dim, (-1, n)).amax(dim + 1) pools an axis of known "
    "size",
    "bincount histc unique_consecutive isin": "comparisons count: (x > edge).sum(dim), torch.bucketize(x, edges)",
    "scatter_add scatter_reduce index_fill index_copy index_put masked_scatter put": "torch.where(mask, a, b) chooses",
    "svd eig eigh qr inv inverse solve cholesky det lstsq pinv linalg_inv linalg_svd": "work matrices out in __init__ "
    "or create_cache and capture the result",
    "cov corrcoef": "x - x.mean(dim, keepdim=True) and @ give covariances",
    "batch_norm instance_norm group_norm renorm": "F.layer_norm, F.normalize and (x - x.mean(d)) / x.std(d) normalise",
    "embedding": "table[index] looks up a row for each index",
    "one_hot": "comparisons make one: index[..., None] == torch.arange(n)",
    "interpolate": "F.conv1d smooths along the pages",
    "fft_fft fft_rfft stft": "a captured matrix of cosines and sines: x @ table",
    "float_power": "x ** y computes in float32, where torch's float_power would in float64",
    "diag diagonal diag_embed trace": "(x * torch.eye(n)).sum(-1) takes the diagonal",
    "empty_like new_empty": "torch.zeros_like(x) has known contents",
    "double": "x.float(): flows compute in float32",
    "short char byte": "x.int(): integers have 32 bits here",
    "bitwise_left_shift bitwise_right_shift": "x * 2**n and x // 2**n shift integers",
    "tril triu": "torch.where(mask, x, 0.0) with a captured mask",
}
"""What to write for functions that have no meaning over pages, where another name is no help."""

_TABLE: dict[Any, Entry] = {}
_BY_NAME: dict[str, Entry] = {}


def traces(*names: str, to: str) -> Callable[[_H], _H]:
    """Register the handler of torch functions; ``to`` says in a few words what they become.

    A bare name stands for ``torch.name`` and ``torch.Tensor.name``, a dotted one for itself; ``F.`` is
    ``torch.nn.functional``.
    """

    def declare(handler: _H) -> _H:
        entry = None
        for name in names:
            targets = _targets(name)
            assert targets, f"torch has no {name}"
            for shown, function in targets:
                assert function not in _TABLE or shown.startswith("F."), f"{shown} has two handlers"
                entry = Entry(shown, handler, function, to, inspect.signature(handler))
                _TABLE.setdefault(function, entry)
                _BY_NAME.setdefault(name.rpartition(".")[2], entry)
        return handler

    return declare


def _targets(name: str) -> list[tuple[str, Any]]:
    if name.startswith("F."):
        return [(name, getattr(F, name[2:]))]
    if "." in name:
        owner, _, last = name.removeprefix("torch.").rpartition(".")
        scope: Any = torch
        for part in filter(None, owner.split(".")):
            scope = getattr(scope, part)
        return [(f"torch.{name.removeprefix('torch.')}", getattr(scope, last))]
    found = [(f"{shown}.{name}", getattr(scope, name, None)) for shown, scope in _SCOPES]
    return [(shown, f) for shown, f in found if f is not None]


_SCOPES: tuple[tuple[str, Any], ...] = (("torch", torch), ("torch.Tensor", torch.Tensor))


def _load() -> None:
    """Import the handlers; they register themselves."""
    if not _TABLE:
        for module in _MODULES:
            import_module(f"vortex.flow.{module}")


def known_names() -> set[str]:
    """Every name a flow can call, without its scope."""
    _load()
    return set(_BY_NAME)


def listing() -> list[dict[str, str]]:
    """For ``vortex ops``: what a flow may call, what it becomes, one line on it."""
    _load()
    rows = {e.name: {"name": e.name, "lowers_to": e.lowers_to, "doc": e.doc} for e in _TABLE.values()}
    return [rows[name] for name in sorted(rows, key=lambda n: (n.rpartition(".")[2].strip("_"), n))]


@fills("call_function")
def call_function(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Trace a torch function that was given a traced tensor."""
    _load()
    entry = _TABLE.get(function)
    if entry is None:
        raise unknown(_shown(function))
    return call(entry, args, kwargs)


@fills("call_method")
def call_method(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Trace a tensor method or operator by its name."""
    return call(method(name), args, kwargs)


@fills("bound_method")
def bound_method(tensor: vTensor, name: str) -> Callable[..., Any]:
    """The method ``name`` of a traced tensor; the error that there is none."""
    entry = method(name)
    return lambda *args, **kwargs: call(entry, (tensor, *args), kwargs)


def method(name: str) -> Entry:
    """The handler of ``torch.Tensor.<name>``; the error that it has none."""
    _load()
    function = getattr(torch.Tensor, name, None)
    entry = _TABLE.get(function) if function is not None and callable(function) else None
    if entry is None:
        raise unknown(f"torch.Tensor.{name}")
    return entry


def unknown(name: str) -> Exception:
    """VX1001, or VX1004 for the functions that write in place."""
    last = name.rpartition(".")[2]
    in_place = last.endswith("_") and not last.endswith("__")
    if last == "__setitem__" or in_place or (last.startswith("__i") and hasattr(torch.Tensor, f"__{last[3:]}")):
        return fail(IN_PLACE, name=name)
    other = next((text for names, text in INSTEAD.items() if last in names.split()), "")
    return fail(UNKNOWN_TORCH_OP, name=name, nearest=f"; {other}" if other else _misspelt(name))


def _misspelt(name: str) -> str:
    """The nearest known name to one that torch does not have; what torch has is not misspelt."""
    last = name.rpartition(".")[2]
    if any(hasattr(scope, last) for scope in (torch, torch.Tensor, F, torch.linalg, torch.special)):
        return ""
    return nearest(last, known_names())


def _shown(function: Any) -> str:
    name = getattr(function, "__name__", str(function))
    for scope, owner in (("torch.Tensor", torch.Tensor), ("torch", torch), ("F", F), ("torch.linalg", torch.linalg)):
        if getattr(owner, name, None) is function:
            return f"{scope}.{name}"
    return name


def call(entry: Entry, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a handler; the outermost one names its result after the flow's variable."""
    tracer = active()
    if tracer.call:
        return entry.handler(*args, **_plain(entry, kwargs))
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise fail(UNKNOWN_TORCH_OP, name="torch.autocast", nearest="; a flow computes in fp32, x.bfloat16() rounds")
    tracer.call, before, births = entry.name, len(tracer.function.ops), tracer.births
    try:
        kwargs = _plain(entry, kwargs)
        placed, named = _one_by_one(entry, args, kwargs)
        try:
            entry.signature.bind(*placed, **named)
        except TypeError as e:
            raise refuse(str(e), f"it takes {entry.arguments}") from None
        result = fresh(entry.handler(*placed, **named), births, entry.name.rpartition(".")[2])
        refusals.check(entry.function, args, kwargs)
    finally:
        tracer.call = ""
    _name(result, before)
    made = [o for o in tracer.function.ops[before:] if o.role != "leaf"]
    if len(made) > 1:
        tracer.function.group(made, entry.name.rpartition(".")[2].strip("_"))
    return result


def _plain(entry: Entry, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Without the arguments that say nothing (torch's wrappers pass their defaults on), by torch's own names."""
    if kwargs.get("inplace"):
        raise fail(IN_PLACE, name=f"{active().call}(inplace=True)")
    if kwargs.get("out") is not None:
        raise fail(IN_PLACE, name=f"{active().call}(out=)")
    idle = {"inplace", "out", "_stacklevel", "compute_mode"} | ({"dtype"} if kwargs.get("dtype") is None else set())
    takes = entry.signature.parameters
    return {k if k in takes else _ALIASES.get(k, k): v for k, v in kwargs.items() if k not in idle}


def _one_by_one(entry: Entry, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A list of sizes or axes that is given by name, as in ``x.flip(dims=(1,))``, where a handler takes them one by one
    or as one list.
    """
    variadic = {n: p.kind is p.VAR_POSITIONAL for n, p in entry.signature.parameters.items()}
    listed = [k for k in _LISTED if k in kwargs and variadic.get(k, True)] if any(variadic.values()) else []
    return (*args, *(kwargs[k] for k in listed)), {k: v for k, v in kwargs.items() if k not in listed}


def _name(result: Any, before: int) -> None:
    frame = source.user_frame()
    if frame is None or not isinstance(result, vTensor | tuple):
        return
    names = source.assigned_names(frame)
    results = result if isinstance(result, tuple) else (result,)
    if len(names) != len(results):
        return
    tracer = active()
    function = tracer.function
    made = {o.result for o in function.ops[before:]}
    for name, r in zip(names, results, strict=True):
        if isinstance(r, vTensor) and r.value in made and name.isascii() and name.strip("_"):
            function.rename(r.value, name)
            tracer.named.add(r.value)
