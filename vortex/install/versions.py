"""Which versions of what are at hand, without importing any of it."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("torch", "numpy", "apache-tvm-ffi", "apache-tvm", "rich")


def vortex_version() -> str:
    """The installed version, or ``source`` when it runs from a checkout that is not installed."""
    return _version("vortex") or "source"


def versions() -> dict[str, str | None]:
    """Version of each package that takes part; None when it is not installed."""
    known: dict[str, str | None] = {"vortex": vortex_version(), "python": platform.python_version()}
    return known | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
