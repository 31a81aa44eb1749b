"""What stage ``tir`` is: made of page IR by the driver, read back from dumps, and what artifacts are assembled from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vortex.ir.core import Module
from vortex.targets.target import Target

if TYPE_CHECKING:
    from vortex.codegen.emit import KernelSource


@dataclass(frozen=True, slots=True)
class Lowered:
    """Stage ``tir`` for one target: the page IR it came from and the TensorIR of each kernel."""

    target: Target
    program: Module
    kernels: dict[str, KernelSource]
    flow: str = ""
    """Text of the flow IR that it all began with, where known: what the artifact is checked against."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Texts of stage ``src`` by file name, where they are built from instead of the TensorIR."""
