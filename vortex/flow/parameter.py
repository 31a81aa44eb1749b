"""Learned weights: declared by a flow, given when the artifact is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vortex.errors import BAD_PARAMETER, FLOW_RAISED, Loc
from vortex.flow import source
from vortex.flow.leaves import place
from vortex.flow.tracer import current, fail
from vortex.ir.core import Decl
from vortex.ir.dialects.flow import Param
from vortex.ir.types import DTYPES, DType, TensorType, dtype
from vortex.spec import Spec

STORABLE = ("bf16", "f16", "f32", "fp8_e4m3")
PER: dict[str | None, str] = {None: "model", "layer": "layer", "head": "head"}
"""What ``per`` says, as the IR has it."""


class Parameter:
    """Numbers that a flow has learned, of any size: an attribute of the flow, of its class or set in ``__init__`` or
    ``create_cache``. In ``forward_cache`` and ``forward_indexer`` it is a tensor of ``shape``: the set of the layer
    that decodes with ``per="layer"``, of that layer and KV head with ``per="head"``, the same everywhere without.

    The file that is given at load holds a tensor called ``name``, of this ``dtype`` (that of the model's K unless
    given): ``[*shape]``, ``[layers, *shape]`` or ``[layers, KV heads, *shape]``.

    Raises:
        VortexError: VX1040 when the name, a size, the element type or ``per`` is none.
    """

    def __init__(self, name: str, shape: Any, dtype: Any = None, per: str | None = None) -> None:
        self.loc = source.here()
        if not (isinstance(name, str) and name.isidentifier() and name.isascii()) or name.startswith("__"):
            hint = "name it as a variable is named: ASCII letters, digits and underscores, not two at the front"
            raise BAD_PARAMETER.at(self.loc, why=f"a parameter cannot be called {name!r}", hint=hint)
        if per not in PER:
            why = f"parameter '{name}' has per={per!r}"
            raise BAD_PARAMETER.at(self.loc, why=why, hint='write per="layer", per="head", or leave it out')
        self.name, self.per = name, PER[per]
        self.shape = _shape(name, shape, self.loc)
        self.dtype = _element(name, dtype, self.loc)

    def __repr__(self) -> str:
        return f"Parameter({self.name!r}, {self.shape}, {self.dtype}, per={self.per!r})"

    def type(self, spec: Spec) -> TensorType:
        """Of one set, under a model shape."""
        return TensorType(self.dtype or dtype(spec.dtype), self.shape)

    def here(self) -> Any:
        """The set of where the flow runs: a traced tensor, or fp32 numbers in an eager step."""
        tracer = current()
        if tracer is not None:
            declared = tracer.module.decls.get(self.name)
            if declared is None or declared.keyword != "param" or declared.attrs["per"] != self.per:
                why = f"parameter '{self.name}' is used and not declared"
                raise fail(BAD_PARAMETER, why=why, hint="set it on self in __init__ or create_cache")
            assert isinstance(declared.type, TensorType)
            return tracer.once(("param", self.name), Param(self.name, self.per, declared.type), self.name)
        step = place()
        given = step.parameters.get(self.name) if step is not None else None
        if step is None or given is None:
            text = f"parameter '{self.name}' has no numbers here"
            hint = "give parameters={name: tensor, ...} to the step"
            raise fail(FLOW_RAISED, type="ValueError", text=text, hint=hint)
        at = {"model": (), "layer": (step.layer,), "head": (step.layer, step.head)}[self.per]
        if tuple(given.shape[len(at) :]) != self.shape or any(i >= n for i, n in zip(at, given.shape, strict=False)):
            sets = {"model": "", "layer": f"more than {step.layer} layers of ", "head": f"layer and head {at} of "}
            text = (
                f"parameter '{self.name}' is given as {list(given.shape)}; {sets[self.per]}{list(self.shape)} is needed"
            )
            raise fail(FLOW_RAISED, type="ValueError", text=text, hint="give the tensors of this model")
        return given[at].detach().float().clone()


def _shape(name: str, shape: Any, loc: Loc | None) -> tuple[int, ...]:
    listed = shape if isinstance(shape, tuple | list | torch.Size) else (shape,)
    for d in listed:
        if isinstance(d, bool) or not hasattr(d, "__index__") or d.__index__() < 1:
            why = f"parameter '{name}' cannot have size {d!r}"
            raise BAD_PARAMETER.at(loc, why=why, hint="a shape is a tuple of positive integers, such as (128, 32)")
    return tuple(d.__index__() for d in listed)


def _element(name: str, given: Any, loc: Loc | None) -> DType | None:
    if given is None:
        return None
    from vortex.flow.tracer import DTYPES as BY_TORCH

    known = str(BY_TORCH.get(given, given) if isinstance(given, torch.dtype) else given)
    if known not in STORABLE:
        why = f"parameter '{name}' cannot be of type {given}"
        hint = f"dtype= is one of {', '.join(STORABLE)}; K's own without it"
        raise BAD_PARAMETER.at(loc, why=why, hint=hint)
    return DTYPES[known]


def held(value: Any) -> list[Parameter]:
    """The parameters in an attribute of a flow: itself, or those in a list, tuple or dict."""
    if isinstance(value, Parameter):
        return [value]
    if isinstance(value, list | tuple):
        return [p for x in value for p in held(x)]
    return [p for x in value.values() for p in held(x)] if isinstance(value, dict) else []


def resolved(value: Any) -> Any:
    """An attribute of a flow as its forward methods see it, while they run: with tensors in place of parameters."""
    if not held(value):
        return value
    if isinstance(value, Parameter):
        return value.here()
    if isinstance(value, dict):
        return {k: resolved(x) for k, x in value.items()}
    return type(value)([resolved(x) for x in value])


def declared_parameters(flow: object, taken: Mapping[str, str]) -> dict[str, Parameter]:
    """All parameters of a flow and its class by name; ``taken`` says what other names stand for.

    Raises:
        VortexError: VX1040 for two of one name that differ, or a name that is taken.
    """
    found: dict[str, Parameter] = {}
    owners = [*reversed([vars(c) for c in type(flow).__mro__]), vars(flow)]
    for p in (p for owner in owners for value in owner.values() for p in held(value)):
        other = found.setdefault(p.name, p)
        if (other.shape, other.dtype, other.per) != (p.shape, p.dtype, p.per):
            raise BAD_PARAMETER.at(p.loc, why=f"two parameters are called '{p.name}'", hint="give each its own name")
        if p.name in taken:
            why = f"the name '{p.name}' is taken: {taken[p.name]}"
            raise BAD_PARAMETER.at(p.loc, why=why, hint="choose another name")
    return found


def declaration(p: Parameter, spec: Spec) -> Decl:
    """A parameter as a flow module declares it."""
    return Decl("param", p.name, p.type(spec), {"per": p.per})
