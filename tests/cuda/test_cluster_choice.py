"""Top-k by a cluster for GPUs under the emulator: CTAs that choose together choose what one alone does."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.cuda import test_topk as alone
from tests.cuda.harness import APPENDED, Kernels, fails
from tests.cuda.test_cluster import ARRIVE, WAIT
from vortex.codegen.cuda.select import cluster_choice
from vortex.codegen.cuda.select.cluster_choice import ClusterChoice, Exchange
from vortex.codegen.cuda.select.row_keys import RowKeys
from vortex.codegen.tir import i32
from vortex.ir.ranking import Ranked

ROWS = [
    *alone.LONG, ("normal", 600, 30), ("normal", 129, 40), ("zeros", 3000, 1500), ("one binade", 2000, 700),
    ("equal", 2500, 2499), ("descending", 1500, 1400), ("all nan", 1500, 700), ("infinite ends", 900, 800),
]  # fmt: skip
"""Long rows, and short ones, which the first CTA chooses from: of pages that few or many share a key with."""


@pytest.mark.parametrize(("ctas", "keys", "threads", "words"), [
    (4, 2, 64, 1024), (2, 1, 64, 0), pytest.param(2, 1, 96, 1024, marks=pytest.mark.full),
    pytest.param(8, 4, 64, 1024, marks=pytest.mark.full),
])  # fmt: skip
def test_a_cluster_chooses_the_best_in_order(ctas: int, keys: int, threads: int, words: int) -> None:
    """With and without room on chip for what is kept of pages."""
    made = alone.kernels(keys, words, threads, ctas)
    for seed, (kind, n, k) in enumerate(ROWS if words else ROWS[::6]):
        scores = alone.make(kind, n)
        want = sorted(int(i) for i in Ranked(scores).best(k))
        assert alone.pick(scores, k, slots=4, seed=seed, made=made) == want, (kind, n, k)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["normal", "ties", "mixed", "one binade", "neighbours", "zeros", "infinite ends"])
def test_of_many_k(kind: str) -> None:
    made, scores = alone.kernels(1, 1024, 64, 4), alone.make(kind, 777)
    for k in range(0, 777, 25):
        want = sorted(int(i) for i in Ranked(scores).best(k))
        assert alone.pick(scores, k, slots=4, seed=k, made=made) == want, k


def wants(kind: str, n: int, k: int) -> Callable[[Kernels], None]:
    scores = alone.make(kind, n)
    want = sorted(int(i) for i in Ranked(scores).best(k))

    def check(made: Kernels) -> None:
        for seed in range(2):
            assert alone.pick(scores, k, slots=4, seed=seed, made=made) == want

    return check


ONE_BY_ONE = [
    wants(*row)
    for row in (
        ("normal", 600, 18),
        ("mixed", 700, 300),
        ("ties", 500, 90),
        ("one binade", 500, 200),
        ("normal", 90, 9),
    )
]
"""Of one count, of several, of ties, and of a row that one CTA has registers for."""


def check(made: Kernels) -> None:
    for one in ONE_BY_ONE:
        one(made)


@pytest.mark.full
def test_every_barrier_is_needed() -> None:
    built = alone.kernels(1, 1024, 64, 4)
    symbol = built.sources["scores", "select"].symbol
    text = built.texts[symbol]
    waits = list(re.finditer(rf"^ *{re.escape(ARRIVE)}\n *{re.escape(WAIT)}\n", text, re.MULTILINE))
    assert len(waits) == 3, "one behind the scores, one behind the counts, one behind what is listed"
    begin = text.partition(APPENDED)[0].index(ARRIVE)
    inside = re.compile(r"^ *tvm_builtin_cuda_cta_sync\(\);\n", re.MULTILINE)
    # those of the choice together stand between the first and the last barrier of the cluster
    every = [*waits, *(s for s in inside.finditer(text) if begin < s.start() < waits[-1].start())]
    assert len(every) >= 3 + 4

    check(built)
    for at in every:
        before = text[at.start() - 200 : at.end()]
        assert fails(check, built.mutated(symbol, text[: at.start()] + text[at.end() :])), before


Fault = Callable[[pytest.MonkeyPatch], None]


def _ties_are_counted_by_each_warp(planted: pytest.MonkeyPatch) -> None:
    right = ClusterChoice._tell

    def wrong(self: ClusterChoice, *arguments: object) -> object:
        above, within = right(self, *arguments)  # type: ignore[arg-type]
        cluster_choice.put(within, i32(0), 0)
        return above, within

    planted.setattr(ClusterChoice, "_tell", wrong)


def _one_set_of_bins(planted: pytest.MonkeyPatch) -> None:
    planted.setattr(cluster_choice, "TURNS", 1)


def _pages_of_the_first_cta(planted: pytest.MonkeyPatch) -> None:
    right = RowKeys.load.__func__  # type: ignore[attr-defined]

    def wrong(cls: type[RowKeys], *arguments: object, **more: object) -> RowKeys:
        return right(cls, *arguments, **{**more, "rank": i32(0)})

    planted.setattr(RowKeys, "load", classmethod(wrong))


def _a_bound_that_too_few_reach(planted: pytest.MonkeyPatch) -> None:
    right = ClusterChoice._bound

    def wrong(self: ClusterChoice, search: object, greatest: object, scored: object, best: object) -> None:
        right(self, search, greatest, scored, i32(1))  # type: ignore[arg-type]

    planted.setattr(ClusterChoice, "_bound", wrong)


def _lists_meet_those_of_warps(planted: pytest.MonkeyPatch) -> None:
    planted.setattr(Exchange, "of_warps", property(lambda self: self.keys))


@pytest.mark.parametrize("fault", [
    _ties_are_counted_by_each_warp, *(pytest.param(fault, marks=pytest.mark.full) for fault in (
        _one_set_of_bins, _pages_of_the_first_cta, _a_bound_that_too_few_reach, _lists_meet_those_of_warps,
    )),
])  # fmt: skip
def test_planted_faults_are_seen(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as planted:
        fault(planted)
        wrong = alone.kernels.__wrapped__(1, 1024, 64, 4)
    right = alone.kernels(1, 1024, 64, 4)
    assert wrong.texts != right.texts

    check(right)
    assert fails(check, wrong)
