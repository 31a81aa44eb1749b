"""State on compiled CPU kernels, over steps in which pages and slots change hands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.state.flows import FLOWS
from tests.state.test_programs import PIPELINES
from tests.state.traffic import HEADS, SPEC, Traffic, live
from vortex.budget import Budget
from vortex.driver import compile_flow
from vortex.ir.interpret_page import Batch
from vortex.runtime.decoder import Decoder, load
from vortex.runtime.paged_cache import PagedCache
from vortex.runtime.tensors import TORCH


class Compiled:
    """A decoder over the traffic's memory, in the types that it is kept in."""

    def __init__(self, traffic: Traffic, decoder: Decoder) -> None:
        self.decoder = decoder
        kv = TORCH[traffic.spec.dtype]
        k, v = (torch.from_numpy(traffic.paged[n]).to(kv) for n in "kv")
        fields = {f.name: torch.from_numpy(traffic.paged[f.name]).to(TORCH[f.dtype]) for f in decoder.fields}
        self.kept = {s.name: torch.from_numpy(traffic.state[s.name]).to(TORCH[s.dtype]) for s in decoder.states}
        decoder.bind(0, k, v, fields, state=self.kept)

    def append(self, b: Batch) -> None:
        self.decoder.plan(*(torch.from_numpy(x) for x in (b.lengths, b.page_table, b.slots, b.fresh)))
        new = (torch.from_numpy(b.tokens[f"{n}_new"]).to(TORCH[SPEC.dtype]) for n in "kv")
        self.decoder.append(0, *new, torch.from_numpy(b.loc), torch.from_numpy(b.row_offsets))

    def decode(self, b: Batch) -> list[list[list[int]]]:
        self.append(b)
        q = torch.from_numpy(b.q).to(TORCH[SPEC.dtype])
        self.decoder.decode(0, q, out=torch.empty_like(q))
        pages, counts = self.decoder.pages, self.decoder.counts
        assert pages is not None
        assert counts is not None
        return [[pages[r, h, : int(counts[r, h])].tolist() for h in range(HEADS)] for r in range(b.requests)]

    def state(self) -> dict[str, Any]:
        return {name: x.float().numpy() for name, x in self.kept.items()}


@pytest.mark.parametrize("pipeline", ["fused", pytest.param("split", marks=pytest.mark.full)])
@pytest.mark.parametrize("name", FLOWS)
def test_kernels_keep_what_the_flow_keeps(name: str, pipeline: str, tmp_path: Path) -> None:
    traffic = Traffic(FLOWS[name], Budget(3), seed=2)
    passes = None if pipeline == "fused" else PIPELINES[pipeline]
    source, spec = (FLOWS[name], SPEC) if passes is None else (traffic.module, None)
    made = compile_flow(source, spec=spec, passes=passes, out=tmp_path / "flow.vxa")
    assert made.artifact is not None
    live(traffic, Compiled(traffic, load(made.artifact, budget=traffic.budget, debug=True)))
    # every row that has a candidate scores it: from none on, 1, 2, .. and more than 32
    traffic = Traffic(FLOWS[name], Budget(0, sink=1, recent=1), seed=6)
    live(traffic, Compiled(traffic, load(made.artifact, budget=traffic.budget, debug=True)), long=32)


def test_blocks_keep_what_pages_of_their_size_keep(tmp_path: Path) -> None:
    """State of pages is state of blocks: the same pages and numbers, step by step, and in a slot's second life."""
    whole, ran = replace(SPEC, page_size=16, block_size=4), []
    for n, spec in enumerate((whole, whole.in_blocks)):
        made = compile_flow(FLOWS["ema"], spec=spec, out=tmp_path / f"{n}.vxa").artifact
        assert made is not None
        decoder = load(made, budget=Budget(3), debug=True)
        cache = PagedCache(64, HEADS, spec, decoder.fields, states=decoder.states, slots=2, columns=32)
        for x in (cache.k[0], cache.v[0], *cache.fields[0].values(), *cache.state[0].values()):
            assert x is not None
            x.fill_(float("nan"))
        decoder.bind(0, cache.k[0], cache.v[0], cache.fields[0], state=cache.state[0])
        drawn, found = torch.Generator().manual_seed(0), list[Any]()
        for life in (70, 45):
            cache.add("r")
            for new in (life, 1, 1, 5, 1, 1, 1):
                loc, offsets = cache.extend_batch(["r"], [new])
                k, v = torch.randn(2, new, HEADS, spec.head_dim, generator=drawn).bfloat16()
                q = torch.randn(1, HEADS * spec.group, spec.head_dim, generator=drawn).bfloat16()
                decoder.plan(cache.lengths(["r"]), cache.page_table(["r"]), cache.slots(["r"]))
                decoder.append(0, k, v, loc, offsets)
                decoder.decode(0, q, out=torch.empty_like(q))
                assert decoder.pages is not None
                assert decoder.counts is not None
                slot, blocks = int(cache.slots(["r"])[0]), int(cache.lengths(["r"])[0]) // 4
                kept = {name: x[slot].flatten(1).clone() for name, x in cache.state[0].items()}
                found.append((decoder.pages.clone(), decoder.counts.clone(), kept["ema"][:, :blocks], kept["query"]))
            cache.free("r")
        ran.append(found)
    for mine, right in zip(*ran, strict=True):
        for a, b in zip(mine, right, strict=True):
            assert torch.equal(a, b)
    assert ran[0][-1][2].isfinite().all()
