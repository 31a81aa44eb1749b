"""Every name is a model that takes anything."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class StructuralTag(BaseModel):
    model_config = {"extra": "allow"}


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (StructuralTag,), {})
