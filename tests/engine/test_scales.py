"""K and V in fp8: a layer's scales are those by which it stores, summarises, attends, loads back and is probed.

Stand-ins take SGLang's place; what must come out is computed here in plain torch.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.engine.standins import KV_HEADS, LAYERS, QUERY_HEADS, SPEC, RadixAttention, World, stood_in
from tests.engine.test_arrivals import HICACHE, Controller
from vortex.runtime.compiled import COMPILER, ModelShape, artifact_for
from vortex.runtime.sglang.scaled_prefill import ScaledPrefill
from vortex.runtime.sglang.step import Layer
from vortex.spec import Spec

SCALES = ((0.03, 0.3), (0.07, 0.011))
FP8 = Spec(page_size=SPEC.page_size, head_dim=SPEC.head_dim, group=SPEC.group, dtype="bf16", kv_dtype="fp8_e4m3")


@pytest.fixture(autouse=True)
def _standing_in() -> Iterator[None]:
    with stood_in():
        yield


@pytest.fixture(scope="module")
def artifact8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv(COMPILER, sys.executable)
        return artifact_for("quest", ModelShape(FP8, KV_HEADS), "cpu")


def world_of(artifact: Path, pages: int = 2, **more: Any) -> World:
    return World(artifact, pages=pages, dtype=torch.bfloat16, scales=SCALES, dense_layers=[], **more)


def rows(world: World, request: int, layer: int) -> list[torch.Tensor]:
    """Its K and V ``[tokens, Hkv, D]`` as they are meant, f32."""
    slots = world.req_to_token[request, : world.lengths[request]].long()
    return [b[slots].float() * s for b, s in zip(world.pool.buffers[layer], SCALES[layer], strict=True)]


def ready(artifact: Path, pages: int = 2, **more: Any) -> tuple[World, torch.Generator]:
    world, draw = world_of(artifact, pages, **more), torch.Generator().manual_seed(0)
    world.give(1, list(range(20, 9, -1)))
    for new in (70, 80):
        world.read([1], new, draw)
    return world, draw


@pytest.mark.parametrize("layer", range(LAYERS))
def test_what_is_decoded_is_stored_and_read_by_the_scales(artifact8: Path, layer: int) -> None:
    world, _ = ready(artifact8, pages=1000)
    draw, again = (torch.Generator().manual_seed(7) for _ in range(2))
    out = world.say([1], draw)[layer].float().view(QUERY_HEADS, SPEC.head_dim)
    for _ in range(layer + 1):
        drawn = torch.randn(1, QUERY_HEADS + 2 * KV_HEADS, SPEC.head_dim, generator=again).bfloat16()
    q, *new = drawn[0].split((QUERY_HEADS, KV_HEADS, KV_HEADS))
    slot = world.req_to_token[1, world.lengths[1] - 1].long()
    for buffer, x, scale in zip(world.pool.buffers[layer], new, SCALES[layer], strict=True):
        assert torch.equal(buffer[slot].view(torch.uint8), (x / scale).to(torch.float8_e4m3fn).view(torch.uint8))
    k, v = rows(world, 1, layer)
    for head in range(QUERY_HEADS):
        mine = head // SPEC.group
        weights = (k[:, mine] @ q[head].float() * SPEC.head_dim**-0.5).softmax(0)
        torch.testing.assert_close(out[head], weights @ v[:, mine], rtol=0.02, atol=0.01)


def test_pages_are_summarised_by_the_scales(artifact8: Path) -> None:
    world, draw = ready(artifact8)
    for _ in range(10):
        world.say([1], draw)  # the last one fills a page
    for layer in range(LAYERS):
        k = rows(world, 1, layer)[0].view(-1, SPEC.page_size, KV_HEADS, SPEC.head_dim)
        pages = world.req_to_token[1, : world.lengths[1] : SPEC.page_size].long() // SPEC.page_size
        fields = world.backend._layers[layer].fields
        for name, want in (("lo", k.amin(1)), ("hi", k.amax(1))):
            assert torch.equal(fields[name][pages].view(want.shape), want.bfloat16()), (layer, name)


def test_pages_that_come_back_are_summarised_by_the_scales(artifact8: Path) -> None:
    host, _ = ready(artifact8, args=HICACHE)
    world = world_of(artifact8, args=HICACHE)
    Controller(host.pool, world.pool).load([([20, 19], [5, 6])])
    for layer in range(LAYERS):
        fields = world.backend._layers[layer].fields
        for name, field in host.backend._layers[layer].fields.items():
            assert torch.equal(fields[name][[5, 6]], field[[20, 19]])


def test_probes_read_keys_by_the_scales(artifact8: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VORTEX_PROBE", f"{tmp_path}/probe.jsonl:every 1 steps")
    world, draw = ready(artifact8)
    world.say([1], draw)
    step, q = world.backend._eager, torch.randn(QUERY_HEADS, SPEC.head_dim)
    for layer in range(LAYERS):
        got = step._weights(layer, q, 0.1, step.table[0], world.lengths[1])
        k = rows(world, 1, layer)[0].transpose(0, 1)
        want = (q.view(KV_HEADS, -1, SPEC.head_dim) @ k.transpose(1, 2) * 0.1).softmax(-1)
        torch.testing.assert_close(got, want)


def test_scales_of_a_file_reach_sglangs_own_kernels_too() -> None:
    """``--quantization-param-path`` sets numbers and no floats beside them."""
    scales_of = importlib.import_module("vortex.runtime.sglang.scales").scales_of
    first, second = RadixAttention(0), RadixAttention(1)
    first.k_scale = first.v_scale = 0.5
    assert scales_of(torch.nn.Sequential(first, second)) == {0: (0.5, 0.5)}
    assert (first.k_scale_float, first.v_scale_float, second.k_scale_float) == (0.5, 0.5, None)


def test_a_dense_backend_without_scales_is_put_right() -> None:
    """One that reads the bytes of pools as numbers, as SGLang's ``torch_native`` does."""
    k, v = torch.randn(2, 5, KV_HEADS, SPEC.head_dim).bfloat16()
    q = torch.randn(5, QUERY_HEADS, SPEC.head_dim).bfloat16()
    kept: dict[str, torch.Tensor] = {}

    class Pool:
        def set_kv_buffer(self, layer: Any, loc: Any, k: torch.Tensor, v: torch.Tensor, *scales: float) -> None:
            kept.update(k=k.div_(scales[0]).to(torch.float8_e4m3fn), v=v.div_(scales[1]).to(torch.float8_e4m3fn))

    class Dense:
        needs_cpu_seq_lens = False

        def forward_extend(
            self, q: torch.Tensor, k: None, v: None, layer: Any, batch: Any, save_kv_cache: bool
        ) -> torch.Tensor:
            assert (k, v, save_kv_cache) == (None, None, False)
            return attention(q, kept["k"].float(), kept["v"].float(), layer.scaling).to(q.dtype)

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float) -> torch.Tensor:
        k, v = (x.repeat_interleave(SPEC.group, 1).transpose(0, 1) for x in (k, v))
        return ((q.float().transpose(0, 1) @ k.mT * scaling).softmax(-1) @ v).transpose(0, 1)

    layer, before = RadixAttention(1), k.clone()
    prefill = ScaledPrefill(Dense(), Pool(), {1: Layer(k, v, None, scales=SCALES[1])})
    out = prefill.forward_extend(q, k, v, layer, SimpleNamespace(out_cache_loc=None))
    assert torch.equal(k, before), "what a model gave is its own"
    assert layer.scaling == SPEC.head_dim**-0.5
    want = attention(q, kept["k"].float() * SCALES[1][0], kept["v"].float() * SCALES[1][1], layer.scaling)
    torch.testing.assert_close(out.float(), want, rtol=0.02, atol=0.01)
