"""What surrounds a decoder: inference mode, autocast, copies, numpy's integers, lazy views, recompiled artifacts."""

from __future__ import annotations

import copy
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("tvm")

import vortex
from vortex.driver import compile_flow
from vortex.errors import VortexError
from vortex.runtime.decoder import Decoder, load
from vortex.runtime.paged_cache import PagedCache

SPEC = vortex.Spec(page_size=4, head_dim=16, group=1, dtype="f32")
BUDGET = vortex.Budget(pages=3, sink=1, recent=1)
I32 = torch.int32


def ranking(sign: int) -> vortex.vFlow:
    class Mine(vortex.vFlow):
        """The first or the last pages."""

        def create_cache(self, spec: Any) -> Any:
            return {"m": vortex.Field()}

        def forward_cache(self, page: Any) -> Any:
            return {"m": page.k.mean()}

        def forward_indexer(self, q: Any, cache: Any) -> Any:
            return vortex.topk(sign * vortex.page_index() + 0 * cache.m)

    return Mine()


def chosen(decoder: Decoder) -> list[int]:
    k = torch.randn(20, 1, 4, 16)
    decoder.bind(0, k, k, {"m": torch.zeros(20, 1)})
    decoder.plan(torch.tensor([80], dtype=I32), torch.arange(20, dtype=I32)[None])
    decoder.decode(0, torch.randn(1, 1, 16), out=torch.empty(1, 1, 16))
    assert decoder.pages is not None
    assert decoder.counts is not None
    return decoder.pages[0, 0, : int(decoder.counts[0, 0])].tolist()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("a") / "mine.vxa"
    compile_flow(ranking(1), spec=SPEC, out=path)
    return path


def test_a_recompiled_artifact_is_another(artifact: Path, tmp_path: Path) -> None:
    """The same path, then no path at all: old decoders keep their kernels, new ones have the new."""
    path = tmp_path / "x.vxa"
    shutil.copytree(artifact, path)
    one = load(path, budget=BUDGET)
    first = chosen(one)
    again = compile_flow(ranking(-1), spec=SPEC, out=path).manifest
    assert again is not None
    two = load(path, budget=BUDGET, require_digest=again.digest)
    shutil.rmtree(path)
    assert (first, chosen(two), chosen(one)) == ([0, 16, 17, 18, 19], [0, 1, 2, 3, 19], first)


def test_in_and_out_of_inference_mode_and_autocast(artifact: Path) -> None:
    decoder = load(artifact, budget=BUDGET, dense=True)
    with torch.inference_mode():
        inside = chosen(decoder)
    assert chosen(decoder) == inside
    decoder.budget = vortex.Budget(pages=2, sink=1, recent=1)
    with torch.inference_mode():
        assert chosen(decoder) == [0, 17, 18, 19]
    with torch.autocast("cpu", torch.bfloat16):
        assert chosen(decoder) == [0, 17, 18, 19]


def test_a_decoder_is_not_copied(artifact: Path) -> None:
    decoder = load(artifact, budget=BUDGET)
    for call in (copy.deepcopy, copy.copy, pickle.dumps):
        with pytest.raises(VortexError, match=r"vortex\.load") as caught:
            call(decoder)
        assert caught.value.code == "VX6002"


def test_integers_of_numpy(artifact: Path) -> None:
    decoder = load(artifact, budget=BUDGET)
    cache = PagedCache(np.int64(4), np.int32(1), SPEC, decoder.fields)  # type: ignore[arg-type]
    cache.add("r")
    assert cache.extend("r", np.int64(5)).shape == (5,)  # type: ignore[arg-type]
    decoder.bind(np.int64(0), cache.k[0], cache.v[0] if cache.v[0] is not None else None, cache.fields[0])  # type: ignore[arg-type]
    with pytest.raises(VortexError, match="layer"):
        decoder.bind(True, cache.k[0], cache.v[0], cache.fields[0])


def test_lazily_negated_views_are_refused(artifact: Path) -> None:
    decoder = load(artifact, budget=BUDGET)
    chosen(decoder)
    plain = torch.randn(1, 1, 16)
    negated = torch.view_as_complex(torch.randn(1, 1, 16, 2)).conj().imag
    lazy = torch._neg_view(plain)
    assert negated.is_neg() and lazy.is_neg()
    decoder.decode(0, plain, out=torch.empty(1, 1, 16))
    with pytest.raises(VortexError, match="resolve_neg"):
        decoder.decode(0, lazy, out=torch.empty(1, 1, 16))


def test_sizes_are_any_integers_and_nothing_else(artifact: Path) -> None:
    decoder = load(artifact, budget=vortex.Budget(np.int64(3), np.float32(0.25), np.int8(1), np.int32(1)))  # type: ignore[arg-type]
    chosen(decoder)
    decoder.reserve(np.int64(2), np.int32(20), capacity=np.int64(5))  # type: ignore[arg-type]
    assert decoder.workspace_bytes(np.int16(2), np.int32(20)) == decoder.workspace_bytes(2, 20)  # type: ignore[arg-type]
    assert type(decoder.capacity(np.int64(20))) is int  # type: ignore[arg-type]
    cache = PagedCache(4, 1, SPEC, decoder.fields)
    cache.add("r")
    assert cache.page_table(["r"], width=np.int64(3)).shape == (1, 3)  # type: ignore[arg-type]
    wrong: list[Any] = [2.0, True, -1, "2", np.float32(2)]
    for x in wrong:
        for call in (
            lambda x: decoder.reserve(x, 20),
            lambda x: decoder.reserve(2, x),
            lambda x: decoder.reserve(2, 20, capacity=x),
            lambda x: decoder.workspace_bytes(x, 20),
            lambda x: decoder.capacity(x),
            lambda x: cache.page_table(["r"], width=x),
        ):
            with pytest.raises(VortexError, match="VX6002"):
                call(x)
    with pytest.raises(VortexError, match="VX6002"):
        load(artifact, budget=3)  # type: ignore[arg-type]
    with pytest.raises(VortexError, match="VX6002"):
        decoder.budget = 3  # type: ignore[assignment]
    with pytest.raises(VortexError, match="VX5005"):
        load(artifact, require_digest=5)  # type: ignore[arg-type]


def test_workspaces_made_in_inference_mode_or_lazily(artifact: Path) -> None:
    decoder = load(artifact, budget=BUDGET, dense=True)
    want = chosen(decoder)
    with torch.inference_mode():
        block = torch.empty(1 << 14, dtype=torch.uint8)
    decoder.set_workspace(block)
    assert chosen(decoder) == want
    with torch.inference_mode():
        assert chosen(decoder) == want
    for lazy in (torch.empty(1 << 14, dtype=torch.complex64).conj(), torch._neg_view(torch.empty(1 << 14))):
        with pytest.raises(VortexError, match="lazily"):
            decoder.set_workspace(lazy)
    assert chosen(decoder) == want


def test_complex_tensors_are_refused(artifact: Path) -> None:
    decoder = load(artifact, budget=BUDGET)
    chosen(decoder)
    with pytest.raises(VortexError, match="complex64"):
        decoder.decode(0, torch.randn(1, 1, 16, dtype=torch.complex64).conj(), out=torch.empty(1, 1, 16))
