"""Faults planted in the code generator: on generated flows each makes a stage disagree."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count, islice
from typing import Any

import pytest

from tests.generated import stages
from tests.generated.grammar import generate
from tests.generated.program import Program
from tests.generated.stages import Disagreement, agree, on_cpu, on_gpu
from vortex.codegen import arguments, narrow, sort_key, sweep
from vortex.codegen.cpu import attend as cpu_attend
from vortex.codegen.cpu import select as cpu_select
from vortex.codegen.cuda import vector_load
from vortex.codegen.sweep import RowReader, State
from vortex.codegen.tir import T, is_nan
from vortex.ir.dialects import page
from vortex.ir.types import int4

Patch = pytest.MonkeyPatch
FLOWS = 6
"""Flows that use what is broken: some choose the same pages by another page's scale, say."""
QUICK = "shortlist-off-by-one"
"""The fault of the quick run."""


def _scale_of_the_page_before(patch: Patch) -> None:
    right = RowReader.load

    def load(self: RowReader, o: page.Load, index: Any, here: Any = None) -> Any:
        if o.buffer.endswith("_scale"):
            first, *rest = index
            return right(self, o, [T.max(first - 1, T.int32(0)), *rest])
        return right(self, o, index, here)

    patch.setattr(RowReader, "load", load)


def _swapped_nibble(patch: Patch) -> None:
    def unpacked(byte: Any, k: Any, dtype: Any) -> Any:
        return narrow.unpacked(byte, k ^ 1 if dtype == int4 else k, dtype)

    for module in (arguments, vector_load):
        patch.setattr(module, "unpacked", unpacked)


def _stale_state(patch: Patch) -> None:
    """State is never written again."""
    patch.setattr(State, "store", lambda self, o, tiles: None)


def _shortlist_off_by_one(patch: Patch) -> None:
    """A page is listed by the score of the page before."""
    right = cpu_select.emit_shortlist

    def emit(key: Callable[[Any], Any], pages: Any, kept: Any, to: Any) -> None:
        right(lambda s: key(T.max(s - 1, T.int32(0))), pages, kept, to)

    patch.setattr(cpu_select, "emit_shortlist", emit)


def _third_list_off_by_one(patch: Patch) -> None:
    """The same, but of the last list alone, in flows of three."""
    right, lists = cpu_select.emit_shortlist, count()

    def emit(key: Callable[[Any], Any], pages: Any, kept: Any, to: Any) -> None:
        wrong = next(lists) % 3 == 2
        right((lambda s: key(T.max(s - 1, T.int32(0)))) if wrong else key, pages, kept, to)

    patch.setattr(cpu_select, "emit_shortlist", emit)


def _nan_is_best(patch: Patch) -> None:
    """A page without a score is taken before all others."""

    def key(score: Any) -> Any:
        return T.Select(is_nan(score), T.uint32(0xFFFFFFFF), sort_key.sortable(score))

    patch.setattr(sweep, "sortable", key)


def _last_token_left_out(patch: Patch) -> None:
    """The value of the last token of each page has no weight."""
    right = cpu_attend._Row._accumulate
    patch.setattr(cpu_attend._Row, "_accumulate", lambda self, at, tokens: right(self, at, tokens - 1))


def using(what: str, flows: int, times: int = 1) -> list[Program]:
    """The first flows of few lines that have ``what`` in their text so often, and that are fused."""
    short = 12 * times

    def fit(p: Program) -> bool:
        return p.text.count(what) >= times and len(p.index) < short and p.seed % 8 != 2

    return list(islice(filter(fit, map(generate, count())), flows))


PLANTED = {
    "scale-of-the-page-before": ("scale=", on_cpu, _scale_of_the_page_before),
    "swapped-nibble": ('dtype="int4"', on_cpu, _swapped_nibble),
    "swapped-nibble-on-gpu": ('dtype="int4"', on_gpu, _swapped_nibble),
    "stale-state": ('state="', on_cpu, _stale_state),
    "shortlist-off-by-one": ("vortex.shortlist", on_cpu, _shortlist_off_by_one),
    "third-list-off-by-one": ("vortex.shortlist", on_cpu, _third_list_off_by_one),
    "nan-is-best": ("torch.nan", on_cpu, _nan_is_best),
    "last-token-left-out": ("vortex.topk", on_cpu, _last_token_left_out),
}
THREE = "third-list-off-by-one"


@pytest.mark.filterwarnings("ignore::vortex.errors.VortexWarning")
@pytest.mark.parametrize("fault", [pytest.param(f, marks=[] if f == QUICK else [pytest.mark.full]) for f in PLANTED])
def test_planted_faults_are_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    what, stage, plant = PLANTED[fault]
    programs = using(what, 4 if stage is on_gpu or fault == THREE else FLOWS, 3 if fault == THREE else 1)
    monkeypatch.setattr(stages, "TRIES", 0)
    agree(programs, stage)
    plant(monkeypatch)
    with pytest.raises(Disagreement) as seen:
        agree(programs, stage)
    assert isinstance(seen.value.__cause__, AssertionError), "the fault itself does not run"
