"""State in SGLang: by the request's row of its table, anew with each prompt, and never a padded row's.

Stand-ins take SGLang's place, as in test_backend.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

import vortex
from tests.engine.standins import KV_HEADS, SPEC, Mode, World, stood_in
from tests.engine.test_backend import captured, drawn, ready, replayed, same
from tests.state.flows import WithMeans
from vortex.check.weights import random_parameters
from vortex.driver import compile_flow
from vortex.errors import VortexError
from vortex.runtime.safetensors import write_safetensors
from vortex.runtime.sglang.memory import add_summaries, leave_room

VERSIONS = ("0_5_16", "0_5_23")


class Kept(WithMeans):
    """What a step selects depends on every step before it."""

    states: ClassVar = {
        "ema": vortex.Field(dtype="f32", state="page", init=2.0),
        "query": vortex.Field(SPEC.head_dim, dtype="f32", state="request", init=0.25),
    }

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        query = 0.9 * cache.query + 0.1 * q.mean(0)
        ema = 0.5 * cache.ema + cache.mean @ query
        return vortex.topk(ema), {"ema": ema, "query": query}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("state") / "kept.vxa"
    compile_flow(Kept, spec=SPEC, out=out)
    return out


@pytest.fixture(autouse=True)
def _standing_in() -> Iterator[None]:
    with stood_in():
        yield


def state_of(world: World) -> dict[str, torch.Tensor]:
    return world.backend._layers[0].state


def poisoned(world: World) -> World:
    for x in state_of(world).values():
        x.fill_(float("nan"))
    return world


def kept_by(world: World, request: int, pages: int) -> list[torch.Tensor]:
    """The state of a request's candidates and of itself."""
    state = state_of(world)
    return [state["ema"][request, :, 1 : pages - 2], state["query"][request]]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_slot_begins_anew_with_each_prompt(artifact: Path, version: str) -> None:
    used, draw = World(artifact, version), drawn()
    poisoned(used)
    used.give(1, list(range(20, 9, -1)))
    used.read([1], 160, draw)
    for _ in range(12):
        used.say([1], draw)
    fresh = poisoned(World(artifact, version))
    said, kept = [], []
    for world in (used, fresh):
        draw = drawn(5)
        world.give(1, list(range(2, 45, 4)))
        world.read([1], 70, draw)
        world.read([1], 80, draw)
        said.append([world.say([1], draw) for _ in range(12)])
        kept.append(kept_by(world, 1, 11))
    assert all(map(same, *said))
    assert same(*kept)
    assert not any(x.isnan().any() for x in kept[0])


def test_a_prefix_from_the_cache_brings_no_state(artifact: Path) -> None:
    """Request 2 comes into a slot that was another's, on pages that request 1 has filled."""
    said = []
    for first in (True, False):
        world, draw = poisoned(World(artifact)), drawn()
        world.give(1, list(range(20, 7, -1)))
        world.read([1], 128, draw)
        if first:  # whose slot request 2 gets; it is as long as the prefix
            other = drawn(1)
            world.give(2, list(range(40, 27, -1)))
            world.read([2], 120, other)
            for _ in range(8):
                world.say([2], other)
        world.req_to_token[2] = world.req_to_token[1]
        tail = torch.arange(30 * SPEC.page_size, 34 * SPEC.page_size)
        world.req_to_token[2, 128 : 128 + len(tail)] = tail.int()
        world.lengths[2] = 128
        draw = drawn(3)
        world.read([2], 20, draw)
        said.append([world.say([2], draw) for _ in range(12)])
        assert not any(x.isnan().any() for x in kept_by(world, 2, 10))
    assert all(map(same, *said))


@pytest.mark.parametrize("version", VERSIONS)
def test_padded_rows_of_a_graph_have_no_state(artifact: Path, version: str) -> None:
    requests = [2, 1]
    (world, _), (plain, _) = ready(artifact, requests, version), ready(artifact, requests, version)
    captured(world, 8)
    for step in range(10):
        batch = replayed(world, requests, 8)
        batch.req_pool_indices[2:] = 1  # even if they name a request
        world.backend.init_forward_metadata_out_graph(batch)
        world.backend.init_forward_metadata_in_graph(batch)
        got = world.forward(batch, drawn(step))
        want = decoded(plain, requests, drawn(step), 8, slice(2))
        assert same([out[:2] for out in got], want)
    for r in requests:
        assert same(kept_by(world, r, 10), kept_by(plain, r, 10))


