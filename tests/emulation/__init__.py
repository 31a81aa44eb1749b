"""What nvcc would compile, run on the CPU, launchers and all.

    kernels = Emulated({"quest_attend": source})   # texts of ``nvcc.emit_cuda`` by symbol
    kernels.call("quest_attend", q, k, ..., seed=3)

As in a product's build, a kernel is a translation unit of its own, and its text what ``nvcc.translation_unit`` makes.

A thread is a fiber. Warps, CTAs, how many CTAs are resident at a time and when an asynchronous copy lands (at once,
or not before its wait) depend on ``seed``; shared memory begins as NaN; the tensors lie against a page that must not
be touched; two accesses of a byte by different threads with no barrier or release between them are an error. Tensors
that span more than ``WATCHED`` bytes, which only virtual memory holds, are handed over as they are.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import tvm_ffi

from tests.emulation.instructions import body_of
from vortex.codegen.build.nvcc import LAUNCH_HEADER, translation_unit

HERE = Path(__file__).parent
PAGE = mmap.PAGESIZE
WATCHED = 1 << 30
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-w", "-fvisibility=hidden")
WATCH = ("-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0")


def cpu_source(source: str) -> str:
    """What nvcc reads with the emulator in place of CUDA: kernels, and launchers that take CPU tensors."""
    source = source.replace("CUDART_INF_F", "__builtin_inff()").replace("CUDART_NAN_F", '__builtin_nanf("")')
    device, _, host = source.partition("#include <tvm/ffi/c_api.h>")
    device = device[device.index("#ifdef _WIN32") :]
    device = re.sub(r"#if.*?\n(?:.*\n)*?#endif[^\n]*\n", "", device, count=1)
    device = re.sub(
        r"__forceinline__ __device__ void (tvm_builtin_ptx_\w+)\(([^)]*)\) \{\n(.*?)\n\}\n",
        lambda m: _instruction(m[1], m[2], m[3]),
        device,
        flags=re.S,
    )
    device = re.sub(r'asm volatile\("mov.u32 %0, %%cluster_ctarank;"[^;]*;', "ctaid = emu::rank();", device)
    device = re.sub(
        r"extern __shared__ __align__\(\d+\) (\w+) (\w+)\[\];", r"\1* \2 = (\1*)emu::dynamic_shared();", device
    )
    number = iter(range(1 << 20))
    device = re.sub(
        r"__shared__ (?:alignas\((\d+)\) )?(\w+) (\w+)\[(\d+)\];",
        lambda m: (
            f"{m[2]}* {m[3]} = ({m[2]}*)emu::static_shared({next(number)}, sizeof({m[2]}) * {m[4]}, {m[1] or 16});"
        ),
        device,
    )
    if "__shared__" in device:
        at = device.index("__shared__")
        raise NotImplementedError(f"shared memory declared as: {device[at : at + 100]}")
    for name in ("<cuda.h>", "<cuda_runtime.h>"):
        host = re.sub(rf"#include [^\n]*{re.escape(name)}\n", "", host)
    host = host.replace(".device_type) == 2", ".device_type) == 1")
    end = "".join(f"#undef {n}\n" for n in ("threadIdx", "blockIdx", "blockDim", "gridDim"))
    return f'#include "emulator.h"\n{device}\n{end}#include <tvm/ffi/c_api.h>\n{host}'


def _instruction(name: str, parameters: str, text: str) -> str:
    assembly = re.search(r'"\s*([^"]+)"', text)
    assert assembly, text
    names = [re.split(r"[\s&*]+", p.strip())[-1] for p in parameters.split(",") if p.strip()]
    return f"INLINE void {name}({parameters}) {{ {body_of(assembly[1], names)} }}\n"


@cache
def _include() -> list[str]:
    """Where cuda_bf16.h is: headers that a host compiler takes as they are."""
    from vortex.codegen.build.toolkit import find_toolkit

    return [
        f"-I{p}"
        for p in (*find_toolkit().includes, Path(tvm_ffi.__file__).parent / "include", LAUNCH_HEADER.parent, HERE)
    ]


@cache
def _header() -> str:
    """Where ``emulator.h`` is compiled ahead, for the kernels' flags: half a second less for each."""
    return f"-I{_compile((HERE / 'emulator.h').read_text(), '/emulator.h.gch', *WATCH, '-xc++-header').parent}"


