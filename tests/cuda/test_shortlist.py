"""``select`` of flows in two and three steps on a GPU, under the emulator: shortlists, what is read at their pages by
the page table (fields and the rows of the pools), and selections among them, as the flow does it that runs eagerly.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import vortex
from tests.batches import batch, candidates, summarise
from tests.cuda.harness import APPENDED, H200, Kernels, fails, lower, tensors
from tests.flow.shortlists import Both, Latent, Linear, ThreeSteps, TwoSteps
from vortex.budget import Budget
from vortex.codegen.cuda.pool_rows import PoolRows
from vortex.codegen.cuda.select import few_keys, lists
from vortex.codegen.cuda.select.lists import Lists
from vortex.codegen.cuda.select.page_lookup import PageLookup
from vortex.codegen.cuda.select.page_tile import PageTile
from vortex.codegen.cuda.select.reserved import GpuReader
from vortex.codegen.cuda.select.sweeps import Sweeps
from vortex.codegen.cuda.storage import ListStorage, StoredValues
from vortex.codegen.cuda.warp import below
from vortex.codegen.emit import emit_kernel
from vortex.codegen.tir import Expr, T, equal, i32
from vortex.codegen.values import pages_on
from vortex.errors import VortexError
from vortex.flow import oracle
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace
from vortex.ir.core import Decl, Module
from vortex.ir.dialects import page
from vortex.ir.dialects.flow import cap_of
from vortex.ir.interpret_page import Batch, plan_row
from vortex.ir.types import S, Sym, fp8_e4m3
from vortex.passes.manager import PassContext, run_pipeline
from vortex.schedules.check import check_program
from vortex.schedules.cuda_select import SelectKnobs, fitting
from vortex.schedules.matrices import matrices_of
from vortex.spec import Spec
from vortex.targets.gpu import MACHINES

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FLOW_PASSES = "canonicalize,cse,split-bound,reassociate,drop-monotone,dce"
KINDS = ("plan", "select")
SIZES = (0, 1, 2, 33, 300)
"""Candidates of a row."""
Fault = Callable[[pytest.MonkeyPatch], None]
"""Plants one in what emits kernels."""


class Ties(Linear):
    """Scores of which many are equal, at both steps; a list longer than a thread's share of keys."""

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        near = vortex.shortlist((cache.lo[:, 0] > 0).float(), pages=90)
        return vortex.topk((cache.k[near][:, :, 0].amax(1) > 3).float())


class Shares(TwoSteps):
    """A share of the mass among the shortlist's pages, and the best of all pages by another score."""

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        near = vortex.shortlist(cache.hi @ q[0], pages=7)
        mass = cache.k[near].abs().sum((1, 2))
        return vortex.union(vortex.topp(mass, 0.75, pages=5), vortex.topk(cache.lo @ q[0], pages=3))


class Values(TwoSteps):
    """Raw V of the shortlist, after statistics over its pages and a list of page numbers."""

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        near = vortex.shortlist((cache.lo + cache.hi) @ q[0], pages=40)
        largest = cache.v[near].amax(1)  # [S1, head_dim]
        centred = largest.sum(-1) - largest.sum(-1).amax(0) + vortex.page_index()[near] % 4
        return vortex.topk(centred + (cache.hi[near] * q.sum(0)).sum(-1).cumsum(0))


class Many(TwoSteps):
    """Lists that take more shared memory than a CTA may have: each of the longest, none the same."""

    count = 15

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        bound, score = cache.hi @ q[0], 0.0
        for i in range(self.count):
            near = vortex.shortlist(bound * (i + 1.0), pages=4096)
            score = score + (cache.lo[near] @ q[0]).amax(0)
        return vortex.topk(bound - score)


class LatentMass(Latent):
    """The mass that all heads give the pages of a shortlist, whose logits are kept."""

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        near = vortex.shortlist(cache.mean @ q.sum(0), pages=64)
        logits = cache.latent[near] @ q.T
        return vortex.topk(logits.logsumexp(1).softmax(0).sum(-1))


class Wide(TwoSteps):
    """Much to keep for each page of a warp, beside a list."""

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        near = vortex.shortlist((cache.hi.sin() * q[0]).cumsum(0).sum(-1), pages=4096)
        return vortex.topk((cache.lo[near].cos() * q[0]).cumsum(0).sum(-1))


