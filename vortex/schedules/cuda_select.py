"""What ``select`` leaves open on a GPU."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from vortex.errors import Loc
from vortex.ir.core import Attr, Function, Module, Op
from vortex.ir.dialects import flow, page
from vortex.ir.staging import over_pages, stage
from vortex.schedules.contractions import LaneGroup, lane_group_of, type_of
from vortex.schedules.knobs import Knobs, knob
from vortex.schedules.matrices import Matrix, matrix_of, with_scales
from vortex.schedules.page_tiles import PAGE_TILE, PageTiles
from vortex.schedules.template import Schedulable, declare
from vortex.targets.gpu import H200, MACHINES, WARP, Machine
from vortex.targets.target import Target


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
    paged, users = partial(page.is_summary, program), f.users()
    return [with_scales(m, users, paged) for o in f.ops if (m := matrix_of(o, paged)) is not None]


def lane_groups_of(program: Module, f: Function) -> dict[Op, LaneGroup]:
    """What of a kernel lane groups fold, where tensor cores do not."""
    summaries = partial(page.is_summary, program)
    return {o: group for o in f.ops if (group := lane_group_of(o, summaries)) is not None}


def fitting(program: Module, f: Function, machine: Machine, knobs: SelectKnobs, free: Container[str]) -> SelectKnobs:
    """The knobs, of which those that are ``free`` become smaller until a CTA has the shared memory: first
    what is kept of a row's pages, which may as well lie in the workspace, then threads.

    Where tensor cores leave much for lanes to fold, an SM should have room for all CTAs that are to share it: one loads
    while another folds.
    """
    matrices = matrices_of(program, f)
    tiles, lists = PageTiles.of(f, stage(f), lane_groups_of(program, f), matrices), list_words(f)

    def fits(k: SelectKnobs) -> bool:
        return 4 * (tiles.words(k.threads // WARP) + lists + k.chip_words) + OTHER_BYTES <= machine.cta_shared

    def shares(k: SelectKnobs) -> bool:
        fragments = sum(m.fragment_words * len(m.fragments()) for m in matrices)
        own = 4 * (tiles.words(k.threads // WARP) + lists + k.chip_words + fragments) + ROW_BYTES
        return machine.ctas_of(own, k.threads) >= k.residents

    if any(m.stacked > 1 for m in matrices) and "chip_words" in free:
        smaller = [replace(knobs, chip_words=words) for words in (8192, 2048) if words < knobs.chip_words]
        knobs = next((k for k in (knobs, *smaller) if shares(k)), knobs)
    for words in (8192, 2048):
        if not fits(knobs) and "chip_words" in free and knobs.chip_words > words:
            knobs = replace(knobs, chip_words=words)
    while not fits(knobs) and "threads" in free and knobs.threads >= 2 * WARP:
        knobs = replace(knobs, threads=knobs.threads // 2 // WARP * WARP)
    return knobs


OTHER_BYTES = 24 << 10
"""Of shared memory, for the row's own values, fragments of them for tensor cores, and the choice of pages."""
ROW_BYTES = 8 << 10
"""Of that, about what all but the fragments takes."""


def shortlists(f: Function) -> list[flow.Shortlist]:
    """The shortlists of a kernel, whose lists are in shared memory."""
    return [o for o in f.ops if isinstance(o, flow.Shortlist)]


def list_words(f: Function) -> int:
    """32-bit words of shared memory that those lists take."""
    return sum(o.listed.limit for o in shortlists(f))


def largest(f: Function) -> Op | None:
    """The op with a line of the flow whose result takes most shared memory: a list, or what a warp keeps of the pages
    of a page tile.
    """
    taken = {o: words for o in f.ops if o.loc is not None and (words := _words_of(o))}
    return max(taken, key=lambda o: taken[o], default=None)


def _words_of(o: Op) -> int:
    if isinstance(o, flow.Shortlist):
        return o.listed.limit
    in_tile = o.result is not None and o.notes.get("in") == "tile" and over_pages(o.result)
    return type_of(o.value).numel * PAGE_TILE if in_tile else 0


def way_out(f: Function) -> str:
    """What makes the largest smaller, for an error's help; nothing where no line of the flow is to blame."""
    match largest(f):
        case None:
            return ""
        case flow.Shortlist():
            return "fewer pages in the flow's shortlists"
        case o:
            shape = ", ".join(map(str, type_of(o.value).tile))
            kept = f"[{shape}] numbers of each of {PAGE_TILE} pages are kept here"
            return f"{kept}: reduce them over heads or tokens first, or take smaller pages (or blocks: --block-size)"


@declare
class CudaSelect(Schedulable[SelectKnobs]):
    target, kind, version, knobs = "cuda", "select", 1, SelectKnobs
    scratch = ("work", "arrivals")

    def choose(self, program: Module, f: Function, target: Target, given: Mapping[str, int]) -> SelectKnobs:
        group = int(program.attrs.get("group", 1))
        many = any(m.column_tiles * m.accumulators > 2 or m.chunks > 8 for m in matrices_of(program, f))
        words = int(f.attrs.get("page_words", 0))
        chosen = default(words, MACHINES[target.name], roomy=group <= 8, crowded=group > 32 or many)
        made = SelectKnobs(**{**chosen.attrs(), **given})
        return fitting(program, f, MACHINES[target.name], made, made.attrs().keys() - given.keys())

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
        machine = MACHINES[target.name]
        listed, kept = 4 * list_words(f), 4 * knobs.chip_words
        if listed and listed + kept > machine.cta_shared:
            lists = f"the lists of its shortlists take {listed} bytes of shared memory, 'chip_words' {kept}"
            return f"{lists}, and a CTA may have {machine.cta_shared}"
        return too_many_threads(machine, knobs.threads, knobs.residents)

    def blamed(self, f: Function) -> Loc | None:
        found = largest(f)
        return super().blamed(f) if found is None else found.loc

    def facts(self, program: Module, f: Function, knobs: SelectKnobs) -> dict[str, Attr]:
        made: dict[str, Attr] = {"bytes_in_flight": knobs.in_flight_bytes(matrices=bool(matrices_of(program, f)))}
        return {**made, "list_bytes": 4 * listed} if (listed := list_words(f)) else made


def too_many_threads(machine: Machine, threads: int, residents: int) -> str | None:
    """Why an SM cannot hold ``residents`` CTAs of so many threads; None where it can."""
    if threads * residents <= machine.threads:
        return None
    return f"an SM holds {machine.threads} threads, and {residents} CTAs of {threads} are {threads * residents}"
