"""Top-k for GPUs under the emulator, on scores made to order: ties, infinities, NaN, all equal, every k."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest
import torch

from tests.batches import batch
from tests.cuda.harness import APPENDED, Kernels, fails, lower, tensors
from tests.strategies import new_module
from vortex.budget import Budget
from vortex.ir.core import Module
from vortex.ir.dialects import flow
from vortex.ir.ranking import Ranked
from vortex.ir.types import S

KINDS = ("plan", "select")


@cache
def scores_as_they_are() -> Module:
    """A flow whose score is the first number of its first field."""
    module, f = new_module()
    first = f.add(flow.Slice(f.args[1], 1, 0, 1), "first")
    score = f.add(flow.Reshape(first, (S,)), "score")
    f.append(flow.Return((f.add(flow.TopK(score), "pages"),)))
    return module


@cache
def kernels(keys: int = 8, chip_words: int = 2048, threads: int = 64, cluster: int = 1) -> Kernels:
    """``keys`` of a thread are in registers."""
    knobs = {"threads": threads, "chip_words": chip_words, "keys": keys, "cluster": cluster}
    program = lower(scores_as_they_are(), plan={"threads": 64, "select_pages": 64}, select=knobs)
    return Kernels.of({"scores": program}, KINDS)


def pick(
    scores: np.ndarray, k: int, *, slots: int, seed: int, keys: int = 8, chip_words: int = 2048,
    made: Kernels | None = None,
) -> list[int]:  # fmt: skip
    """The candidates that the kernel keeps of one row with these scores."""
    made = made or kernels(keys, chip_words)
    n = len(scores) + 1  # the last page is reserved
    b = batch(scores_as_they_are(), [4 * n], heads=1, budget=Budget(k, sink=0, recent=1), stored=True)
    b.paged["c0"][b.page_table[0, : n - 1], 0, 0] = scores
    given = tensors(made, "scores", b, slots=slots)
    made.run("scores", given, KINDS, seed=seed)
    chosen = given["pages"][0, 0, : given["counts"][0, 0]].tolist()
    assert chosen[-1] == n - 1
    return [int(p) for p in chosen[:-1]]


def make(kind: str, n: int) -> np.ndarray:
    rng = np.random.default_rng(n)
    x = rng.normal(size=n).astype(np.float32)
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45], np.float32)
    made = {
        "normal": x,
        "equal": np.full(n, 0.25, np.float32),
        "all nan": np.full(n, np.nan, np.float32),
        "specials": rng.choice(special, n),
        "infinite ends": np.where(x > 1.9, np.inf, np.where(x < -1, -np.inf, x)).astype(np.float32),
        "mixed": np.where(rng.random(n) < 0.3, rng.choice(special, n), x),
        "ties": rng.integers(-2, 3, n).astype(np.float32),
        "one binade": (1 + rng.random(n) * 1e-5).astype(np.float32),
        "zeros": np.where(rng.random(n) < 0.5, np.float32(0), np.float32(-0.0)),
        "ascending": np.arange(n, dtype=np.float32),
        "descending": -np.arange(n, dtype=np.float32),
        "neighbours": (np.float32(1).view(np.int32) + rng.integers(0, 2, n).astype(np.int32)).view(np.float32),
    }
    return made[kind]


@pytest.mark.parametrize(
    "kind",
    ["normal", "equal", "all nan", "specials", "mixed", "ties", "one binade", "zeros", "ascending", "descending",
     "neighbours", "infinite ends"],
)  # fmt: skip
def test_topk_keeps_the_best_in_order(kind: str) -> None:
    for seed, n in enumerate((1, 2, 31, 33, 97, 300)):
        scores = make(kind, n)
        for k in sorted({0, 1, 2, n // 2, n - 1} & set(range(n))):
            want = [int(i) for i in Ranked(scores).best(k)]
            assert pick(scores, k, slots=1 + seed % 2 * 4, seed=seed) == sorted(want), (kind, n, k)


@pytest.mark.parametrize("kind", ["normal", "ties", "equal"])
def test_rows_of_more_keys_than_registers(kind: str) -> None:
    for seed, (n, k) in enumerate([(300, 9), (300, 140), (129, 128), (515, 30)]):
        scores = make(kind, n)
        want = [int(i) for i in Ranked(scores).best(k)]
        assert pick(scores, k, slots=1 + seed % 2 * 4, seed=seed, keys=2) == sorted(want), (kind, n, k)


@pytest.mark.parametrize("threads", [96, pytest.param(384, marks=pytest.mark.full)])
def test_threads_that_are_no_power_of_two(threads: int) -> None:
    """Every bin of a histogram is looked at, the last ones too, where the least of many keys are wanted."""
    made = kernels(2, 2048, threads)
    for seed, (kind, n, k) in enumerate(
        [("normal", 300, 9), ("normal", 900, 890), ("ties", 500, 140), ("equal", 700, 600), ("descending", 1000, 960),
         ("one binade", 800, 500), ("mixed", 1311, 20), ("normal", 2500, 1700)]
    ):  # fmt: skip
        scores = make(kind, n)
        want = sorted(int(i) for i in Ranked(scores).best(k))
        assert pick(scores, k, slots=1 + seed % 2 * 4, seed=seed, made=made) == want, (kind, n, k)


LONG = [("normal", 1200, 9), ("normal", 2500, 30), ("normal", 1100, 400), ("ties", 1500, 12), ("ties", 2100, 20),
        ("equal", 700, 3), ("equal", 1500, 600), ("ascending", 2047, 31), ("mixed", 1311, 20), ("specials", 1024, 16),
        ("all nan", 600, 4), ("neighbours", 1337, 33), ("descending", 1025, 1), ("normal", 1100, 0),
        ("normal", 1700, 300), ("normal", 4100, 200), ("ties", 2500, 190), ("infinite ends", 4500, 60)]  # fmt: skip
"""Rows of more keys than registers and than what is on chip, 1024 words: of few that may be among the best, of more
than there is room for, of more than warps answer for, and than page tiles bound well.
"""


@pytest.mark.parametrize(("kind", "n", "k"), LONG)
def test_long_rows_of_several_items(kind: str, n: int, k: int) -> None:
    scores = make(kind, n)
    want = sorted(int(i) for i in Ranked(scores).best(k))
    for seed, slots in enumerate((16, 1)):
        assert pick(scores, k, slots=slots, seed=seed, keys=2, chip_words=1024) == want, slots


@pytest.mark.parametrize("store", ["= marks_of_lane_ptr[", "= keys_of_list_ptr["])
def test_marked_pages_are_chosen_from(store: str) -> None:
    """Where more are wanted than page tiles bound, the choice is made from the pages that are marked, and no others."""
    whole = kernels(2, 1024)
    symbol = whole.sources["scores", "select"].symbol
    lines = whole.texts[symbol].splitlines(keepends=True)
    kept = [line for line in lines if not ("arena_ptr" in line and store in line)]
    assert len(kept) == len(lines) - 1, store
    scores = make("normal", 4100)
    want = sorted(int(i) for i in Ranked(scores).best(200))

    def check(made: Kernels) -> None:
        assert pick(scores, 200, slots=16, seed=1, made=made) == want

    check(whole)
    assert fails(check, whole.mutated(symbol, "".join(kept)))


@pytest.mark.full
def test_every_barrier_of_long_rows_is_needed() -> None:
    whole = kernels(2, 1024)
    symbol = whole.sources["scores", "select"].symbol
    text = whole.texts[symbol]
    steps = list(re.finditer(r"^ *tvm_builtin_cuda_cta_sync\(\);\n", text.partition(APPENDED)[0], re.MULTILINE))

    def check(made: Kernels) -> None:
        for seed, (kind, n, k) in enumerate([*LONG, ("normal", 600, 30), ("normal", 90, 9)]):
            scores = make(kind, n)
            want = sorted(int(i) for i in Ranked(scores).best(k))
            for slots in (16, 1):
                assert pick(scores, k, slots=slots, seed=seed, made=made) == want

    check(whole)
    needless = [
        n
        for n, step in enumerate(steps)
        if not fails(check, whole.mutated(symbol, text[: step.start()] + text[step.end() :]))
    ]
    assert len(steps) > 8 and not needless, needless


@pytest.mark.full
def test_topk_of_every_k() -> None:
    for kind in ("mixed", "ties"):
        scores = make(kind, 70)
        for k in range(70):
            want = sorted(int(i) for i in Ranked(scores).best(k))
            assert pick(scores, k, slots=1, seed=k) == want, (kind, k)


def test_nothing_is_left_behind() -> None:
    scores = torch.randn(200).numpy()
    first = pick(scores, 50, slots=4, seed=1)
    assert first == pick(scores, 50, slots=1, seed=2)