FLOWS = {f.__name__: f for f in (TwoSteps, Linear, ThreeSteps, Both, Ties, Shares, Values, Latent)}
SPECS = {
    "TwoSteps": Spec(page_size=16, head_dim=32, group=4, dtype="bf16"),
    "Linear": Spec(page_size=8, head_dim=32, group=2, dtype="bf16", kv_dtype="fp8_e4m3"),
    "ThreeSteps": Spec(page_size=4, head_dim=16, group=1, dtype="f32"),
    "Both": Spec(page_size=4, head_dim=16, group=2, dtype="f16"),
    "Ties": Spec(page_size=4, head_dim=16, group=1, dtype="bf16"),
    "Shares": Spec(page_size=4, head_dim=16, group=1, dtype="bf16"),
    "Values": Spec(page_size=4, head_dim=16, group=2, dtype="bf16"),
    "Latent": Spec(page_size=4, head_dim=128, group=4, dtype="bf16", kv_lora_rank=64),
    "quest_then_mass": Spec(page_size=8, head_dim=32, group=4, dtype="bf16"),
    "quest_then_exact": Spec(page_size=8, head_dim=32, group=2, dtype="bf16"),
}
BLOCKS = Spec(page_size=64, block_size=16, head_dim=32, group=2, dtype="bf16")
FEW = ("ThreeSteps", "quest_then_exact")
MORE = [*FEW, *(pytest.param(n, marks=pytest.mark.full) for n in SPECS if n not in FEW)]
BUDGETS = (Budget(3, sink=1, recent=2), Budget(2, "1/3", sink=2, recent=1), Budget(0, sink=0, recent=1))
"""The second one wants more pages of a long row than most of the shortlists have."""


def cls_of(name: str) -> Any:
    return FLOWS[name] if name in FLOWS else find_flow(str(EXAMPLES / f"{name}.py"))


@cache
def flow_of(name: str, spec: Spec) -> Module:
    return run_pipeline(trace(cls_of(name), spec), FLOW_PASSES, PassContext(None))


@cache
def kernels(
    name: str, spec: Spec, chip_words: int = 4096, keys: int = 8, threads: int = 64, cluster: int = 1
) -> Kernels:
    knobs = {"threads": threads, "chip_words": chip_words, "keys": keys, "cluster": cluster}
    program = lower(flow_of(name, spec), plan={"threads": 64, "select_pages": 64, "attend_pages": 4}, select=knobs)
    return Kernels.of({name: program}, KINDS)


def lengths(spec: Spec, budget: Budget, sizes: Sequence[int]) -> list[int]:
    """Tokens of rows that have so many candidates, the last page partial in every other row."""
    block = spec.block_size or spec.page_size
    return [(n + budget.sink + budget.recent) * block - (i % 2) for i, n in enumerate(sizes)]


def eager(name: str, spec: Spec, b: Batch, r: int, h: int, budget: Budget) -> list[int]:
    """The pages (or blocks) of a row, by the flow run on torch tensors."""
    flow = flow_of(name, spec)
    n, _, first, scored = plan_row(int(b.lengths[r]), page.block_size(flow), b.budget, cap_of(flow))
    if not scored:
        return list(range(n))
    held = candidates(flow, b, r, h, first, scored)
    group = b.q.shape[1] // b.heads
    q, fields = torch.from_numpy(b.q[r, h * group : (h + 1) * group]), {f: torch.from_numpy(x) for f, x in held.items()}
    chosen = oracle.selection(cls_of(name), spec, q, fields, first_page=first, pages=scored)
    return oracle.select_pages(chosen, n, budget)


def check(
    name: str, spec: Spec, budget: Budget, sizes: Sequence[int] = SIZES, *, slots: int, seed: int,
    built: Kernels | None = None, integers: bool = True, nhd: bool = False,
) -> None:  # fmt: skip
    """All rows against the flow on torch tensors; what is not to be read is NaN, and so is the workspace."""
    flow, built = flow_of(name, spec), built or kernels(name, spec)
    scales = {"k": 0.5, "v": 2.0} if spec.kv_dtype == "fp8_e4m3" else {}
    heads = 1 if spec.kv_lora_rank else 2
    b = batch(
        flow, [0, *lengths(spec, budget, sizes)], heads=heads, budget=budget, stored=True, integers=integers, seed=seed,
        scales=scales,
    )  # fmt: skip
    summarise(flow, b)
    given = tensors(built, name, b, slots=slots)
    for pool in ("k", "v", "latent"):
        if nhd and pool in given:
            given[pool] = given[pool].transpose(1, 2).contiguous().transpose(1, 2)
    built.run(name, given, KINDS, seed=seed)
    for r in range(b.requests):
        for h in range(b.heads):
            have = given["pages"][r, h, : given["counts"][r, h]].tolist()
            assert have == eager(name, spec, b, r, h, budget), (name, r, h, budget, slots, seed)
    assert not given["arrivals"].any()


