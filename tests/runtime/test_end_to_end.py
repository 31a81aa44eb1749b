"""A compiled artifact, loaded and decoded: against the oracle, and where there is no compiler."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("tvm")

from tests.runtime.thin import OLDEST, make_environment, run_in
from vortex.artifact.folder import read_manifest, write_artifact
from vortex.budget import Budget
from vortex.driver import compile_flow
from vortex.errors import VortexError
from vortex.flow import oracle
from vortex.flow.flow import find_flow
from vortex.runtime.decoder import Decoder, load
from vortex.runtime.paged_cache import PagedCache
from vortex.spec import Spec
from vortex.targets import cpu as cpu_features

SPEC = Spec(page_size=8, head_dim=64, group=2)
HKV = 2
BUDGET = Budget(3, "1/4")
I32 = torch.int32


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = compile_flow("quest", spec=SPEC, out=tmp_path_factory.mktemp("artifact") / "quest.vxa")
    assert made.artifact is not None
    return made.artifact


def poisoned(decoder: Decoder, pages: int, layout: Any) -> PagedCache:
    cache = PagedCache(pages, HKV, decoder.spec, decoder.fields, layout=layout)
    for pool in (cache.k[0], cache.v[0], *cache.fields[0].values()):
        pool.fill_(float("nan"))
    decoder.bind(0, cache.k[0], cache.v[0], cache.fields[0])
    return cache


@pytest.mark.parametrize("layout", ["HND", "NHD"])
def test_agrees_with_the_oracle(artifact: Path, layout: str) -> None:
    torch.manual_seed(0)
    flow = find_flow("quest")
    decoder = load(artifact, budget=BUDGET, debug=True)
    cache = poisoned(decoder, 80, layout)
    said: dict[int, list[torch.Tensor]] = {}
    for new in ({0: 1, 1: 300}, {0: 1, 1: 1, 2: 63}, {2: 1, 0: 90}, {1: 20, 3: 9, 2: 1}, {0: 1, 3: 1, 2: 1}):
        if 3 in new and 1 in said and 1 not in new:
            cache.free(1)
            del said[1]
        for r in new.keys() - said.keys():
            cache.add(r)
            said[r] = []
        requests = list(new)
        loc, offsets = cache.extend_batch(requests, list(new.values()))
        kv = torch.randint(-3, 4, (len(loc), 2, HKV, SPEC.head_dim)).bfloat16()
        k, v = kv.transpose(0, 1).contiguous()
        decoder.plan(cache.lengths(requests), cache.page_table(requests))
        decoder.append(0, k, v, loc, offsets)
        q = torch.randint(-3, 4, (len(requests), HKV * 2, SPEC.head_dim)).bfloat16()
        out, lse = torch.full_like(q, float("nan")), torch.full(q.shape[:2], float("nan"))
        decoder.decode(0, q, out=out, lse=lse)
        assert decoder.pages is not None
        assert decoder.counts is not None
        for row, r in enumerate(requests):
            said[r] += kv[int(offsets[row]) : int(offsets[row + 1])].unbind(0)
            tokens = torch.stack(said[r])
            want = oracle.step(flow, SPEC, q[row], tokens[:, 0], tokens[:, 1], BUDGET)
            for h in range(HKV):
                assert decoder.pages[row, h, : int(decoder.counts[row, h])].tolist() == want.pages[h]
            torch.testing.assert_close(out[row].float(), want.out, rtol=2e-2, atol=1e-2)
            torch.testing.assert_close(lse[row], want.lse, rtol=1e-4, atol=1e-4)


def test_pools_in_fp8(tmp_path: Path) -> None:
    """Bytes under the name of uint8, with scales, step by step, against the oracle."""
    torch.manual_seed(3)
    spec, flow, scales = replace(SPEC, kv_dtype="fp8_e4m3"), find_flow("quest"), (0.5, 0.25)
    made = compile_flow("quest", spec=spec, out=tmp_path / "quest8.vxa")
    assert made.artifact is not None
    decoder = load(made.artifact, budget=BUDGET, debug=True)
    assert decoder.spec == spec
    cache = PagedCache(80, HKV, decoder.spec, decoder.fields, layout="NHD")
    assert cache.k[0].dtype == torch.float8_e4m3fn
    decoder.bind(
        0, *(pool.view(torch.uint8).fill_(0x7F) for pool in (cache.k[0], cache.v[0])), cache.fields[0], *scales
    )
    said: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    for r in said:
        cache.add(r)
    for new in ({0: 203, 1: 9}, {0: 1, 1: 1}, {1: 70, 0: 5}):
        loc, offsets = cache.extend_batch(list(new), list(new.values()))
        kv = torch.randint(-3, 4, (len(loc), 2, HKV, SPEC.head_dim)).bfloat16()
        kv[:, 1] += torch.rand_like(kv[:, 1])  # values need not be exact
        decoder.plan(cache.lengths(list(new)), cache.page_table(list(new)))
        decoder.append(0, *kv.transpose(0, 1).contiguous(), loc, offsets)
        q = torch.randint(-3, 4, (len(new), HKV * 2, SPEC.head_dim)).bfloat16()
        out, lse = torch.full_like(q, float("nan")), torch.full(q.shape[:2], float("nan"))
        decoder.decode(0, q, out=out, lse=lse)
        assert decoder.pages is not None
        assert decoder.counts is not None
        for row, r in enumerate(new):
            said[r] += kv[int(offsets[row]) : int(offsets[row + 1])].unbind(0)
            k, v = torch.stack(said[r]).unbind(1)
            want = oracle.step(flow, spec, q[row], k, v, BUDGET, k_scale=scales[0], v_scale=scales[1])
            for h in range(HKV):
                assert decoder.pages[row, h, : int(decoder.counts[row, h])].tolist() == want.pages[h]
            torch.testing.assert_close(out[row].float(), want.out, rtol=2e-2, atol=1e-2)
            torch.testing.assert_close(lse[row], want.lse, rtol=1e-4, atol=1e-4)


PROGRAM = """
import sys, torch
from importlib.util import find_spec
from pathlib import Path
assert find_spec("tvm") is None
import tvm_ffi
from vortex.budget import Budget
from vortex.runtime.decoder import load
from vortex.runtime.paged_cache import PagedCache

