"""Compiles ahead the CUDA extensions of AMASS and LOCKS, which their packages compile when first used.

There is no GPU machine's torch here, so its headers are given: those in the wheel of torch 2.11.0 for CUDA 13, and
those of Python 3.12. Nothing of either is needed when the extensions run.

    python -m pip download --no-deps -d W --python-version 3.12 --platform manylinux_2_28_x86_64 \\
        --only-binary=:all: torch==2.11.0 amass-kv==0.1.1 locks-kv==0.1.4
    unzip -q W/torch-*.whl 'torch/include/*' -d W && ln -s PREFIX/include/python3.12 W/python
    python bench/stage_mass_peers.py --wheels W --torch W/torch/include --python W/python --out .gpu/mass_peers
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

sys.path.insert(0, str(Path(__file__).parent))

from baselines.peer_packages import WHEELS, digest, unpacked

TENSOR_CORES = {"RKI4_MMA": "1", "RKI4_MMA_AOS": "1", "RKI4_MMA_ALLG": "1"}
"""The switches by which LOCKS scores on tensor cores where four query heads share a KV head; off unless set."""
RUNS = {"amass": {}, "locks": {}, "locks tensor cores": TENSOR_CORES}

HEADERS = {
    "ATen/cuda/CUDAContext.h": """#pragma once
#include <c10/cuda/CUDAStream.h>
namespace at::cuda { using c10::cuda::CUDAStream; using c10::cuda::getCurrentCUDAStream; }
""",
    "torch/extension.h": """#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>
#include <torch/csrc/utils/pybind.h>
namespace at { constexpr auto kUInt8 = kByte; }
namespace torch { using namespace at; }
""",
}
"""What the extensions use of two headers of torch; the whole ones take nvcc minutes."""
LIBRARIES = ["c10", "c10_cuda", "torch", "torch_cpu", "torch_cuda", "torch_python"]
MACROS = [
    "-DTORCH_API_INCLUDE_EXTENSION_H", "-D__CUDA_NO_HALF_OPERATORS__", "-D__CUDA_NO_HALF_CONVERSIONS__",
    "-D__CUDA_NO_BFLOAT16_CONVERSIONS__", "-D__CUDA_NO_HALF2_OPERATORS__",
]  # fmt: skip
"""As load_inline has them."""
HEAD = "#include <cuda.h>\n#include <cuda_runtime.h>\n"


def asked(package: str) -> list[tuple[str, str, list[str]]]:
    """Name, source and flags of each extension that a run of ``package`` loads; in a process of its own."""
    from torch.utils import cpp_extension

    found: list[tuple[str, str, list[str]]] = []

    def note(name: str, *, cuda_sources: str, extra_cuda_cflags: list[str], **_: Any) -> MagicMock:
        found.append((name, cuda_sources, list(extra_cuda_cflags)))
        return MagicMock()

    cpp_extension.load_inline = note
    for name in ("triton", "triton.language", "triton.language.extra", "triton.language.extra.cuda"):
        sys.modules[name] = MagicMock()
    for load in loaders(package):
        load()
    return found


def loaders(package: str) -> list[Callable[[], object]]:
    """What loads the extensions."""
    if package == "amass":
        from amass.attention import decode_cuda
        from amass.selection import build, quad_score_cuda, score_cuda, select_cuda

        return [
            lambda: quad_score_cuda._get_i8w(v_bits=4, clse=True),
            lambda: quad_score_cuda._get_i8w(v_bits=4),
            quad_score_cuda._get_nrm, score_cuda._get, select_cuda._get, decode_cuda._get, build._jac_mod,
        ]  # fmt: skip
    os.environ["LOCKS_CUDA_ARCH"] = "sm_90a"
    from locks.selection import rki4_score_cuda, select_cuda

    return [rki4_score_cuda._get, select_cuda._get]


def stubs(into: Path) -> None:
    """Empty libraries of torch's names, so that an extension asks for them, and the short headers."""
    for name, text in HEADERS.items():
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        (into / name).write_text(text)
    for name in LIBRARIES:
        out = ["-o", str(into / f"lib{name}.so")]
        subprocess.run(["g++", "-shared", "-xc++", "/dev/null", f"-Wl,-soname,lib{name}.so", *out], check=True)


def build(name: str, source: str, flags: list[str], given: argparse.Namespace, work: Path) -> None:
    """Compile one extension into the folder that it is found in."""
    folder = given.out / digest(source, flags)
    if (folder / f"{name}.so").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    code = work / f"{name}.cu"
    code.write_text(HEAD + source)
    includes = [work, given.torch, given.torch / "torch/csrc/api/include", given.python]
    command = [
        "nvcc", "-shared", "-std=c++17", "--cudart=shared", "-Xcompiler=-fPIC", "--expt-relaxed-constexpr",
        f"-DTORCH_EXTENSION_NAME={name}", *MACROS, *flags, *(f"-I{path}" for path in includes), str(code), f"-L{work}",
        "-Xlinker=--no-as-needed,-s", *(f"-l{lib}" for lib in LIBRARIES), "-o", str(folder / f"{name}.so"),
    ]  # fmt: skip
    subprocess.run(command, check=True)
    print(f"{name}: {(folder / f'{name}.so').stat().st_size >> 10} KiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, required=True)
    parser.add_argument("--torch", type=Path, required=True, help="torch/include of the wheel of the machine's torch")
    parser.add_argument("--python", type=Path, required=True, help="the folder of the machine's Python.h")
    parser.add_argument("--out", type=Path, default=Path(".gpu/mass_peers"))
    parser.add_argument("--run", choices=RUNS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run is None:
        given.out.mkdir(parents=True, exist_ok=True)
        for wheel in WHEELS.values():
            shutil.copy(given.wheels / wheel, given.out)
        for name, switches in RUNS.items():
            subprocess.run([sys.executable, *sys.argv, "--run", name], check=True, env=os.environ | switches)
        return
    package = given.run.split()[0]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        unpacked(package, given.wheels, work / "site")
        stubs(work)
        for extension in asked(package):
            build(*extension, given, work)


if __name__ == "__main__":
    main()
