"""Records behind URLs: fetched and published whole, pinned by SHA-256.

``file`` URLs, paths, and ``http`` and ``https`` to be read need nothing but Python; other schemes (``s3``, ``gs``,
``github``, ..) are fsspec's, each with a package of its own.
"""

from __future__ import annotations

import http.client
import re
import urllib.request
from collections.abc import Iterable
from hashlib import sha256 as hashed
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

from vortex.errors import PIN_MISMATCH, TRANSFER_FAILED
from vortex.tune.exchange import LIMIT, parsed, read_bytes, write_file, write_lines
from vortex.tune.record import Record, merge

SECONDS = 60.0
"""That a web server may be silent."""

WEB = ("http", "https")

_HINT = "check the address; credentials are those of the scheme's own tools"


def sha256(data: bytes) -> str:
    """In hex."""
    return hashed(data).hexdigest()


def split_pin(url: str) -> tuple[str, str]:
    """A URL and the SHA-256 behind its ``#sha256=``, empty where there is none."""
    plain, _, pin = url.partition("#sha256=")
    return plain, pin.lower()


def fetch(url: str, pin: str = "") -> bytes:
    """What a URL or path holds.

    Raises:
        VortexError: VX8005 when it cannot be had, VX8004 when it is not what ``pin`` says.
    """
    if pin and not re.fullmatch("[0-9a-f]{64}", pin):
        raise TRANSFER_FAILED.at(url=url, why=f"'{pin[:80]}' is not a SHA-256 in hex", hint="sha256sum FILE")
    local = _local(url)
    if local is not None:
        data = read_bytes(local)
    else:
        data = _from_web(url) if _scheme(url) in WEB else _remote(url)
    if pin and (got := sha256(data)) != pin:
        raise PIN_MISMATCH.at(url=url, got=got, want=pin)
    return data


def publish(url: str, records: Iterable[Record]) -> tuple[bytes, int]:
    """Merge ``records`` into what is at ``url``; the bytes that are there now, and how many records it had.

    Raises:
        VortexError: VX8005 when it cannot be written, VX8003 when there is something else already.
    """
    local = _local(url)
    if local is not None:
        old = parsed(read_bytes(local), url) if local.exists() else []
        data = write_lines(merge(old, records))
        write_file(local, data)
        return data, len(old)
    if _scheme(url) in WEB:
        raise TRANSFER_FAILED.at(
            url=url, why="a web server is read, not written", hint="push to a file and upload that"
        )
    fsspec = _fsspec(url)
    try:
        fs, path = fsspec.core.url_to_fs(url)
        old = parsed(fs.cat_file(path), url) if fs.exists(path) else []
        data = write_lines(merge(old, records))
        fs.pipe_file(path, data)
    except (OSError, ValueError, ImportError, NotImplementedError) as e:
        raise _failed(url, e) from None
    return data, len(old)


def _local(url: str) -> Path | None:
    """The path that a ``file:`` URL or a plain path means."""
    if url.startswith("file:"):
        return Path(unquote(urlsplit(url).path))
    return None if "://" in url else Path(url)


def _scheme(url: str) -> str:
    return url.partition("://")[0].lower()


def _from_web(url: str) -> bytes:
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "vortex"})
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            if _scheme(url) == "https" != _scheme(answer.url):
                raise TRANSFER_FAILED.at(url=url, why=f"it leads to {answer.url[:200]}, which is not safe", hint=_HINT)
            data = _bounded(url, answer.read(LIMIT + 1))
            if answer.length:
                raise TRANSFER_FAILED.at(url=url, why=f"it broke off {answer.length} bytes before its end", hint=_HINT)
            return data
    except (OSError, ValueError, http.client.HTTPException) as e:
        raise _failed(url, e) from None


def _remote(url: str) -> bytes:
    fsspec = _fsspec(url)
    try:
        with fsspec.open(url, "rb") as f:
            return _bounded(url, bytes(f.read(LIMIT + 1)))
    except (OSError, ValueError, ImportError, NotImplementedError) as e:
        raise _failed(url, e) from None


def _bounded(url: str, data: bytes) -> bytes:
    if len(data) > LIMIT:
        raise TRANSFER_FAILED.at(url=url, why=f"it has more than {LIMIT >> 20} MiB", hint=_HINT)
    return data


def _failed(url: str, e: Exception) -> Exception:
    """VX8005, naming the package that a scheme lacks."""
    hint = _HINT
    if isinstance(e, ImportError):
        from fsspec.registry import known_implementations

        package = known_implementations.get(_scheme(url), {}).get("class", "fsspec").partition(".")[0]
        if package != "fsspec":
            hint = f"pip install {package}, or fetch the file by other means and import it"
    return TRANSFER_FAILED.at(url=url, why=str(e)[:300] or type(e).__name__, hint=hint)


def _fsspec(url: str):  # type: ignore[no-untyped-def]
    if find_spec("fsspec") is None:
        hint = "pip install 'vortex[share]', or fetch the file by other means and import it"
        raise TRANSFER_FAILED.at(url=url, why="fsspec is not installed", hint=hint)
    import fsspec

    return fsspec
