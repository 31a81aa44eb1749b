"""``attend`` as TVM emits it for a GPU, on the emulator against torch."""

from __future__ import annotations

import re

import pytest
import torch

from tests.cuda.attend_case import Case, kernel, source
from tests.cuda.harness import fails
from tests.emulation import Emulated
from vortex.errors import VortexError
from vortex.schedules.cuda_attend import AttendShape, choose, space

SHAPES = [
    (16, 128, 4, "bf16", False),
    (8, 64, 6, "f16", False),
    (32, 96, 12, "bf16", True),
    (64, 256, 3, "bf16", False),
    (128, 80, 5, "f16", True),
]
KINDS = ((1, "bf16", False), (5, "f16", True), (6, "bf16", False), (12, "bf16", True))
FULL = [
    (16, 256, 16, "bf16", True),
    (128, 128, 5, "f16", True),
    (24, 80, 1, "bf16", False),
    *((8, 64, group, "bf16", False) for group in range(1, 17)),
    *(
        (page, dim, *KINDS[(i + j) % 4])
        for i, page in enumerate((8, 16, 32, 48, 64, 128))
        for j, dim in enumerate((64, 96, 128, 256))
    ),
]
"""Every page meets every dim, and either meets every kind."""


def run(case: Case, text: str, splits: int, seed: int, arrivals: torch.Tensor | None = None) -> dict:
    given = case.call_arguments(splits, arrivals)
    Emulated({"quest_attend": text}).call("quest_attend", *given.values(), seed=seed)
    return given


@pytest.mark.parametrize(("page", "dim", "group", "dtype", "nhd"), SHAPES)
def test_agrees_with_torch(page: int, dim: int, group: int, dtype: str, nhd: bool) -> None:
    case = Case.make(page, dim, group, dtype, nhd=nhd)
    for seed, splits in ((0, 3), (1, 1), (2, 5)):
        case.check(run(case, source(page, dim, group, dtype), splits, seed))


@pytest.mark.full
@pytest.mark.parametrize(("page", "dim", "group", "dtype", "nhd"), FULL)
def test_agrees_with_torch_everywhere(page: int, dim: int, group: int, dtype: str, nhd: bool) -> None:
    case = Case.make(page, dim, group, dtype, nhd=nhd, seed=1)
    for seed, splits in ((3, 2), (4, 7)):
        case.check(run(case, source(page, dim, group, dtype), splits, seed))


@pytest.mark.parametrize(
    "knobs", [(("warps", 2), ("stages", 2)), (("warps", 1), ("tile", 32)), (("warps", 2), ("stages", 6), ("tile", 64))]
)
def test_knobs(knobs: tuple[tuple[str, int], ...]) -> None:
    case = Case.make(64, 64, 4, lengths=(64 * 7 + 17, 64, 5))
    case.check(run(case, source(64, 64, 4, "bf16", knobs), 2, 0))


def test_more_tiles_than_page_ids_at_hand() -> None:
    # a warp holds 32 page ids (16 of pages of 8 tokens): lengths beyond make it look them up again
    case = Case.make(8, 64, 2, lengths=(8 * 90 + 1, 3), heads=1)
    case.check(run(case, source(8, 64, 2, "bf16", (("warps", 2),)), 1, 0))
    case = Case.make(16, 64, 2, lengths=(16 * 75,), heads=1)
    case.check(run(case, source(16, 64, 2, "bf16", (("warps", 1),)), 1, 3))


def test_launches_after_one_another_share_the_counters() -> None:
    case, arrivals = Case.make(16, 128, 4), torch.zeros(8, dtype=torch.int32)
    for seed in range(6):
        case.check(run(case, source(16, 128, 4), 4, seed, arrivals))
        assert not arrivals.any()


def test_same_bits_whoever_comes_last() -> None:
    case = Case.make(16, 128, 4)
    first = run(case, source(16, 128, 4), 4, 0)
    for seed in (1, 2, 7):
        again = run(case, source(16, 128, 4), 4, seed)
        assert torch.equal(first["out"], again["out"]) and torch.equal(first["lse"], again["lse"])


def test_scores_that_are_extreme() -> None:
    case = Case.make(16, 64, 2, lengths=(40, 17), heads=1)
    case.tensors["k"][case.tensors["page_table"][1, 0].long(), 0, 3] = float("nan")
    given = run(case, source(16, 64, 2), 2, 0)
    out = given["out"]
    assert isinstance(out, torch.Tensor)
    assert out[1].isnan().all() and not out[0].isnan().any()


def test_no_lse() -> None:
    case = Case.make(16, 64, 2)
    given = case.call_arguments(2)
    given["lse"] = torch.empty(0, 4)
    Emulated({"quest_attend": source(16, 64, 2)}).call("quest_attend", *given.values(), seed=0)
    torch.testing.assert_close(given["out"].float(), case.expected()[0], rtol=2e-2, atol=2e-2)


STEPS = [
    r"tvm_builtin_ptx_cp_async_wait_group_async_wait_group_\d\(\);",
    r"tvm_builtin_cuda_cta_sync\(\);",
    r"tvm_builtin_cuda_warp_sync\(\);",
    r"arrivals_ptr\[[^;]*\] = 0;",
    r"tvm_builtin_ptx_cp_async_commit_group_async_commit_group\(\);",
]


def mutants(text: str) -> list[tuple[str, str]]:
    """The source without one of its waits, syncs or resets, each in turn, with what was deleted."""
    start = text.rindex('extern "C" __global__')
    end = text.index("#include <tvm/ffi/c_api.h>")
    found = [m for step in STEPS for m in re.finditer(step, text) if start < m.start() < end]
    return [(f"{m[0][:60]} at {m.start() - start}", text[: m.start()] + text[m.end() :]) for m in found]


def test_nothing_that_orders_can_be_left_out() -> None:
    text = source(16, 64, 4, "bf16", (("warps", 2),))
    case = Case.make(16, 64, 4, lengths=(16 * 21 + 3, 16 * 9), heads=1)

    def check(mutant: str) -> None:
        """What some seed shows to be wrong is an error."""
        arrivals = torch.zeros(2, dtype=torch.int32)
        for seed in range(6):
            case.check(run(case, mutant, 3, seed, arrivals))

    check(text)
    made = mutants(text)
    assert len(made) >= 9
    survivors = [what for what, mutant in made if not fails(check, mutant)]
    assert not survivors


def test_space_can_be_built() -> None:
    shape = AttendShape(4, 128, 128, 16)
    points = list(space(shape))
    assert len(points) > 20
    assert choose(shape, points[-1].attrs()) == points[-1]
    assert choose(shape, {"warps": 8, "stages": 6, "tile": 64}).refuse(shape) is not None
    with pytest.raises(VortexError, match="VX4006"):
        kernel(16, 128, 4, knobs=(("warps", 8), ("stages", 6), ("tile", 64)))


def test_types_it_has_not() -> None:
    with pytest.raises(VortexError, match="VX4006"):
        kernel(16, 128, 4, "f32")
