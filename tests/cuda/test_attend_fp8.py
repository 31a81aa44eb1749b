"""``attend`` over K and V in fp8-e4m3, as TVM emits it for a GPU, on the emulator against torch."""

from __future__ import annotations

import pytest
import torch

from tests.cuda.attend_case import Case, Knobs, source
from tests.cuda.test_attend import mutants, run
from vortex.schedules.cuda_attend import AttendShape, choose, space

FP8 = "fp8_e4m3"
SHAPES = [
    (16, 128, 4, "bf16", False),
    (8, 64, 5, "f16", True),
    (32, 96, 12, "bf16", False),
    (64, 256, 1, "bf16", True),
]
KINDS = ((1, "bf16", False), (4, "f16", True), (5, "bf16", True), (16, "bf16", False))
FULL = [
    (16, 256, 16, "bf16", True),
    (128, 128, 5, "f16", True),
    (24, 80, 3, "bf16", False),
    *(
        (page, dim, *KINDS[(i + j) % 4])
        for i, page in enumerate((8, 16, 32, 64, 128))
        for j, dim in enumerate((64, 96, 128, 256))
    ),
]
"""Every page meets every dim, and either meets every kind."""


def fp8(page: int, dim: int, group: int, dtype: str = "bf16", knobs: Knobs = ()) -> str:
    return source(page, dim, group, dtype, knobs, FP8)


@pytest.mark.parametrize(("page", "dim", "group", "dtype", "nhd"), SHAPES)
def test_agrees_with_torch(page: int, dim: int, group: int, dtype: str, nhd: bool) -> None:
    for seed, splits in ((0, 3), (1, 1)):
        case = Case.make(page, dim, group, dtype, nhd=nhd, fp8=True, seed=seed)
        case.check(run(case, fp8(page, dim, group, dtype), splits, seed))


@pytest.mark.full
@pytest.mark.parametrize(("page", "dim", "group", "dtype", "nhd"), FULL)
def test_agrees_with_torch_everywhere(page: int, dim: int, group: int, dtype: str, nhd: bool) -> None:
    case = Case.make(page, dim, group, dtype, nhd=nhd, fp8=True, seed=1)
    for seed, splits in ((3, 2), (4, 7)):
        case.check(run(case, fp8(page, dim, group, dtype), splits, seed))


@pytest.mark.parametrize("knobs", [(("warps", 2), ("stages", 2), ("tile", 32)), (("warps", 1), ("stages", 3))])
def test_knobs(knobs: Knobs) -> None:
    case = Case.make(16, 64, 4, lengths=(16 * 17 + 5, 64, 5), fp8=True)
    case.check(run(case, fp8(16, 64, 4, "bf16", knobs), 2, 0))


def test_every_byte_is_its_number() -> None:
    """Two tokens, all of whose values are seen: weights of almost 1 and almost 0 pick one, then the other."""
    codes = torch.arange(256, dtype=torch.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0
    for first in range(2):
        case = Case.make(8, 256, 1, lengths=(2,), heads=1, fp8=True)
        t = case.tensors
        page = t["page_table"][0, 0].long()
        t["q"].fill_(1.0)
        t["k"][page, 0, :2] = torch.tensor([[0x70], [0xF0]]).to(torch.uint8).roll(first, 0)  # 128 and -128
        t["v"][page, 0, 0], t["v"][page, 0, 1] = codes, codes.flip(0)
        given = run(case, fp8(8, 256, 1), 1, first)
        want = (codes, codes.flip(0))[first].view(torch.float8_e4m3fn).float() * case.scales["v_scale"]
        assert torch.equal(given["out"][0, 0], want.bfloat16())


@pytest.mark.parametrize("power", [-90, 0, 60])
def test_queries_of_any_size(power: int) -> None:
    """Each head has a power of two of its own, whatever the others' is; a NaN stays in its head."""
    case = Case.make(8, 64, 4, lengths=(90,), heads=1, fp8=True)
    q, k = case.tensors["q"], case.tensors["k"]
    case.scales["k_scale"] *= 2.0**-power
    q[0, 0] = torch.ldexp(q[0, 0].float(), torch.tensor(power)).bfloat16()
    # one number is much larger than the others, and its keys are 0
    q[0, 1] = torch.ldexp(q[0, 1].float(), torch.tensor(power)).bfloat16()
    q[0, 1, 0] = 2.0 ** (power + 18)
    k[..., 0] = torch.where(k[..., 0] == 0x7F, k[..., 0], 0)
    q[0, 2] = 0
    q[0, 3, 5] = float("nan")
    given = run(case, fp8(8, 64, 4), 2, 0)
    out, _ = case.expected()
    torch.testing.assert_close(given["out"][0, :3].float(), out[0, :3], rtol=2e-2, atol=2e-2)
    assert given["out"][0, 3].isnan().all()


def test_small_weights_are_not_lost() -> None:
    """One token of weight 1, and many of 2^-28, less than f16 has, with values that outweigh it."""
    case = Case.make(8, 64, 1, lengths=(400,), heads=1, fp8=True)
    t = case.tensors
    case.scales["k_scale"] = 28 * 0.6931471805599453
    t["q"].fill_(0)
    t["q"][..., 0] = 8.0  # 1 / scale
    t["pages"][0, 0, :50], t["counts"][0, 0] = torch.arange(50), 50
    table = t["page_table"][0].long()
    t["k"][table, 0, :, 0] = 0xB8  # -1
    t["k"][table[0], 0, 3, 0] = 0
    t["v"][table] = 0x7E  # 448
    t["v"][table[0], 0, 3] = 0
    given = run(case, fp8(8, 64, 1), 1, 0)
    out, lse = case.expected()
    torch.testing.assert_close(given["out"].float(), out, rtol=1e-2, atol=0)
    torch.testing.assert_close(given["lse"], lse, rtol=1e-5, atol=1e-5)


def test_nothing_that_orders_can_be_left_out() -> None:
    text = fp8(16, 64, 4, "bf16", (("warps", 2),))
    case = Case.make(16, 64, 4, lengths=(16 * 21 + 3, 16 * 9), heads=1, fp8=True)
    case.check(run(case, text, 3, 0))
    made = mutants(text)
    assert len(made) >= 9
    assert not [what for what, mutant in made if not caught(case, mutant)]


def caught(case: Case, mutant: str) -> bool:
    """Whether some seed shows that something is wrong."""
    arrivals = torch.zeros(2, dtype=torch.int32)
    for seed in range(6):
        try:
            case.check(run(case, mutant, 3, seed, arrivals))
        except (AssertionError, RuntimeError):
            return True
    return False


def test_a_tile_has_half_the_bytes() -> None:
    wide, narrow = AttendShape(4, 128, 128, 16), AttendShape(4, 128, 128, 16, 1)
    knobs = choose(wide, {})
    assert knobs.in_flight(wide) == 2 * knobs.in_flight(narrow)
    assert len(list(space(narrow))) > len(list(space(wide)))
