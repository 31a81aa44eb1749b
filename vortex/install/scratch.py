"""Folders for what is needed only while it is made."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vortex.errors import DISK_FULL, writing


@contextmanager
def scratch_folder(prefix: str = "vortex-") -> Iterator[Path]:
    """A new folder among the temporary ones (``$TMPDIR``), removed at the end.

    Raises:
        VortexError: VX7004 naming it where the disk takes no folder, or no more of what is written into it.
    """
    with writing("a temporary folder"):
        made = tempfile.TemporaryDirectory(prefix=prefix)
    with made as folder, writing(folder, DISK_FULL):
        yield Path(folder)
