"""SGLang 0.5.16: the scheduler takes a decode graph's reads to be over before its replay, and asks nobody.

The backend keeps to that by copying the page table before the replay; there is nothing to declare.
"""

from __future__ import annotations

from vortex.runtime.sglang.backend import VortexBackend as Backend

__all__ = ["Backend"]
