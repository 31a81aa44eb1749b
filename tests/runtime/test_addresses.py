"""Addresses beyond 2^31 elements: pools of every order of axes, wide page tables, and what the texts of kernels say.

The memory is virtual: pages that nobody touches cost nothing.
"""

from __future__ import annotations

import itertools
import mmap
import re
from math import prod
from pathlib import Path

import pytest
import torch

pytest.importorskip("tvm")

from vortex.budget import Budget
from vortex.driver import compile_flow
from vortex.runtime.decoder import load
from vortex.spec import Spec
from vortex.targets.target import TARGETS

SPEC = Spec(page_size=4, head_dim=16, group=2, dtype="f32")
HKV, PAGES, USED = 3, 1 << 26, 10
BUDGET = Budget(2, sink=1, recent=1)
I32 = torch.int32
NORESERVE = 0x4000
"""Linux' MAP_NORESERVE, which Python 3.11 has no name for."""


def untouched(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Zeros that take no memory until they are written."""
    size = prod(shape) * dtype.itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
    return torch.frombuffer(mmap.mmap(-1, size, flags=flags), dtype=dtype).view(shape)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_flow("quest", spec=SPEC, out=tmp_path_factory.mktemp("artifact") / "quest.vxa").artifact or Path()


def pool(order: tuple[int, ...], pages: int) -> torch.Tensor:
    """``[P, Hkv, page, D]`` whose memory has the first three axes in ``order``."""
    shape = (pages, HKV, SPEC.page_size)
    made = untouched((*(shape[a] for a in order), SPEC.head_dim))
    return made.permute(*(order.index(a) for a in range(3)), 3)


def steps(
    artifact: Path, order: tuple[int, ...], pages: int, physical: list[int], columns: int
) -> tuple[torch.Tensor, ...]:
    """What two steps of two requests give: outputs, selections, summaries."""
    random = torch.Generator().manual_seed(0)
    decoder = load(artifact, budget=BUDGET)
    k, v = pool(order, pages), pool(order, pages)
    fields = {f.name: untouched((pages, HKV, *f.tile)) for f in decoder.fields}
    decoder.bind(0, k, v, fields)
    table = untouched((2, columns), I32)
    table[:, :USED] = torch.tensor(physical, dtype=I32).view(2, USED)
    decoder.set_workspace(untouched((decoder.workspace_bytes(2, columns),), torch.uint8))
    found = []
    held = 0
    for new in (USED * SPEC.page_size - 3, 1):
        at = torch.arange(held, held + new)
        held += new
        loc = torch.cat([row[at // SPEC.page_size].long() * SPEC.page_size + at % SPEC.page_size for row in table])
        keys, values = torch.randn(2, 2 * new, HKV, SPEC.head_dim, generator=random)
        q = torch.randn(2, HKV * SPEC.group, SPEC.head_dim, generator=random)
        out = torch.empty_like(q)
        decoder.plan(torch.tensor([held, held], dtype=I32), table)
        decoder.append(0, keys, values, loc, torch.tensor([0, new, 2 * new], dtype=I32))
        decoder.decode(0, q, out=out)
        assert decoder.pages is not None
        assert decoder.counts is not None
        chosen = [decoder.pages[r, h, : int(decoder.counts[r, h])] for r in range(2) for h in range(HKV)]
        found += [out, torch.cat(chosen)]
    full = [p for row in table for p in row[: held // SPEC.page_size].tolist()]
    return *found, *(x[full] for x in fields.values())


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_pools_of_every_order_beyond_two_to_the_31(artifact: Path, order: tuple[int, ...]) -> None:
    """Page, head and token outermost in turn; summaries have 2^31 elements and more too."""
    assert PAGES * HKV * SPEC.head_dim > 2**31
    spread = [(PAGES - 1 - i * (PAGES // 40)) for i in range(2 * USED)]
    far = steps(artifact, order, PAGES, spread, USED)
    near = steps(artifact, (0, 1, 2), 2 * USED, list(range(2 * USED)), USED)
    for mine, right in zip(far, near, strict=True):
        assert torch.equal(mine, right)


def test_rows_of_a_page_table_beyond_two_to_the_31(artifact: Path) -> None:
    """The second request's row, and its words of workspace, begin past 2^31."""
    wide = steps(artifact, (0, 1, 2), 2 * USED, list(range(2 * USED)), (1 << 31) // 2 + 5)
    near = steps(artifact, (0, 1, 2), 2 * USED, list(range(2 * USED)), USED)
    for mine, right in zip(wide, near, strict=True):
        assert torch.equal(mine, right)


@pytest.mark.parametrize("name", ["quest", "lserve", "masked_quest", "venergy_gated", "latent_topk"])
def test_sizes_and_strides_in_the_texts(name: str) -> None:
    """On a CPU all are int64, so that whatever is multiplied by one is; on a GPU what spans a pool is widened first."""
    spec = Spec.of_latent("64+64", 4, page_size=16) if name == "latent_topk" else Spec(page_size=16, group=2)
    made = compile_flow(name, spec=spec, targets=[TARGETS["cpu"], TARGETS["sm_90a"]], to="tir")
    for low in made.lowered:
        for kernel in low.kernels.values():
            if low.target.kind == "cpu":
                # what is declared within is of 32 bits, as are numbers without a type
                assert not re.search(r"= T\.int32\(\)", kernel.text), kernel.name
                assert not re.search(r'T\.Buffer\(\((\d|[^)"]*, \d|")', kernel.text), kernel.name
                for index in re.findall(r"workspace\[row, ([^\]]*)\]", kernel.text):
                    assert 'T.Cast("int64"' in index or "Pmax" in index, index
            else:
                assert not re.search(r"_step = T\.int32", kernel.text)
                # rows of a request, whose number times that of heads or columns may pass 2^31
                assert not re.search(r"\b(q|out|pages|page_table)\[(?!T\.Cast\(\"int64\", )", kernel.text)
                assert not re.search(r"\bworkspace\[(?!T\.Cast\(\"int64\", row\))", kernel.text)
