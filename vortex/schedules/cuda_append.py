"""What ``append`` leaves open on a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vortex.ir.core import Attr, Function, Module
from vortex.ir.dialects import page
from vortex.ir.types import TensorType
from vortex.schedules.contractions import type_of
from vortex.schedules.knobs import Knobs, knob
from vortex.schedules.shared_words import aligned
from vortex.schedules.template import Schedulable, declare
from vortex.targets.gpu import MACHINES
from vortex.targets.target import Target

VECTOR = 16
"""Bytes that a thread loads at once."""


@dataclass(frozen=True, slots=True)
class AppendKnobs(Knobs):
    """Of a CTA that fills pages."""

    threads: int = knob(
        128, "threads of a CTA", least=32, most=1024, step=32,
        chosen="128; 256 where one load of each thread does not cover the memory's latency",
    )  # fmt: skip
    overlap: int = knob(1, "whether it may be launched before the kernel in front of it has ended", only=(0, 1))


def shared_words(program: Module, f: Function) -> int:
    """32-bit words of shared memory of a CTA, as the emitter hands them out: the rows of a page, or of a block where
    nothing is made of all of a page's, each a word longer than it is, and values of the page.
    """
    of_block, of_page = page.summaries_of(program, f)
    size, blocks = page.block_size(program), page.page_blocks(program)
    rows: dict[str, int] = {}
    for body, tokens in ((of_block, size), (of_page, size * blocks)):
        rows.update((o.buffer, tokens) for o in body if isinstance(o, page.Load))
    words = 0
    for name, tokens in rows.items():
        t = program.decls[name].type
        assert isinstance(t, TensorType)
        words += aligned((t.tile[1] * t.dtype.bytes // 4 + 1) * tokens)
    values = [o for o in f.ops if o.result is not None and o.notes.get("in") == "tile"]
    return words + sum(aligned(max(1, type_of(o.value).numel)) for o in values)


@declare
class CudaAppend(Schedulable[AppendKnobs]):
    target, kind, version, knobs = "cuda", "append", 1, AppendKnobs

    def choose(self, program: Module, f: Function, target: Target, given: Mapping[str, int]) -> AppendKnobs:
        """Where one load of each thread of an SM does not cover the latency of the memory, a page is shared by more
        threads: fewer rounds, each of which waits for its loads.
        """
        machine = MACHINES[target.name]
        default = AppendKnobs() if machine.threads * VECTOR >= machine.bytes_needed else AppendKnobs(threads=256)
        return AppendKnobs(**{**default.attrs(), **given})

    def space(self, program: Module, f: Function, target: Target) -> Iterable[AppendKnobs]:
        return (AppendKnobs(threads) for threads in (64, 128, 256))

    def facts(self, program: Module, f: Function, knobs: AppendKnobs) -> dict[str, Attr]:
        return {"bytes_in_flight": knobs.threads * VECTOR}
