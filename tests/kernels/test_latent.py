"""MLA flows as compiled CPU kernels behind the Decoder, against the oracle: any head count, rows stored once."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kernels.test_flows import BUDGETS, lengths_for, numbers
from vortex.artifact.manifest import KernelEntry
from vortex.driver import compile_flow
from vortex.errors import VortexError
from vortex.flow import oracle
from vortex.flow.flow import find_flow
from vortex.runtime.decoder import Decoder, load
from vortex.runtime.paged_cache import PagedCache
from vortex.runtime.scratch import Layout, Size
from vortex.spec import Spec

SMALL = [
    ("latent_topk", Spec.of_latent("512+64", 20, page_size=16)),
    ("latent_slim", Spec.of_latent("160+32", 16, page_size=8, dtype="f16")),
    ("latent_topk", Spec.of_latent("64+16", 8, page_size=32, block_size=8)),
    ("latent_topk", Spec.of_latent("64+64", 8, page_size=16, kv_dtype="fp8_e4m3")),
]
FULL = [
    (flow, Spec.of_latent("512+64", heads, page_size=page, dtype=dtype))
    for flow in ("latent_topk", "latent_slim")
    for heads, page, dtype in ((1, 8, "bf16"), (16, 64, "bf16"), (20, 32, "f16"), (128, 16, "bf16"), (7, 128, "f32"))
]
FULL.append(("latent_topk", Spec.of_latent("64+16", 128, page_size=8)))
FULL.append(("latent_slim", Spec.of_latent("512+64", 20, page_size=32, dtype="f16", kv_dtype="fp8_e4m3")))
DTYPE = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


def compiled(flow: str, spec: Spec, folder: Path) -> Decoder:
    made = compile_flow(flow, spec=spec, out=folder / f"{flow}.vxa", dump=None)
    assert made.artifact is not None
    return load(made.artifact, budget=BUDGETS[0], debug=True)


def check_step(flow: str, decoder: Decoder, layout: Any, *, integers: bool, budget: Any) -> None:
    """Prefill a ragged batch in two chunks, decode once; pages as the oracle's, output and lse near them."""
    spec, cls = decoder.spec, find_flow(flow)
    lengths = lengths_for(spec.block_size)
    cache = PagedCache(sum(-(-n // spec.page_size) for n in lengths) + 3, 1, spec, decoder.fields, layout=layout)
    for pool in (cache.k[0], *cache.fields[0].values()):
        pool.fill_(float("nan"))
    decoder.budget = budget
    unit = (0.5 if integers else 0.01) if spec.scaled else 1.0
    decoder.bind(0, cache.k[0], cache.v[0], cache.fields[0], unit)
    requests = list(range(len(lengths)))
    rows = [numbers((n, 1, spec.head_dim), DTYPE[spec.dtype], integers=integers) for n in lengths]
    for r in requests:
        cache.add(r)
    middle = [n // 2 for n in lengths]
    for begin, stop in ((([0] * len(lengths)), middle), (middle, lengths)):
        loc, offsets = cache.extend_batch(requests, [b - a for a, b in zip(begin, stop, strict=True)])
        decoder.plan(cache.lengths(requests), cache.page_table(requests))
        new = torch.cat([x[a:b] for x, a, b in zip(rows, begin, stop, strict=True)])
        decoder.append(0, new, None, loc, offsets)
    rows = [oracle.kept(x, spec, unit) for x in rows]
    q = numbers((len(lengths), spec.group, spec.head_dim), DTYPE[spec.dtype], integers=integers)
    out = torch.full((*q.shape[:2], spec.v_dim), float("nan"), dtype=q.dtype)
    lse = torch.full(q.shape[:2], float("nan"))
    scale = 0.3 * spec.head_dim**-0.5
    decoder.decode(0, q, out=out, lse=lse, scale=scale)
    assert decoder.pages is not None
    assert decoder.counts is not None
    for r, n in enumerate(lengths):
        table, full = list(cache.pages(r)), n // spec.block_size
        held = {name: pool[table, 0] for name, pool in cache.fields[0].items()}
        fields = [{name: (x if spec.page_blocks == 1 else x.flatten(0, 1))[:full] for name, x in held.items()}]
        want = oracle.step(cls, spec, q[r], rows[r], None, budget, scale, fields=fields)
        got = decoder.pages[r, 0, : int(decoder.counts[r, 0])].tolist()
        scores = want.scores[0]
        if integers or scores is None:
            assert got == want.pages[0]
        else:
            kept = (float(scores[p - budget.sink]) for p in want.pages[0] if 0 <= p - budget.sink < len(scores))
            worst, slack = min(kept, default=math.inf), 1e-5 * float(scores.abs().max())
            for p in set(got) ^ set(want.pages[0]):
                assert abs(float(scores[p - budget.sink]) - worst) <= slack
        tokens = torch.cat([torch.arange(p * spec.block_size, min((p + 1) * spec.block_size, n)) for p in got])
        k = rows[r][tokens, 0]
        ref, ref_lse = oracle.attend(q[r], k, k[:, : spec.v_dim], scale)
        torch.testing.assert_close(out[r].float(), ref, rtol=1.6e-2, atol=1e-2)
        torch.testing.assert_close(lse[r], ref_lse, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("flow", "spec"), SMALL, ids=lambda x: str(x) if isinstance(x, str) else f"h{x.group}")
def test_decodes(flow: str, spec: Spec, tmp_path: Path) -> None:
    torch.manual_seed(0)
    decoder = compiled(flow, spec, tmp_path)
    power = spec.group & (spec.group - 1) == 0  # a mean over 20 heads is not a small integer
    for i, budget in enumerate(BUDGETS[:2]):
        check_step(flow, decoder, ("HND", "NHD")[i % 2], integers=i == 0 and power, budget=budget)


@pytest.mark.full
@pytest.mark.parametrize(("flow", "spec"), FULL, ids=lambda x: str(x) if isinstance(x, str) else f"h{x.group}")
def test_matrix(flow: str, spec: Spec, tmp_path: Path) -> None:
    torch.manual_seed(1)
    decoder = compiled(flow, spec, tmp_path)
    for layout in ("HND", "NHD"):
        check_step(flow, decoder, layout, integers=False, budget=BUDGETS[0])


def refused(call: Any, *args: Any, **options: Any) -> str:
    with pytest.raises(VortexError) as caught:
        call(*args, **options)
    return caught.value.render()


def test_what_is_refused(tmp_path: Path) -> None:
    spec = Spec.of_latent("64+16", 4, page_size=8)
    decoder = compiled("latent_topk", spec, tmp_path)
    cache = PagedCache(4, 1, spec, decoder.fields)
    pool, fields = cache.k[0], cache.fields[0]
    assert cache.v[0] is None
    assert "under MLA" in refused(decoder.bind, 0, pool, pool, fields)
    assert "all query heads share one" in refused(decoder.bind, 0, pool.expand(4, 2, 8, 80), None, fields)
    assert "--latent" in refused(decoder.bind, 0, pool[..., :64], None, fields)
    assert "k_scale: is 0.5; latent rows in bf16 have no scale" in refused(decoder.bind, 0, pool, None, fields, 0.5)
    decoder.bind(0, pool, None, fields)
    cache.add(0)
    loc, offsets = cache.extend_batch([0], [3])
    decoder.plan(cache.lengths([0]), cache.page_table([0]))
    new = torch.zeros(3, 1, 80).bfloat16()
    assert "under MLA" in refused(decoder.append, 0, new, new, loc, offsets)
    decoder.append(0, new, None, loc, offsets)
    q, out = torch.zeros(1, 4, 80).bfloat16(), torch.zeros(1, 4, 64).bfloat16()
    assert "qk_nope_head_dim" in refused(decoder.decode, 0, q, out=out)
    assert "VX6002" in refused(decoder.decode, 0, q, out=torch.zeros_like(q), scale=1.0)
    decoder.decode(0, q, out=out, scale=1.0)


def test_latent_rows_in_fp8_have_one_scale(tmp_path: Path) -> None:
    spec = Spec.of_latent("64+16", 4, page_size=8, kv_dtype="fp8_e4m3")
    decoder = compiled("latent_topk", spec, tmp_path)
    cache = PagedCache(4, 1, spec, decoder.fields)
    assert cache.k[0].dtype == torch.float8_e4m3fn
    said = refused(decoder.bind, 0, cache.k[0], None, cache.fields[0], 0.5, 2.0)
    assert "v_scale: is 2.0; latent rows have one scale, k_scale" in said


def test_blocks_of_heads_count_arrivals_apart() -> None:
    """A row of several blocks of heads has as many counters, and as many CTAs for each work item."""
    entry = KernelEntry("attend", "attend", "a", ("arrivals", "work", "partials"), schedule={"partial_words": 8})
    size = Size(3, 5, 5)
    plain = Layout.of((entry,), 1, 132, dense=False)
    made = Layout.of(
        (replace(entry, schedule={**entry.schedule, "row_counters": 8, "item_ctas": 4}),), 1, 132, dense=False
    )
    assert plain.buffers(size, size)["arrivals"][1] == (3,)
    assert made.buffers(size, size)["arrivals"][1] == (24,)
    assert made.slots(made.kernels) * 4 == plain.slots(plain.kernels)
