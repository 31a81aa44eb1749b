"""What ``select`` leaves open on a GPU."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace

from vortex.errors import Loc
from vortex.ir.core import Attr, Function, Module, Op
from vortex.ir.dialects import flow, page
from vortex.ir.staging import is_for_row, over_pages, stage
from vortex.ir.types import DType
from vortex.kinds.buckets import Bucket
from vortex.schedules.arithmetic import Arithmetic
from vortex.schedules.contractions import LaneGroup, lane_group_of, type_of
from vortex.schedules.kept_words import KeptWords
from vortex.schedules.knobs import Knobs, knob
from vortex.schedules.matrices import matrices_of
from vortex.schedules.page_tiles import PAGE_TILE, tile_of
from vortex.schedules.select_memory import SelectMemory, list_words, shortlists
from vortex.schedules.shared_sweeps import chosen_together
from vortex.schedules.taken_in import to_take_in
from vortex.schedules.template import Schedulable, Variants, declare
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
        chosen="2; 1 where tensor cores leave a lane many sums or long rows; 4 where a page has a few bytes",
    )  # fmt: skip
    chip_words: int = knob(
        8192, "32-bit words of shared memory for what is kept of a row's pages; longer rows use the workspace",
        most=H200.cta_shared // 4, chosen="8192; 18432 where a page has more than one word",
    )  # fmt: skip
    cluster: int = knob(
        1, "CTAs of a row, which wait for each other and share sweeps over shortlists, or the choice among more pages "
        "than a CTA's threads have keys; 1 for as many as 'plan' finds, the last of which does the rest alone",
        only=(1, 2, 4, 8, 16),
    )  # fmt: skip
    overlap: int = knob(1, "whether it may be launched before the kernel in front of it has ended", only=(0, 1))

    def in_flight_bytes(self, *, matrices: bool) -> int:
        """Of a CTA, at most: registers of words for tensor cores, of unpacked 16-bit numbers otherwise."""
        return self.threads * (self.ahead * 4 if matrices else self.unpacked * 2)


def default(
    words_per_page: int, machine: Machine = H200, *, roomy: bool = True, crowded: bool = False, light: bool = False
) -> SelectKnobs:
    """The knobs for a kernel that keeps so many words of each page.

    More is on its way where the memory is further off, if a lane's results leave registers for it (``roomy``); one
    CTA has an SM for itself where tensor cores leave a lane many sums or long rows (``crowded``); more share it where
    lanes load a few bytes of a page (``light``): what is on its way are then many CTAs' loads.
    """
    residents = 1 if crowded else LIGHT if light else 2
    found = SelectKnobs(chip_words=8192 if words_per_page <= 1 else 18432, residents=residents)
    if roomy and found.residents * found.in_flight_bytes(matrices=False) < machine.bytes_needed:
        found = replace(found, unpacked=2 * found.unpacked)
    return found


def lane_groups_of(program: Module, f: Function) -> dict[Op, LaneGroup]:
    """What of a kernel lane groups fold, where tensor cores do not."""

    def summaries(o: page.Load) -> DType | None:
        return page.stored_dtype(program, o) if page.is_summary(program, o) else None

    return {o: group for o in f.ops if (group := lane_group_of(o, summaries)) is not None}


def fitting(program: Module, f: Function, machine: Machine, knobs: SelectKnobs, free: Container[str]) -> SelectKnobs:
    """The knobs, of which those that are ``free`` become smaller until a CTA has the shared memory: first
    what is kept of a row's pages, which may as well lie in the workspace, then threads.

    Where tensor cores leave much for lanes to fold, an SM should have room for all CTAs that are to share it: one loads
    while another folds.
    """
    matrices = matrices_of(program, f)
    memory = SelectMemory.of(program, f, lane_groups_of(program, f), matrices)

    def fits(k: SelectKnobs) -> bool:
        return 4 * memory.words(k.threads, k.chip_words) <= machine.cta_shared

    def shares(k: SelectKnobs) -> bool:
        return machine.ctas_of(4 * memory.words(k.threads, k.chip_words), k.threads) >= k.residents

    if any(m.stacked > 1 for m in matrices) and "chip_words" in free:
        smaller = [replace(knobs, chip_words=words) for words in (8192, 2048) if words < knobs.chip_words]
        knobs = next((k for k in (knobs, *smaller) if shares(k)), knobs)
    for words in (8192, 2048):
        if not fits(knobs) and "chip_words" in free and knobs.chip_words > words:
            knobs = replace(knobs, chip_words=words)
    while not fits(knobs) and "threads" in free and knobs.threads >= 2 * WARP:
        knobs = replace(knobs, threads=knobs.threads // 2 // WARP * WARP)
    return knobs


def largest(f: Function) -> Op | None:
    """The op with a line of the flow whose result takes most shared memory: a list, what a warp keeps of the pages of a
    page tile, or a value of the row.
    """
    taken = {o: words for o in f.ops if o.loc is not None and (words := _words_of(o))}
    return max(taken, key=lambda o: taken[o], default=None)


def _words_of(o: Op) -> int:
    if isinstance(o, flow.Shortlist):
        return o.listed.limit
    if is_for_row(o):
        return type_of(o.value).numel
    in_tile = o.result is not None and o.notes.get("in") == "tile" and over_pages(o.result)
    return type_of(o.value).numel * _pages_of(o) if in_tile else 0


def _pages_of(o: Op) -> int:
    """Pages of the page tiles in which a value is computed."""
    axis = type_of(o.value).pages
    return PAGE_TILE if axis is None else tile_of(axis)


def way_out(f: Function) -> str:
    """What makes the largest smaller, for an error's help; nothing where no line of the flow is to blame."""
    o = largest(f)
    if o is None:
        return ""
    if isinstance(o, flow.Shortlist):
        return "fewer pages in the flow's shortlists"
    numbers = f"[{', '.join(map(str, type_of(o.value).tile))}] numbers of"
    if is_for_row(o):
        return f"{numbers} the row are kept here: scale products rather than q, or take fewer heads, as in q.mean(0)"
    way = "reduce them over heads or tokens first, or take smaller pages (or blocks: --block-size)"
    return f"{numbers} each of {_pages_of(o)} pages are kept here: {way}"


