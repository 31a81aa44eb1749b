"""The machines that kernels are compiled for, as keys and models see them."""

from __future__ import annotations

import os
from dataclasses import dataclass

from vortex.targets.cpu import detect_mcpu
from vortex.targets.gpu import MACHINES
from vortex.targets.target import Target
from vortex.tune.record import Measure, Silicon


@dataclass(frozen=True, slots=True)
class Speed:
    """What the model of a GPU needs to know: bytes a second from memory, and seconds until the first of them."""

    bandwidth: float
    latency: float


SILICON = {name: Silicon(name, m.sms, m.cta_shared) for name, m in MACHINES.items()}
"""What a GPU target is taken to be where none is at hand: H100 and H200, B200."""

SPEEDS = {"sm_90a": Speed(4.3e12, 0.9e-6), "sm_100a": Speed(7.2e12, 0.9e-6)}
"""Copy bandwidth of an H200 as measured; of a B200 90 % of the 8 TB/s of its data sheet, its latency assumed alike."""


def silicon_of(target: Target) -> Silicon:
    """The machine that a compilation for ``target`` is for; of a CPU target, this one."""
    if target.kind == "cpu":
        return Silicon(detect_mcpu(), os.cpu_count() or 1, 0)
    return SILICON[target.name]


def policy(target: Target) -> Measure:
    """How times are taken that choices are made by."""
    return Measure("wall", "none") if target.kind == "cpu" else Measure("cudagraph", "cold")
