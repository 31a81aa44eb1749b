"""An artifact's library in this process: its kernels as functions, its constants as tensors."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import tvm_ffi

from vortex.artifact.folder import read_file, read_manifest, require_digest
from vortex.artifact.manifest import Manifest, TargetEntry
from vortex.errors import (
    BAD_ARGUMENT,
    CORRUPT_ARTIFACT,
    CPU_TOO_OLD,
    NO_TARGET_IN_ARTIFACT,
    WRONG_DEVICE,
    VortexError,
    writing,
)
from vortex.kinds.kind import KINDS
from vortex.runtime.device import Device, architecture_of, architectures_here, device_of, targets_here
from vortex.runtime.tensors import TORCH, as_kernel_sees
from vortex.targets.cpu import missing_features
from vortex.targets.target import ALIASES

Kernel = Callable[..., object]
"""Takes the arguments that the manifest lists; its outputs are among them."""


@dataclass(frozen=True, slots=True)
class Library:
    """``functions`` by symbol; ``constants`` by name, as kernels see them, on the CPU.

    ``runs_on`` is another device than the target's own, for kernels that are emulated.
    """

    manifest: Manifest
    name: str
    functions: Mapping[str, Kernel]
    constants: Mapping[str, torch.Tensor] = field(default_factory=dict)
    runs_on: Device | None = None

    @property
    def device(self) -> Device:
        return self.runs_on or device_of(self.name)

    @property
    def target(self) -> TargetEntry:
        return self.manifest.targets[self.name]

    @property
    def takes_in_tokens(self) -> bool:
        """Whether launches of ``select`` take in a step's new tokens, where each request has at most one: all that a
        call of ``append`` launches.
        """
        kernels = self.target.kernels
        if {k.kind for k in kernels if KINDS[k.kind].call == "append"} != {"append"}:
            return False  # kernels of another kind have work of their own there
        return any(KINDS[k.kind].takes_in == "append" and "row_offsets" in k.args for k in kernels)

    def set_num_threads(self, n: int) -> None:
        """Threads of later kernels of this library; 0 for as many as torch uses. Nothing where it has none.

        In a forked process it is 1 until it is set; more is safe only where neither torch nor a decoder had worked in
        several threads before the fork.
        """
        if (change := self.functions.get("vortex_set_num_threads")) is not None:
            change(n)


_forked = False
"""Whether this process is the forked child of one that may have used OpenMP, whose threads it lacks."""


def _note_fork() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_note_fork)


def open_library(path: str | Path, target: str | None = None, digest: str | None = None) -> Library:
    """Load the library of ``target`` from the artifact at ``path``, which runs its code. Without a target, or with
    ``auto``, it is the current CUDA device's if there is one that the artifact has, and the CPU's otherwise.

    Raises:
        VortexError: VX5001, VX5002 for what is not a sound artifact, VX5003 without this target, VX5004 on a
            processor and VX6009 without a GPU that can run it, VX5005 when ``digest`` is given and another,
            VX6002 for what is no path.
    """
    if not isinstance(path, str | os.PathLike):
        raise BAD_ARGUMENT.at(what="path", why=f"is {type(path).__name__}; an artifact's folder is needed")
    path = Path(path)
    manifest = read_manifest(path)
    if digest is not None:
        require_digest(path, manifest, digest)
    target = _target(path, manifest, target)
    entry = manifest.targets[target]
    if lacking := missing_features(entry.mcpu, entry.machine, entry.features):
        built = f"{entry.mcpu} on {entry.machine}" if entry.machine else entry.mcpu
        raise CPU_TOO_OLD.at(path=path, built=built, missing=", ".join(dict.fromkeys(lacking)))
    constants = {c.name: _constant(read_file(path, manifest, c.file), c.dtype, c.shape) for c in manifest.constants}
    try:
        module = _load(read_file(path, manifest, entry.library))
    except VortexError:
        raise
    except Exception as error:  # what the dynamic loader says, as OSError or RuntimeError by version
        why = f"{entry.library} cannot be loaded: {str(error).strip().splitlines()[-1]}"
        raise CORRUPT_ARTIFACT.at(path=path, why=why) from None
    functions: dict[str, Kernel] = {}
    for symbol in (*(k.symbol for k in entry.kernels), "vortex_set_num_threads"):
        try:
            functions[symbol] = module[symbol]
        except AttributeError:
            if symbol != "vortex_set_num_threads":
                raise CORRUPT_ARTIFACT.at(path=path, why=f"{entry.library} has no function '{symbol}'") from None
    library = Library(manifest, target, functions, constants)
    if _forked:
        library.set_num_threads(1)  # host_threads.c does so for libraries that were loaded before
    return library


def _load(data: bytes) -> tvm_ffi.Module:
    """The library of these very bytes.

    The dynamic loader knows libraries by path and inode: one that was compiled again to the same path would be the old
    one. So each load has a file of its own, which is removed once it is mapped; what happens to the artifact later does
    not matter.
    """
    with writing("a temporary folder"):
        made = tempfile.TemporaryDirectory(prefix="vortex-load-")
    with made as folder:
        file = Path(folder) / f"{secrets.token_hex(8)}.so"
        with writing(file):
            file.write_bytes(data)
        return tvm_ffi.load_module(str(file))


def _target(path: Path, manifest: Manifest, asked: str | None) -> str:
    """The target by its full name; one that this machine can run."""
    wanted = targets_here() if asked in (None, "auto") else (ALIASES.get(str(asked), str(asked)),)
    found = next((t for t in wanted if t in manifest.targets), None)
    if found is None:
        have = ", ".join(manifest.targets) or "none"
        raise NO_TARGET_IN_ARTIFACT.at(path=path, target=",".join(wanted), have=have)
    if found != "cpu" and architecture_of(found) not in (here := architectures_here()):
        where = f"the CUDA devices here are {', '.join(here)}" if here else "there is no CUDA device here"
        raise WRONG_DEVICE.at(what=f"'{path}'", target=found, where=where)
    return found


def _constant(data: bytes, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    if not data:
        return as_kernel_sees(torch.empty(shape, dtype=TORCH[dtype]))
    # cloned, because a buffer of Python's is not aligned as kernels like it
    return as_kernel_sees(torch.frombuffer(bytearray(data), dtype=TORCH[dtype]).reshape(shape).clone())
