"""Stands in for datasets: SGLang's bench_serving imports it for images, and the bench sends random tokens."""

from __future__ import annotations

from typing import Any


def load_dataset(*args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError("datasets stub: the bench sends random tokens")
