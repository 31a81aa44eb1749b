"""The rule that a flow's methods keep nothing from one call to the next, where a flow would break it by assignment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from vortex.errors import STATE, VortexError
from vortex.flow import source

_running: ContextVar[str] = ContextVar("running", default="")

HINTS = {
    "forward_cache": "what a later step needs of a page is a field: declare it in create_cache, return it from "
    "forward_cache and read cache.<name>; constants are set in __init__ or create_cache",
    "forward_indexer": "compute it from q and cache in every call, and use a variable within one; constants are set in "
    "__init__ or create_cache",
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
        hint = f"fields are written by forward_cache alone, which returns {{'{name}': ...}}; here use a variable"
    else:
        hint = "use a variable; forward_cache returns the fields"
    return STATE.at(source.here(), what=f"{method() or 'the flow'} sets {what}.{name}", hint=hint)