decoder = load(sys.argv[1], budget=Budget(3, "1/4"), debug=True)
cache = PagedCache(60, 2, decoder.spec, decoder.fields, layout="NHD")
decoder.bind(0, cache.k[0], cache.v[0], cache.fields[0])
given = torch.load(sys.argv[2])
for r, tokens in enumerate(given["tokens"]):
    cache.add(r)
loc, offsets = cache.extend_batch([0, 1], given["tokens"])
decoder.plan(cache.lengths([0, 1]), cache.page_table([0, 1]))
decoder.append(0, given["k"], given["v"], loc, offsets)
out = torch.empty_like(given["q"])
decoder.decode(0, given["q"], out=out)
assert torch.equal(out, given["out"])
assert not {"tvm", "vortex.codegen", "vortex.flow"} & set(sys.modules)
print(tvm_ffi.__version__)
"""


@pytest.mark.parametrize("ffi", [OLDEST, version("apache-tvm-ffi")])
def test_runs_without_the_compiler(artifact: Path, ffi: str, tmp_path: Path) -> None:
    """Same bits as here, under the tvm-ffi that engines pin and under the compiler's."""
    decoder = load(artifact, budget=BUDGET)
    cache = poisoned(decoder, 60, "HND")
    tokens = [211, 17]
    given: dict[str, Any] = {"tokens": tokens}
    for r in range(2):
        cache.add(r)
    loc, offsets = cache.extend_batch([0, 1], tokens)
    for name in ("k", "v"):
        given[name] = torch.randn(sum(tokens), HKV, SPEC.head_dim).bfloat16()
    given["q"] = torch.randn(2, HKV * 2, SPEC.head_dim).bfloat16()
    given["out"] = torch.empty_like(given["q"])
    decoder.plan(cache.lengths([0, 1]), cache.page_table([0, 1]))
    decoder.append(0, given["k"], given["v"], loc, offsets)
    decoder.decode(0, given["q"], out=given["out"])
    torch.save(given, tmp_path / "given.pt")
    (tmp_path / "environment").mkdir()
    environment = make_environment(ffi, tmp_path / "environment")
    assert run_in(environment, PROGRAM, artifact, tmp_path / "given.pt").strip() == ffi


ODD = """
import sys, torch
from vortex.budget import Budget
from vortex.runtime.decoder import load
from vortex.runtime.paged_cache import PagedCache

def odd(t):
    moved = torch.empty(t.numel() + 1, dtype=t.dtype)[1:].view(t.shape)
    return moved.copy_(t)

torch.manual_seed(0)
decoder = load(sys.argv[1], budget=Budget(3))
cache = PagedCache(60, 2, decoder.spec, decoder.fields)
cache.add(0)
loc, offsets = cache.extend(0, 211), torch.tensor([0, 211], dtype=torch.int32)
k, v, q = torch.randn(211, 2, 64).bfloat16(), torch.randn(211, 2, 64).bfloat16(), torch.randn(1, 4, 64).bfloat16()
outs = []
for place in (lambda t: t, odd):
    decoder.bind(0, place(cache.k[0]), place(cache.v[0]), {n: place(f) for n, f in cache.fields[0].items()})
    decoder.plan(place(cache.lengths([0])), place(cache.page_table([0])))
    decoder.append(0, place(k), place(v), place(loc), place(offsets))
    outs.append(place(torch.empty_like(q)))
    decoder.decode(0, place(q), out=outs[-1], lse=place(torch.empty(1, 4)))
assert torch.equal(*outs)
"""


