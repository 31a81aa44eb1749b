"""TensorIR functions to one CUDA library: TVM writes kernels and launchers as C++, nvcc compiles them.

A kernel is a translation unit of its own, so that two cores have two of them under way and one that did not change
comes from the cache. The library needs the driver and ``libtvm_ffi.so``, which is in the process; the CUDA runtime
is linked in, so that it is the same whatever torch was built with.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vortex.codegen.build.link import find_c_compiler
from vortex.codegen.build.resources import KernelResources, read_resources
from vortex.codegen.build.toolkit import Toolkit, find_toolkit
from vortex.errors import NO_COMPILER, TIR_INVALID, TOOL_FAILED, VortexError, writing
from vortex.install.cache import cache_root
from vortex.install.identity import Identity, digest

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc

LAUNCH_HEADER = Path(__file__).with_name("cuda_launch.h")
# no fast-math: kernels that may approximate say so instruction by instruction
FLAGS = ("-std=c++17", "-O3", "-w", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-Xptxas", "-v")
VERSION = 1
"""Of what is kept in the cache."""


@dataclass(frozen=True)
class CudaBuild:
    """What came out beside the library; keys are the kernels' names."""

    sources: dict[str, str]
    ptx: dict[str, str]
    cubins: dict[str, Path]
    """Device code of each kernel, in the cache: what cuobjdump reads."""
    resources: dict[str, KernelResources]
    lines: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """For each line of a source that of the TensorIR it comes from, from 1; 0 where none is known. Empty where the
    texts did not come from TensorIR just now.
    """

    @property
    def source(self) -> str:
        """All kernels as CUDA C++."""
        return "\n".join(self.sources.values())


def build_cuda(
    prim_funcs: Mapping[str, PrimFunc], arch: str, out: Path, told: Callable[[int, int], None] | None = None
) -> CudaBuild:
    """Compile ``prim_funcs`` for ``arch`` ("sm_90a", "sm_100a") into the library ``out``, each callable by its name.

    ``told`` hears how many of how many are compiled.

    Raises:
        VortexError: VX4003 without TVM or a C++ compiler, VX4004 when TVM refuses a function, VX4005 when a
            compiler fails, VX4007 without nvcc, VX7004 when the cache cannot be written and lacks a kernel.
    """
    find_toolkit()  # said before TVM works for seconds
    emitted = {name: emit_cuda_lines(name, f, arch) for name, f in prim_funcs.items()}
    built = build_sources({name: source for name, (source, _) in emitted.items()}, arch, out, told)
    return replace(built, lines={name: lines for name, (_, lines) in emitted.items()})


def build_sources(
    sources: Mapping[str, str], arch: str, out: Path, told: Callable[[int, int], None] | None = None
) -> CudaBuild:
    """Compile texts of :func:`emit_cuda`, edited or not, into the library ``out``; ``told`` and what is raised are as
    those of :func:`build_cuda`.
    """
    toolkit = find_toolkit()
    started = _started(toolkit, sources, arch)
    if told is not None:
        told(0, len(started))
    for done, _ in enumerate(as_completed(started.values()), 1):
        if told is not None:
            told(done, len(started))
    compiled = {name: _finished(name, folder) for name, folder in started.items()}
    _link(toolkit, [folder / "kernel.o" for folder in compiled.values()], out)
    return CudaBuild(
        dict(sources),
        {name: (folder / "kernel.ptx").read_text(encoding="utf-8") for name, folder in compiled.items()},
        {name: folder / "kernel.cubin" for name, folder in compiled.items()},
        {name: _resources(folder) for name, folder in compiled.items()},
    )


def start_resources(prim_funcs: Mapping[str, PrimFunc], arch: str) -> Callable[[], dict[str, KernelResources]]:
    """What kernels take of a GPU, by name: nvcc runs beside the caller until the result is called for.

    Raises:
        VortexError: as :func:`build_cuda`; what nvcc says is raised by the result.
    """
    toolkit = find_toolkit()
    started = _started(toolkit, {name: emit_cuda(name, f, arch) for name, f in prim_funcs.items()}, arch)
    return lambda: {name: _resources(_finished(name, folder)) for name, folder in started.items()}


def _started(toolkit: Toolkit, sources: Mapping[str, str], arch: str) -> dict[str, Future[Path]]:
    """The folder in the cache of each text, which nvcc is at."""
    pool = ThreadPoolExecutor(max(1, min(len(sources), os.cpu_count() or 1)))
    started = {name: pool.submit(_compile, toolkit, source, arch) for name, source in sources.items()}
    pool.shutdown(wait=False)
    return started


def _finished(name: str, folder: Future[Path]) -> Path:
    try:
        return folder.result()
    except VortexError as e:
        raise e.note(f"kernel.cu is the CUDA C++ of {name}") from None


def _resources(folder: Path) -> KernelResources:
    return KernelResources(**json.loads((folder / "resources.json").read_text(encoding="utf-8")))


def emit_cuda(name: str, f: PrimFunc, arch: str) -> str:
    """One function as CUDA C++, kernel and launcher."""
    return emit_cuda_lines(name, f, arch)[0]


