"""What a decoder asks of the device that its tensors are on: which kernels it runs, its width, what it does."""

from __future__ import annotations

from typing import Protocol

import torch

from vortex.targets.target import ALIASES


class Device(Protocol):
    """A kind of device; ``torch.device`` says which one."""

    @property
    def kind(self) -> str:
        """torch's name of it: ``cpu`` or ``cuda``."""

    def architecture(self, device: torch.device) -> str:
        """As :func:`architecture_of` has it; empty where libraries are not bound to one."""

    def multiprocessors(self, device: torch.device) -> int: ...

    def capturing(self) -> bool:
        """Whether the current stream records a CUDA graph instead of running."""


class Cpu:
    """The processor that runs Python, too."""

    kind = "cpu"

    def architecture(self, device: torch.device) -> str:
        return ""

    def multiprocessors(self, device: torch.device) -> int:
        return 1

    def capturing(self) -> bool:
        return False


class Cuda:
    """NVIDIA GPUs, through torch."""

    kind = "cuda"

    def architecture(self, device: torch.device) -> str:
        return _architecture(device)

    def multiprocessors(self, device: torch.device) -> int:
        return int(torch.cuda.get_device_properties(device).multi_processor_count)

    def capturing(self) -> bool:
        return torch.cuda.is_current_stream_capturing()


def device_of(target: str) -> Device:
    """Where the libraries of a target run."""
    return Cpu() if target == "cpu" else Cuda()


def architecture_of(target: str) -> str:
    """``sm_90`` for ``sm_90a``, whose instructions no other architecture has."""
    return target.rstrip("a")


def architectures_here() -> tuple[str, ...]:
    """Of the CUDA devices of this process, the current one first; none without a GPU."""
    if not torch.cuda.is_available():
        return ()
    current = torch.cuda.current_device()
    others = [i for i in range(torch.cuda.device_count()) if i != current]
    return tuple(_architecture(torch.device("cuda", i)) for i in (current, *others))


def why_not_here(target: str) -> str:
    """Why the current CUDA device does not run a GPU's target, in words; empty where it does."""
    if architecture_of(target) in (here := architectures_here()[:1]):
        return ""
    return f"the CUDA device here is {here[0]}" if here else "there is no CUDA device here"


def targets_here() -> tuple[str, ...]:
    """Targets that can run on the current CUDA device or, after it, on this processor, best first."""
    here = architectures_here()
    return (ALIASES.get(here[0], here[0]), "cpu") if here else ("cpu",)


def name_of(device: torch.device, kind: Device) -> str:
    """For messages: ``cuda:0 (NVIDIA H200, sm_90)``."""
    if device.type != "cuda":
        return str(device)
    return f"{device} ({torch.cuda.get_device_name(device)}, {kind.architecture(device)})"


def _architecture(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"
