"""Compiles the FlashInfer modules that the baselines call, for sm_90a and without a GPU, into one archive to carry.

FlashInfer 0.7.4 is a peer to measure against, no part of the project: it gets a venv of its own, and what this builds
goes to a folder outside the repository (25 minutes on one core). CUDA_HOME is where ``bin/nvcc`` is.

    python3 -m venv peer && peer/bin/pip install --no-deps flashinfer-python==0.7.4 apache-tvm-ffi==0.1.14.post1
    peer/bin/pip install torch numpy requests tqdm nvidia-ml-py jinja2 packaging filelock ninja typing-extensions \\
      click tabulate einops
    pip download --no-deps nvidia-curand -d .         # its headers alone: unzip nvidia_curand*.whl '*/include/*'
    export CUDA_HOME=/usr/local/cuda PATH=$PWD/peer/bin:$PATH      # ninja is there
    nice -n 19 python bench/flashinfer_prebuild.py --curand nvidia/cu13/include --out DIR

It may be called again: what is built stays. ``DIR/flashinfer.txz`` (under 30 MB) is unpacked on the GPU machine into
a folder of its PYTHONPATH, where torch and the apache-tvm-ffi wheel are; FLASHINFER_DISABLE_JIT=1 keeps it from
compiling there (``baselines/flashinfer_peer.py`` sets it).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PAGES, GROUPS = (16, 32, 64), (4, 2, 6)


def environment(out: Path, curand: Path, jobs: int) -> None:
    """What flashinfer reads when imported: target, where it builds, what it links against."""
    stub = out / "stub"
    stub.mkdir(parents=True, exist_ok=True)
    nvcc = shutil.which("nvcc")
    if nvcc:
        os.environ.setdefault("CUDA_HOME", str(Path(nvcc).resolve().parents[1]))
    home = Path(os.environ["CUDA_HOME"])
    for runtime in home.glob("lib/libcudart.so.*"):  # NVIDIA's wheels have it by this name alone
        (stub / "libcudart.so").unlink(missing_ok=True)
        (stub / "libcudart.so").symlink_to(runtime)
    if not (stub / "libcuda.so").exists():  # the driver's library, which is there only beside a GPU
        made = ["cc", "-shared", "-x", "c", "-", "-o", str(stub / "libcuda.so"), "-Wl,-soname,libcuda.so.1"]
        subprocess.run(made, input="", text=True, check=True)
    os.environ["FLASHINFER_CUDA_ARCH_LIST"] = "9.0a"
    os.environ["FLASHINFER_WORKSPACE_BASE"] = str(out / "work")
    os.environ["FLASHINFER_EXTRA_LDFLAGS"] = f"-L{home}/lib -L{stub}"
    os.environ["FLASHINFER_EXTRA_CUDAFLAGS"] = f"-isystem {curand}"
    os.environ["MAX_JOBS"] = str(jobs)


def attention() -> dict[str, Callable[[], Any]]:
    """Decoding and prompts with a group of heads for each KV head; head_dim 128 and bf16."""
    import torch
    from flashinfer.jit.attention import gen_batch_decode_module, gen_batch_prefill_module
    from flashinfer.jit.attention.modules import _gen_batch_prefill_primary_module as primary_module

    b, i32 = torch.bfloat16, torch.int32
    return {
        "decode": lambda: gen_batch_decode_module(b, b, b, i32, 128, 128, 0, False, False),
        "prefill_fa2": lambda: primary_module("fa2", b, b, b, i32, 128, 128, 0, False, False, False),
        "prefill_fa3": lambda: gen_batch_prefill_module("fa3", b, b, b, i32, 128, 128, 0, False, False, False),
    }


def specs() -> dict[str, Callable[[], Any]]:
    """By a short name, the most needed first; head_dim 128 and bf16, MLA 512 + 64."""
    import torch
    from flashinfer.jit.attention import gen_batch_mla_module
    from flashinfer.jit.topk import gen_topk_module
    from flashinfer.jit.xqa import gen_xqa_module

    b, i32, made = torch.bfloat16, torch.int32, attention()
    found = {
        "decode": made["decode"],
        "xqa_p16_g4": lambda: gen_xqa_module(b, b, 16, 128, 4, False, b),
        "prefill_fa2": made["prefill_fa2"],
        "topk": gen_topk_module,
    }
    for group in GROUPS:
        for page in PAGES:
            found[f"xqa_p{page}_g{group}"] = lambda p=page, g=group: gen_xqa_module(b, b, p, 128, g, False, b)
    found["prefill_fa3"] = made["prefill_fa3"]
    for backend in ("fa2", "fa3"):
        found[f"mla_{backend}"] = lambda k=backend: gen_batch_mla_module(k, b, b, b, i32, 512, 64, False)
    return found


def build(specs: dict[str, Callable[[], Any]]) -> list[tuple[str, Path]]:
    """Of each of ``specs`` its name and library; of those that fail, the end of what the compiler said."""
    built: list[tuple[str, Path]] = []
    for name, make in specs.items():
        start, spec = time.time(), make()
        try:
            spec.build(verbose=False)
        except RuntimeError as error:
            print(f"{name}: {str(error)[-2000:]}", file=sys.stderr)
            continue
        library = Path(spec.jit_library_path)
        print(f"{name}: {spec.name}, {time.time() - start:.0f} s, {library.stat().st_size >> 10} KiB", flush=True)
        built.append((spec.name, library))
    return built


def pack(out: Path, built: list[tuple[str, Path]]) -> Path:
    """``out/site``: the package's Python, the sources its generators read, and the modules where it looks before it
    compiles; and its tar.
    """
    import click
    import einops
    import flashinfer
    import pynvml
    import tabulate

    site, package = out / "site", Path(flashinfer.__file__).parent
    shutil.rmtree(site, ignore_errors=True)
    shutil.copytree(package, site / "flashinfer", ignore=shutil.ignore_patterns("__pycache__", "data", "*.so"))
    sources = site / "flashinfer" / "data" / "csrc"
    sources.mkdir(parents=True)
    for file in (package / "data" / "csrc").iterdir():
        if file.is_file():
            shutil.copy(file, sources)
    for module in (pynvml, tabulate, click, einops):
        file = Path(str(module.__file__))
        if file.name == "__init__.py":
            shutil.copytree(file.parent, site / module.__name__, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(file, site)
    for name, library in built:
        folder = site / "flashinfer" / "data" / "aot" / name
        folder.mkdir(parents=True)
        shutil.copy(library, folder / f"{name}.so")
    return Path(shutil.make_archive(str(out / "flashinfer"), "xztar", site)).rename(out / "flashinfer.txz")


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--out", type=Path, required=True, help="folder outside the repository")
    args.add_argument("--curand", type=Path, required=True, help="folder that holds curand.h")
    args.add_argument("--jobs", type=int, default=1)
    args.add_argument("only", nargs="*", help="some modules alone, by short name")
    given = args.parse_args()
    out = given.out.resolve()
    environment(out, given.curand.resolve(), given.jobs)
    built = build({name: make for name, make in specs().items() if not given.only or name in given.only})
    made = pack(out, built)
    print(f"{len(built)} modules, {made.stat().st_size / 1e6:.1f} MB in {made}")


if __name__ == "__main__":
    main()
