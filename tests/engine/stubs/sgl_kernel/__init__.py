"""Stands in for sglang-kernel, which has no CPU build: names resolve, calls raise, submodules do not exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__version__ = "0.4.10"


def __getattr__(name: str) -> Callable[..., Any]:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"sgl_kernel.{name} has no CPU build")

    return missing
