"""The rule that a flow's methods keep nothing from one call to the next, where a flow would break it by assignment."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from vortex.errors import STATE, VortexError
from vortex.flow import source

_running: ContextVar[str] = ContextVar("running", default="")

HINTS = {
    "forward_cache": "what a later step needs of a page is a field: declare it in create_cache, return it from "
    "forward_cache and read cache.<name>; constants are set in __init__ or create_cache",
    "forward_indexer": "compute it from q and cache in every call, and use a variable within one; constants are set in "
    "__init__ or create_cache, and what the next step needs is a field with state=",
}
"""What to do instead, by the method that keeps something."""


@contextmanager
def running(method: str) -> Iterator[None]:
    """Mark that ``method`` of a flow runs, traced or eagerly."""
    token = _running.set(method)
    try:
        yield
    finally:
        _running.reset(token)


def method() -> str:
    """The method of a flow that runs now; nothing outside."""
    return _running.get()


def is_forward() -> bool:
    """Whether a method runs that must not keep anything."""
    return _running.get() in HINTS


def kept_on_self(name: str) -> VortexError:
    """VX1023 for an assignment to ``self.<name>`` in a method that runs for each page or step."""
    where = method()
    return STATE.at(source.here(), what=f"{where} sets self.{name}", hint=HINTS[where])


def written_argument(what: str, name: str) -> VortexError:
    """VX1023 for an assignment to an attribute or item of what a method is given."""
    if what == "cache":
        hint = (
            f"fields are written by forward_cache alone, which returns {{'{name}': ...}}, and fields with state= by "
            f"return vortex.topk(score), {{'{name}': ...}}; here use a variable"
        )
    else:
        hint = "use a variable; forward_cache returns the fields"
    return STATE.at(source.here(), what=f"{method() or 'the flow'} sets {what}.{name}", hint=hint)


SIMPLE = (bool, int, float, complex, str, bytes, type(None))
CONTAINERS = (list, tuple, set, frozenset, dict, deque, bytearray)
LIMIT = 2000
"""Elements of containers looked at; of longer ones the number alone."""


def held(flow: Any) -> dict[str, object]:
    """What outlives a call and can be compared: numbers and containers of the object, its class and its module.

    Names are as in the code, ``self.name`` or ``name``.
    """
    found: dict[str, object] = {}
    function = getattr(type(flow).forward_indexer, "__globals__", {})
    for name, value in function.items():
        if not name.startswith("__") and isinstance(value, (*SIMPLE, *CONTAINERS)):
            found[name] = _snapshot(value)
    for cls in reversed(type(flow).__mro__[:-1]):
        found |= {f"self.{n}": _snapshot(v) for n, v in vars(cls).items() if isinstance(v, CONTAINERS)}
    found |= {f"self.{n}": _snapshot(v) for n, v in vars(flow).items() if isinstance(v, (*SIMPLE, *CONTAINERS))}
    return found


def _snapshot(value: Any, depth: int = 4) -> object:
    if isinstance(value, SIMPLE):
        return repr(value)
    if isinstance(value, CONTAINERS):
        if depth == 0 or len(value) > LIMIT:
            return len(value)
        items = value.items() if isinstance(value, dict) else value
        return len(value), [_snapshot(v, depth - 1) for v in items]
    return id(value)