def emit_cuda_lines(name: str, f: PrimFunc, arch: str) -> tuple[str, tuple[int, ...]]:
    """The same, and for each line that of the TensorIR it comes from, from 1; 0 where none is known."""
    try:
        import tvm
        from tvm.backend.cuda import export_cuda_host

        from vortex.codegen.build.tir_lines import PIPELINE, cuda_with_lines
    except ImportError:
        raise NO_COMPILER.at(what="apache-tvm", hint="e.g. apt install gcc") from None
    target = tvm.target.Target({"kind": "cuda", "arch": arch, "host": {"kind": "cuda_host"}})
    try:
        module = tvm.IRModule({name: f.with_attr("global_symbol", name)})
        marked = export_cuda_host(tvm.compile(module, target=target, tir_pipeline=PIPELINE).mod)
    except Exception as error:  # TVM raises what it likes
        raise TIR_INVALID.at(why=f"{name}: {str(error).strip()[-2000:]}") from error
    return cuda_with_lines(_several_in_one(marked))


def translation_unit(source: str) -> str:
    """What nvcc reads for the ``source`` of :func:`emit_cuda`: a launch header of our own instead of those that alone
    take seconds to compile. Lines keep their numbers.
    """
    text = re.sub(r"#include <tvm/ffi/(function|extra/cuda/device_guard)\.h>\n", "\n", source)
    return text.replace("#include <cuda.h>\n", f'#include "{LAUNCH_HEADER}"\n', 1)


def _several_in_one(source: str) -> str:
    """``source`` without the entry that every library of TVM has once, so that it links with others of its kind."""
    main = source.rfind("TVM_DLL int32_t __tvm_ffi_main(")
    start = source.rfind("#ifdef __cplusplus", 0, main) if main >= 0 else len(source)
    return source[:start].rstrip() + "\n"


def _compile(toolkit: Toolkit, source: str, arch: str) -> Path:
    """The folder in the cache with the object of ``source`` and what ptxas said of it."""
    flags = _flags(arch)
    identity = Identity(
        {
            "format": str(VERSION),
            "source": digest(source),
            "c_sources": digest(LAUNCH_HEADER.read_bytes()),
            "flags": " ".join(flags),
            "tools": f"nvcc {toolkit.version}, apache-tvm-ffi {_ffi_version()}",
        }
    )
    kept = cache_root() / "nvcc" / identity.key
    if not (kept / "resources.json").exists():
        with _scratch(kept) as folder:
            (folder / "kernel.cu").write_text(translation_unit(source), encoding="utf-8")
            said = _run(_command(toolkit, flags, folder / "kernel.cu", "-c", folder / "kernel.o"))
            next(folder.glob("kernel*.cubin")).rename(folder / "kernel.cubin")
            for file in folder.iterdir():
                if file.name not in ("kernel.cu", "kernel.o", "kernel.ptx", "kernel.cubin"):
                    file.unlink()
            identity.write(folder / "identity.json")
            (folder / "resources.json").write_text(
                json.dumps(asdict(read_resources(said, source, arch))), encoding="utf-8"
            )
    return kept


def compile_with_lines(source: str, arch: str, file: Path) -> None:
    """Compile a kernel from ``file`` with line tables; PTX and cubin are left beside it.

    Raises:
        VortexError: as :func:`build_cuda`.
    """
    file.write_text(translation_unit(source), encoding="utf-8")
    flags = [*_flags(arch), "-lineinfo"]
    _run(_command(find_toolkit(), flags, file, "-cubin", file.with_suffix(".cubin")))


def _flags(arch: str) -> list[str]:
    return [*FLAGS, "-gencode", f"arch=compute_{arch[3:]},code={arch}"]


def _command(toolkit: Toolkit, flags: list[str], file: Path, kind: str, out: Path) -> list[str]:
    """What makes ``out`` of a ``file``; intermediate files stay beside it."""
    kept = ["-I", str(_ffi_include()), "--keep", "--keep-dir", str(file.parent)]
    return [str(toolkit.nvcc), *flags, *kept, kind, str(file), "-o", str(out)]


@contextmanager
def _scratch(kept: Path) -> Iterator[Path]:
    """A folder that becomes ``kept`` whole; another process may have made it first."""
    with writing(kept.parent):
        kept.parent.mkdir(parents=True, exist_ok=True)
        scratch_folder = tempfile.TemporaryDirectory(prefix=".making-", dir=kept.parent)
    with scratch_folder as scratch, writing(kept.parent):
        made = Path(scratch) / "entry"
        made.mkdir()
        yield made
        try:
            made.rename(kept)
        except OSError:
            if not kept.is_dir():
                raise


def _link(toolkit: Toolkit, objects: list[Path], out: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".link-", dir=out.parent) as scratch:
        made = Path(scratch) / out.name
        # every object has TVM's preamble, whose host functions are the same and not inline: any one will do
        command = [*find_c_compiler(), "-shared", *map(str, objects), "-Wl,-z,muldefs,--exclude-libs,ALL"]
        command += [f"-L{p}" for p in toolkit.libraries]
        _run([*command, "-lcudart_static", "-lstdc++", "-lpthread", "-ldl", "-lrt", "-o", str(made)])
        os.replace(made, out)


def _run(command: list[str]) -> str:
    """What the tool said; VX4005 when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    said = (done.stderr + done.stdout).strip()
    if done.returncode:
        why = "\n".join([line for line in said.splitlines() if "ptxas info" not in line][:20])
        raise TOOL_FAILED.at(
            tool=Path(command[0]).name, why=why or f"exit code {done.returncode}", command=shlex.join(command)
        )
    return said


def _ffi_include() -> Path:
    import tvm_ffi

    return Path(tvm_ffi.__file__).parent / "include"


def _ffi_version() -> str:
    import tvm_ffi

    return str(tvm_ffi.__version__)
