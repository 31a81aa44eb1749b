"""Files that are replaced whole."""

from __future__ import annotations

import secrets
from pathlib import Path

from vortex.errors import writing


def replace_file(path: Path, data: bytes) -> None:
    """Replace the file ``path`` whole, or leave it as it was. A device or pipe is written to, for a file in its place
    would be there for all; of a link what it leads to is replaced.

    Raises:
        VortexError: VX7004 when the disk refuses.
    """
    with writing(path):
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        whole = path.resolve()
        # a name of its own: another process may write the same file
        scratch = whole.with_name(f".{whole.name}.{secrets.token_hex(6)}")
        try:
            scratch.write_bytes(data)
            scratch.replace(whole)
        finally:
            scratch.unlink(missing_ok=True)
