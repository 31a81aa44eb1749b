"""The artifact for a model's shape: the one that was named, one compiled before, or one compiled now.

Bindings to engines import it. Compiling happens in another interpreter, because the compiler and an engine may need
different versions of the same packages.
"""

from __future__ import annotations

import fcntl
import importlib.util
import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vortex.artifact.folder import read_manifest
from vortex.errors import (
    CANNOT_WRITE,
    COMPILE_FAILED,
    ENGINE_REFUSED,
    FLOW_RAISED,
    NO_COMPILED_FLOW,
    NO_TARGET_IN_ARTIFACT,
    VortexError,
    writing,
)
from vortex.install import toolchain
from vortex.install.cache import cache_root
from vortex.install.identity import Identity, of_build, traced
from vortex.spec import Spec
from vortex.targets.cpu import detect_mcpu

if TYPE_CHECKING:
    from vortex.flow.flow import vFlow

logger = logging.getLogger(__name__)

COMPILER = "VORTEX_COMPILER"
"""The Python interpreter of an environment that has ``vortex[compile]``."""


CUDA_TARGETS = {(9, 0): "sm_90a", (10, 0): "sm_100a"}
"""By compute capability."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """``spec`` and the KV heads of one tensor-parallel rank, the first of which is ``first_head`` of the model; latent
    rows (MLA) are as one KV head.
    """

    spec: Spec
    kv_heads: int
    first_head: int = 0


def target_of(device: str) -> str:
    """The target whose kernels run on ``device``; VX9002 for a processor that none is for."""
    if device == "cpu":
        return "cpu"
    what = f"device '{device}'"
    if device.startswith("cuda") and torch.version.cuda:
        capability = torch.cuda.get_device_capability()
        if capability in CUDA_TARGETS:
            return CUDA_TARGETS[capability]
        what = f"{torch.cuda.get_device_name()}, compute capability {capability[0]}.{capability[1]}"
    why = f"kernels are made for cpu, {', '.join(CUDA_TARGETS.values())}"
    raise ENGINE_REFUSED.at(what=what, why=why, hint="use another attention backend on this machine")


def artifact_for(flow: str, shape: ModelShape, target: str, *, blocks: bool = False) -> Path:
    """An artifact of ``flow`` for this model and ``target``: a name, ``file.py``, ``file.py:name``, an artifact, or
    ``""`` for quest (latent_topk under MLA). ``blocks`` says that an artifact must select blocks of the shape's size.

    Raises:
        VortexError: VX9002 for an artifact of another shape, VX9004 without a compiler, VX9005 when it fails,
            VX5001 to VX5003 for what is not an artifact or lacks the target, VX7004 when the cache cannot be written
            and has no artifact for it, and what tracing the flow raises.
    """
    flow = flow or ("latent_topk" if shape.spec.kv_lora_rank else "quest")
    if flow.endswith(".vxa"):
        return _prebuilt(Path(flow), shape, target, blocks=blocks)
    identity = _identity_or_once(flow, shape.spec, target)
    return kept(flow, identity, lambda path: _compile(flow, shape, target, path))


def kept(flow: str, identity: Identity, compile: Callable[[Path], None]) -> Path:
    """The artifact of ``identity`` in the cache; where there is none, ``compile`` is called to make it at a path.

    Raises:
        VortexError: VX7004 when the cache cannot be written and has no artifact, and what ``compile`` raises.
    """
    path = entry(flow, identity)
    try:
        with _alone(path):
            if path.exists():
                if not path.with_suffix(".json").exists():  # whoever compiled it was killed in between
                    with suppress(VortexError):
                        _note_parts(identity, path)
                return path
            if compiler() is None and (other := _of_other_tools(identity)):
                return other
            compile(path)
            _note_parts(identity, path)
    except VortexError as error:
        # a cache that somebody else filled and that can only be read
        if error.kind is not CANNOT_WRITE or not path.exists():
            raise
    return path


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time is inside for ``path``, the other ranks wait; nothing but what it makes is left.

    Raises:
        VortexError: VX7004 where no lock can be taken beside ``path``.
    """
    lock = path.with_suffix(".lock")
    while True:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            opened = lock.open("w", encoding="utf-8")
        with opened:
            fcntl.flock(opened, fcntl.LOCK_EX)
            try:  # whoever held it before has removed it, and others may have made a new one since
                current = os.path.samestat(lock.stat(), os.fstat(opened.fileno()))
            except FileNotFoundError:
                current = False
            if not current:
                continue
            try:
                yield
            finally:
                with suppress(OSError):
                    lock.unlink()
            return


def _note_parts(identity: Identity, path: Path) -> None:
    """Write beside an artifact what decided it: where no compiler is at hand, it is found by that."""
    try:
        with writing(path.with_suffix(".json")):
            identity.write(path.with_suffix(".json"))
    except BaseException:
        # half of it would be a miss for ever
        path.with_suffix(".json").unlink(missing_ok=True)
        raise


def _prebuilt(path: Path, shape: ModelShape, target: str, *, blocks: bool) -> Path:
    """The artifact at ``path`` when it serves the model; its blocks must be the shape's where ``blocks`` says so."""
    manifest, spec = read_manifest(path), shape.spec
    have, made = asdict(manifest.spec), []
    for name, want in asdict(spec).items():
        mine = have[name] if name in ("budget_table", "request_budgets") or not blocks else 0
        if have[name] != want and not (name in ("budget_table", "request_budgets", "block_size") and mine):
            made.append(f"{name} {have[name]} and not {want}")
    if target not in manifest.targets:
        if not made:
            raise NO_TARGET_IN_ARTIFACT.at(path=path, target=target, have=", ".join(manifest.targets) or "none")
        made.append(f"{', '.join(manifest.targets) or 'no target'} and not {target}")
    if made:
        why = f"it was compiled for {'; '.join(made)}"
        hint = shlex.join(command(manifest.flow, shape, target, _free_name(manifest.flow)))
        raise ENGINE_REFUSED.at(what=f"the artifact '{path}' with this model", why=why, hint=hint)
    return path


