"""How the methods of a flow are written: what they are given, and what their results stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

EXPECTED: Mapping[str, str] = {
    "create_cache": "create_cache(self, spec)",
    "forward_cache": "forward_cache(self, page)",
    "forward_indexer": "forward_indexer(self, q, cache)",
}
"""The methods of a flow as they are written."""


class Dialect:
    """The way flows are written for vortex; a class of flows that are written otherwise has another one.

    Tracing and the oracle call every method of a flow through its dialect and see what a flow written for vortex gives.
    """

    expected = EXPECTED

    def arguments(self, flow: Any, method: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """What the author's method is called with, from vortex's own arguments."""
        return args

    def call(self, flow: Any, method: str, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Call the author's method with :meth:`arguments`; the result as vortex takes it."""
        return function(*args)


NATIVE = Dialect()
