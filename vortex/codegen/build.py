"""From the TensorIR text of a target's kernels to its library: the text, edited or not, is the source."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vortex.codegen.emit import KernelSource, parse_tir
from vortex.cpu_features import detect_mcpu
from vortex.errors import NO_COMPILER, TIR_INVALID
from vortex.target import Target

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc


def build_target(target: Target, kernels: Mapping[str, KernelSource], out: Path) -> str:
    """Build the library ``out``; the text of stage ``src``.

    Raises:
        VortexError: VX4003 without a compiler, VX4004 when a text is no TensorIR that builds, VX4005 when
            the C compiler fails.
    """
    target.require("lib")
    from vortex.codegen.llvm import build_library

    functions = {source.symbol: _function(source) for source in kernels.values()}
    return build_library(functions, detect_mcpu(), out, dump_llvm=True)


def _function(source: KernelSource) -> PrimFunc:
    try:
        from tvm.tirx import PrimFunc
    except ImportError:
        raise NO_COMPILER.at(what="apache-tvm", hint="e.g. apt install gcc") from None
    found = parse_tir(source.text, source.name)
    if not isinstance(found, PrimFunc):
        why = f"the text of kernel '{source.name}' is a {type(found).__name__}; one prim_func is needed"
        raise TIR_INVALID.at(why=why)
    return found
