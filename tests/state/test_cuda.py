"""State under the emulator: select kernels whose items meet, and what append resets."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from tests.cuda.harness import Kernels, loaded, lower, tensors
from tests.state.flows import FLOWS
from tests.state.traffic import HEADS, Traffic, live
from vortex.budget import Budget
from vortex.ir.core import Module
from vortex.ir.interpret_page import Batch
from vortex.ir.types import TensorType

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
                    held[d.name][...] = loaded(given[prefix + d.name], d.type.dtype.name)
        return given

    def state(self) -> dict[str, Any]:
        return self.traffic.state


@cache
def module_of(name: str) -> Module:
    return Traffic(FLOWS[name], Budget(3)).module


@cache
def kernels(name: str, chip_words: int) -> Kernels:
    knobs = {"threads": 64, "in_flight": 2, "chip_words": chip_words}
    program = lower(module_of(name), plan={"threads": 64, "select_pages": 32}, append={"threads": 64}, select=knobs)
    return Kernels.of({name: program}, KINDS)


@pytest.mark.parametrize("slots", [1, 8], ids=["one item a row", "items meet"])
@pytest.mark.parametrize("name", FLOWS)
def test_kernels_keep_what_the_flow_keeps(name: str, slots: int) -> None:
    traffic = Traffic(FLOWS[name], Budget(3), seed=3)
    live(traffic, Emulated(traffic, kernels(name, 2048), slots), long=45)
