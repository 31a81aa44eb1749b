"""CPU libraries: building, linking, threads, scratch memory, and life without TVM."""

from __future__ import annotations

import ctypes
import gc
import shutil
import threading
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("tvm")

import tvm_ffi

from tests.runtime import kernels
from tests.runtime.thin import OLDEST, make_environment, run_in
from vortex.codegen.build.link import HOST_THREADS, link_cpu
from vortex.codegen.build.llvm import build_library, detect_mcpu
from vortex.errors import VortexError
from vortex.targets import cpu as cpu_features

FUNCTIONS = {name: getattr(kernels, name) for name in ("squares", "positive", "comparisons")}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("library") / "lib.cpu.so"
    text = build_library(FUNCTIONS, detect_mcpu(), out, dump_llvm=True)
    assert "define dllexport i32 @__tvm_ffi_squares" in text
    assert not any(flag in text for flag in (" fast ", " nnan ", " reassoc ", " contract "))
    return out


@pytest.fixture
def library(path: Path) -> Any:
    return tvm_ffi.load_module(str(path))


def check_squares(library: Any, rows: int = 37) -> None:
    a, o = torch.randn(rows, 4096), torch.full((rows,), float("nan"))
    library["squares"](a, o)
    torch.testing.assert_close(o, a.square().sum(1), rtol=1e-4, atol=0)


@pytest.mark.parametrize("threads", [0, 1, 2, 7])
def test_threads_and_scratch(library: Any, threads: int) -> None:
    old = library["vortex_set_num_threads"](threads)
    try:
        for rows in (0, 1, 5, 64):
            check_squares(library, rows)
    finally:
        assert library["vortex_set_num_threads"](old) == threads


def test_a_bad_number_of_threads(library: Any) -> None:
    for bad in (-1, 5000, 1.5, "2", None):
        with pytest.raises(ValueError, match="integer from 0 to 4096"):
            library["vortex_set_num_threads"](bad)


def test_an_error_in_a_task_reaches_the_caller(library: Any) -> None:
    a = torch.ones(1000)
    a[777] = -1
    for _ in range(20):
        with pytest.raises(Exception, match="a number is negative"):
            library["positive"](a.abs() * a)
    good = torch.ones(1000)
    library["positive"](good)
    assert good.eq(2).all()
    check_squares(library)


def test_python_threads_may_call_at_once_and_end(library: Any) -> None:
    failures = []

    def work() -> None:
        try:
            for _ in range(5):
                check_squares(library)
        except AssertionError as error:
            failures.append(error)

    for _ in range(3):
        workers = [threading.Thread(target=work) for _ in range(4)]
        for w in workers:
            w.start()
        for w in workers:
            w.join()
    assert not failures


def test_libraries_come_and_go(path: Path, tmp_path: Path) -> None:
    libraries = []
    for i in range(3):
        twin = tmp_path / f"lib{i}.so"
        shutil.copy(path, twin)
        libraries.append(tvm_ffi.load_module(str(twin)))
    parked = threading.Event()

    def work() -> None:
        for one in libraries:
            check_squares(one)
        libraries.clear()
        gc.collect()
        parked.set()

    worker = threading.Thread(target=work)  # ends after the libraries it has scratch in are gone
    worker.start()
    worker.join()
    assert parked.is_set()
    check_squares(tvm_ffi.load_module(str(path)))


def test_nobody_can_replace_the_threads(path: Path) -> None:
    """TVM itself is loaded in this process and would fill these in, could the loader find them."""
    loaded = ctypes.CDLL(str(path))
    assert hasattr(loaded, "__tvm_ffi_squares")
    for name in ("ParallelLaunch", "AllocWorkspace", "FreeWorkspace"):
        assert not hasattr(loaded, f"__TVMBackend{name}")


def test_same_input_same_bytes(path: Path, tmp_path: Path) -> None:
    build_library(FUNCTIONS, detect_mcpu(), tmp_path / "again.so")
    assert (tmp_path / "again.so").read_bytes() == path.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["again.so"]


