"""Stands in for SGLang's dual GEMM of Blackwell, which it imports on any GPU and which needs CuTe DSL."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

MAX_DUAL_GEMM_DECODE_TOKENS = 0


class DualGemmQuantMode(IntEnum):
    UNQUANT = 0
    STATIC_PER_TENSOR = 1
    DYNAMIC_PER_TOKEN = 2


def can_use_dual_gemm(*args: Any, **kwargs: Any) -> bool:
    return False
