"""Where nvcc is, and the inspectors of what it makes: a CUDA installation, or the wheels that hold the same files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from vortex.errors import NO_CUDA

OLDEST = (12, 8)
"""The first release that compiles for sm_100a."""


@dataclass(frozen=True, slots=True)
class Toolkit:
    """A CUDA compiler that answers, with its headers and libraries beside it."""

    nvcc: Path
    root: Path
    version: str

    @property
    def includes(self) -> tuple[Path, ...]:
        found = (self.root / "include", self.root / "targets" / "x86_64-linux" / "include")
        return tuple(p for p in found if (p / "cuda_bf16.h").exists())[:1]

    @property
    def libraries(self) -> tuple[Path, ...]:
        found = (self.root / "lib64", self.root / "lib", self.root / "targets" / "x86_64-linux" / "lib")
        return tuple(p for p in found if (p / "libcudart_static.a").exists())[:1]


def find_toolkit() -> Toolkit:
    """nvcc of ``$CUDA_HOME``, else on PATH, else of the wheels of ``vortex[cuda]``.

    Raises:
        VortexError: VX4007 when none of them has one that can be used, with what was looked at.
    """
    return _find(os.environ.get("CUDA_HOME", ""), os.environ.get("PATH", ""))


@cache
def _find(home: str, path: str) -> Toolkit:
    seen = []
    for origin, nvcc in _candidates(home, path):
        made = _inspect(nvcc)
        if isinstance(made, Toolkit):
            return made
        seen.append(f"{origin} {made}")
    raise NO_CUDA.at(why="; ".join(seen) or "looked in $CUDA_HOME, on PATH and for the wheel nvidia-cuda-nvcc")


def _candidates(home: str, path: str) -> Iterator[tuple[str, Path]]:
    if home:
        yield "$CUDA_HOME", Path(home) / "bin" / "nvcc"
    if found := shutil.which("nvcc", path=path):
        yield "PATH", Path(found)
    for folder in _wheel_folders("nvcc"):
        yield "the wheel", folder / "bin" / "nvcc"


def _wheel_folders(tool: str) -> Iterator[Path]:
    """The folders of NVIDIA's wheels that hold a tool: ``nvidia/cu13`` and its successors, then the old one."""
    spec = find_spec("nvidia")
    roots = list(spec.submodule_search_locations or ()) if spec else [f"{sysconfig.get_path('purelib')}/nvidia"]
    for root in map(Path, roots):
        yield from (p for p in sorted(root.glob("cu[0-9]*"), reverse=True) if (p / "bin" / tool).exists())


def _inspect(nvcc: Path) -> Toolkit | str:
    """The toolkit of an nvcc, or why it is none."""
    if not nvcc.exists():
        return f"has no {nvcc}"
    said = output([str(nvcc), "--version"])
    release = re.search(r"release (\d+)\.(\d+), V([\d.]+)", said)
    if release is None:
        return f"has {nvcc}, which does not answer to --version"
    if (int(release[1]), int(release[2])) < OLDEST:
        return f"has nvcc {release[1]}.{release[2]}; {'.'.join(map(str, OLDEST))} or later is needed"
    # a wrapper script may stand elsewhere: the compiler itself says where its files are
    dry = output([str(nvcc), "--dryrun", "-c", "-x", "cu", "/dev/null", "-o", "/dev/null"])
    top = re.search(r"^#\$ TOP=(.+)$", dry, re.M)
    made = Toolkit(nvcc, Path(top[1]).resolve() if top else nvcc.resolve().parent.parent, release[3])
    if not made.includes or not made.libraries:
        return f"has {nvcc} without cuda_bf16.h and libcudart_static.a beside it"
    return made


def output(command: list[str]) -> str:
    """What a tool says, on either stream; nothing where it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=60)
    except OSError:
        return ""
    return done.stdout + done.stderr


def find_inspector(name: str) -> Path | None:
    """``cuobjdump`` or ``nvdisasm``: of the toolkit, on PATH, or in a wheel; None where there is none."""
    places = [Path(os.environ["CUDA_HOME"]) / "bin"] if "CUDA_HOME" in os.environ else []
    if found := shutil.which(name):
        return Path(found)
    places += [folder / "bin" for folder in _wheel_folders(name)]
    triton = find_spec("triton")
    for folder in (triton.submodule_search_locations or ()) if triton else ():
        places.append(Path(folder) / "backends" / "nvidia" / "bin")
    return next((p / name for p in places if (p / name).exists()), None)
