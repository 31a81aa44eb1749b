"""A plug-in of SGLang's that gives a CPU pools in fp8 as a GPU has them.

SGLang 0.5.23 has them on a CPU for its backend ``intel_amx`` alone, with AMX, and says so twice: where it makes pools,
and, so that it is said at once, in vortex's list of refusals. 0.5.16 asks nobody.
"""

from __future__ import annotations

from typing import Any


class OtherPlatform:
    """SGLang's platform, which says that it is no CPU."""

    def __init__(self, platform: Any) -> None:
        self._platform = platform

    def __getattr__(self, name: str) -> Any:
        return getattr(self._platform, name)

    def is_cpu(self) -> bool:
        return False


def lend() -> None:
    from sglang.srt.mem_cache import kv_cache_configurator as pools

    from vortex.runtime.sglang import refusals

    if hasattr(pools, "cpu_has_amx_support"):  # which is asked for pools in fp8, and nothing else
        pools.current_platform = OtherPlatform(pools.current_platform)
    refusals.SETTINGS = tuple(r for r in refusals.SETTINGS if "fp8" not in r.what)
