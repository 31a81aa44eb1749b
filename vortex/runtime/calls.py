"""Calling kernels cheaply: arguments are checked once per kind of argument and looked up once per size of step."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from vortex.artifact.manifest import KernelEntry
from vortex.errors import KERNEL_REFUSED
from vortex.runtime.library import Kernel
from vortex.runtime.tensors import wrong

Signature = tuple[object, ...]


def signature(tensor: torch.Tensor, what: str) -> Signature:
    """All that the checks of a tensor depend on; VX6002 when it is none."""
    try:
        return tensor.shape, tensor.dtype, tensor.device, tensor.is_contiguous(), tensor.is_neg()
    except AttributeError:
        raise wrong(what, f"is {type(tensor).__name__}; a torch tensor is needed") from None


class Call:
    """A kernel with those of its arguments filled in that the size of a step and a layer settle."""

    __slots__ = ("_fixed", "_function", "_name", "_open")

    def __init__(self, kernel: KernelEntry, layer: int, function: Kernel, known: Mapping[str, object]) -> None:
        self._name, self._function = kernel.name if layer < 0 else f"{kernel.name} of layer {layer}", function
        self._fixed = [known.get(name) for name in kernel.args]
        self._open = tuple((i, name) for i, name in enumerate(kernel.args) if name not in known)

    def run(self, given: Mapping[str, object]) -> None:
        """Launch it; ``given`` has the arguments that differ from call to call, by name.

        Raises:
            VortexError: VX6012 when its launcher refuses them or the launch fails.
        """
        arguments = self._fixed.copy()
        for position, name in self._open:
            arguments[position] = given[name]
        try:
            self._function(*arguments)
        except (TypeError, ValueError, RuntimeError) as error:  # what launchers raise through tvm-ffi
            why = str(error).strip() or type(error).__name__
            raise KERNEL_REFUSED.at(kernel=self._name, why=why) from error
