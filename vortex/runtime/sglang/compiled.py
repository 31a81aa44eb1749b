"""The artifact for a model's shape: the one that was named, one compiled before, or one compiled now.

Compiling happens in another interpreter, because the compiler and SGLang need different versions of the same packages.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import logging
import os
import shlex
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import vortex
from vortex.artifact.folder import read_manifest
from vortex.errors import COMPILE_FAILED, ENGINE_REFUSED, NO_COMPILED_FLOW, NO_SUCH_FILE, NO_TARGET_IN_ARTIFACT
from vortex.install import toolchain
from vortex.install.cache import cache_root
from vortex.runtime.sglang.config import EngineConfig
from vortex.runtime.sglang.shape import ModelShape
from vortex.targets.cpu import detect_mcpu

logger = logging.getLogger(__name__)

COMPILER = "VORTEX_COMPILER"
"""The Python interpreter of an environment that has ``vortex[compile]``."""


def artifact_for(config: EngineConfig, shape: ModelShape, target: str) -> Path:
    """An artifact of ``config.flow`` for this model and ``target``.

    Raises:
        VortexError: VX9002 for one that was made for another shape, VX9004 without a compiler, VX9005 when it fails,
            VX5001 to VX5003 for what is no artifact or lacks the target.
    """
    flow = config.flow or ("latent_topk" if shape.spec.kv_lora_rank else "quest")
    if flow.endswith(".vxa"):
        return _prebuilt(Path(flow), shape, target)
    key = _key(flow, shape, target)
    name = Path(flow.partition(":")[0]).stem
    path = _cache() / f"{name}-{key}.vxa"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:  # one rank compiles, the others wait for it
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _compile(flow, shape, target, path)
    return path


def _prebuilt(path: Path, shape: ModelShape, target: str) -> Path:
    manifest = read_manifest(path)
    if target not in manifest.targets:
        raise NO_TARGET_IN_ARTIFACT.at(path=path, target=target, have=", ".join(manifest.targets) or "none")
    have = asdict(manifest.spec)
    for name, want in asdict(shape.spec).items():
        if have[name] != want:
            why = f"'{path}' was compiled for {name} {have[name]}"
            hint = shlex.join(command(manifest.flow, shape, target, path))
            raise ENGINE_REFUSED.at(what=f"{name} {want} with this artifact", why=why, hint=hint)
    return path


def command(flow: str, shape: ModelShape, target: str, out: Path | str) -> list[str]:
    """The words of the ``vortex compile`` that makes the artifact."""
    spec = shape.spec
    if spec.kv_lora_rank:
        model = ["--heads", str(spec.group), "--latent", f"{spec.kv_lora_rank}+{spec.qk_rope_head_dim}"]
    else:
        model = ["--heads", f"{spec.group * shape.kv_heads}/{shape.kv_heads}", "--head-dim", str(spec.head_dim)]
    page = ["--page-size", str(spec.page_size), "--dtype", spec.dtype]
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
        out = f"{Path(flow.partition(':')[0]).stem}.vxa"
        line = shlex.join(command(flow, shape, target, out))
        raise NO_COMPILED_FLOW.at(flow=flow, target=target, command=line, out=out)
    logger.info("vortex: compiling flow %s for %s, once; it is kept as %s", flow, target, path)
    began = time.monotonic()
    run = [*python, "-m", *words, "--no-dump"]
    try:
        done = subprocess.run(
            run, capture_output=True, text=True, env=toolchain.clean_environment(), stdin=subprocess.DEVNULL
        )
    except OSError as error:
        raise COMPILE_FAILED.at(flow=flow, why=f"{run[0]}: {error.strerror}", command=shlex.join(run)) from None
    if done.returncode:
        raise COMPILE_FAILED.at(flow=flow, why=done.stderr.strip()[-4000:], command=shlex.join(run))
    logger.info("vortex: compiled flow %s in %.1f s", flow, time.monotonic() - began)


def _key(flow: str, shape: ModelShape, target: str) -> str:
    """Changes with everything that the artifact depends on: the flow's text, the shape, the compiler's own text."""
    parts = [flow, target, str(asdict(shape.spec)), detect_mcpu() if target == "cpu" else ""]
    source = Path(flow.partition(":")[0])
    if source.suffix == ".py":
        try:
            parts += [str(source.absolute()), hashlib.sha256(source.read_bytes()).hexdigest()]
        except OSError as error:
            raise NO_SUCH_FILE.at(path=source, why=f"cannot be read: {error.strerror}") from None
    digest = hashlib.sha256("\0".join(parts).encode())
    root = Path(vortex.__file__).parent
    for file in sorted(root.rglob("*.py")):
        if "runtime" not in file.relative_to(root).parts:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _cache() -> Path:
    return cache_root() / "engine"
