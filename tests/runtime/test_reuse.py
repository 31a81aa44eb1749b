"""Selections taken from another layer or an earlier step, on the kernels of a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runtime.reused import Layers, story
from vortex.budget import Budget
from vortex.driver import compile_flow
from vortex.errors import VortexError
from vortex.runtime.decoder import Decoder, load
from vortex.runtime.reuse import Kept
from vortex.spec import Spec

SPEC = Spec(page_size=8, head_dim=32, group=2)
BUDGET = Budget(3)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = compile_flow("block_topk", spec=SPEC, out=tmp_path_factory.mktemp("reuse") / "b.vxa")
    assert made.artifact is not None
    return made.artifact


def decoder(artifact: Path, **options: Any) -> Decoder:
    return load(artifact, **{"budget": BUDGET, "keep": [0, 1], "debug": True, **options})


@pytest.mark.parametrize(
    ("every", "budget"), [(2, BUDGET), (3, Budget(1, "1/3", sink=2, recent=1)), (4, Budget(0, sink=0, recent=3))]
)
def test_every_layer_attends_to_what_it_should(artifact: Path, every: int, budget: Budget) -> None:
    layers = Layers(decoder(artifact, budget=budget), every)
    story(layers)
    assert layers.selected < 18


def test_new_tokens_may_come_with_the_queries(artifact: Path) -> None:
    story(Layers(decoder(artifact), 3, given=True))


def test_a_large_step_moves_the_scratch_and_all_select(artifact: Path) -> None:
    layers = Layers(decoder(artifact), 4)
    layers.prompt({0: 200})
    for _ in range(2):
        layers.decode([0])
    layers.decoder.reserve(64, 80)
    layers._age = 0
    for _ in range(5):
        layers.decode([0])


def test_what_is_forgotten_is_selected_anew(artifact: Path) -> None:
    layers = Layers(decoder(artifact), 8)
    layers.prompt({0: 200})
    layers.decode([0])
    for change in (layers.decoder.forget, lambda: setattr(layers.decoder, "budget", Budget(5))):
        layers.decode([0])
        change()
        layers._age = 0
        layers.decode([0])
        layers.decode([0])


@pytest.mark.parametrize("slip", ["slots", "lengths", "every", "move"])
def test_a_slip_is_noticed(artifact: Path, slip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one of the conditions, or with pages that do not move, some step attends to something else."""
    right = Kept.holds

    def holds(self: Kept, slots: torch.Tensor, lengths: torch.Tensor, every: int) -> torch.Tensor:
        if slip == "slots":
            slots = torch.zeros_like(slots)
        if slip == "lengths":
            self.state[2 + (len(self.state) - 2) // 2 :][: len(lengths)] = lengths - 1
        return right(self, slots, lengths, every + (slip == "every"))

    monkeypatch.setattr(Kept, "holds", holds)
    if slip == "move":
        monkeypatch.setattr(Kept, "move", lambda *_: None)
    layers = Layers(decoder(artifact, debug=False), 3)

    def run() -> None:
        story(layers)
        if slip == "lengths":  # the same rows, one of them anew without its prompt having been seen
            layers.decoder.keep = ()
            layers.leave(4)
            layers.prompt({6: 100})
            layers.decode([5, 6])

    with pytest.raises(AssertionError):
        run()


def refused(call: Any) -> VortexError:
    with pytest.raises(VortexError) as e:
        call()
    return e.value


def begun(layers: Layers) -> torch.Tensor:
    """The queries of a first step, whose new tokens all layers have; nothing is selected yet."""
    layers.prompt({0: 100})
    q, new = layers.begin({0: 1})
    for layer, tokens in enumerate(new):
        layers.decoder.append(layer, *tokens)
    return q


def test_what_is_not_there_is_refused(artifact: Path) -> None:
    layers = Layers(decoder(artifact, keep=[1]), 2)
    d, q = layers.decoder, begun(layers)
    out = torch.empty_like(q)
    assert "decode of layer 0 in this step" in refused(lambda: d.decode(2, q, out=out, pages_of=0)).render()
    d.decode(0, q, out=out)
    d.decode(2, q, out=out, pages_of=0)
    assert "exchanged" not in refused(lambda: d.decode(2, q, out=out, pages_of=0, heads=layers.exchanged)).message
    assert "keep=[0]" in refused(lambda: d.decode(0, q, out=out, every=2)).render()
    d.decode(1, q, out=out, every=2)
    d.decode(2, q, out=out, pages_of=0)  # layer 1 has a place of its own
    d.decode(2, q, out=out, pages_of=1)
    for how, code in (
        ({"pages_of": 1, "every": 2}, "VX6002"),
        ({"heads": layers.exchanged}, "VX6002"),
        ({"every": 0}, "VX6002"),
        ({"pages_of": 1, "heads": torch.tensor([0])}, "VX6002"),
        ({"pages_of": 1, "heads": torch.tensor([0, 1], dtype=torch.int32)}, "VX6002"),
        ({"pages_of": 3}, "VX6003"),
    ):
        assert refused(lambda how=how: d.decode(2, q, out=out, **how)).code == code, how
    d.plan(layers.cache.lengths([0]), layers.cache.page_table([0]))
    assert refused(lambda: d.decode(2, q, out=out, pages_of=1)).code == "VX6003"
    assert "slots" in refused(lambda: d.decode(1, q, out=out, every=2)).render()
    assert refused(lambda: decoder(artifact, keep=[-1])).code == "VX6002"


def test_a_layer_without_a_place_of_its_own_writes_over_the_last_one(artifact: Path) -> None:
    layers = Layers(decoder(artifact, keep=[]), 2)
    d, q = layers.decoder, begun(layers)
    out = torch.empty_like(q)
    d.decode(0, q, out=out)
    d.decode(1, q, out=out)
    d.decode(2, q, out=out, pages_of=1)
    assert "another layer has selected since" in refused(lambda: d.decode(2, q, out=out, pages_of=0)).render()


def test_decode_before_bind_and_after_another_one(artifact: Path) -> None:
    q = torch.zeros(1, 4, 32, dtype=torch.bfloat16)
    assert "bind(0, ...)" in refused(lambda: decoder(artifact).decode(0, q, out=q)).render()
    layers = Layers(decoder(artifact), 2)
    layers.prompt({0: 100})
    cache = layers.cache
    layers.decoder.bind(0, cache.k[0], cache.v[0], cache.fields[0])
    assert "needs plan" in refused(lambda: layers.decoder.decode(0, q, out=q)).render()
