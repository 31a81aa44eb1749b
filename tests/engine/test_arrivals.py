"""Pages that come back from the host have the summaries that they had when they left, layer by layer.

The pool and SGLang's controller are stand-ins; the hooks are called as they are on SGLang's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.engine.standins import LAYERS, PAGES, SPEC, World, stood_in
from vortex.runtime.sglang import arrivals

PAGE = SPEC.page_size
HICACHE = {"enable_hierarchical_cache": True, "hicache_host_memory_mode": "cache"}


@pytest.fixture(autouse=True)
def _standing_in() -> Iterator[None]:
    with stood_in():
        yield


class Controller:
    """Loads ``[(host pages, device pages), ...]`` into a pool; the host is another pool like it."""

    def __init__(self, host: Any, pool: Any) -> None:
        self._host, self.mem_pool_device = host, pool
        self.load_queue: list[Any] = []
        self.layer_done_counter = SimpleNamespace(events=[SimpleNamespace() for _ in range(3)])

    def load(self, pages: list[tuple[list[int], list[int]]], copies: int = LAYERS) -> None:
        """Those of the first ``copies`` layers."""
        self.load_queue = [SimpleNamespace(device_indices=slots(device)) for _, device in pages]
        arrivals.expect(self)
        for layer in range(copies):
            for host, device in pages:
                for source, target in zip(self._host.buffers[layer], self.mem_pool_device.buffers[layer], strict=True):
                    target[slots(device)] = source[slots(host)]
            arrivals.summarise(self.layer_done_counter.events[1], layer)


def slots(pages: list[int]) -> torch.Tensor:
    return (torch.tensor(pages)[:, None] * PAGE + torch.arange(PAGE)).flatten()


def filled(artifact: Path, pages: list[int]) -> World:
    """Requests, of up to 20 pages each, have read prompts that fill these pages."""
    world, draw = World(artifact, args=HICACHE, dense_layers=[]), torch.Generator().manual_seed(0)
    for request, first in enumerate(range(0, len(pages), 20)):
        world.give(request, pages[first : first + 20])
        world.read([request], len(pages[first : first + 20]) * PAGE, draw)
    return world


def fields(world: World, layer: int) -> dict[str, torch.Tensor]:
    held: dict[str, torch.Tensor] = world.backend._layers[layer].fields
    return held


def emptied(artifact: Path) -> World:
    world = World(artifact, args=HICACHE, dense_layers=[])
    for layer in range(LAYERS):
        for field in fields(world, layer).values():
            field.fill_(1e4)  # of whoever had the pages before
    return world


LOADS = {
    "one request": [([9, 4, 7], [2, 30, 5])],
    "two at once": [([9, 4], [11, 6]), ([7, 1, 12], [40, 41, 3])],
    "more pages than the longest request has": [(list(range(1, 36)), list(range(40, 5, -1)))],
}


@pytest.mark.parametrize("name", LOADS)
def test_they_are_those_that_the_pages_left_with(artifact: Path, name: str) -> None:
    loads = LOADS[name]
    host, world = filled(artifact, list(range(1, 36))), emptied(artifact)
    Controller(host.pool, world.pool).load(loads)
    came = {there: here for hosts, devices in loads for here, there in zip(hosts, devices, strict=True)}
    for layer in range(LAYERS):
        for key, field in fields(world, layer).items():
            for page in range(PAGES):
                want = fields(host, layer)[key][came[page]] if page in came else torch.full_like(field[page], 1e4)
                assert torch.equal(field[page], want), (layer, key, page)


def test_a_layer_that_was_not_copied_yet_has_none(artifact: Path) -> None:
    host, world = filled(artifact, [3, 8]), emptied(artifact)
    Controller(host.pool, world.pool).load([([3, 8], [20, 21])], copies=1)
    assert all(torch.equal(f[20], fields(host, 0)[key][3]) for key, f in fields(world, 0).items())
    assert all((f == 1e4).all() for f in fields(world, 1).values())


def test_dense_layers_and_engines_without_hicache_have_nothing_to_do(artifact: Path) -> None:
    plain = World(artifact)
    assert not hasattr(plain.pool, "vortex_arrivals")
    Controller(filled(artifact, [3]).pool, plain.pool).load([([3], [20])])
    assert (plain.fields["lo"][20] == 1e4).all()
    world = World(artifact, args=HICACHE, dense_layers=[1])
    Controller(filled(artifact, [3]).pool, world.pool).load([([3], [20])])
    assert (world.fields["lo"][20] != 1e4).all()
