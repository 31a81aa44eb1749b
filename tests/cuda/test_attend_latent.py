"""``attend`` over latent rows as TVM emits it for a GPU, on the emulator against torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cuda.attend_case import Knobs
from tests.cuda.harness import fails
from tests.cuda.latent_case import LatentCase, kernel, source
from tests.cuda.test_attend import mutants
from tests.emulation import Emulated
from vortex.codegen.build.nvcc import build_cuda
from vortex.driver import compile_flow
from vortex.errors import VortexError
from vortex.schedules.cuda_attend import AttendShape
from vortex.schedules.cuda_latent import COUNTERS, choose, space
from vortex.schedules.space import space_of
from vortex.spec import Spec
from vortex.targets.target import TARGETS


def latent(text: str, heads: int, page: int, dtype: str = "bf16", kept: str = "") -> Spec:
    return Spec.of_latent(text, heads, page_size=page, dtype=dtype, kv_dtype=kept)


SMALL = latent("64+64", 16, 8, "f16")
FP8 = "fp8_e4m3"
SMALL_FP8 = latent("64+64", 16, 8, "bf16", FP8)
SHAPES = [
    (latent("512+64", 20, 16), ()),
    (SMALL, ()),
    (latent("512+64", 20, 16, "bf16", FP8), ()),
    (SMALL_FP8, ()),
    pytest.param(latent("128+64", 40, 32, "f16", FP8), (), marks=pytest.mark.full),
    pytest.param(latent("128+0", 128, 64), (), marks=pytest.mark.full),
]
FULL = [
    (latent(text, heads, page, dtype), knobs)
    for i, (text, heads) in enumerate(
        [*(("512+64", n) for n in (1, 16, 20, 40, 100, 128)), ("128+0", 16), ("128+0", 100)]
    )
    # many heads need more warps, and leave less of the shared memory to pages on their way
    for j, (page, dtype, knobs) in enumerate(
        (
            (8, "bf16", ()),
            (16, "f16", (("tile", 64 if heads <= 40 else 32), ("residents", 1))),
            (
                32,
                "bf16",
                (
                    ("warps", 4 if heads <= 40 else 8),
                    ("stages", 4 if heads <= 40 else 2),
                    ("tile", 32),
                    ("residents", 1),
                ),
            ),
            (64, "bf16", (("warps", 8), ("residents", 1))),
            (128, "bf16", (("stages", 3), ("tile", 32), ("residents", 1))),
        )
    )
    if heads in (1, 20, 100) or page in (8, 32)
]
EVERY = 6
"""Of so many one is in the full run: of many heads a kernel takes TVM ten seconds and more."""


def run(
    case: LatentCase, knobs: Knobs, splits: int, seed: int, arrivals: torch.Tensor | None = None, text: str = ""
) -> dict[str, Any]:
    made = kernel(case.spec, knobs)
    given = case.call_arguments(made, splits, arrivals)
    Emulated({made.symbol: text or source(case.spec, knobs)}).call(made.symbol, *given.values(), seed=seed)
    return given


@pytest.mark.parametrize(("spec", "knobs"), SHAPES, ids=lambda x: f"h{x.group}" if isinstance(x, Spec) else "")
def test_agrees_with_torch(spec: Spec, knobs: Knobs) -> None:
    page = spec.page_size
    case = LatentCase.make(spec, (page * 4 + 3, 1, page * 2, 0), gap=16)
    case.check(run(case, knobs, 3, 0))


@pytest.mark.full
@pytest.mark.parametrize(
    ("spec", "knobs"),
    [pytest.param(*one, marks=pytest.mark.release if n % EVERY else ()) for n, one in enumerate(FULL)],
    ids=lambda x: f"h{x.group}" if isinstance(x, Spec) else "",
)
def test_agrees_with_torch_everywhere(spec: Spec, knobs: Knobs) -> None:
    case = LatentCase.make(spec, seed=1)
    for seed, splits in ((3, 2), (4, 7)):
        case.check(run(case, knobs, splits, seed))


def test_more_tiles_than_page_ids_at_hand() -> None:
    # a warp holds the page ids of 8 tiles (pages of 8 tokens) or 32 (of 32 and longer), and as many in advance
    case = LatentCase.make(SMALL, (8 * 90 + 1, 3))
    case.check(run(case, (), 1, 0))


@pytest.mark.full
def test_more_parts_of_pages_than_page_ids_at_hand() -> None:
    case = LatentCase.make(latent("64+0", 3, 64), (64 * 40 + 5, 3))
    case.check(run(case, (), 1, 0))


def test_launches_after_one_another_share_the_counters() -> None:
    case = LatentCase.make(latent("64+64", 40, 16))
    for splits, knobs in ((4, ()), (7, (("merged", 2),))):  # one group, and several
        _share_counters(case, splits, knobs)


def _share_counters(case: LatentCase, splits: int, knobs: Knobs) -> None:
    arrivals = torch.zeros(4 * 2 * COUNTERS, dtype=torch.int32)  # 2 blocks of heads
    outs = []
    for seed in range(4):
        given = run(case, knobs, splits, seed, arrivals)
        case.check(given)
        assert not arrivals.any()
        outs.append((given["out"], given["lse"]))
    # the same bits whoever comes last
    assert all(torch.equal(a, b) for later in outs[1:] for a, b in zip(outs[0], later, strict=True))


def test_a_nan_stays_in_its_request() -> None:
    case = LatentCase.make(SMALL, (40, 17))
    kept = case.tensors["page_table"][1, case.tensors["pages"][1, 0, 0].long()]
    case.tensors["latent"][kept.long(), 0, 0] = float("nan")
    out = run(case, (), 2, 0)["out"]
    assert out[1].isnan().all()
    assert not out[0].isnan().any()


@pytest.mark.parametrize("splits", [3, 6, 17])
@pytest.mark.parametrize("heads", [3, pytest.param(40, marks=pytest.mark.full)])
def test_splits_are_merged_in_groups(heads: int, splits: int) -> None:
    """Of 2, of 4, and of 4 with a rest; heads that are and are not as many as the warps have."""
    case = LatentCase.make(latent("64+64", heads, 16), (16 * 17 + 3, 16 * 5, 1, 0))
    case.check(run(case, (("merged", 2),), splits, splits))


@pytest.mark.full
@pytest.mark.parametrize(
    ("text", "heads", "warps"),
    [
        ("512+64", 20, 8),
        *(pytest.param("512+64", *x, marks=pytest.mark.release) for x in ((20, 4), (100, 8))),
    ],
)
def test_many_splits_are_merged_in_groups(text: str, heads: int, warps: int) -> None:
    """More than a lane has, and more groups than of the number that one CTA merges."""
    case = LatentCase.make(latent(text, heads, 16), (16 * 41, 16 * 12 + 1))
    for merged in (2, 8):
        case.check(run(case, (("merged", merged), ("warps", warps), ("residents", 1)), 41, merged))


def test_no_lse() -> None:
    case = LatentCase.make(SMALL)
    made = kernel(case.spec)
    given = case.call_arguments(made, 2)
    given["lse"] = torch.empty(0, SMALL.group)
    Emulated({made.symbol: source(case.spec)}).call(made.symbol, *given.values(), seed=0)
    torch.testing.assert_close(given["out"].float(), case.expected()[0], rtol=2e-2, atol=2e-2)


def test_every_byte_is_its_number() -> None:
    """One token a request, whose value is each head's output; of 16 requests each of 16 heads asks for another byte,
    half of which are in the value.
    """
    codes = torch.arange(256, dtype=torch.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0
    case = LatentCase.make(SMALL_FP8, (1,) * 16)
    case.scale = 1 / case.unit
    t, request, head = case.tensors, torch.arange(16)[:, None], torch.arange(16)
    first = request // 4 * 64 - request % 2 * 64
    rows = codes[(first + torch.arange(128)) % 256]
    t["latent"][t["page_table"][:, 0].long(), 0, 0] = rows
    t["q"].zero_()[request, head, request * 16 + head - first] = 1.0
    given = run(case, (), 1, 0)
    values = rows[:, None, :64].view(torch.float8_e4m3fn).float() * case.unit
    assert torch.equal(given["out"], values.bfloat16().expand(-1, 16, -1))
    keys = codes.view(torch.float8_e4m3fn).float()
    torch.testing.assert_close(given["lse"].flatten(), keys, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("power", [-90, 60])
def test_queries_of_any_size(power: int) -> None:
    """Each head has powers of two of its own, one for each part of its numbers; a NaN stays in its head."""
    case = LatentCase.make(SMALL_FP8, (90,))
    q, rows = case.tensors["q"], case.tensors["latent"]
    case.unit *= 2.0**-power
    q[0] = torch.ldexp(q[0].float(), torch.tensor(power)).bfloat16()
    # one number of a part is much larger than the others of all parts, and its keys are 0
    for head, number in ((1, 0), (4, 17), (5, 111)):
        q[0, head, number] = 2.0 ** (power + 18)
        rows[..., number] = torch.where(rows[..., number] == 0x7F, rows[..., number], 0)
    q[0, 2] = 0
    q[0, 3, 5] = float("nan")
    given = run(case, (), 2, 0)
    out, lse = case.expected()
    others = [head for head in range(SMALL_FP8.group) if head != 3]
    got = given["out"][0].float()
    torch.testing.assert_close(got[others] / case.unit, out[0, others] / case.unit, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(given["lse"][0, others], lse[0, others], rtol=1e-3, atol=1e-3)
    assert got[3].isnan().all()


def test_small_weights_are_not_lost() -> None:
    """One token of weight 1, and many of 2^-28, less than f16 has, with values that outweigh it."""
    case = LatentCase.make(SMALL_FP8, (400,))
    t = case.tensors
    case.unit, case.scale = 28 * math.log(2), 1 / 16
    t["q"].zero_()[..., -1] = 1 / case.scale
    t["pages"][0, 0, :50], t["counts"][0, 0] = torch.arange(50), 50
    table = t["page_table"][0].long()
    t["latent"][table, ..., :64] = 0x7E  # 448
    t["latent"][table, ..., 64:] = 0xB8  # -1
    t["latent"][table[0], 0, 3] = 0
    given = run(case, (), 1, 0)
    out, lse = case.expected()
    torch.testing.assert_close(given["out"].float(), out, rtol=1e-2, atol=0)
    torch.testing.assert_close(given["lse"], lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("every", "kept", "knobs"),
    [
        (4, "", ()),
        pytest.param(1, "", (), marks=pytest.mark.full),
        pytest.param(1, FP8, (("tile", 32),), marks=pytest.mark.full),
    ],
)
def test_nothing_that_orders_can_be_left_out(every: int, kept: str, knobs: Knobs) -> None:
    case = LatentCase.make(latent("64+64", 12, 16, "bf16", kept), (16 * 17 + 3, 16 * 9))
    knobs = (("stages", 3), ("merged", 2), *knobs)
    text = source(case.spec, knobs)

    def check(mutant: str) -> None:
        """What some seed shows to be wrong is an error."""
        arrivals = torch.zeros(2 * COUNTERS, dtype=torch.int32)
        for seed in range(6):
            case.check(run(case, knobs, 3, seed, arrivals, mutant))

    check(text)
    made = mutants(text)
    assert len(made) >= 9
    survivors = [what for what, mutant in made[::every] if not fails(check, mutant)]
    assert not survivors


@pytest.mark.parametrize("kv_bytes", [2, 1])
def test_space_can_be_built(kv_bytes: int) -> None:
    for heads in (16, 20, 128):
        shape = AttendShape(heads, 576, 512, 16, kv_bytes)
        points = list(space(shape))
        assert len(points) >= 3
        assert choose(shape, points[-1].attrs()) == points[-1]
        assert choose(shape, {}) in points
        assert choose(shape, {}).blocks(shape) * choose(shape, {}).heads >= heads


def test_a_tile_in_fp8_has_half_the_bytes() -> None:
    wide, narrow = (AttendShape(20, 576, 512, 16, kv_bytes) for kv_bytes in (2, 1))
    assert (choose(wide, {}).tile, choose(narrow, {}).tile) == (64, 128)
    assert choose(wide, {}).in_flight(wide) == choose(narrow, {}).in_flight(narrow)
    assert len(list(space(narrow))) > len(list(space(wide)))


def test_what_no_kernel_can_be_built_of() -> None:
    for odd in (AttendShape(20, 80, 64, 16), AttendShape(20, 576, 512, 24), AttendShape(20, 576, 512, 48)):
        assert choose(odd, {}).refuse(odd) is not None
    many = AttendShape(128, 576, 512, 16)
    assert choose(many, {"warps": 4, "heads": 32}).refuse(many) is not None
    with pytest.raises(VortexError, match="VX4006"):
        kernel(latent("512+64", 128, 16), (("warps", 4), ("heads", 32)))
    with pytest.raises(VortexError, match="VX4006"):
        kernel(latent("64+64", 4, 16, "f32"))


@pytest.mark.parametrize("heads", [20, 128])
def test_a_tuner_is_given_its_space(heads: int) -> None:
    target = TARGETS["sm_90a"]
    spec = latent("512+64", heads, 16)
    program = compile_flow("latent_topk", spec=spec, targets=[target], to="page").programs["sm_90a"]
    found = space_of(program, program.functions["attend"], target)
    assert found is not None
    assert found.default == choose(AttendShape(heads, 576, 512, 16), {}).attrs()
    assert list(found) == [k.attrs() for k in space(AttendShape(heads, 576, 512, 16))]


@pytest.mark.parametrize(
    ("heads", "arch", "kept"),
    [
        (20, "sm_90a", ""),
        (20, "sm_90a", FP8),
        *(pytest.param(h, "sm_100a", "", marks=pytest.mark.full) for h in (16, 128)),
        *(pytest.param(128, arch, FP8, marks=pytest.mark.full) for arch in ("sm_90a", "sm_100a")),
    ],
)
def test_nothing_spills(heads: int, arch: str, kept: str, tmp_path: Path) -> None:
    made = kernel(latent("512+64", heads, 16, "bf16", kept), (), arch)
    used = build_cuda({made.symbol: made.function}, arch, tmp_path / "lib.so").resources[made.symbol]
    assert used.spills == 0
    assert used.ctas >= choose(AttendShape(heads, 576, 512, 16, 1 if kept else 2), {}).residents
