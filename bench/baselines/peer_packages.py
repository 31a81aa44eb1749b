"""AMASS and LOCKS as their users have them, without the engine that they plug into.

Both are vLLM plug-ins. What decodes a layer needs torch and Triton alone, but lies beside modules that import vLLM in
a package ``backend``, whose ``__init__`` this leaves out. Their CUDA extensions are compiled by
``torch.utils.cpp_extension.load_inline`` when first used; ``bench/stage_mass_peers.py`` compiles them ahead, and here
an extension of equal source and flags is taken from its folder. What is not there is compiled as ever.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import zipfile
from collections.abc import Callable, Sequence
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

WHEELS = {"amass": "amass_kv-0.1.1-py3-none-any.whl", "locks": "locks_kv-0.1.4-py3-none-any.whl"}


def unpacked(package: str, wheels: Path, into: Path) -> None:
    """Make ``package`` importable from its wheel, without what needs an engine."""
    with zipfile.ZipFile(wheels / WHEELS[package]) as archive:
        archive.extractall(into)
    if str(into) not in sys.path:
        sys.path.insert(0, str(into))
    bare = ModuleType(f"{package}.backend")
    bare.__path__ = [str(into / package / "backend")]
    sys.modules[bare.__name__] = bare


def digest(source: str, flags: Sequence[str]) -> str:
    """What a compiled extension is found by, beside its name."""
    return hashlib.sha256("\0".join([source, *flags]).encode()).hexdigest()[:12]


def loaded(path: Path, name: str) -> ModuleType:
    """The extension ``name`` that lies at ``path``."""
    spec = importlib.util.spec_from_file_location(name, path, loader=ExtensionFileLoader(name, str(path)))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prebuilt(folder: Path) -> Callable[..., Any]:
    """Stands in for ``load_inline``: takes what was compiled ahead, and compiles the rest if there is a GPU."""
    import torch
    from torch.utils import cpp_extension

    compile_here = cpp_extension.load_inline

    def load_inline(name: str, *, cuda_sources: str, extra_cuda_cflags: Sequence[str], **rest: Any) -> Any:
        path = folder / digest(cuda_sources, extra_cuda_cflags) / f"{name}.so"
        why = "was not compiled ahead"
        if path.exists():
            try:
                return loaded(path, name)
            except ImportError as error:
                why = f"cannot be loaded ({error})"
        if not torch.cuda.is_available():
            raise RuntimeError("there is no GPU")
        print(f"{name} {why}: it is compiled now", flush=True)
        return compile_here(name, cuda_sources=cuda_sources, extra_cuda_cflags=[*extra_cuda_cflags], **rest)

    cpp_extension.load_inline = load_inline
    return load_inline
