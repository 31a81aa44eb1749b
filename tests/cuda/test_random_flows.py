"""NaN and infinities in functions nobody wrote by hand, under the emulator: GPU kernels in rows and in items."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.codegen.harness import Compiled, program_of
from tests.codegen.test_random_flows import agree
from tests.cuda.harness import Kernels
from tests.emulation import Emulated
from tests.strategies import flows
from vortex.ir.core import Module
from vortex.ir.parser import parse_module
from vortex.schedules.cuda_select import SelectKnobs

BATCH = 6
KNOBS = {"threads": 64, "in_flight": 2}


class Library:
    """Emulated kernels by symbol, each call under another seed."""

    def __init__(self, emulated: Emulated) -> None:
        self.emulated, self.seed = emulated, 0

    def __getitem__(self, symbol: str) -> Any:
        def call(*arguments: Any) -> None:
            self.seed += 1
            self.emulated.call(symbol, *arguments, seed=self.seed)

        return call


class InItems(Compiled):
    """Rows in items of one slab: three for 90 pages."""

    def run(self, *arguments: Any, **rest: Any) -> Any:
        return super().run(*arguments, **{**rest, "item_pages": 32})


def compile_all(modules: dict[str, Module], chip_words: int) -> tuple[Compiled, Compiled]:
    """The flows as kernels that take whole rows, and the same kernels on items."""
    programs = {}
    for name, m in modules.items():
        programs[name] = program_of(m, name)
        f = programs[name].functions["select"]
        f.attrs["schedule"] = SelectKnobs(**KNOBS, chip_words=chip_words).attrs()
    built = Kernels.of(programs, ["select"])
    sources = {name: built.sources[name, "select"] for name in modules}
    library = Library(built.emulated)
    return Compiled(programs, sources, library), InItems(programs, sources, library)


@pytest.mark.parametrize("examples", [1, pytest.param(6, marks=pytest.mark.full)])
def test_gpu_kernels_agree_with_the_interpreter(examples: int) -> None:
    # no shrinking: each try would compile a library
    @settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        derandomize=True,
        phases=(Phase.generate,),
    )
    @given(st.lists(flows(ranked=False), min_size=BATCH, max_size=BATCH), st.booleans())
    def check(texts: list[str], on_chip: bool) -> None:
        modules = [parse_module(text) for text in texts]
        compiled = compile_all({f"flow{i}": m for i, m in enumerate(modules)}, 4096 if on_chip else 0)
        for i, m in enumerate(modules):
            for pages in (1, 2, 33, 90):
                for how in compiled if pages > 33 else compiled[:1]:
                    agree(m, how, f"flow{i}", pages)

    check()
