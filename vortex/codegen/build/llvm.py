"""TensorIR functions to one CPU library, through LLVM.

What to know of TVM 0.27 with LLVM (measured; ``tests/codegen/test_llvm.py`` holds it):

* floating point is IEEE but for fused multiply-add: no instruction carries a fast-math flag;
* ``x != x`` is folded to false and ``Not(a > b)`` to ``a <= b`` before LLVM sees it, so NaN must be asked for by
  ``T.isnan``; ``T.max(a, b)`` is ``a > b ? a : b`` and loses a NaN in ``a``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from vortex.codegen.build.link import link_cpu
from vortex.errors import NO_COMPILER, TIR_INVALID
from vortex.install.scratch import scratch_folder
from vortex.targets.cpu import detect_mcpu, missing_features

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc

__all__ = ["build_library", "build_llvm", "detect_mcpu", "missing_features"]

_MODULE = re.compile(r"^; ModuleID = ", re.M)
"""How the LLVM IR of each function begins."""
_MCPU = re.compile(r"\\22mcpu\\22:\\22([\w.-]+)\\22")
"""In what TVM notes of the target that LLVM IR was made for."""


def build_library(prim_funcs: Mapping[str, PrimFunc], mcpu: str, out: Path, *, dump_llvm: bool = False) -> str:
    """Compile ``prim_funcs`` into the library ``out``, each callable under its name there.

    Returns the LLVM IR as text when ``dump_llvm``, else an empty string.

    Raises:
        VortexError: VX4003 without TVM or a C compiler, VX4004 when TVM refuses a function, VX4005 when
            linking fails.
    """
    try:
        import tvm
    except ImportError:
        raise NO_COMPILER.at(what="apache-tvm", hint="e.g. apt install gcc") from None
    target = tvm.target.Target({"kind": "llvm", "mcpu": mcpu})
    texts = []
    with scratch_folder() as scratch:
        objects = []
        for name, f in prim_funcs.items():
            # one module a function: TVM's passes take time that grows faster than the module
            module = tvm.IRModule({name: f.with_attr("global_symbol", name)})
            try:
                executable = tvm.compile(module, target=target, tir_pipeline="default")
            except Exception as error:  # TVM raises what it likes: RuntimeError, ValueError, its own
                raise TIR_INVALID.at(why=f"{name}: {str(error).strip()[-2000:]}") from error
            objects.append(scratch / f"{name}.o")
            executable.mod.write_to_file(str(objects[-1]), "o")
            if dump_llvm:
                texts.append(cast(str, executable.mod.inspect_source("ll")))
        link_cpu(objects, out)
    return "\n".join(texts)


def build_llvm(text: str, file: str, mcpu: str, out: Path) -> None:
    """Compile LLVM IR that :func:`build_library` gave, edited or not, into the library ``out``; ``file`` is its name in
    messages.

    Raises:
        VortexError: VX4003 without TVM or a C compiler, VX4004 when LLVM refuses the text or it was made for another
            processor, VX4005 when linking fails.
    """
    try:
        import tvm  # noqa: F401 - it has LLVM
        from tvm_ffi import load_module
    except ImportError:
        raise NO_COMPILER.at(what="apache-tvm", hint="e.g. apt install gcc") from None
    if other := next((m for m in _MCPU.findall(text) if m != mcpu), None):
        raise TIR_INVALID.at(why=f"{file} was made for {other}, and code for this machine is {mcpu}")
    starts = [m.start() for m in _MODULE.finditer(text)] or [0]
    with scratch_folder() as scratch:
        objects: list[Path] = []
        for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
            module = scratch / file
            # empty lines in front, so that LLVM's messages name the lines of the file
            module.write_text("\n" * text.count("\n", 0, start) + text[start:end], encoding="utf-8")
            objects.append(scratch / f"{len(objects)}.o")
            try:
                load_module(str(module)).write_to_file(str(objects[-1]), "o")
            except Exception as error:  # TVM raises what it likes
                raise TIR_INVALID.at(why=str(error).strip().replace(f"{scratch}/", "")[-2000:]) from error
        link_cpu(objects, out)
