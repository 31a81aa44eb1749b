"""A plug-in of SGLang's that gives a CPU pools in fp8 as a GPU has them.

SGLang 0.5.23 has them on a CPU for its backend ``intel_amx`` alone, with AMX, and says so twice: where it makes pools,
and, so that it is said at once, in vortex's list of refusals. 0.5.16 asks nobody.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


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
    round_as_gpus_do()


def round_as_gpus_do() -> None:
    """Have Triton's interpreter round to fp8: by itself it halves a number that is rounded up to the next power of two
    where that has an even exponent (1.98 becomes 1).
    """
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def converted(numbers: Any, given: Any, wanted: Any, rounding: Any) -> Any:
        if str(wanted) != "fp8e4nv" or str(given) not in ("fp16", "fp32"):
            return convert(numbers, given, wanted, rounding)
        kind = np.float16 if str(given) == "fp16" else np.float32
        narrow = torch.from_numpy(np.array(numbers).view(kind)).to(torch.float8_e4m3fn)
        return narrow.view(torch.uint8).numpy()

    interpreter._convert_float = converted