def test_tensors_may_lie_anywhere(artifact: Path, tmp_path: Path) -> None:
    """A view into an engine's buffer is aligned to its elements and to no more."""
    run_in(make_environment(version("apache-tvm-ffi"), tmp_path), ODD, artifact)


def refused(*args: Any, **options: Any) -> VortexError:
    with pytest.raises(VortexError) as caught:
        load(*args, **options)
    return caught.value


def test_what_is_not_loaded(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = read_manifest(artifact)
    load(artifact, require_digest=manifest.digest)
    assert refused(artifact, require_digest="0" * 64).code == "VX5005"
    assert refused(tmp_path).code == "VX5001"
    error = refused(artifact, target="sm_90a")
    assert error.code == "VX5003"
    assert "it has cpu" in error.render()

    changed = tmp_path / "changed.vxa"
    shutil.copytree(artifact, changed)
    library = changed / manifest.targets["cpu"].library
    data = bytearray(library.read_bytes())
    data[len(data) // 2] ^= 1
    library.write_bytes(bytes(data))
    assert refused(changed).code == "VX5002"

    files = {name: (artifact / name).read_bytes() for name in manifest.files}
    write_artifact(tmp_path / "text.vxa", manifest, {**files, manifest.targets["cpu"].library: b"no library"})
    error = refused(tmp_path / "text.vxa")
    assert error.code == "VX5002"
    assert "cannot be loaded" in error.render()

    cpu = manifest.targets["cpu"]
    lost = replace(cpu, kernels=(*cpu.kernels[:-1], replace(cpu.kernels[-1], symbol="absent")))
    write_artifact(tmp_path / "lost.vxa", replace(manifest, targets={"cpu": lost}), files)
    assert "no function 'absent'" in refused(tmp_path / "lost.vxa").render()

    monkeypatch.setattr(cpu_features, "machine", lambda: "riscv64")
    error = refused(artifact)
    assert error.code == "VX5004"
    assert "no x86_64" in error.render()


def test_hostile_library_names_do_not_leave_the_folder(artifact: Path, tmp_path: Path) -> None:
    shutil.copytree(artifact, tmp_path / "a.vxa")
    file = tmp_path / "a.vxa" / "manifest.json"
    data = json.loads(file.read_text())
    data["targets"]["cpu"]["library"] = "../evil.so"
    file.write_text(json.dumps(data))
    assert refused(tmp_path / "a.vxa").code == "VX5002"


@pytest.fixture
def both(artifact: Path, tmp_path: Path) -> Path:
    """An artifact that says it has a library for each of two GPUs; the CPU's stands in for them."""
    manifest = read_manifest(artifact)
    files = {name: (artifact / name).read_bytes() for name in manifest.files}
    targets = {**manifest.targets, **dict.fromkeys(("sm_90a", "sm_100a"), manifest.targets["cpu"])}
    write_artifact(tmp_path / "both.vxa", replace(manifest, targets=targets), files)
    return tmp_path / "both.vxa"


def gpus(patch: pytest.MonkeyPatch, *capabilities: tuple[int, int], current: int = 0) -> None:
    """As if this machine had them."""
    patch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
    patch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    patch.setattr(torch.cuda, "current_device", lambda: current)
    patch.setattr(torch.cuda, "get_device_capability", lambda device: capabilities[device.index])
    patch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA X")


def test_which_library_is_loaded(both: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch)
    assert load(both).library.name == load(both, target="auto").library.name == "cpu"
    for target in ("sm_90", "sm_90a"):
        error = refused(both, target=target)
        assert error.code == "VX6009"
        assert "kernels for sm_90a; there is no CUDA device here" in error.render()
    gpus(monkeypatch, (9, 0), (10, 0))
    assert load(both).library.name == load(both, target="sm_90").library.name == "sm_90a"
    assert load(both, target="sm_100").library.name == "sm_100a"
    assert load(both, target="cpu").library.name == load(artifact).library.name == "cpu"
    gpus(monkeypatch, (9, 0), (10, 0), current=1)
    assert load(both).library.name == "sm_100a"
    gpus(monkeypatch, (12, 0))
    assert load(both).library.name == "cpu"
    assert "the CUDA devices here are sm_120" in refused(both, target="sm_90a").render()
    manifest = read_manifest(artifact)
    files = {name: (artifact / name).read_bytes() for name in manifest.files}
    write_artifact(both, replace(manifest, targets={"sm_90a": manifest.targets["cpu"]}), files)
    error = refused(both)
    assert error.code == "VX5003"
    assert "no library for sm_120,cpu; it has sm_90a" in error.render()


def test_tensors_on_the_wrong_device(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, (9, 0))
    decoder = load(both, target="sm_90a", budget=BUDGET)
    pool = torch.zeros(4, HKV, 8, 64).bfloat16()
    with pytest.raises(VortexError, match="k_pool: is on cpu; cuda is needed, where the library of sm_90a runs"):
        decoder.bind(0, pool, pool)
