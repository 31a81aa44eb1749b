"""From the TensorIR text of a target's kernels to its library: the text, edited or not, is the source."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vortex.cpu_features import detect_mcpu
from vortex.errors import NO_COMPILER, TIR_INVALID
from vortex.target import Target

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc

    from vortex.codegen.emit import KernelSource


def build_target(target: Target, kernels: Mapping[str, KernelSource], out: Path) -> str:
    """Build the library ``out``; the text of stage ``src``.

    Raises:
        VortexError: VX4003 without a compiler, VX4004 when a text is no TensorIR that builds, VX4005 when
            the C compiler fails.
    """
    target.require("lib")
    from vortex.codegen.llvm import build_library

    functions = {source.symbol: read_script(name, source.text) for name, source in kernels.items()}
    return build_library(functions, detect_mcpu(), out, dump_llvm=True)


def read_script(name: str, text: str) -> PrimFunc:
    """The function that a TVMScript text describes; ``name`` is the kernel's, for messages."""
    try:
        import tvm.script
        from tvm.tirx import PrimFunc
    except ImportError:
        raise NO_COMPILER.at(what="apache-tvm", hint="e.g. apt install gcc") from None
    try:
        found = tvm.script.from_source(text)
    except Exception as e:  # TVM's parser raises what its layers do, DiagnosticError to SyntaxError
        raise TIR_INVALID.at(why=f"kernel '{name}' does not parse: {str(e).strip()[-2000:]}") from e
    if not isinstance(found, PrimFunc):
        raise TIR_INVALID.at(why=f"the text of kernel '{name}' is a {type(found).__name__}, one prim_func is needed")
    return found