def test_a_prompt_beside_it_does_not_reset_a_request_that_decodes(artifact: Path) -> None:
    (world, draw), (plain, again) = ready(artifact, [1]), ready(artifact, [1])
    for w, d in ((world, draw), (plain, again)):
        for _ in range(5):
            w.say([1], d)
    world.give(3, list(range(3, 45, 4)))
    prompt, decode = world.batch(Mode.EXTEND, [3], 40), world.batch(Mode.DECODE, [1], 1)
    mixed = SimpleNamespace(
        forward_mode=Mode.EXTEND,
        batch_size=2,
        req_pool_indices=torch.cat((prompt.req_pool_indices, decode.req_pool_indices)),
        seq_lens=torch.cat((prompt.seq_lens, decode.seq_lens)),
        extend_seq_lens=torch.tensor([40, 1]),
        out_cache_loc=torch.cat((prompt.out_cache_loc, decode.out_cache_loc)),
    )
    world.backend.expect_decode_rows(1)
    world.backend.init_forward_metadata(mixed)
    world.forward(mixed, drawn(7))
    decoded(plain, [1], drawn(7), 41, slice(40, None))
    assert same(kept_by(world, 1, 10), kept_by(plain, 1, 10))
    begun = state_of(world)["query"][3]
    torch.testing.assert_close(begun, torch.full_like(begun, 0.25))


def decoded(world: World, requests: list[int], draw: torch.Generator, rows: int, mine: slice) -> list[torch.Tensor]:
    """A step without graphs over some of the ``rows`` tokens that ``draw`` says."""
    batch = world.batch(Mode.DECODE, requests, 1)
    world.backend.init_forward_metadata(batch)
    made, heads = [], SPEC.group * KV_HEADS
    for layer in world.layers:
        both = torch.randn(rows, heads + 2 * KV_HEADS, SPEC.head_dim, generator=draw)[mine]
        q, k, v = both.split((heads, KV_HEADS, KV_HEADS), dim=1)
        made.append(world.backend.forward_decode(q.flatten(1), k, v, layer, batch))
    return made


def test_memory_of_state_is_left_by_the_pools(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VORTEX_CONFIG", f'{{"flow": "{artifact}", "dense_layers": [1]}}')
    runner = World(artifact).runner
    runner.model_config.context_len = 500
    kvc = SimpleNamespace(**vars(runner), layer_info=SimpleNamespace(start_layer=0, end_layer=2))
    configurator = SimpleNamespace()
    kvc.server_args.max_running_requests = None
    with pytest.raises(VortexError, match="--max-running-requests"):
        add_summaries(1000, configurator, kvc, 2)
    kvc.server_args.max_running_requests = 8
    assert add_summaries(1000, configurator, kvc, 2) == 1000 + SPEC.head_dim * 4 * KV_HEADS // 16
    # a number a page of 512 tokens and head, and a query; 8 requests and the row of padding; one layer of two
    taken = 9 * KV_HEADS * 4 * (32 + SPEC.head_dim)
    assert taken == sum(x.numel() * x.element_size() for x in state_of(World(artifact)).values())
    assert leave_room(configurator, 10**6, 16) == ((configurator, 10**6 - taken, 16), {})
    with pytest.raises(VortexError, match="fewer --max-running-requests"):
        leave_room(configurator, taken, 16)
    assert leave_room(SimpleNamespace(), 5, 16) is None


def test_memory_of_parameters_is_left_by_the_pools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = compile_flow("learned_query", spec=SPEC, out=tmp_path / "learned.vxa")
    assert made.artifact is not None and made.manifest is not None
    weights = tmp_path / "weights.safetensors"
    write_safetensors(weights, random_parameters(made.manifest.parameters, 2, KV_HEADS))
    with caplog.at_level(logging.INFO):
        world = World(made.artifact, parameters=str(weights))
    monkeypatch.setenv("VORTEX_CONFIG", f'{{"flow": "{made.artifact}", "dense_layers": [1]}}')
    kvc = SimpleNamespace(**vars(world.runner), layer_info=SimpleNamespace(start_layer=0, end_layer=2))
    configurator = SimpleNamespace()
    add_summaries(1000, configurator, kvc, 2)
    taken = sum(x.numel() * x.element_size() for x in world.backend._weights._made.values())
    assert taken and f"parameters of 2 layers take {taken / 2**20:.1f} MiB" in caplog.text
    assert leave_room(configurator, 10**9, 16) == ((configurator, 10**9 - taken, 16), {})
    with pytest.raises(VortexError, match="memory of the flow's parameters"):
        leave_room(configurator, taken, 16)
