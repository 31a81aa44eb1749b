"""Triton kernels compiled for a GPU that is not there: the same arguments as a launch, registers and spills back."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

NAMES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.int32: "*i32"}
OPTIONS = ("num_warps", "num_stages")


def compile_for(kernel: Any, given: list[Any], fixed: dict[str, Any], arch: int = 90) -> Any:
    """``kernel[grid](*given, **fixed)`` compiled for that compute capability."""
    names = kernel.arg_names
    signature, attributes, constants = {}, {}, {}
    for i, (name, value) in enumerate(zip(names, given, strict=False)):
        if isinstance(value, torch.Tensor):
            signature[name], attributes[(i,)] = NAMES[value.dtype], [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32"
            if value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
    for name in names[len(given) :]:
        signature[name], constants[name] = "constexpr", fixed[name]
    options = {name: fixed[name] for name in OPTIONS if name in fixed}
    return triton.compile(
        ASTSource(kernel, signature, constants, attributes), target=GPUTarget("cuda", arch, 32), options=options
    )


def resources(compiled: Any) -> dict[str, int]:
    """Registers a thread, bytes spilled to local memory, shared bytes, as cuobjdump reads them from the binary."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        text = subprocess.run([str(tool), "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = {key: int(value) for key, value in re.findall(r"(REG|LOCAL|STACK):(\d+)", text)}
    return {"registers": found["REG"], "local": found["LOCAL"] + found["STACK"], "shared": compiled.metadata.shared}
