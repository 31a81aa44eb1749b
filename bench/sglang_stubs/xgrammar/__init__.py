"""Stands in for xgrammar: the bench runs with grammar_backend="none"."""

from typing import Any

from xgrammar.structural_tag import StructuralTag

__all__ = ["StructuralTag", "get_model_structural_tag"]


def get_model_structural_tag(*args: Any, **kwargs: Any) -> None:
    return None
