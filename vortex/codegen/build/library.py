"""From the texts of a target's kernels to its library: the text, edited or not, is the source.

What a text was written from a moment ago is not read from it again, which takes as long as compiling it for a CPU.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from vortex.codegen.emit import KernelSource, parse_tir
from vortex.errors import NO_COMPILER, TIR_INVALID
from vortex.ir.op_labels import commented, labels_of_tir, origin_of
from vortex.targets.cpu import detect_mcpu
from vortex.targets.target import Target

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc

Resources = dict[str, int | float | str]
"""What a kernel takes of a GPU, as the manifest has it."""


@dataclass(frozen=True)
class Built:
    """What a build leaves beside the library."""

    source: str
    """The text of stage ``src``."""
    texts: dict[str, str]
    """Texts for a dump by file name, the source among them."""
    resources: dict[str, Resources] = field(default_factory=dict)
    """By the kernel's symbol, what it takes of a GPU."""


def build_target(
    target: Target,
    kernels: Mapping[str, KernelSource],
    out: Path,
    sources: Mapping[str, str] | None = None,
    told: Callable[[int, int], None] | None = None,
) -> Built:
    """Build the library ``out``, from the TensorIR of its kernels or, where given, from texts of stage ``src`` by file
    name as an earlier build left them, edited or not. Of a GPU's kernels ``told`` hears how many of how many are
    compiled.

    Raises:
        VortexError: VX4003 or VX4007 without a compiler, VX4004 when a text is not TensorIR or LLVM IR that builds or
            lacks a kernel, VX4005 when a compiler fails.
    """
    target.require("lib")
    if sources:
        _require_kernels(kernels, sources)
    if target.kind == "cuda":
        return _build_cuda(target, kernels, out, sources, told)
    from vortex.codegen.build.llvm import build_library, build_llvm

    file = f"{target.name}.ll"
    if sources:
        build_llvm(sources[file], file, detect_mcpu(), out)
        return Built(sources[file], {file: sources[file]})
    functions = {k.symbol: _function(k) for k in kernels.values()}
    text = build_library(functions, detect_mcpu(), out, dump_llvm=True)
    return Built(text, {file: text})


def _require_kernels(kernels: Mapping[str, KernelSource], sources: Mapping[str, str]) -> None:
    """Every kernel still has the function that the runtime calls."""
    for k in kernels.values():
        if not any(re.search(rf"\b__tvm_ffi_{k.symbol}\(", text) for text in sources.values()):
            why = f"kernel '{k.name}' is gone: no function __tvm_ffi_{k.symbol} is in {', '.join(sources)}"
            raise TIR_INVALID.at(why=why)


def _build_cuda(
    target: Target,
    kernels: Mapping[str, KernelSource],
    out: Path,
    sources: Mapping[str, str] | None,
    told: Callable[[int, int], None] | None,
) -> Built:
    from vortex.codegen.build.nvcc import build_cuda, build_sources
    from vortex.codegen.build.resources import sass

    if sources:
        texts = {k.symbol: sources[f"{name}.{target.name}.cu"] for name, k in kernels.items()}
        built = build_sources(texts, target.arch, out, told)
    else:
        # parsed, so that statements know their lines of the text, and the C++ those of the TensorIR
        built = build_cuda({k.symbol: _parsed(k) for k in kernels.values()}, target.arch, out, told)
    texts = {}
    for name, k in kernels.items():
        texts[f"{name}.{target.name}.cu"] = _commented(k, built.sources[k.symbol], built.lines.get(k.symbol, ()))
        texts[f"{name}.{target.name}.ptx"] = built.ptx[k.symbol]
        texts[f"{name}.{target.name}.sass"] = sass(built.cubins[k.symbol])
    resources = {k.symbol: built.resources[k.symbol].report(k.schedule) for k in kernels.values()}
    texts[f"{target.name}.resources.txt"] = _resources_text(target, resources, all(texts.values()))
    source = "\n".join(texts[f"{name}.{target.name}.cu"] for name in kernels)
    return Built(source, texts, resources)


def _commented(kernel: KernelSource, source: str, lines: Sequence[int]) -> str:
    """CUDA C++ with the comments that the TensorIR of a kernel has on the ops that its lines compute, where known."""
    if not lines:
        return source
    of_tir = ["", *labels_of_tir(kernel.text)]
    made = commented(source, [of_tir[n] for n in lines])
    # TVM leaves the first line empty, so that all others keep their numbers
    origin = origin_of(kernel.text)
    return f"// {origin}{made}" if origin and made.startswith("\n") else made


def start_resources(target: Target, kernels: Mapping[str, KernelSource]) -> Callable[[], dict[str, Resources]]:
    """What kernels take of a GPU, by name and without a library: nvcc runs until the result is called for.

    Raises:
        VortexError: as :func:`build_target`, what nvcc says only by the result.
    """
    from vortex.codegen.build.nvcc import start_resources as start

    ready = start({k.symbol: _function(k) for k in kernels.values()}, target.arch)

    def result() -> dict[str, Resources]:
        found = ready()
        return {name: found[k.symbol].report(k.schedule) for name, k in kernels.items()}

    return result


def _resources_text(target: Target, resources: Mapping[str, Mapping[str, object]], read: bool) -> str:
    """What each kernel takes of the GPU, a line a number; ``read``: its machine code is beside this file."""
    lines = [f"{target.name}: {target.about}"]
    for symbol, found in resources.items():
        lines += ["", symbol, *(f"  {name:<16}{value}" for name, value in found.items())]
    if not read:
        lines += ["", "no machine code in this dump: pip install triton, whose wheel holds cuobjdump and nvdisasm"]
    return "\n".join([*lines, ""])


def _function(source: KernelSource) -> PrimFunc:
    """What the text was written from, or, where that is not known any more, what it says."""
    return cast("PrimFunc", source.function) if source.function is not None else _parsed(source)


def _parsed(source: KernelSource) -> PrimFunc:
    try:
        from tvm.tirx import PrimFunc
    except ImportError:
        raise NO_COMPILER.at(what="apache-tvm", hint="e.g. apt install gcc") from None
    found = parse_tir(source.text, source.name)
    if not isinstance(found, PrimFunc):
        why = f"the text of kernel '{source.name}' is a {type(found).__name__}; one prim_func is needed"
        raise TIR_INVALID.at(why=why)
    return found
