"""The choices that ``select`` leaves open on a GPU, and what shared memory they cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from vortex.ir.core import Attr
from vortex.targets.gpu import H200, Machine

PAGE_TILE = 32
"""Pages that a warp computes together; sums over pages are made per page tile, so it is no knob."""


@dataclass(frozen=True, slots=True)
class SelectKnobs:
    """Code knobs of ``select``."""

    threads: int = 256
    in_flight: int = 0
    """Pages whose summaries a lane loads before it uses the first; 0 for as many as ``unpacked`` allows."""
    unpacked: int = 32
    """Registers of a lane for summaries on their way to its own arithmetic."""
    ahead: int = 64
    """Registers of a lane for summaries on their way to tensor cores."""
    keys: int = 8
    """Keys of pages that a thread of the choice holds in registers; longer rows are read again and again."""
    residents: int = 2
    """CTAs that an SM must have room for, which bounds registers; 0 leaves them to the compiler."""
    chip_words: int = 8192
    """32-bit words of shared memory for what is kept of a row's pages; longer rows use the workspace."""

    overlap: int = 1
    """Whether it may be launched before the kernel in front of it has ended."""

    def attrs(self) -> dict[str, Attr]:
        return dict(asdict(self))

    def in_flight_bytes(self, *, matrices: bool) -> int:
        """Of a CTA, at most: registers of words for tensor cores, of unpacked 16-bit numbers otherwise."""
        return self.threads * (self.ahead * 4 if matrices else self.unpacked * 2)


def choose(
    schedule: Mapping[str, Attr],
    words_per_page: int,
    machine: Machine = H200,
    *,
    roomy: bool = True,
    crowded: bool = False,
) -> SelectKnobs:
    """The knobs that the schedule names, defaults for the rest.

    More is on its way where the memory is further off, if a lane's results leave registers for it (``roomy``); one
    CTA has an SM for itself where tensor cores leave a lane many sums or long rows (``crowded``).
    """
    default = SelectKnobs(chip_words=8192 if words_per_page <= 1 else 18432, residents=1 if crowded else 2)
    if roomy and default.residents * default.in_flight_bytes(matrices=False) < machine.bytes_needed:
        default = replace(default, unpacked=2 * default.unpacked)
    return SelectKnobs(**{n: int(schedule.get(n, x)) for n, x in default.attrs().items()})


def space() -> list[SelectKnobs]:
    """All points a tuner may try."""
    return [
        SelectKnobs(threads, in_flight, ahead=ahead, keys=keys, residents=residents, chip_words=chip_words)
        for threads in (128, 256, 512)
        for in_flight in (0, 1, 2, 4)
        for ahead in (32, 64)
        for keys in (4, 8, 16)
        for residents in (0, 512 // threads, 768 // threads, 1024 // threads)
        for chip_words in (0, 8192, 18432, 36864)
    ]
