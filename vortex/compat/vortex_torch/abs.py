"""``vortex_torch.abs``: names for type hints."""

from __future__ import annotations

from enum import Enum
from typing import Any

from vortex.compat.vortex_torch.calls import ContextBase as ContextBase
from vortex.compat.vortex_torch.learned import Parameter as Parameter
from vortex.compat.vortex_torch.operators import vOp as vOp
from vortex.flow.tensor import vTensor as vTensor


class FORMAT(Enum):
    """How that package lays tensors out."""

    BATCHED = 0
    RAGGED = 1
    PAGED = 2
    PARAMETER = 3
    SLOTTED = 4


def as_vtensor(x: Any, *_: Any, **__: Any) -> Any:
    """The tensor itself."""
    return x
