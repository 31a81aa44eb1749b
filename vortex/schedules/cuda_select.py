"""What ``select`` leaves open on a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from vortex.ir.core import Attr, Function, Module
from vortex.ir.dialects import page
from vortex.schedules.contractions import Matrix, matrix_of
from vortex.schedules.knobs import Knobs, knob
from vortex.schedules.template import Schedulable, declare
from vortex.targets.gpu import H200, MACHINES, Machine
from vortex.targets.target import Target

PAGE_TILE = 32
"""Pages that a warp computes together; sums over pages are made per page tile, so it is not a knob."""


@dataclass(frozen=True, slots=True)
class SelectKnobs(Knobs):
    """Of a CTA that scores pages and chooses among them."""

    threads: int = knob(256, "threads of a CTA", least=32, most=1024, step=32)
    in_flight: int = knob(
        0, "pages whose summaries a lane loads before it uses the first; 0 for as many as 'unpacked' allows",
        most=PAGE_TILE,
    )  # fmt: skip
    unpacked: int = knob(
        32, "registers of a lane for summaries on their way to its own arithmetic", least=1, most=255,
        chosen="32; 64 where that covers too little of the memory's latency and a lane has few results",
    )  # fmt: skip
    ahead: int = knob(64, "registers of a lane for summaries on their way to tensor cores", least=1, most=255)
    keys: int = knob(
        8, "keys of pages that a thread of the choice holds in registers; longer rows are read again and again",
        least=1, most=64,
    )  # fmt: skip
    residents: int = knob(
        2, "CTAs that an SM must have room for, which bounds registers; 0 leaves them to the compiler", most=32,
        chosen="2; 1 where tensor cores leave a lane many sums or long rows",
    )  # fmt: skip
    chip_words: int = knob(
        8192, "32-bit words of shared memory for what is kept of a row's pages; longer rows use the workspace",
        most=H200.cta_shared // 4, chosen="8192; 18432 where a page has more than one word",
    )  # fmt: skip
    overlap: int = knob(1, "whether it may be launched before the kernel in front of it has ended", only=(0, 1))

    def in_flight_bytes(self, *, matrices: bool) -> int:
        """Of a CTA, at most: registers of words for tensor cores, of unpacked 16-bit numbers otherwise."""
        return self.threads * (self.ahead * 4 if matrices else self.unpacked * 2)


def default(words_per_page: int, machine: Machine = H200, *, roomy: bool = True, crowded: bool = False) -> SelectKnobs:
    """The knobs for a kernel that keeps so many words of each page.

    More is on its way where the memory is further off, if a lane's results leave registers for it (``roomy``); one
    CTA has an SM for itself where tensor cores leave a lane many sums or long rows (``crowded``).
    """
    found = SelectKnobs(chip_words=8192 if words_per_page <= 1 else 18432, residents=1 if crowded else 2)
    if roomy and found.residents * found.in_flight_bytes(matrices=False) < machine.bytes_needed:
        found = replace(found, unpacked=2 * found.unpacked)
    return found


def matrices_of(program: Module, f: Function) -> list[Matrix]:
    """What of a kernel tensor cores contract."""
    return [m for o in f.ops if (m := matrix_of(o, partial(page.is_paged, program))) is not None]


@declare
class CudaSelect(Schedulable[SelectKnobs]):
    target, kind, version, knobs = "cuda", "select", 1, SelectKnobs
    scratch = ("work", "arrivals")

    def choose(self, program: Module, f: Function, target: Target, given: Mapping[str, int]) -> SelectKnobs:
        group = int(program.attrs.get("group", 1))
        many = any(m.column_tiles * m.accumulators > 2 or m.chunks > 8 for m in matrices_of(program, f))
        words = int(f.attrs.get("page_words", 0))
        chosen = default(words, MACHINES[target.name], roomy=group <= 8, crowded=group > 32 or many)
        return SelectKnobs(**{**chosen.attrs(), **given})

    def space(self, program: Module, f: Function, target: Target) -> Iterable[SelectKnobs]:
        return (
            SelectKnobs(threads, in_flight, ahead=ahead, keys=keys, residents=residents, chip_words=chip_words)
            for threads in (128, 256, 512)
            for in_flight in (0, 1, 2, 4)
            for ahead in (32, 64)
            for keys in (4, 8, 16)
            for residents in (0, 512 // threads, 768 // threads, 1024 // threads)
            for chip_words in (0, 8192, 18432, 36864)
        )

    def refuse(self, program: Module, f: Function, target: Target, knobs: SelectKnobs) -> str | None:
        return too_many_threads(MACHINES[target.name], knobs.threads, knobs.residents)

    def facts(self, program: Module, f: Function, knobs: SelectKnobs) -> dict[str, Attr]:
        return {"bytes_in_flight": knobs.in_flight_bytes(matrices=bool(matrices_of(program, f)))}


def too_many_threads(machine: Machine, threads: int, residents: int) -> str | None:
    """Why an SM cannot hold ``residents`` CTAs of so many threads; None where it can."""
    if threads * residents <= machine.threads:
        return None
    return f"an SM holds {machine.threads} threads, and {residents} CTAs of {threads} are {threads * residents}"
