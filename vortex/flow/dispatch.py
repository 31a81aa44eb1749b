"""What tensors and the tracer need of modules that build on them: slots that those fill in.

A tensor's operators call handlers, and handlers make tensors; with the slots between them neither imports the other.
``tensor`` fills in how a value is wrapped, and ``optable``, which is loaded by name at the first call, as its handlers
are, fills in the calls.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from vortex.ir.core import Value

if TYPE_CHECKING:
    from vortex.flow.tensor import vTensor

_F = TypeVar("_F", bound=Callable[..., Any])
_slots: dict[str, Callable[..., Any]] = {}


def fills(slot: str) -> Callable[[_F], _F]:
    """Declare what stands behind the function ``slot`` of this module."""

    def declare(f: _F) -> _F:
        _slots[slot] = f
        return f

    return declare


def _slot(name: str) -> Callable[..., Any]:
    if name not in _slots:
        import_module("vortex.flow.optable")
    return _slots[name]


def wrap(value: Value) -> vTensor:
    """A value of the function being traced as the flow sees it."""
    made: vTensor = _slot("wrap")(value)
    return made


def call_function(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Trace a torch function that was given a traced tensor."""
    return _slot("call_function")(function, args, kwargs)


def call_method(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Trace a tensor method or operator by its name."""
    return _slot("call_method")(name, args, kwargs)


def bound_method(tensor: vTensor, name: str) -> Callable[..., Any]:
    """The method ``name`` of a traced tensor; the error that there is none."""
    made: Callable[..., Any] = _slot("bound_method")(tensor, name)
    return made


def assigned(tensor: vTensor, made: vTensor, operator: str) -> vTensor:
    """The tensor after an augmented assignment that made ``made``."""
    same: vTensor = _slot("assigned")(tensor, made, operator)
    return same
