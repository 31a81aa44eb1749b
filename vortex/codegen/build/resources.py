"""What a kernel takes of a GPU, and what it will wait for: from ptxas' report, without a GPU."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vortex.codegen.build.toolkit import find_inspector
from vortex.targets.gpu import MACHINES, Machine
from vortex.targets.roofline import Demand, Times, number

REGISTER_UNIT = 256
"""Registers are given to a warp in this many at a time."""


@dataclass(frozen=True, slots=True)
class KernelResources:
    """One kernel on one architecture; sizes in bytes."""

    arch: str
    registers: int
    spills: int
    """Bytes stored to and loaded from memory for want of registers."""
    stack: int
    static_shared: int
    dynamic_shared: int
    threads: int
    """Of a CTA."""

    @property
    def machine(self) -> Machine:
        return MACHINES[self.arch]

    @property
    def warps(self) -> int:
        """Of a CTA."""
        return max(1, -(-self.threads // 32))

    @property
    def _limits(self) -> dict[str, int]:
        """CTAs that each resource of an SM has room for."""
        gpu, warps = self.machine, self.warps
        of_warp = -(-max(1, self.registers) * 32 // REGISTER_UNIT) * REGISTER_UNIT
        shared = self.static_shared + self.dynamic_shared + gpu.reserved_shared
        return {
            "CTAs": gpu.ctas,
            "threads": gpu.threads // (warps * 32),
            "registers": gpu.registers // of_warp // warps,
            "shared memory": gpu.shared // shared,
        }

    @property
    def ctas(self) -> int:
        """That one SM holds at a time."""
        return min(self._limits.values())

    @property
    def occupancy(self) -> float:
        """Resident threads as a part of those an SM can hold."""
        return self.ctas * self.threads / self.machine.threads

    @property
    def bound_by(self) -> str:
        """What keeps one more CTA from the SM."""
        limits = self._limits
        return min(limits, key=lambda name: limits[name])

    def report(self, schedule: Mapping[str, object]) -> dict[str, int | float | str]:
        """For the manifest; ``schedule`` is the kernel's, with what follows from it.

        Where it says what a CTA keeps in flight, ``limiter`` is what the kernel is predicted to wait for when it has
        the GPU to itself, ``limiter_share`` the part of its time that this takes and ``memory_share`` the part that
        its bytes would take at the speed of a copy (:mod:`vortex.targets.roofline`).
        """
        made: dict[str, int | float | str] = {
            "registers": self.registers,
            "spills": self.spills,
            "static_shared": self.static_shared,
            "dynamic_shared": self.dynamic_shared,
            "threads": self.threads,
            "ctas": self.ctas,
            "warps": self.ctas * self.warps,
            "bound_by": self.bound_by,
            "occupancy": round(self.occupancy, 4),
        }
        if in_flight := int(number(schedule, "bytes_in_flight")):
            times = Times.of(Demand.of_bytes(1.0, schedule, made, self.machine), self.machine)
            made |= {"in_flight": in_flight * self.ctas, "needed": self.machine.bytes_needed}
            made |= {"limiter": times.limiter, "limiter_share": round(times.shares[times.limiter], 3)}
            made["memory_share"] = round(times.shares["memory"], 3)
        return made


def read_resources(said: str, source: str, arch: str) -> KernelResources:
    """The report of ``ptxas -v`` on one kernel, with the launch sizes that its source has."""

    def number(pattern: str, text: str) -> int:
        return sum(int(n) for n in re.findall(pattern, text))

    bounds = re.search(r"__launch_bounds__\((\d+)", source)
    name = re.search(r"cudaFuncAttributeMaxDynamicSharedMemorySize, (\w+)\)", source)
    dynamic = re.search(rf"auto {name[1]} = \(int64_t\)(\d+);", source) if name else None
    return KernelResources(
        arch=arch,
        registers=number(r"Used (\d+) registers", said),
        spills=number(r"(\d+) bytes spill (?:stores|loads)", said),
        stack=number(r"(\d+) bytes stack frame", said),
        static_shared=number(r"(\d+) bytes smem", said),
        dynamic_shared=int(dynamic[1]) if dynamic else 0,
        threads=int(bounds[1]) if bounds else 0,
    )


def sass(cubin: Path) -> str:
    """The machine code of a cubin as text; empty where no inspector is installed."""
    for name, flags in (("cuobjdump", ["-sass"]), ("nvdisasm", ["-c"])):
        tool = find_inspector(name)
        if tool is not None:
            done = subprocess.run(
                [str(tool), *flags, str(cubin)], capture_output=True, text=True, errors="replace", check=False
            )
            if done.returncode == 0:
                return done.stdout
    return ""
