"""Where tuning databases lie: the user's file, the project's files, what is shipped."""

from __future__ import annotations

import os
from pathlib import Path

from vortex.install.cache import cache_root

VARIABLE = "VORTEX_DB"
"""Names the user's database file; ``none`` for no database at all, not even the shipped one."""

PROJECT = ".vortex"
"""A folder of ``*.jsonl`` files in the current folder or the nearest one above that has it."""

SHIPPED = Path(__file__).parents[1] / "tune" / "shipped"


def user_path() -> Path:
    """``$VORTEX_DB``, else ``tune.db`` in ``$XDG_CACHE_HOME/vortex`` (``~/.cache/vortex``)."""
    named = os.environ.get(VARIABLE, "")
    if named not in ("", "none"):
        return Path(named)
    return cache_root() / "tune.db"


def project_files() -> list[Path]:
    """The JSON Lines files of the project around the current folder."""
    for folder in (here := Path.cwd(), *here.parents):
        if (folder / PROJECT).is_dir():
            return sorted((folder / PROJECT).glob("*.jsonl"))
    return []


def shipped_files() -> list[Path]:
    """The JSON Lines files that come with vortex."""
    return sorted(SHIPPED.glob("*.jsonl"))


def switched_off() -> bool:
    """Whether the environment says that no database counts."""
    return os.environ.get(VARIABLE) == "none"
