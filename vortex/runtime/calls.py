"""Calling kernels cheaply: arguments are checked once per kind of argument and looked up once per plan."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from vortex.manifest import KernelEntry
from vortex.runtime.library import Kernel
from vortex.runtime.tensors import wrong

Signature = tuple[object, ...]


def signature(tensor: torch.Tensor, what: str) -> Signature:
    """All that the checks of a tensor depend on; VX6002 when it is none."""
    try:
        return tensor.shape, tensor.dtype, tensor.device, tensor.is_contiguous()
    except AttributeError:
        raise wrong(what, f"is {type(tensor).__name__}; a torch tensor is needed") from None


class Call:
    """A kernel with those of its arguments filled in that a step and a layer settle."""

    __slots__ = ("_fixed", "_function", "_open")

    def __init__(self, kernel: KernelEntry, function: Kernel, known: Mapping[str, object]) -> None:
        self._function = function
        self._fixed = [known.get(name) for name in kernel.args]
        self._open = tuple((i, name) for i, name in enumerate(kernel.args) if name not in known)

    def run(self, given: Mapping[str, object]) -> None:
        """Launch it; ``given`` has the arguments that differ from call to call, by name."""
        arguments = self._fixed.copy()
        for position, name in self._open:
            arguments[position] = given[name]
        self._function(*arguments)
