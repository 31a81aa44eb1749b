"""What an artifact's GPU kernels look like: their CUDA source and PTX, kept in it, and the machine code of its library.

Nothing here loads the library.
"""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Literal

from vortex.artifact.manifest import KernelEntry, Manifest
from vortex.errors import BAD_OPTION, CORRUPT_ARTIFACT, NO_INSPECTOR, TOOL_FAILED, nearest

Text = Literal["source", "ptx", "sass"]
KEPT: dict[str, Text] = {".cu": "source", ".ptx": "ptx"}
"""Texts that an artifact keeps, compressed, in ``ir/``: they cannot be made from its library."""


def pack(texts: dict[str, str]) -> dict[str, bytes]:
    """The files of an artifact for the texts of stage ``src`` that it keeps, by path; the same bytes every time."""
    kept = {name: text for name, text in texts.items() if Path(name).suffix in KEPT}
    return {f"ir/{name}.gz": gzip.compress(text.encode(), mtime=0) for name, text in kept.items()}


def kernel_text(path: Path, manifest: Manifest, kernel: str, target: str, what: Text) -> str:
    """One kernel as text.

    Raises:
        VortexError: VX7001 when the artifact has no such kernel or target, or keeps no such text, VX5002 when a file
            is not what it was, VX4008 without cuobjdump.
    """
    found = _entry(manifest, kernel, target)
    if what == "sass":
        if manifest.targets[target].mcpu:
            raise BAD_OPTION.at(
                option="--sass", why=f"'{target}' is no GPU", hint="vortex compile --dump-dir keeps its LLVM"
            )
        return _sass(path / manifest.targets[target].library, found.symbol)
    text = kept_text(path, manifest, found.name, target, what)
    if not text:
        why = f"the artifact keeps none for '{target}'"
        raise BAD_OPTION.at(option=f"--{what}", why=why, hint="vortex compile --dump-dir leaves every text of a target")
    return text


def kept_text(path: Path, manifest: Manifest, kernel: str, target: str, what: Text) -> str:
    """The text of a kernel that the artifact keeps; empty where it keeps none.

    Raises:
        VortexError: VX5002 when the file is not what it was.
    """
    suffix = next(s for s, name in KEPT.items() if name == what)
    file = f"ir/{kernel}.{target}{suffix}.gz"
    if file not in manifest.files:
        return ""
    try:
        return gzip.decompress((path / file).read_bytes()).decode()
    except (OSError, EOFError, ValueError) as e:
        raise CORRUPT_ARTIFACT.at(path=path / file, why=str(e)) from None


def _entry(manifest: Manifest, kernel: str, target: str) -> KernelEntry:
    if target not in manifest.targets:
        there = ", ".join(manifest.targets)
        raise BAD_OPTION.at(option=f"--target {target}", why="the artifact has no such target", hint=f"it has {there}")
    names = {k.name: k for k in manifest.targets[target].kernels}
    if kernel not in names:
        why = f"the artifact has no such kernel{nearest(kernel, names)}"
        raise BAD_OPTION.at(option=f"--kernel {kernel}", why=why, hint=f"it has {', '.join(names)}")
    return names[kernel]


def _sass(library: Path, symbol: str) -> str:
    from vortex.codegen.build.toolkit import find_inspector, output

    tool = find_inspector("cuobjdump")
    if tool is None:
        raise NO_INSPECTOR.at()
    command = [str(tool), "-sass", str(library)]
    said = output(command)
    # a part is headed by its function's name and ends where the next begins
    parts = re.split(r"^\s*Function : (\S+)$", said, flags=re.M)
    for name, text in zip(parts[1::2], parts[2::2], strict=True):
        if name == f"{symbol}_kernel":
            return f"\t\tFunction : {name}{text.partition('Fatbin ')[0].rstrip()}\n"
    why = said.strip()[-300:] if len(parts) == 1 else f"it lists no function {symbol}_kernel"
    raise TOOL_FAILED.at(tool="cuobjdump", why=why or "it said nothing", command=" ".join(command))
