"""Where everything is kept that can be made again: compiled kernels, tuning results, a compiler's environment."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """``$XDG_CACHE_HOME/vortex``, by default ``~/.cache/vortex``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vortex"
