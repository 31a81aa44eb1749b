"""State under the emulator: select kernels whose items meet, and what append resets."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from tests.cuda.harness import Kernels, fails, loaded, lower, tensors
from tests.state.flows import FLOWS
from tests.state.traffic import HEADS, SPEC, Traffic, live
from vortex.budget import Budget
from vortex.ir.core import Module
from vortex.ir.interpret_page import Batch
from vortex.ir.types import TensorType
from vortex.spec import Spec

KINDS = ("plan", "append", "select")


class Emulated:
    """The kernels under the emulator, on tensors made anew for each call and read back."""

    def __init__(self, traffic: Traffic, kernels: Kernels, slots: int) -> None:
        self.traffic, self.kernels, self.slots, self.calls = traffic, kernels, slots, 0
        (self.key,) = kernels.programs

    def append(self, b: Batch) -> None:
        self._run(b, KINDS[:2])

    def decode(self, b: Batch) -> list[list[list[int]]]:
        given = self._run(b, KINDS)
        return [
            [given["pages"][r, h, : given["counts"][r, h]].tolist() for h in range(HEADS)] for r in range(b.requests)
        ]

    def _run(self, b: Batch, kinds: tuple[str, ...]) -> dict[str, Any]:
        given = tensors(self.kernels, self.key, b, slots=self.slots)
        self.calls += 1
        self.kernels.run(self.key, given, kinds, seed=self.calls)
        assert not given["arrivals"].any()
        for d in self.kernels.programs[self.key].declared("buffer"):
            for prefix, held in (("", b.paged), ("field.", b.paged), ("state.", b.state)):
                if d.name in held and prefix + d.name in given:
                    assert isinstance(d.type, TensorType)
                    kept = loaded(given[prefix + d.name], d.type.dtype.name)
                    held[d.name][...] = kept.reshape(held[d.name].shape)
        return given

    def state(self) -> dict[str, Any]:
        return self.traffic.state


IN_BLOCKS = Spec(page_size=12, block_size=4, head_dim=32, group=2)


@cache
def module_of(name: str, spec: Spec = SPEC) -> Module:
    return Traffic(FLOWS[name], Budget(3), spec=spec).module


@cache
def kernels(name: str, chip_words: int, spec: Spec = SPEC) -> Kernels:
    knobs = {"threads": 64, "in_flight": 2, "chip_words": chip_words}
    program = lower(
        module_of(name, spec), plan={"threads": 64, "select_pages": 32}, append={"threads": 64}, select=knobs
    )
    return Kernels.of({name: program}, KINDS)


@pytest.mark.parametrize("slots", [1, 8], ids=["one item a row", "items meet"])
@pytest.mark.parametrize("name", FLOWS)
def test_kernels_keep_what_the_flow_keeps(name: str, slots: int) -> None:
    traffic = Traffic(FLOWS[name], Budget(3), seed=3)
    live(traffic, Emulated(traffic, kernels(name, 2048), slots), long=45)


@pytest.mark.parametrize("name", ["ema", *(pytest.param(n, marks=pytest.mark.full) for n in FLOWS if n != "ema")])
def test_kernels_keep_state_of_blocks(name: str) -> None:
    """Pages of three blocks, each of which has state of its own; what is reset, scored and shared are blocks."""
    traffic = Traffic(FLOWS[name], Budget(3), seed=5, spec=IN_BLOCKS)
    live(traffic, Emulated(traffic, kernels(name, 2048, IN_BLOCKS), 8), long=17, steps=16)


def test_kernels_that_lose_a_block_of_state_are_caught() -> None:
    """Planted: state of a page's first block stands for all of its blocks."""
    good = kernels("ema", 2048, IN_BLOCKS)
    (symbol,) = (s.symbol for (_, n), s in good.sources.items() if n == "select")
    text = good.texts[symbol]
    assert "% 3" in text
    wrong = good.mutated(symbol, text.replace("% 3", "% 1"))
    traffic = Traffic(FLOWS["ema"], Budget(3), seed=5, spec=IN_BLOCKS)
    assert fails(lambda: live(traffic, Emulated(traffic, wrong, 8), long=17, steps=16))