def test_nan_as_the_docstring_of_llvm_says(library: Any) -> None:
    nan, inf = float("nan"), float("inf")
    values = torch.tensor([nan, 1, -0.0, 0, inf, -inf, -nan, 2])
    a, b = (x.reshape(-1).contiguous() for x in torch.meshgrid(values, values, indexing="ij"))
    o = torch.empty(5, a.numel())
    library["comparisons"](a, b, o)
    for row, want in ((0, torch.where(a > b, a, b)), (1, (a < b).float()), (2, a.isnan().float())):
        torch.testing.assert_close(o[row], want, rtol=0, atol=0, equal_nan=True)
    assert o[3].eq(0).all(), "x != x is kept now: say so in vortex/codegen/llvm.py"
    assert not torch.equal(o[4].isnan(), torch.maximum(a, b).isnan())


PROGRAM = """
import sys, torch, tvm_ffi
from importlib.util import find_spec
assert find_spec("tvm") is None
library = tvm_ffi.load_module(sys.argv[1])
a, o = torch.randn(37, 4096), torch.empty(37)
library["squares"](a, o)
torch.testing.assert_close(o, a.square().sum(1), rtol=1e-4, atol=0)
try:
    library["positive"](-a[0])
    raise SystemExit("no error")
except Exception as error:
    assert "a number is negative" in str(error), error
print(tvm_ffi.__version__, library["vortex_set_num_threads"](0))
with open("/proc/self/maps") as maps:
    print(len({line.split()[-1] for line in maps if "gomp" in line}))
"""


@pytest.mark.parametrize("ffi", [OLDEST, version("apache-tvm-ffi")])
def test_runs_without_tvm(path: Path, ffi: str, tmp_path: Path) -> None:
    environment = make_environment(ffi, tmp_path)
    said, runtimes = run_in(environment, PROGRAM, path, VORTEX_NUM_THREADS="3").splitlines()
    assert said == f"{ffi} 3"
    assert int(runtimes) == 1, "torch and the library have one pool of threads"


def refused(call: Any) -> VortexError:
    with pytest.raises(VortexError) as caught:
        call()
    return caught.value


def test_link_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken, out = tmp_path / "broken.o", tmp_path / "out.so"
    broken.write_bytes(b"no object")
    out.write_bytes(b"old")
    error = refused(lambda: link_cpu([broken], out))
    assert error.code == "VX4005"
    assert "broken.o" in error.render()
    assert "-shared" in error.render()
    assert out.read_bytes() == b"old"
    assert {p.name for p in tmp_path.iterdir()} == {"broken.o", "out.so"}
    monkeypatch.setenv("CC", "no-such-compiler -m64")
    assert "no-such-compiler" in refused(lambda: link_cpu([], out)).render()
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert refused(lambda: link_cpu([], out)).code == "VX4003"
    assert HOST_THREADS.is_file()


def test_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = cpu_features.X86_LEVELS
    monkeypatch.setattr(cpu_features, "machine", lambda: "x86_64")
    for level, flags in levels.items():
        monkeypatch.setattr(cpu_features, "cpu_flags", lambda flags=flags: frozenset(flags))
        assert cpu_features.detect_mcpu() == ("x86-64-v3" if level in cpu_features.UNSAFE else level)
        assert cpu_features.missing_features(level, "x86_64", flags) == ()
    assert "avx512f" in cpu_features.missing_features("x86-64-v4")
    assert cpu_features.missing_features("generic", "aarch64") == ("aarch64",)
    assert cpu_features.missing_features("x86-64", "x86_64", ("amx",)) == ("amx",)
    monkeypatch.setattr(cpu_features, "machine", lambda: "aarch64")
    assert cpu_features.detect_mcpu() == "generic"
    assert cpu_features.missing_features("x86-64-v3", "x86_64") == ("x86_64",)
    assert cpu_features.missing_features("generic", "aarch64") == ()