def require_seen(fault: Fault, name: str, spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that a fault is planted in fail where those without it pass: asked for one page of the last list, by
    numbers of which no two are equal.
    """
    with monkeypatch.context() as planted:
        fault(planted)
        wrong = kernels.__wrapped__(name, spec)
    right, one = kernels(name, spec), Budget(1, sink=1, recent=2)
    assert wrong.texts != right.texts

    def passes(built: Kernels, seed: int) -> None:
        check(name, spec, one, (2, 33, 90), slots=1, seed=seed, built=built, integers=False)

    passes(right, 0)
    assert any(fails(passes, wrong, seed) for seed in range(4))


@pytest.mark.parametrize("slots", [1, 8], ids=["one item a row", "items meet"])
@pytest.mark.parametrize("name", MORE)
def test_steps_equal_the_flow_run_eagerly(name: str, slots: int) -> None:
    for seed, budget in enumerate(BUDGETS):
        check(name, SPECS[name], budget, slots=slots, seed=seed, nhd=seed == 1)


@pytest.mark.parametrize("name", ["Linear", *(pytest.param(n, marks=pytest.mark.full) for n in ("Values", "Shares"))])
def test_blocks_of_a_page(name: str) -> None:
    for seed, (slots, budget) in enumerate(zip((1, 8), BUDGETS, strict=False)):
        check(name, BLOCKS, budget, slots=slots, seed=seed, nhd=seed == 1)


def in_fp8(dtype: str) -> Spec:
    return Spec(page_size=16, head_dim=64, group=4, dtype=dtype, kv_dtype="fp8_e4m3")


@pytest.mark.parametrize("dtype", ["bf16", pytest.param("f16", marks=pytest.mark.full)])
def test_rows_of_a_pool_with_a_scale(dtype: str) -> None:
    """Tensor cores take the bytes of K, and the results are multiplied by its scale."""
    name, spec = "quest_then_exact", in_fp8(dtype)
    program = lower(flow_of(name, spec))
    contracted = [(m.load.load.buffer, m.load.dtype) for m in matrices_of(program, program.functions["select"])]
    assert ("k", fp8_e4m3) in contracted
    for seed, budget in enumerate(BUDGETS):
        slots = 1 if seed == 1 else 8
        check(name, spec, budget, (2, 33, 70), slots=slots, seed=seed, nhd=seed == 1, integers=seed == 2)


def test_a_scale_that_is_forgotten_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgotten(planted: pytest.MonkeyPatch) -> None:
        planted.setattr(PoolRows, "scale", None)

    require_seen(forgotten, "quest_then_exact", in_fp8("bf16"), monkeypatch)


@pytest.mark.full
@pytest.mark.parametrize("name", ["ThreeSteps", "Ties", "Shares", "quest_then_mass"])
def test_rows_of_more_keys_than_registers_in_the_workspace(name: str) -> None:
    built = kernels(name, SPECS[name], 0, 1)
    for slots in (1, 8):
        check(name, SPECS[name], BUDGETS[0], slots=slots, seed=5, built=built)


@pytest.mark.full
@pytest.mark.parametrize("threads", [32, 128, 256])
@pytest.mark.parametrize("name", ["ThreeSteps", "Ties", "Values", "quest_then_exact"])
def test_a_choice_from_as_many_keys_as_threads_and_from_fewer_and_more(name: str, threads: int) -> None:
    built = kernels(name, SPECS[name], threads=threads)
    for seed, budget in enumerate(BUDGETS):
        check(name, SPECS[name], budget, (1, 2, 7, 33, 90, 200), slots=1 + seed, seed=seed, built=built)


@pytest.mark.full
def test_every_barrier_of_a_choice_from_a_list_is_needed() -> None:
    name, built = "Values", kernels("Values", SPECS["Values"])
    symbol = built.sources[name, "select"].symbol
    text = built.texts[symbol]
    steps = list(re.finditer(r"^ *tvm_builtin_cuda_cta_sync\(\);\n", text.partition(APPENDED)[0], re.MULTILINE))

    def passes(made: Kernels) -> None:
        for seed, budget in enumerate(BUDGETS):
            check(name, SPECS[name], budget, slots=1, seed=seed, built=made)

    passes(built)
    # behind the last of the sweeps: the keys are there, and the sums of the warps before
    needless = [
        n
        for n, step in enumerate(steps[-2:])
        if not fails(passes, built.mutated(symbol, text[: step.start()] + text[step.end() :]))
    ]
    assert not needless, needless


@pytest.mark.full
def test_random_numbers() -> None:
    for name in ("TwoSteps", "quest_then_mass", "quest_then_exact"):
        for seed in range(4):
            check(name, SPECS[name], BUDGETS[seed % 3], slots=1 + 7 * (seed % 2), seed=seed, integers=False)


def _a_list_without_its_last_page(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(axis: Sym, candidates: Expr) -> Expr:
        return T.max(i32(0), pages_on(axis, candidates) - int(axis.listed))

    monkeypatch.setattr(lists, "pages_on", short)


def _a_list_that_begins_one_late(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ListStorage.put
    monkeypatch.setattr(ListStorage, "put", lambda self, page, at: right(self, page, at + 1))


def _tiles_of_the_page_before(monkeypatch: pytest.MonkeyPatch) -> None:
    right = PageLookup.physical

    def before(self: PageLookup, axis: Sym, candidate: Expr) -> Expr:
        return right(self, axis, T.max(candidate - 1, i32(0)) if axis.listed else candidate)

    monkeypatch.setattr(PageLookup, "physical", before)


def _tiles_at_places_of_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Sweeps._page_tile

    def wrong(self: Sweeps, sweep: Any, turn: Expr, *, looks_up: bool) -> PageTile:
        made = right(self, sweep, turn, looks_up=looks_up)
        return replace(made, found=dict.fromkeys(made.found, made.position))

    monkeypatch.setattr(Sweeps, "_page_tile", wrong)


def _rows_of_another_head(monkeypatch: pytest.MonkeyPatch) -> None:
    right = GpuReader.row_of

    def wrong(self: GpuReader, pool: Decl, where: tuple[Expr, ...]) -> Expr:
        page_of, head, *inner = where
        return right(self, pool, (page_of, 1 - head, *inner))

    monkeypatch.setattr(GpuReader, "row_of", wrong)


def _rows_one_token_late(monkeypatch: pytest.MonkeyPatch) -> None:
    right = GpuReader.row_of

    def wrong(self: GpuReader, pool: Decl, where: tuple[Expr, ...]) -> Expr:
        page_of, head, token, dim = where
        return right(self, pool, (page_of, head, T.min(token + 1, 3), dim))

    monkeypatch.setattr(GpuReader, "row_of", wrong)


def _keys_of_the_step_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lists, "_clear_keys", lambda self, o: None)


def _keys_at_places_of_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StoredValues, "place", lambda self, at, position: position)


def _pool_rows_of_another_head(monkeypatch: pytest.MonkeyPatch) -> None:
    right = PoolRows.row_of_record

    def wrong(self: PoolRows, record: Expr, token: Expr, width: int) -> Expr:
        return right(self, T.bitwise_xor(record, i32(1)), token, width)

    monkeypatch.setattr(PoolRows, "row_of_record", wrong)


def _pool_rows_one_token_late(monkeypatch: pytest.MonkeyPatch) -> None:
    right = PoolRows.row_of_record

    def wrong(self: PoolRows, record: Expr, token: Expr, width: int) -> Expr:
        return right(self, record, T.bitwise_xor(token + 1, i32(8)), width)

    monkeypatch.setattr(PoolRows, "row_of_record", wrong)


def _page_tiles_as_long_as_those_of_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Sweeps._start
    monkeypatch.setattr(Sweeps, "_start", lambda self, sweep, turn: right(self, replace(sweep, axis=S), turn))


def _choice_among_places_of_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lists, "_listed", lambda self, o, position: position)


def _ties_that_the_last_page_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_keys, "is_better", lambda x, i, y, j: T.Or(x > y, T.And(equal(x, y), i > j)))


def _places_that_count_the_page_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_keys, "below", lambda lane: below(lane + 1))


PLANTED = {
    _a_list_without_its_last_page: "ThreeSteps",
    _a_list_that_begins_one_late: "ThreeSteps",
    _tiles_of_the_page_before: "ThreeSteps",
    _tiles_at_places_of_the_list: "ThreeSteps",
    _rows_of_another_head: "ThreeSteps",
    _rows_one_token_late: "ThreeSteps",
    _keys_of_the_step_before: "Shares",
    _keys_at_places_of_the_list: "Shares",
    _pool_rows_of_another_head: "quest_then_exact",
    _pool_rows_one_token_late: "quest_then_exact",
    _page_tiles_as_long_as_those_of_candidates: "quest_then_exact",
    _choice_among_places_of_the_list: "ThreeSteps",
    _places_that_count_the_page_itself: "ThreeSteps",
}
"""Each changes the kernel of a flow, which passes without it."""
SEEN_QUICKLY = (_a_list_without_its_last_page, _rows_of_another_head, _page_tiles_as_long_as_those_of_candidates)


@pytest.mark.parametrize(
    "fault",
    [f if f in SEEN_QUICKLY else pytest.param(f, marks=pytest.mark.full) for f in PLANTED],
    ids=lambda f: f.__name__,
)
def test_planted_faults_are_seen(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    require_seen(fault, PLANTED[fault], SPECS[PLANTED[fault]], monkeypatch)


@pytest.mark.full
def test_ties_of_a_choice_from_a_list_go_to_the_first_page(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as planted:
        _ties_that_the_last_page_wins(planted)
        wrong = kernels.__wrapped__("Ties", SPECS["Ties"], threads=128)
    assert fails(lambda: check("Ties", SPECS["Ties"], BUDGETS[0], slots=1, seed=1, built=wrong))


# lists that are too large


def compiled(flow: type[vortex.vFlow], **knobs: int) -> None:
    program = lower(trace(flow, SPECS["TwoSteps"]), H200, select=knobs)
    check_program(program, H200)
    emit_kernel(program, program.functions["select"], H200)


def line_of(flow: type[vortex.vFlow], text: str) -> int:
    lines, first = inspect.getsourcelines(flow)
    return first + next(i for i, x in enumerate(lines) if text in x)


def test_lists_that_no_cta_has_room_for() -> None:
    """15 lists of 4096 pages are 245760 bytes, and what page tiles of each leave 512; of 13, the largest number that
    fits, knobs leave what these need.
    """
    with pytest.raises(VortexError, match="VX4006") as found:
        compiled(Many)
    assert "take 253440 bytes of shared memory" in str(found.value)
    assert found.value.loc is not None and found.value.loc.line == line_of(Many, "vortex.shortlist")


def test_a_list_beside_what_is_asked_to_be_kept() -> None:
    with pytest.raises(VortexError, match="VX4006") as found:
        compiled(Wide, chip_words=55000)
    assert "take 16384 bytes of shared memory, 'chip_words' 220000" in str(found.value)
    assert found.value.loc is not None and found.value.loc.line == line_of(Wide, "vortex.shortlist")


def test_a_cta_of_too_many_bytes_names_the_line() -> None:
    """Knobs whose lists and rows fit, but not what warps keep beside them."""
    with pytest.raises(VortexError, match="VX4006") as found:
        compiled(Wide, threads=1024, residents=1, chip_words=40000)
    assert "a CTA needs" in str(found.value) and "fewer pages in the flow's shortlists" in str(found.value)
    assert found.value.loc is not None and found.value.loc.line == line_of(Wide, "vortex.shortlist")


def test_many_heads_over_long_pages_say_what_is_too_large() -> None:
    """Under MLA the logits of 64 tokens by 128 heads are 1 MiB for the pages that a warp has at hand."""
    spec = Spec.of_latent("512+64", 128, page_size=64)
    program = lower(trace(LatentMass, spec), H200)
    with pytest.raises(VortexError, match="VX4006") as found:
        emit_kernel(program, program.functions["select"], H200)
    assert "[64, 128] numbers of each of 8 pages are kept here" in str(found.value)
    assert found.value.loc is not None and found.value.loc.line == line_of(LatentMass, "cache.latent[near]")
    spec = Spec.of_latent("512+64", 20, page_size=64, block_size=8)
    program = lower(trace(LatentMass, spec), H200)
    emit_kernel(program, program.functions["select"], H200)


@pytest.mark.parametrize("pages", [0, 4097, 2.5])
def test_a_list_of_no_or_too_many_pages(pages: float) -> None:
    flow = type("Counted", (TwoSteps,), {"pages": pages})
    with pytest.raises(VortexError, match="VX1090"):
        trace(flow, SPECS["TwoSteps"])


def test_fitting_gives_up_rows_on_chip_before_threads() -> None:
    """Only knobs that are free change, and no more of them than is needed."""
    program = lower(flow_of("quest_then_exact", Spec(page_size=16, head_dim=128, group=8)), H200)
    f, machine = program.functions["select"], MACHINES[H200.name]
    asked = SelectKnobs(threads=1024, residents=1, chip_words=machine.cta_shared // 4)
    free = fitting(program, f, machine, asked, {"threads", "chip_words"})
    assert free.chip_words < asked.chip_words and (free.chip_words == 2048 or free.threads == asked.threads)
    assert fitting(program, f, machine, asked, ()) == asked
    kept = fitting(program, f, machine, asked, {"threads"})
    assert (kept.chip_words, kept.threads) == (asked.chip_words, 32), "nothing fits beside so many rows"
    small = SelectKnobs(threads=64, chip_words=256)
    assert fitting(program, f, machine, small, {"threads", "chip_words"}) == small