def _compile(text: str, suffix: str, *flags: str) -> Path:
    """An object file, kept by the hash of all that went into it."""
    key = "\0".join([text, (HERE / "emulator.h").read_text(), LAUNCH_HEADER.read_text(), *FLAGS, *flags])
    folder = Path(tempfile.gettempdir()) / f"vortex-emulation-{os.getuid()}"
    made = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}{suffix}"
    if not made.exists():
        made.parent.mkdir(exist_ok=True, parents=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            code, out = Path(scratch) / "k.cc", Path(scratch) / "out"
            code.write_text(text)
            command = ["g++", *FLAGS, *flags, *_include(), str(code), "-o", str(out)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[:4000]
            out.replace(made)
    return made


class Emulated:
    """Kernels by symbol, each with a runtime of its own."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        self._kernels = {symbol: _Kernel(source) for symbol, source in sources.items()}

    def call(self, name: str, *arguments: Any, seed: int = 0, residents: int = 1 << 30) -> None:
        """Launch a kernel on copies of the tensors in guarded memory; what it wrote comes back into them.

        Raises:
            RuntimeError: for a race, an access outside the tensors, a deadlock, a misaligned address.
        """
        kernel = self._kernels[name]
        kernel.control.emu_configure(seed, residents)
        kernel.control.emu_forget()
        kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        given = []
        for a in arguments:
            if not isinstance(a, torch.Tensor) or a.numel() == 0:
                given.append(a)
                continue
            if _span(a) * a.element_size() > WATCHED:
                given.append(a)
                continue
            copy, begin, size = _guarded(a, at_end=bool(seed & 1))
            kernel.control.emu_watch(begin, size)
            kept.append((a, copy))
            given.append(copy)
        getattr(kernel.module, name)(*given)
        for original, copy in kept:
            original.copy_(copy)


class _Kernel:
    def __init__(self, source: str) -> None:
        kernel = _compile(cpu_source(translation_unit(source)), ".o", "-c", *WATCH, _header())
        runtime = _compile((HERE / "emulator.cc").read_text(), ".o", "-c")
        tie = f"// {kernel} {runtime}\n"
        library = _compile(tie, ".so", "-shared", str(kernel), str(runtime), "-xc++")
        self.control = ctypes.CDLL(str(library))
        self.control.emu_configure.argtypes = [ctypes.c_uint64, ctypes.c_int]
        self.control.emu_watch.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self.module = tvm_ffi.load_module(str(library))


def _span(x: torch.Tensor) -> int:
    """How many elements lie between the first of ``x`` and its last, both included."""
    return 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))


def _guarded(x: torch.Tensor, *, at_end: bool) -> tuple[torch.Tensor, int, int]:
    """A copy of ``x``, strides too, that lies against a page without access; its address and bytes."""
    span = _span(x)
    size = span * x.element_size()
    pages = -(-size // PAGE)
    area = mmap.mmap(-1, (pages + 2) * PAGE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(area))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for edge in (base, base + (pages + 1) * PAGE):
        assert protect(edge, PAGE, 0) == 0
    offset = PAGE + ((pages * PAGE - size) // 16 * 16 if at_end else 0)
    storage = torch.frombuffer(area, dtype=x.dtype, count=span, offset=offset)
    source = torch.as_strided(x, (span,), (1,)) if x.is_contiguous() or x.storage_offset() >= 0 else x
    storage.copy_(source)
    return torch.as_strided(storage, x.shape, x.stride()), base + offset, size
