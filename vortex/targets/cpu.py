"""Which instructions this processor has: what ``cpu`` libraries are built for, and whether one may run here.

Needs nothing but the standard library; both the compiler and the runtime read it.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

_V2 = ("cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3")
_V3 = (*_V2, "abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave")
_V4 = (*_V3, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")

X86_LEVELS: dict[str, tuple[str, ...]] = {"x86-64-v4": _V4, "x86-64-v3": _V3, "x86-64-v2": _V2, "x86-64": ()}
"""Micro-architecture levels of the x86-64 psABI, best first, by the names Linux gives their instructions."""

UNSAFE = ("x86-64-v4",)
"""Levels that code is never built for unasked; artifacts that were built for one still run."""


@cache
def cpu_flags() -> frozenset[str]:
    """The flags of the first processor in ``/proc/cpuinfo``; empty where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def machine() -> str:
    """``x86_64``, ``aarch64`` or whatever else this machine calls itself."""
    name = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


def detect_mcpu() -> str:
    """The LLVM processor name to build for on this machine: an x86-64 level, else ``generic``.

    x86-64-v4 is not chosen by itself: TVM 0.27's LLVM never returns from selecting AVX-512 instructions for
    some mask arithmetic (a compare, selected to 0 or 1 and summed), and memory-bound kernels gain little.
    """
    if machine() != "x86_64":
        return "generic"
    flags = cpu_flags()
    return next(level for level, needs in X86_LEVELS.items() if level not in UNSAFE and flags.issuperset(needs))


def required_features(mcpu: str) -> tuple[str, ...]:
    """The flags that code for ``mcpu`` needs, as the manifest keeps them; empty when none are known."""
    return X86_LEVELS.get(mcpu, ())


def missing_features(mcpu: str, built_on: str = "", features: tuple[str, ...] = ()) -> tuple[str, ...]:
    """What code for ``mcpu`` (made on a machine called ``built_on``) needs and this machine lacks."""
    here = machine()
    wanted = "x86_64" if mcpu in X86_LEVELS else built_on
    if wanted and wanted != here:
        return (wanted,)
    flags = cpu_flags()
    return tuple(f for f in (*required_features(mcpu), *features) if f not in flags)
