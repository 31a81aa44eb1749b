"""Writing and reading ``.vxa`` folders.

    name.vxa/manifest.json        what is inside, with a SHA-256 per file (vortex/manifest.py)
             lib.<target>.so      one library a target
             constants/<name>.bin captured tensors, little-endian
             ir/...               the text of every stage; CUDA source and PTX of GPU kernels compressed

An artifact is trusted like any binary: loading its library runs its code. Nothing here loads one.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from vortex.artifact.manifest import (
    ConstantEntry,
    FieldEntry,
    FileEntry,
    KernelEntry,
    Manifest,
    StateEntry,
    TargetEntry,
    parse_manifest,
)
from vortex.errors import CORRUPT_ARTIFACT, DIGEST_MISMATCH, NOT_ARTIFACT, writing

__all__ = [
    "ConstantEntry",
    "FieldEntry",
    "FileEntry",
    "KernelEntry",
    "Manifest",
    "StateEntry",
    "TargetEntry",
    "read_manifest",
    "require_digest",
    "verify_files",
    "write_artifact",
]

MANIFEST = "manifest.json"
_MANIFEST_LIMIT = 16 << 20
"""No manifest is this large; a foreign file is not read whole."""


def write_artifact(path: str | Path, manifest: Manifest, files: Mapping[str, bytes | Path]) -> Manifest:
    """Write the folder ``path`` from ``files`` (path inside -> content, or a file to copy).

    The folder appears whole or not at all; an artifact (or empty folder) that is there is replaced.
    Returns the manifest as written, with ``files`` filled in.

    Raises:
        VortexError: VX5001 when ``path`` is something else that must not be overwritten, VX5002 when
            ``manifest`` and ``files`` do not fit together, VX7004 when the disk refuses.
    """
    path = Path(path)
    if (path.exists() or path.is_symlink()) and not _replaceable(path):
        raise NOT_ARTIFACT.at(path=path, why="it exists and is not overwritten")
    scratch = path.parent / f".{path.name}.{secrets.token_hex(6)}.tmp"
    old = scratch.with_suffix(".old")
    try:
        with writing(path):
            scratch.mkdir(parents=True)
            entries = {name: _put(scratch, name, files[name], path) for name in sorted(files)}
            manifest = replace(manifest, files=entries)
            text = json.dumps(manifest.to_json(), indent=1, sort_keys=True) + "\n"
            manifest = parse_manifest(text.encode(), str(path))  # what would not be read is not written
            (scratch / MANIFEST).write_text(text, encoding="utf-8")
            if path.exists():
                path.rename(old)
            scratch.rename(path)
    finally:
        # whatever stopped it, an interrupt between the two renames too
        if not path.exists() and old.exists():
            old.rename(path)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(scratch, ignore_errors=True)
    return manifest


def _replaceable(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and ((path / MANIFEST).is_file() or not any(path.iterdir()))


def _put(folder: Path, name: str, content: bytes | Path, path: Path) -> FileEntry:
    if name.startswith("/") or ".." in name.split("/"):
        raise CORRUPT_ARTIFACT.at(path=path, why=f"file '{name}' would lie outside")
    data = content if isinstance(content, bytes) else content.read_bytes()
    out = folder / name
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(data)
    if name.endswith(".so"):
        out.chmod(out.stat().st_mode | 0o111)
    return FileEntry(len(data), hashlib.sha256(data).hexdigest())


def read_manifest(path: str | Path) -> Manifest:
    """The manifest of the artifact at ``path``; looks at no other file.

    Raises:
        VortexError: VX5001 when there is no artifact, VX5002 when its manifest is damaged.
    """
    path = Path(path)
    try:
        if not path.is_dir():
            raise NOT_ARTIFACT.at(path=path, why="it is not a folder" if path.exists() else "it does not exist")
        file = path / MANIFEST
        if not file.exists():
            raise NOT_ARTIFACT.at(path=path, why="it has no manifest.json")
        if not stat.S_ISREG(file.stat().st_mode) or file.stat().st_size > _MANIFEST_LIMIT:
            raise NOT_ARTIFACT.at(path=path, why="manifest.json is not a file of reasonable size")
        text = file.read_bytes()
    except OSError as error:
        raise NOT_ARTIFACT.at(path=path, why=f"it cannot be read: {error.strerror or error}") from None
    return parse_manifest(text, str(path))


def read_file(path: str | Path, manifest: Manifest, name: str) -> bytes:
    """The content of a listed file, checked against the manifest; VX5002 when it differs."""
    file, want = Path(path) / name, manifest.files[name]
    try:
        # no link, neither the file nor a folder on the way, leads out of the artifact
        inside = file.resolve().is_relative_to(Path(path).resolve())
        if not inside or not stat.S_ISREG(file.lstat().st_mode):
            raise CORRUPT_ARTIFACT.at(path=path, why=f"{name} is not a plain file")
        if file.stat().st_size != want.size:
            why = f"{name} has {file.stat().st_size} bytes, the manifest says {want.size}"
            raise CORRUPT_ARTIFACT.at(path=path, why=why)
        data = file.read_bytes()
    except OSError as error:
        raise CORRUPT_ARTIFACT.at(path=path, why=f"{name} cannot be read: {error.strerror or error}") from None
    if hashlib.sha256(data).hexdigest() != want.sha256:
        raise CORRUPT_ARTIFACT.at(path=path, why=f"{name} was changed: its SHA-256 is not the manifest's")
    return data


def verify_files(path: str | Path, manifest: Manifest) -> None:
    """VX5002 when a listed file is missing or was changed."""
    for name in manifest.files:
        read_file(path, manifest, name)


def require_digest(path: str | Path, manifest: Manifest, digest: str) -> None:
    """VX5005 when the artifact is another one than ``digest`` names; it covers files once they are verified."""
    if not isinstance(digest, str) or digest.lower() != manifest.digest:
        raise DIGEST_MISMATCH.at(path=path, got=manifest.digest, want=digest)
