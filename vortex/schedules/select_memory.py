"""The shared memory of a CTA of ``select`` on a GPU, told from the IR alone.

    values of the row | its inputs | fragments for tensor cores | lists     whatever the knobs are
    page tiles                                                              for each warp
    kept of a row's pages                                                   'chip_words' at most
    choice of pages                                                         for each thread

CTAs that take in new tokens have the rows of a page in the place of all that.

The default schedule asks here what fits. The emitters hand the memory out; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from vortex.ir.core import Function, Module, Op
from vortex.ir.dialects import flow, page
from vortex.ir.staging import is_for_row, stage
from vortex.ir.types import bf16, f16
from vortex.schedules.contractions import type_of
from vortex.schedules.cuda_append import shared_words
from vortex.schedules.kept_words import KeptWords
from vortex.schedules.matrices import Matrix
from vortex.schedules.page_tiles import PAGE_TILE, PageTiles
from vortex.schedules.shared_words import aligned
from vortex.schedules.taken_in import taken_in
from vortex.targets.gpu import WARP


def shortlists(f: Function) -> list[flow.Shortlist]:
    """The shortlists of a kernel, whose lists are in shared memory."""
    return [o for o in f.ops if isinstance(o, flow.Shortlist)]


def list_words(f: Function) -> int:
    """32-bit words of shared memory that those lists take, with what is kept of their pages."""
    return sum(o.listed.limit for o in shortlists(f)) + KeptWords.of(f).list_words


def is_staged(program: Module, o: Op) -> bool:
    """Whether an input of the row goes through shared memory: pairs of 16-bit numbers do."""
    if not isinstance(o, page.Load):
        return False
    d, t = program.decls[o.buffer], type_of(o.value)
    if d.attrs["layout"] != "batched" or d.attrs["role"] != "input":
        return False
    return t.dtype in (bf16, f16) and len(t.tile) == 2 and t.tile[1] % 2 == 0


@dataclass(frozen=True)
class SelectMemory:
    """32-bit words of a CTA, by what they are for."""

    row: int
    """Values of the row, and its inputs."""
    fragments: int
    """What tensor cores multiply the pages with."""
    lists: int
    """Of shortlists, and what is kept of their pages."""
    kept: KeptWords
    """Kept between sweeps of each page of a row, and of each page tile."""
    page_tiles: PageTiles
    """What each warp has at hand."""
    appended: int
    """Instead of all that, in CTAs that take in new tokens."""

    @classmethod
    def of(cls, program: Module, f: Function, lane_groups: Collection[Op], matrices: Sequence[Matrix]) -> SelectMemory:
        """Of a kernel, of which these lane groups and tensor cores do ops."""
        values = sum(aligned(max(1, type_of(o.value).numel)) for o in f.ops if is_for_row(o))
        inputs = sum(aligned(type_of(o.value).numel // 2) for o in f.ops if is_staged(program, o))
        fragments = sum(aligned(len(m.fragments()) * m.fragment_words) for m in matrices)
        powers = sum(aligned(m.power_words) for m in matrices)
        kept = KeptWords.of(f)
        lists = sum(aligned(o.listed.limit) for o in shortlists(f)) + kept.aligned_list_words
        tiles = PageTiles.of(f, stage(f), lane_groups, matrices)
        appended = taken_in(program, f)
        rows = 0 if appended is None else shared_words(program, appended)
        return cls(values + inputs, fragments + powers, lists, kept, tiles, rows)

    def words(self, threads: int, chip_words: int) -> int:
        """All that a CTA of so many threads takes, the choice of pages included, which may be a little less."""
        pages = self.kept.chip_pages(chip_words)
        kept = len(self.kept.of_candidates) * pages + self.kept.of_page_tile * (pages // PAGE_TILE)
        tiles = self.page_tiles.words(threads // WARP)
        return max(self.appended, self.row + self.fragments + self.lists + tiles + kept + _choice_words(threads))


def _choice_words(threads: int) -> int:
    """A histogram, keys with their pages for each thread, what warps tell each other, and single words."""
    bins = -(-max(256, 1 << (threads - 1).bit_length()) // threads) * threads
    return bins + 3 * threads + 6 * (threads // WARP) + 128
