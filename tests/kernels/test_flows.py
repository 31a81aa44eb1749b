"""Every shipped flow as compiled kernels, over the shapes that matter, against the oracle.

Ragged batches: one token, one page, a partial page, ``n <= b``, long rows. Pools, tables and outputs are
poisoned. On small integers selections are equal; on random data a page may differ only where its score
and the k-th are closer than rounding.
"""

from __future__ import annotations

import math
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch

from vortex.budget import Budget
from vortex.check.weights import random_parameters
from vortex.driver import compile_flow
from vortex.errors import VortexError
from vortex.flow import oracle
from vortex.flow.flow import find_flow, library_names, vFlow
from vortex.flow.narrow import unpacked
from vortex.flow.trace import trace
from vortex.ir.dialects.flow import of_pages
from vortex.ir.types import DTYPES, uint1
from vortex.runtime.decoder import Decoder, load
from vortex.runtime.paged_cache import PagedCache
from vortex.spec import Spec

FLOWS = [name for name in library_names() if not name.startswith("latent_")]
DTYPE = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
SMALL = {
    name: Spec(page_size=page, head_dim=dim, group=group, dtype=dtype)
    for name, (page, dim, group, dtype) in zip(
        FLOWS,
        cycle(
            [
                (16, 128, 4, "bf16"),
                (8, 64, 1, "bf16"),
                (32, 80, 3, "f16"),
                (16, 96, 5, "bf16"),
                (64, 64, 8, "bf16"),
                (16, 128, 2, "f32"),
                (128, 64, 12, "bf16"),
                (16, 256, 6, "bf16"),
            ]
        ),
        strict=False,
    )
}
GROUPS, DIMS, PAGES = (1, 2, 3, 4, 5, 6, 8, 12, 16, 20), (64, 80, 96, 128, 256), (8, 16, 32, 64, 128)
FULL = [
    Spec(page_size=PAGES[i % 5], head_dim=DIMS[(i * 2 + i // 5) % 5], group=g, dtype=("bf16", "bf16", "f16")[i % 3])
    for i, g in enumerate(GROUPS)
]
FP8 = {
    "quest": Spec(page_size=16, head_dim=64, group=5, dtype="bf16", kv_dtype="fp8_e4m3"),
    "venergy_gated": Spec(page_size=8, head_dim=96, group=2, dtype="f16", kv_dtype="fp8_e4m3"),
}
FULL_FP8 = [
    Spec(page_size=PAGES[(i + 2) % 5], head_dim=DIMS[i % 5], group=g, dtype=("bf16", "f16")[i % 2], kv_dtype="fp8_e4m3")
    for i, g in enumerate((1, 4, 5, 12, 16))
]
SCALES = {True: (0.5, 2.0), False: (0.004, 0.3)}
"""Of K and V in fp8, for small integers, which stay exact, and for random numbers, of which some keys are clamped."""
HKV = 2
BUDGETS = (Budget(3, sink=1, recent=2), Budget(2, "1/3", sink=2, recent=1), Budget(0, sink=0, recent=1))


def lengths_for(page: int) -> list[int]:
    """A ragged batch around page size ``page``, in tokens."""
    return [1, page, page + 1, 4 * page - 1, 6 * page, 7 * page + 3, 23 * page + page // 2, 40 * page]


def numbers(shape: tuple[int, ...], dtype: torch.dtype, *, integers: bool) -> torch.Tensor:
    return (torch.randint(-2, 3, shape) if integers else torch.randn(shape)).to(dtype)


def check_step(
    flow: str | type[vFlow], decoder: Decoder, budget: Budget, layout: Any, *, integers: bool, exact: bool = True
) -> None:
    """Prefill a ragged batch in two chunks, decode once, compare everything with the oracle; ``exact`` unless numbers
    that were small integers are none in the flow.
    """
    spec, cls = decoder.spec, find_flow(flow) if isinstance(flow, str) else flow
    dtype = DTYPE[spec.dtype]
    lengths = lengths_for(spec.block_size)
    total = sum(-(-n // spec.page_size) for n in lengths)
    cache = PagedCache(total + 3, HKV, spec, decoder.fields, layout="HND" if layout == "heads" else layout)
    if layout == "heads":  # [Hkv, P, page, D] in memory
        cache.k, cache.v = (
            [x.transpose(0, 1).contiguous().transpose(0, 1) for x in xs if x is not None] for xs in (cache.k, cache.v)
        )
    for pool in (cache.k[0], *(v for v in cache.v if v is not None), *cache.fields[0].values()):
        pool.fill_(float("nan") if pool.is_floating_point() else 0x5A)
    decoder.budget = budget
    scales = SCALES[integers] if spec.scaled else (1.0, 1.0)
    decoder.bind(0, cache.k[0], cache.v[0], cache.fields[0], *scales)
    # a mean over 6 heads, or an exponential, is not a small integer any more
    exact = exact and integers and flow != "gqa_block" and spec.group & (spec.group - 1) == 0
    requests = list(range(len(lengths)))
    for r in requests:
        cache.add(r)
    keys, values = ([numbers((n, HKV, spec.head_dim), dtype, integers=integers) for n in lengths] for _ in range(2))
    first = [n // 2 for n in lengths]
    for start, stop in ((None, first), (first, lengths)):
        begin = start or [0] * len(lengths)
        chunk = [b - a for a, b in zip(begin, stop, strict=True)]
        loc, offsets = cache.extend_batch(requests, chunk)
        decoder.plan(cache.lengths(requests), cache.page_table(requests))
        parts = [slice(a, b) for a, b in zip(begin, stop, strict=True)]
        k, v = (torch.cat([x[s] for x, s in zip(xs, parts, strict=True)]) for xs in (keys, values))
        decoder.append(0, k, v, loc, offsets)
    keys, values = ([oracle.kept(x, spec, scale) for x in xs] for xs, scale in zip((keys, values), scales, strict=True))
    _check_pools(cache, keys, values, scales)
    q = numbers((len(lengths), HKV * spec.group, spec.head_dim), dtype, integers=integers)
    out, lse = torch.full_like(q, float("nan")), torch.full(q.shape[:2], float("nan"))
    decoder.decode(0, q, out=out, lse=lse)
    assert decoder.pages is not None
    assert decoder.counts is not None
    whole, first_scored = of_pages(trace(cls, spec)), oracle.cap(cls, spec).candidates(budget, 1).start
    for r, n in enumerate(lengths):
        stored = [_stored(cache, r, h, n, whole) for h in range(HKV)]
        _check_summaries(cls, decoder, keys[r], values[r], stored)
        want = oracle.step(cls, spec, q[r], keys[r], values[r], budget, fields=stored, **learned(decoder))
        for h in range(HKV):
            got = decoder.pages[r, h, : int(decoder.counts[r, h])].tolist()
            _check_selection(got, want.pages[h], want.scores[h], first_scored, exact=exact)
            heads = slice(h * spec.group, (h + 1) * spec.group)
            tokens = torch.cat([torch.arange(p * spec.block_size, min((p + 1) * spec.block_size, n)) for p in got])
            ref, ref_lse = oracle.attend(q[r, heads], keys[r][tokens, h], values[r][tokens, h], spec.head_dim**-0.5)
            torch.testing.assert_close(out[r, heads].float(), ref, rtol=1.6e-2, atol=1e-2)
            torch.testing.assert_close(lse[r, heads], ref_lse, rtol=1e-4, atol=1e-3)


def learned(decoder: Decoder) -> dict[str, Any]:
    """What the flow has learned and which heads it serves, as the oracle takes them."""
    return {"parameters": decoder.parameters.tensors, "head_offset": decoder.head_offset}


def _check_pools(
    cache: PagedCache, keys: list[torch.Tensor], values: list[torch.Tensor], scales: tuple[float, float]
) -> None:
    """Each token is in its slot, bit for bit."""
    for pool, want, scale in ((cache.k[0], keys, scales[0]), (cache.v[0], values, scales[1])):
        for r, tokens in enumerate(want):
            held = pool[list(cache.pages(r))].transpose(1, 2).flatten(0, 1)[: len(tokens)].float()
            assert torch.equal(held * torch.tensor(scale), tokens)


def _stored(cache: PagedCache, request: int, head: int, tokens: int, whole: list[str]) -> dict[str, torch.Tensor]:
    """The request's summaries as the append kernel left them; those of ``whole`` pages have no axis of blocks."""
    table, spec = torch.tensor(cache.pages(request), dtype=torch.long), cache.spec
    found = {name: pool[table, head] for name, pool in cache.fields[0].items()}
    for name, x in found.items():
        of_pages = spec.page_blocks == 1 or name in whole
        found[name] = x[: tokens // spec.page_size] if of_pages else x.flatten(0, 1)[: tokens // spec.block_size]
    return found


def _check_summaries(
    flow: Any, decoder: Decoder, k: torch.Tensor, v: torch.Tensor, stored: list[dict[str, torch.Tensor]]
) -> None:
    spec, weights = decoder.spec, decoder.parameters.tensors
    types = {f.name: f.dtype for f in decoder.fields}
    full = len(k) // spec.block_size * spec.block_size
    shape = (full // spec.block_size, spec.block_size, spec.head_dim)
    for h, fields in enumerate(stored):
        of_head = (x[:full, h].reshape(shape) for x in (k, v))
        want = oracle.summaries(flow, spec, *of_head, head=decoder.head_offset + h, parameters=weights)
        for name, got in fields.items():
            kept = DTYPES[types[name]]
            if not kept.is_float:
                if kept == uint1:  # sums next to zero may fall on either side; wrong packing moves half of all bits
                    wrong = unpacked(got, kept) != unpacked(want[name], kept)
                    assert int(wrong.sum()) <= max(4, wrong.numel() // 2_000), name
                    continue
                off = int((unpacked(got, kept).int() - unpacked(want[name], kept).int()).abs().max()) if len(got) else 0
                assert off <= (f"{name}_scale" in fields), name
                continue
            # one unit in the last place: a sum taken in another order may round the other way
            close = {"rtol": 2**-7, "atol": 1e-6} if got.dtype != torch.float32 else {"rtol": 1e-5, "atol": 1e-6}
            torch.testing.assert_close(got, want[name], **close)


def _check_selection(got: list[int], want: list[int], scores: torch.Tensor | None, first: int, *, exact: bool) -> None:
    assert got == sorted(set(got))
    assert len(got) == len(want)
    if scores is None or exact:
        assert got == want
        return
    kth = min((float(scores[p - first]) for p in want if 0 <= p - first < len(scores)), default=math.inf)
    slack = 1e-5 * max(1.0, float(scores.abs().max()))
    for p in set(got) ^ set(want):
        assert math.isclose(float(scores[p - first]), kth, rel_tol=0, abs_tol=slack), (p, got, want)


def compiled(flow: str, spec: Spec, folder: Path) -> Decoder:
    made = compile_flow(flow, spec=spec, out=folder / f"{flow}.vxa")
    assert made.artifact is not None
    assert made.manifest is not None
    weights = random_parameters(made.manifest.parameters, 1, HKV + 1)
    return load(made.artifact, budget=BUDGETS[0], debug=True, parameters=weights, head_offset=1)


@pytest.mark.parametrize("flow", FLOWS)
def test_shipped_flow(flow: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    decoder = compiled(flow, SMALL[flow], tmp_path)
    for i, budget in enumerate(BUDGETS):
        check_step(flow, decoder, budget, ("HND", "NHD")[i % 2], integers=i == 0)


BLOCKS = {
    "quest": Spec(page_size=64, block_size=16, head_dim=64, group=4),
    "lserve": Spec(page_size=128, block_size=32, head_dim=64, group=2),
    "venergy_gated": Spec(page_size=24, block_size=8, head_dim=96, group=3, dtype="f16", kv_dtype="fp8_e4m3"),
    "mass": Spec(page_size=64, block_size=16, head_dim=64, group=4),
    "masked_quest": Spec(page_size=32, block_size=16, head_dim=80, group=5),
    "hash_bits": Spec(page_size=48, block_size=16, head_dim=64, group=2),
}


@pytest.mark.parametrize(
    "flow", [*list(BLOCKS)[:4], *(pytest.param(n, marks=pytest.mark.full) for n in list(BLOCKS)[4:])]
)
def test_blocks_of_pages(flow: str, tmp_path: Path) -> None:
    """Every layout of the pool: heads, tokens or pages of heads outermost in a page's memory."""
    torch.manual_seed(3)
    decoder = compiled(flow, BLOCKS[flow], tmp_path)
    assert decoder.fields[0].tile[0] == decoder.spec.page_blocks
    for i, budget in enumerate(BUDGETS):
        check_step(flow, decoder, budget, ("HND", "NHD", "heads")[i], integers=i == 0)


@pytest.mark.parametrize("flow", FP8)
def test_pools_in_fp8(flow: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    decoder = compiled(flow, FP8[flow], tmp_path)
    for i, budget in enumerate(BUDGETS):
        check_step(flow, decoder, budget, ("HND", "NHD")[i % 2], integers=i == 0)


MATRIX = [(flow, FULL[(4 * i + j) % len(FULL)]) for i, flow in enumerate(FLOWS) for j in range(4)]
MATRIX += [(flow, FULL_FP8[(2 * i + j) % len(FULL_FP8)]) for i, flow in enumerate(FLOWS) for j in range(2)]
"""Each flow has shapes of its own, and each shape flows that do different things: all pairs would take half an hour."""


def _named(x: str | Spec) -> str:
    if isinstance(x, str):
        return x
    return f"g{x.group}-d{x.head_dim}-p{x.page_size}-{x.dtype}{'-fp8' if x.scaled else ''}"


@pytest.mark.full
@pytest.mark.parametrize(("flow", "spec"), MATRIX, ids=_named)
def test_matrix(flow: str, spec: Spec, tmp_path: Path) -> None:
    torch.manual_seed(1)
    decoder = compiled(flow, spec, tmp_path)
    for layout in ("HND", "NHD"):
        for integers in (True, False):
            check_step(flow, decoder, BUDGETS[0], layout, integers=integers)


def test_blocks_of_pages_are_what_is_counted(tmp_path: Path) -> None:
    """Capacity, selections and lists of all pages are in blocks; tables and reservations in pages."""
    spec = Spec(page_size=8, block_size=4, head_dim=16, group=2, dtype="f32")
    made = compile_flow("quest", spec=spec, out=tmp_path / "quest.vxa").artifact
    assert made is not None
    decoder = load(made, budget=Budget(3, sink=1, recent=1), dense=True, debug=True)
    cache = PagedCache(12, 1, spec, decoder.fields)
    assert cache.fields[0]["lo"].shape == (12, 1, 2, 16)
    with pytest.raises(VortexError, match=r"VX6002.*lo"):
        decoder.bind(0, cache.k[0], cache.v[0], {n: x.flatten(1, 2) for n, x in cache.fields[0].items()})
    decoder.bind(0, cache.k[0], cache.v[0], cache.fields[0])
    assert [decoder.capacity(n) for n in (1, 2, 3)] == [2, 4, 5]
    cache.add("r")
    loc, offsets = cache.extend("r", 29), torch.tensor([0, 29], dtype=torch.int32)
    k, v = torch.randn(2, 29, 1, 16)
    decoder.plan(cache.lengths(["r"]), cache.page_table(["r"]))
    decoder.append(0, k, v, loc, offsets)
    q = torch.randn(1, 2, 16)
    out, whole = torch.empty_like(q), torch.empty_like(q)
    decoder.decode(0, q, out=out)
    decoder.attend_all(0, q, out=whole)
    assert decoder.pages is not None
    assert decoder.counts is not None
    assert int(decoder.counts[0, 0]) == 5
    assert decoder.pages[0, 0, [0, 4]].tolist() == [0, 7], "the first of 8 blocks, and the last, which has one token"
    right = torch.softmax(q[0] @ k[:, 0].T / 4, -1) @ v[:, 0]
    torch.testing.assert_close(whole[0], right)
