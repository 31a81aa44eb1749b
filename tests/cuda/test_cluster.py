"""``select`` in clusters on a GPU, under the emulator: CTAs that share a row choose what one alone does."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext

import pytest

from tests.cuda import test_shortlist as steps
from tests.cuda import test_taken_in as new_tokens
from tests.cuda.harness import H200, Kernels, fails, lower
from tests.cuda.test_shortlist import BLOCKS, BUDGETS, SPECS, check, flow_of, kernels
from vortex.codegen.cuda.cluster import Cluster
from vortex.codegen.cuda.select.lists import Lists
from vortex.codegen.cuda.select.sweeps import Sweeps
from vortex.codegen.tir import i32
from vortex.errors import VortexError
from vortex.schedules.check import check_program

SHARED = ("quest_then_mass", "quest_then_exact", "TwoSteps", "Linear", "Both", "Ties", "Shares", "Latent")
"""Flows without scans along pages."""
FEW = ("quest_then_mass", "Both")
MORE = [*FEW, *(pytest.param(n, marks=pytest.mark.full) for n in SHARED if n not in FEW)]
ARRIVE, WAIT = (
    f"tvm_builtin_ptx_barrier_cluster_{half}_cluster_{half}_{order}();"
    for half, order in (("arrive", "release"), ("wait", "acquire"))
)


@pytest.mark.parametrize("name", MORE)
def test_a_cluster_chooses_as_the_flow_run_eagerly(name: str) -> None:
    """Rows without candidates and of fewer page tiles than CTAs are among them."""
    built = kernels(name, SPECS[name], cluster=4)
    for seed, budget in enumerate(BUDGETS):
        check(name, SPECS[name], budget, slots=8, seed=seed, built=built, nhd=seed == 1)


@pytest.mark.full
@pytest.mark.parametrize("ctas", [2, 8, 16])
@pytest.mark.parametrize("name", ["quest_then_mass", "Ties"])
def test_clusters_of_other_sizes_and_long_rows(name: str, ctas: int) -> None:
    """Rows of more keys than registers hold, which come to shared memory first or do not fit there."""
    for keys, words in ((8, 4096), (1, 2048), (1, 0)):
        built = kernels(name, SPECS[name], chip_words=words, keys=keys, cluster=ctas)
        check(name, SPECS[name], BUDGETS[0], (3, 70, 1100), slots=8, seed=ctas, built=built, integers=name == "Ties")


@pytest.mark.full
def test_blocks_of_a_page_and_more_warps_than_page_tiles() -> None:
    for name, threads in (("Linear", 64), ("Shares", 256)):
        built = kernels(name, BLOCKS, threads=threads, cluster=2)
        for seed in (0, 1):
            check(name, BLOCKS, BUDGETS[seed], slots=8, seed=seed, built=built, nhd=seed == 1)


@pytest.mark.parametrize("name", ["quest_then_exact", pytest.param("latent_topk", marks=pytest.mark.full)])
def test_whole_clusters_take_in_new_tokens(name: str) -> None:
    """The CTAs behind those of rows are as many clusters as there must be, the last of which may have CTAs too many."""
    knobs = {"threads": 64, "chip_words": 2048, "cluster": 4}
    plan = {"threads": 64, "select_pages": 32, "attend_pages": 4}
    program = steps.run_pipeline(new_tokens.flow_of(name), new_tokens.FLOW_PASSES, steps.PassContext(None))
    built = Kernels.of({name: lower(program, plan=plan, append={"threads": 64}, select=knobs)}, new_tokens.KINDS)
    new_tokens.check(built, name, stored=False, seeds=range(2))


def test_every_barrier_of_a_cluster_is_needed() -> None:
    name = "quest_then_mass"
    built = kernels(name, SPECS[name], cluster=4)
    symbol = built.sources[name, "select"].symbol
    text = built.texts[symbol]

    def passes(made: Kernels) -> None:
        for seed in range(3):
            check(name, SPECS[name], BUDGETS[seed % 2], (33, 300), slots=8, seed=seed, built=made, integers=False)

    waits = list(re.finditer(rf"^ *{re.escape(ARRIVE)}\n *{re.escape(WAIT)}\n", text, re.MULTILINE))
    assert len(waits) == 2, "one behind the sweep over candidates, one behind that over the pages of the list"
    passes(built)
    for at in waits:
        assert fails(passes, built.mutated(symbol, text[: at.start()] + text[at.end() :])), "without it there is a race"
    for half in (ARRIVE, WAIT):
        assert fails(passes, built.mutated(symbol, text.replace(half, "", 1))), f"without {half}"


Fault = Callable[[pytest.MonkeyPatch], None]


def _tiles_of_the_cta_before(planted: pytest.MonkeyPatch) -> None:
    planted.setattr(Cluster, "warp", property(lambda self: self.cta.warp * self.ctas))


def _as_many_warps_as_a_cta_has(planted: pytest.MonkeyPatch) -> None:
    planted.setattr(Cluster, "warps", property(lambda self: self.cta.warps))


def _all_clear_the_keys(planted: pytest.MonkeyPatch) -> None:
    right = Lists.before_read

    def wrong(self: Lists, *arguments: object) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(Cluster, "one_for_all", lambda self: nullcontext())
            right(self, *arguments)  # type: ignore[arg-type]

    planted.setattr(Lists, "before_read", wrong)


def _another_does_the_rest(planted: pytest.MonkeyPatch) -> None:
    right = Sweeps.share

    def wrong(self: Sweeps, *arguments: object) -> Sweeps:
        made = right(self, *arguments)  # type: ignore[arg-type]
        object.__setattr__(made.cluster, "rank", i32(1))
        object.__setattr__(made.cluster, "ctas", 2)
        return made

    planted.setattr(Sweeps, "share", wrong)


@pytest.mark.full
@pytest.mark.parametrize(("name", "fault"), [
    ("quest_then_mass", _tiles_of_the_cta_before), ("quest_then_mass", _as_many_warps_as_a_cta_has),
    ("Shares", _all_clear_the_keys), ("quest_then_mass", _another_does_the_rest),
])  # fmt: skip
def test_planted_faults_are_seen(name: str, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as planted:
        fault(planted)
        wrong = kernels.__wrapped__(name, SPECS[name], cluster=4)
    assert wrong.texts != kernels(name, SPECS[name], cluster=4).texts

    def passes(built: Kernels) -> None:
        for seed in range(3):
            check(name, SPECS[name], BUDGETS[seed % 2], (33, 90, 300), slots=1, seed=seed, built=built)

    passes(kernels(name, SPECS[name], cluster=4))
    assert fails(passes, wrong)


def test_what_a_cluster_cannot_share_is_refused() -> None:
    program = lower(flow_of("Values", SPECS["Values"]), select={"cluster": 4})
    with pytest.raises(VortexError) as found:
        check_program(program, H200)
    assert "a cluster of 4 CTAs cannot share flow.scan, which is one CTA's work" in str(found.value)
    scan = next(o for f in program.functions.values() for o in f.ops if o.name == "flow.scan")
    assert scan.loc is not None and found.value.loc == scan.loc
