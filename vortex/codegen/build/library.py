"""From the TensorIR text of a target's kernels to its library: the text, edited or not, is the source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vortex.codegen.emit import KernelSource, parse_tir
from vortex.errors import NO_COMPILER, TIR_INVALID
from vortex.targets.cpu import detect_mcpu
from vortex.targets.target import Target

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc

    from vortex.codegen.build.resources import KernelResources

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


def build_target(target: Target, kernels: Mapping[str, KernelSource], out: Path) -> Built:
    """Build the library ``out``.

    Raises:
        VortexError: VX4003 or VX4007 without a compiler, VX4004 when a text is not TensorIR that builds, VX4005
            when a compiler fails.
    """
    target.require("lib")
    functions = {source.symbol: _function(source) for source in kernels.values()}
    if target.kind == "cuda":
        return _build_cuda(target, kernels, functions, out)
    from vortex.codegen.build.llvm import build_library

    text = build_library(functions, detect_mcpu(), out, dump_llvm=True)
    return Built(text, {f"{target.name}.ll": text})


def _build_cuda(
    target: Target, kernels: Mapping[str, KernelSource], functions: Mapping[str, PrimFunc], out: Path
) -> Built:
    from vortex.codegen.build.nvcc import build_cuda
    from vortex.codegen.build.resources import sass

    built = build_cuda(functions, target.arch, out)
    texts: dict[str, str] = {}
    for name, k in kernels.items():
        texts[f"{name}.{target.name}.cu"] = built.sources[k.symbol]
        texts[f"{name}.{target.name}.ptx"] = built.ptx[k.symbol]
        texts[f"{name}.{target.name}.sass"] = sass(built.cubins[k.symbol])
    resources = {k.symbol: _report(k, built.resources[k.symbol]) for k in kernels.values()}
    texts[f"{target.name}.resources.txt"] = _resources_text(target, resources, all(texts.values()))
    return Built(built.source, texts, resources)


def start_resources(target: Target, kernels: Mapping[str, KernelSource]) -> Callable[[], dict[str, Resources]]:
    """What kernels take of a GPU, by name and without a library: nvcc runs until the result is called for.

    Raises:
        VortexError: as :func:`build_target`, what nvcc says only by the result.
    """
    from vortex.codegen.build.nvcc import start_resources as start

    ready = start({k.symbol: _function(k) for k in kernels.values()}, target.arch)

    def result() -> dict[str, Resources]:
        found = ready()
        return {name: _report(k, found[k.symbol]) for name, k in kernels.items()}

    return result


def _report(kernel: KernelSource, found: KernelResources) -> Resources:
    of = kernel.schedule
    return found.report(int(of.get("bytes_in_flight", 0)), float(of.get("flops_per_byte", 0)))


def _resources_text(target: Target, resources: Mapping[str, Mapping[str, object]], read: bool) -> str:
    """What each kernel takes of the GPU, a line a number; ``read``: its machine code is beside this file."""
    lines = [f"{target.name}: {target.about}"]
    for symbol, found in resources.items():
        lines += ["", symbol, *(f"  {name:<16}{value}" for name, value in found.items())]
    if not read:
        lines += ["", "no machine code in this dump: pip install triton, whose wheel holds cuobjdump and nvdisasm"]
    return "\n".join([*lines, ""])


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