@declare
class CudaSelect(Schedulable[SelectKnobs]):
    target, kind, version, knobs = "cuda", "select", 1, SelectKnobs
    scratch = ("work", "arrivals")

    def takes_in(self, program: Module, f: Function) -> Function | None:
        return to_take_in(program, f)

    def choose(self, program: Module, f: Function, target: Target, given: Mapping[str, int]) -> SelectKnobs:
        group = int(program.attrs.get("group", 1))
        many = any(m.column_tiles * m.accumulators > 2 or m.chunks > 8 for m in matrices_of(program, f))
        words = len(KeptWords.of(f).of_candidates)
        light = not matrices_of(program, f) and Arithmetic.of(program, f).of_candidates.size <= FEW_BYTES
        chosen = default(words, MACHINES[target.name], roomy=group <= 8, crowded=group > 32 or many, light=light)
        made = SelectKnobs(**{**chosen.attrs(), **given})
        return fitting(program, f, MACHINES[target.name], made, made.attrs().keys() - given.keys())

    def variants(self, program: Module, f: Function, target: Target) -> Variants[SelectKnobs]:
        """A request alone leaves SMs idle where one CTA of a row does what is behind the first sweep: there a cluster
        shares the row, if it can share more than that sweep.
        """
        default, longest = self.choose(program, f, target, {}), max((o.listed.limit for o in shortlists(f)), default=0)
        together = chosen_together(f) is not None
        if (not longest and stage(f).loops < 2 and not together) or alone(program, f) is not None:
            return ()
        few = fitting(program, f, MACHINES[target.name], _of_few_rows(f, default), ("chip_words", "threads"))
        if longest >= LONG_LIST:
            return (default, _buckets(256)), (replace(default, cluster=2), _buckets(32, 64)), (few, _buckets(2, 8))
        if not together:
            return (default, _buckets(16, 128)), (few, _buckets(2, 8))
        if default.residents == LIGHT:
            # the choice is most of what they do
            pairs, narrow, wide = replace(few, cluster=2, keys=default.keys), (512, 2048), (8192, 32768)
            many = (*_buckets(64, columns=narrow), *_buckets(512, columns=(*narrow, *wide)))
            few_rows = _buckets(2, 8, 16, columns=(*narrow, *wide))
            return (default, many), (pairs, _buckets(64, 128, columns=wide)), (few, few_rows)
        # few pages of a very long row are chosen by one CTA in less time than its scores wait for a cluster's
        short, long = _buckets(2, 8, columns=(512, 4096)), (32768,)
        few_kept, many_kept = (_buckets(2, 8, columns=long, kept=kept) for kept in ((8, 64), (512, 4096)))
        return (default, (*_buckets(16, 128), *few_kept)), (few, (*short, *many_kept))

    def space(self, program: Module, f: Function, target: Target) -> Iterable[SelectKnobs]:
        clusters = (1, CLUSTER) if alone(program, f) is None else (1,)
        return (
            SelectKnobs(
                threads, in_flight, ahead=ahead, keys=keys, residents=residents, chip_words=chip_words, cluster=cluster
            )
            for threads in (128, 256, 512)
            for in_flight in (0, 1, 2, 4)
            for ahead in (32, 64)
            for keys in (4, 8, 16)
            for residents in (0, 512 // threads, 768 // threads, 1024 // threads)
            for chip_words in (0, 8192, 18432, 36864)
            for cluster in clusters
        )

    def refuse(self, program: Module, f: Function, target: Target, knobs: SelectKnobs) -> str | None:
        machine = MACHINES[target.name]
        listed, kept = 4 * list_words(f), 4 * knobs.chip_words
        if listed and listed + kept > machine.cta_shared:
            lists = f"the lists of its shortlists take {listed} bytes of shared memory, 'chip_words' {kept}"
            return f"{lists}, and a CTA may have {machine.cta_shared}"
        if knobs.cluster > 1 and (o := alone(program, f)) is not None:
            return f"a cluster of {knobs.cluster} CTAs cannot share {o.name}, which is one CTA's work"
        return too_many_threads(machine, knobs.threads, knobs.residents)

    def blamed(self, program: Module, f: Function, knobs: SelectKnobs) -> Loc | None:
        found = (alone(program, f) if knobs.cluster > 1 else None) or largest(f)
        return found.loc if found is not None and found.loc is not None else super().blamed(program, f, knobs)

    def facts(self, program: Module, f: Function, knobs: SelectKnobs) -> dict[str, Attr]:
        """``scalar_per_byte`` and ``flops_per_byte`` are instructions and FLOPs of tensor cores for a byte of summaries
        of candidate pages.
        """
        made: dict[str, Attr] = {"bytes_in_flight": knobs.in_flight_bytes(matrices=bool(matrices_of(program, f)))}
        work = Arithmetic.of(program, f).of_candidates
        if work.size:
            made["scalar_per_byte"] = round(work.total / work.size, 4)
            made["flops_per_byte"] = round(sum(work.tensor.values()) / work.size, 4)
        return {**made, "list_bytes": 4 * listed} if (listed := list_words(f)) else made


def alone(program: Module, f: Function) -> Op | None:
    """An op that several CTAs cannot share: of state, which is read and written, or a scan along pages."""

    def changes_state(o: Op) -> bool:
        return isinstance(o, page.Store) and program.decls[o.buffer].attrs["role"] == "state"

    return next((o for o in f.ops if changes_state(o) or (isinstance(o, flow.Scan) and o.crosses_pages())), None)


FEW_BYTES = 16
"""Of a page, up to which the loads of two CTAs cover little of the memory's latency."""
LIGHT = 4
"""CTAs that share an SM where a page has so few."""
CLUSTER = 8
"""CTAs of a row where there are few rows: 16 are not faster, and 8 is as many as any GPU of the kind surely takes."""
LONG_LIST = 256
"""Pages of a shortlist that a single CTA is long at: then two share a row even where there are many."""


def _of_few_rows(f: Function, default: SelectKnobs) -> SelectKnobs:
    """The knobs of a cluster that shares a row: fewer CTAs an SM, for there are SMs enough, of more warps."""
    few = replace(default, cluster=CLUSTER, residents=1)
    if default.residents == LIGHT:
        return replace(few, residents=2, threads=2 * default.threads, keys=max(1, default.keys // 2))
    if default.residents > 1 and stage(f).loops < 2:
        return replace(few, threads=2 * default.threads)
    if default.residents > 1:
        # as many keys in registers by more warps, for which an SM still has registers
        return replace(few, threads=default.threads * 3 // 2 // WARP * WARP, keys=max(1, default.keys * 3 // 4))
    return few


def _buckets(
    *rows: int, columns: tuple[int, ...] = (512, 4096, 32768), kept: tuple[int, ...] = (8, 64, 512, 4096)
) -> tuple[Bucket, ...]:
    """Buckets of so many rows, such that any step has one near whose rows are as near."""
    return tuple(Bucket(n, c, k) for n in rows for c in columns for k in kept if k <= c)


def too_many_threads(machine: Machine, threads: int, residents: int) -> str | None:
    """Why an SM cannot hold ``residents`` CTAs of so many threads; None where it can."""
    if threads * residents <= machine.threads:
        return None
    return f"an SM holds {machine.threads} threads, and {residents} CTAs of {threads} are {threads * residents}"
