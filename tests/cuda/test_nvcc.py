"""Finding nvcc, building with it, and what is said of a kernel's resources."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.cuda.attend_case import kernel
from vortex.codegen.build import nvcc, toolkit
from vortex.codegen.build.nvcc import build_cuda
from vortex.codegen.build.resources import KernelResources, read_resources
from vortex.codegen.build.toolkit import find_toolkit
from vortex.errors import VortexError
from vortex.install.identity import Identity
from vortex.targets.target import STAGES, Target


def test_no_nvcc_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(toolkit, "_wheel_folders", lambda _: iter(()))
    with pytest.raises(VortexError, match="VX4007") as found:
        find_toolkit()
    assert f"$CUDA_HOME has no {tmp_path}/none/bin/nvcc" in str(found.value)
    assert "pip install 'vortex[cuda]'" in str(found.value)


def fake_toolkit(root: Path, release: str) -> Path:
    """A folder that looks like an installation; its nvcc answers two questions."""
    for file in ("include/cuda_bf16.h", "lib/libcudart_static.a"):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    script = root / "bin" / "nvcc"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\ncase $1 in --version) echo "release {release}, V{release}.9";; esac\n')
    script.chmod(0o755)
    return script


def test_wheels_are_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_HOME", "")
    monkeypatch.setenv("PATH", "/bin")
    script = fake_toolkit(tmp_path / "cu13", "13.0")
    monkeypatch.setattr(toolkit, "_wheel_folders", lambda _: iter([script.parent.parent]))
    found = find_toolkit()
    assert (found.nvcc, found.version) == (script, "13.0.9")
    assert found.includes == (tmp_path / "cu13" / "include",)


def test_an_old_nvcc_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_toolkit(tmp_path / "old", "12.4")
    new = fake_toolkit(tmp_path / "new", "12.8")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "old"))
    monkeypatch.setenv("PATH", f"{new.parent}{os.pathsep}/bin")
    assert find_toolkit().nvcc == new


def test_build_and_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = kernel(16, 64, 4)
    functions = {made.symbol: made.function}
    first = build_cuda(functions, "sm_90a", tmp_path / "a.so")
    resources = first.resources[made.symbol]
    assert (resources.spills, resources.threads, resources.dynamic_shared) == (0, 128, 4 * 3 * 16 * 128 * 2)
    assert 64 < resources.registers < 168
    assert ".target sm_90a" in first.ptx[made.symbol] and "mma.sync" in first.ptx[made.symbol]

    def never(command: list[str]) -> str:
        assert "nvcc" not in Path(command[0]).name, "compiled what is in the cache"
        return run(command)

    run = nvcc._run
    monkeypatch.setattr(nvcc, "_run", never)
    again = build_cuda(functions, "sm_90a", tmp_path / "b.so")
    assert again.resources == first.resources
    assert (tmp_path / "b.so").stat().st_size > 10_000
    [entry] = (tmp_path / "cache" / "vortex" / "nvcc").iterdir()
    identity = Identity.read(entry / "identity.json")
    assert identity is not None and identity.key == entry.name
    assert identity.parts.keys() == {"format", "source", "c_sources", "flags", "tools"}


def test_nvcc_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(VortexError, match="VX4005") as found:
        nvcc._compile(find_toolkit(), "int main( {", "sm_90a")
    assert "error: expected" in str(found.value)
    assert not list((tmp_path / "vortex" / "nvcc").iterdir())


def test_occupancy() -> None:
    made = KernelResources("sm_90a", 139, 0, 0, 64, 98304, 128)
    assert (made.ctas, made.bound_by, made.occupancy) == (2, "shared memory", 0.125)
    made = KernelResources("sm_90a", 139, 0, 0, 64, 32768, 128)
    assert (made.ctas, made.bound_by) == (3, "registers")
    made = KernelResources("sm_90a", 16, 0, 0, 0, 0, 1024)
    assert (made.ctas, made.bound_by, made.occupancy) == (2, "threads", 1.0)
    assert KernelResources("sm_100a", 16, 0, 0, 0, 0, 32).ctas == 32


@pytest.mark.parametrize(
    ("schedule", "spills", "limiter"),
    [
        ({}, 0, "memory"),
        ({"bytes_in_flight": 4 << 10}, 0, "latency"),
        ({"flops_per_byte": 400}, 0, "compute"),
        ({"scalar_per_byte": 26}, 0, "scalar arithmetic"),
        ({}, 5000, "spills"),
    ],
)
def test_predicted_limiter(schedule: dict[str, float], spills: int, limiter: str) -> None:
    found = KernelResources("sm_90a", 139, spills, 0, 64, 98304, 128).report({"bytes_in_flight": 64 << 10, **schedule})
    assert found["limiter"] == limiter
    assert (found["limiter_share"] == found["memory_share"]) is (limiter == "memory")


def test_the_mass_rule_as_it_once_compiled() -> None:
    """Scalar contraction, 236 bytes spilled, one CTA an SM: it ran at 5 % of a copy, and read "57 %, latency"."""
    per_page = 2048 * (12 + 4 * 3) + 600
    found = KernelResources("sm_90a", 128, 236, 0, 0, 140672, 256).report(
        {"bytes_in_flight": 16384, "scalar_per_byte": per_page / 2048}
    )
    assert (found["ctas"], found["limiter"]) == (1, "scalar arithmetic")
    assert float(found["memory_share"]) < 0.12 < 0.7 < float(found["limiter_share"])


def test_what_does_not_say_what_is_in_flight_has_no_limiter() -> None:
    assert "limiter" not in KernelResources("sm_90a", 139, 0, 0, 64, 98304, 128).report({})


def test_ptxas_report() -> None:
    said = """ptxas info    : Compiling entry function 'k' for 'sm_90a'
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 139 registers, used 1 barriers, 128 bytes smem"""
    source = "__launch_bounds__(256, 1) k(); auto a_5 = (int64_t)65536;"
    source += "f(k, cudaFuncAttributeMaxDynamicSharedMemorySize, a_5)"
    found = read_resources(said, source, "sm_90a")
    assert found == KernelResources("sm_90a", 139, 20, 16, 128, 65536, 256)


def test_a_target_that_ends_earlier_says_so() -> None:
    with pytest.raises(VortexError, match="target sm_x has no stage 'lib' yet") as found:
        Target("sm_x", "cuda", "sm_x", "", STAGES[:2]).require("lib")
    assert found.value.code == "VX4002"


ARCHES, GROUPS = ("sm_90a", "sm_100a"), (1, 4, 5, 6, 8, 12, 16)
SHIPPED = [
    (page, dim, GROUPS[(4 * i + j) % 7], ARCHES[(i + j) % 2])
    for i, page in enumerate((8, 16, 32, 64, 128))
    for j, dim in enumerate((64, 96, 128, 256))
]


@pytest.mark.full
@pytest.mark.parametrize(("page", "dim", "group", "arch"), SHIPPED)
def test_attend_does_not_spill(page: int, dim: int, group: int, arch: str, tmp_path: Path) -> None:
    made = kernel(page, dim, group)
    built = build_cuda({made.symbol: made.function}, arch, tmp_path / "k.so")
    assert built.resources[made.symbol].spills == 0


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it holds is used; what it lacks is an error that names it, and leaves nothing behind."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    toolkit, source = find_toolkit(), 'extern "C" __global__ void k() {}\n'
    kept = nvcc._compile(toolkit, source, "sm_90a")

    def full(path: Path, *_: object, **__: object) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as m:
        m.setattr(Path, "write_text", full)
        assert nvcc._compile(toolkit, source, "sm_90a") == kept
        with pytest.raises(VortexError, match=r"VX7004.*cache/vortex/nvcc.*No space left"):
            nvcc._compile(toolkit, source + "\n", "sm_90a")
    assert list(kept.parent.iterdir()) == [kept]
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(VortexError, match=r"VX7004.*Not a directory"):
        nvcc._compile(toolkit, source, "sm_90a")