def _free_name(flow: str) -> str:
    """A name of an artifact in the working directory that nothing has yet: a command that is suggested overwrites
    nothing.
    """
    stem = Path(flow.partition(":")[0]).stem
    names = (f"{stem}-{n}.vxa" if n > 1 else f"{stem}.vxa" for n in count(1))
    return next(name for name in names if not os.path.lexists(name))


def command(flow: str, shape: ModelShape, target: str, out: Path | str) -> list[str]:
    """The words of the ``vortex compile`` that makes the artifact."""
    spec = shape.spec
    if spec.kv_lora_rank:
        model = ["--heads", str(spec.group), "--latent", f"{spec.kv_lora_rank}+{spec.qk_rope_head_dim}"]
    else:
        model = ["--heads", f"{spec.group * shape.kv_heads}/{shape.kv_heads}", "--head-dim", str(spec.head_dim)]
    page = ["--page-size", str(spec.page_size), "--dtype", spec.dtype]
    page += ["--kv-dtype", spec.kv_dtype] if spec.scaled else []
    page += ["--budget-table"] if spec.budget_table else []
    page += ["--request-budgets"] if spec.request_budgets else []
    if spec.page_blocks > 1:
        page += ["--block-size", str(spec.block_size)]
    return ["vortex", "compile", flow, "--target", target, *model, *page, "-o", str(out)]


def compiler() -> list[str] | None:
    """How to start the compiler: by ``VORTEX_COMPILER``, the toolchain that was installed, or this interpreter."""
    if named := os.environ.get(COMPILER):
        return [named]
    if installed := toolchain.installed():
        return [str(installed)]
    return [sys.executable] if importlib.util.find_spec("tvm") else None


def _compile(flow: str, shape: ModelShape, target: str, path: Path) -> None:
    words = command(flow, shape, target, path)
    python = compiler()
    if python is None:
        out = _free_name(flow)
        line = shlex.join(command(flow, shape, target, out))
        raise NO_COMPILED_FLOW.at(flow=flow, target=target, command=line, out=out)
    logger.info("vortex: compiling flow %s for %s, once; it is kept as %s", flow, target, path)
    began = time.monotonic()
    run = [*python, "-m", *words, "--no-dump"]
    try:
        done = subprocess.run(
            run,
            capture_output=True,
            text=True,
            errors="replace",
            env=toolchain.clean_environment(),
            stdin=subprocess.DEVNULL,
        )
    except OSError as error:
        raise COMPILE_FAILED.at(flow=flow, why=f"{run[0]}: {error.strerror}", command=shlex.join(run)) from None
    if done.returncode:
        raise COMPILE_FAILED.at(flow=flow, why=done.stderr.strip()[-4000:], command=shlex.join(run))
    logger.info("vortex: compiled flow %s in %.1f s", flow, time.monotonic() - began)


def identity_of(flow: str | vFlow | type[vFlow], spec: Spec, target: str) -> Identity:
    """What decides the artifact of ``flow``, a name, ``file.py``, ``file.py:name``, a class or an object; it is traced
    for that.

    Raises:
        VortexError: what keeps the flow from being found or traced.
    """
    from vortex.flow.flow import find_flow
    from vortex.flow.trace import trace
    from vortex.ir.printer import print_module

    module = trace(find_flow(flow) if isinstance(flow, str) else flow, spec)
    constants = {d.name: str(d.attrs["data"]) for d in module.declared("resource") if "data" in d.attrs}
    parts = traced(print_module(module, locs=False), constants, str(module.attrs.get("source", "")))
    python = compiler()
    other = Path(python[0]) if python and python[0] != sys.executable else None
    processor = f" {detect_mcpu()}" if target == "cpu" else ""
    return of_build(parts, spec=str(asdict(spec)), target=target + processor, python=other)


def _identity_or_once(flow: str, spec: Spec, target: str) -> Identity:
    """As :func:`identity_of`. A flow that only the compiler's environment can load, for it imports what this one lacks,
    is compiled at each start: nobody here can say what it depends on.
    """
    try:
        return identity_of(flow, spec, target)
    except VortexError as error:
        if error.kind is not FLOW_RAISED or error.fields.get("type") not in ("ImportError", "ModuleNotFoundError"):
            raise
        logger.warning("vortex: flow %s is compiled anew, for it cannot be loaded here: %s", flow, error.message)
        return Identity({"ir": f"not traced at {time.time_ns()} in process {os.getpid()}"})


def entry(flow: str, identity: Identity) -> Path:
    """Where the artifact of that identity lies, if it was compiled; its parts lie beside it as ``.json``."""
    return _cache() / f"{Path(flow.partition(':')[0]).stem}-{identity.short}.vxa"


def entries() -> dict[Path, Identity]:
    """All artifacts that are kept, with what decided them; the newest first."""
    found = sorted(_cache().glob("*.vxa"), key=lambda path: path.stat().st_mtime, reverse=True)
    known = {path: Identity.read(path.with_suffix(".json")) for path in found}
    return {path: identity for path, identity in known.items() if identity is not None}


def _of_other_tools(identity: Identity) -> Path | None:
    """An artifact that only the versions of the tools tell from the one that is wanted: where there is no compiler,
    nobody can say which versions are meant.
    """
    same = (path for path, other in entries().items() if identity.differences(other).keys() <= {"tools"})
    return next(same, None)


def _cache() -> Path:
    return cache_root() / "engine"
