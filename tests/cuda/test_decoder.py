"""The whole decoder over GPU kernels under the emulator: steps of a changing batch against the oracle and the CPU."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

import vortex
from tests.cuda.harness import KINDS, Kernels, fails, lower
from vortex.artifact.manifest import FieldEntry, KernelEntry, Manifest, TargetEntry
from vortex.budget import Budget
from vortex.check.verdict import judge
from vortex.driver import compile_flow
from vortex.errors import VortexError
from vortex.flow import oracle
from vortex.flow.flow import find_flow, vFlow
from vortex.flow.trace import trace
from vortex.ir.dialects.page import cap_of, page_blocks
from vortex.ir.interpret import resource
from vortex.ir.types import TensorType
from vortex.kinds.kind import KINDS as DECLARED
from vortex.runtime.decoder import Decoder, load
from vortex.runtime.device import Cpu
from vortex.runtime.library import Library
from vortex.runtime.paged_cache import PagedCache
from vortex.runtime.scratch import Items, Layout
from vortex.runtime.tensors import as_kernel_sees
from vortex.spec import Spec

SPEC = Spec(page_size=8, head_dim=32, group=2)
IN_BLOCKS, IN_FP8 = "_in_blocks", "_in_fp8"
OTHER = {
    "latent_topk": Spec.of_latent("64+64", 20, page_size=8),
    f"quest{IN_BLOCKS}": Spec(page_size=24, block_size=8, head_dim=32, group=2),
    f"masked_quest{IN_BLOCKS}": Spec(page_size=64, block_size=16, head_dim=32, group=2),
    f"latent_topk{IN_BLOCKS}": Spec.of_latent("64+64", 20, page_size=32, block_size=8),
    f"latent_topk{IN_FP8}": Spec.of_latent("64+64", 20, page_size=8, kv_dtype="fp8_e4m3"),
}
"""Flows of other shapes than that: MLA, whose rows a CTA of attend takes in blocks of heads, rows in fp8 among them;
blocks of pages.
"""
UNIT = 0.5
"""What the numbers of pools in fp8 are multiples of; those of the tests are kept exactly."""
HKV = 2
BUDGET = Budget(3, "1/8")
MOST = 8 * 80 + 3
"""Tokens of the longest request: its candidates are three items of select, its pages four of attend."""
KNOBS: dict[str, dict[str, int]] = {
    "plan": {"threads": 64, "select_pages": 32, "attend_pages": 4},
    "append": {"threads": 64},
    "select": {"threads": 64, "in_flight": 2, "chip_words": 1024},
    "attend": {"warps": 2, "stages": 2},
}
I32 = torch.int32
TAPE: list[Callable[[], None]] = []
"""What was launched while a device was recording: addresses and sizes as they were then."""


class Eight(Cpu):
    """Eight multiprocessors, so that rows are cut; it can be told to record, as a CUDA graph does."""

    recording = False

    def multiprocessors(self, device: torch.device) -> int:
        return 8

    def capturing(self) -> bool:
        return self.recording


def flow_named(name: str) -> type[vFlow]:
    return find_flow(name.removesuffix(IN_BLOCKS).removesuffix(IN_FP8))


@cache
def kernels(name: str) -> Kernels:
    knobs = {**KNOBS, "attend": {}} if name.startswith("latent") else KNOBS
    return Kernels.of({name: lower(trace(flow_named(name), OTHER.get(name, SPEC)), **knobs)}, KINDS)


VARIANTS: dict[str, dict[str, Any]] = {
    "select": {"threads": 128, "keys": 4, "chip_words": 0, "serves": ((2, 128, 64),)},
    "attend": {"warps": 1, "stages": 3, "serves": ((2, 0, 64),)},
}
"""For one request; what stands in KNOBS is for three."""
TABLE: tuple[dict[str, Any], ...] = (
    {"select_pages": 32, "attend_pages": 2, "attend_busy": 2, "serves": ((2, 2, 2), (8, 2, 2))},
    {"select_pages": 64, "attend_pages": 8, "attend_busy": 8, "serves": ((8, 128, 16), (2, 128, 16))},
)


@cache
def kernels_with_variants() -> Kernels:
    mine: dict[str, dict[str, Any]] = {**KNOBS, "plan": {**KNOBS["plan"], "table": TABLE}}
    for kind, other in VARIANTS.items():
        serves = (8, 0 if kind == "attend" else 128, 64)
        mine[kind] = {**KNOBS[kind], "serves": (serves,), "variants": (other,)}
    return Kernels.of({"quest": lower(trace(find_flow("quest"), SPEC), **mine)}, KINDS)


def heard(made: Library, called: list[str]) -> Library:
    """The same, which notes the symbols of kernels as they are launched."""

    def note(symbol: str) -> Callable[..., None]:
        def run(*arguments: Any) -> None:
            called.append(symbol)
            made.functions[symbol](*arguments)

        return run

    return replace(made, functions={s: note(s) for s in made.functions})


def library(name: str, built: Kernels) -> Library:
    """What ``open_library`` gives for a GPU, with kernels that run here; every launch has an order of its own."""
    program, seeds, device = built.programs[name], count(), Eight()

    def launch(symbol: str) -> Callable[..., None]:
        def run(*arguments: Any) -> None:
            if device.recording:
                TAPE.append(partial(run, *arguments))
            else:
                built.emulated.call(symbol, *arguments, seed=next(seeds))

        return run

    entries = tuple(
        KernelEntry(k.name, k.kind, k.symbol, k.args, k.page_words, k.row_words, k.schedule, k.digest, {"ctas": 1})
        for k in built.sources.values()
    )
    fields = [
        FieldEntry(d.name, ((n,) if (n := page_blocks(program)) > 1 else ()) + d.type.tile, d.type.dtype.name)
        for d in program.declared("buffer")
        if d.attrs["role"] == "field" and isinstance(d.type, TensorType)
    ]
    constants = {d.name: as_kernel_sees(torch.tensor(resource(program, d.name))) for d in program.declared("resource")}
    spec = OTHER.get(name, SPEC)
    targets = {"sm_90a": TargetEntry("lib.sm_90a.so", entries)}
    manifest = Manifest(name, "0" * 64, spec, tuple(fields), (), targets, cap=cap_of(program))
    return Library(manifest, "sm_90a", {k.symbol: launch(k.symbol) for k in entries}, constants, runs_on=device)


class Run:
    """Requests in a decoder over poisoned memory, every token also kept aside; new tokens are appended, or ``given`` to
    ``decode``.
    """

    def __init__(self, name: str, decoder: Decoder, layout: Any = "HND", *, given: bool = False) -> None:
        self.given = given
        self.flow, self.decoder, self.spec = flow_named(name), decoder, decoder.spec
        self.heads = 1 if self.spec.kv_lora_rank else HKV
        self.cache = PagedCache(160, self.heads, self.spec, decoder.fields, layout=layout)
        self.said: dict[int, torch.Tensor] = {}
        for pool in (self.cache.k[0], self.cache.v[0], *self.cache.fields[0].values()):
            if pool is not None:
                pool.fill_(float("nan"))
        self.unit = UNIT if self.spec.scaled else 1.0
        decoder.bind(0, self.cache.k[0], self.cache.v[0], self.cache.fields[0], self.unit)
        decoder.bind(1, self.cache.k[0], self.cache.v[0], k_scale=self.unit)  # a layer that attends to all

    def fill(self, made: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of every page, numbers that bf16 has exactly, with the bounds that Quest keeps of them."""
        k, v, fields = self.cache.k[0], self.cache.v[0], self.cache.fields[0]
        assert v is not None
        for pool in (k, v):
            pool.copy_(torch.randint(-3, 4, pool.shape, generator=made))
        fields["lo"].copy_(k.amin(2))
        fields["hi"].copy_(k.amax(2))
        return k, v

    def step(self, new: dict[int, int], padded: int = 0, columns: int = 81) -> list[torch.Tensor]:
        """New tokens of some requests, and rows of padding; what came out: sparse, its lse, dense, its lse."""
        made = torch.Generator().manual_seed(sum(new.values()) + len(new))
        requests, batch = list(new), len(new) + padded
        for r in new.keys() - self.said.keys():
            self.cache.add(r)
            self.said[r] = torch.empty(0, 2, self.heads, self.spec.head_dim)
        loc, offsets = self.cache.extend_batch(requests, list(new.values()))
        kv = torch.randint(-3, 4, (len(loc) + padded, 2, self.heads, self.spec.head_dim), generator=made).bfloat16()
        lengths, table = torch.zeros(batch, dtype=I32), torch.full((batch, columns), 1 << 28, dtype=I32)
        lengths[: len(new)] = self.cache.lengths(requests)
        for row, r in enumerate(requests):
            pages = self.cache.pages(r)
            table[row, : len(pages)] = torch.tensor(pages)
        ends = int(offsets[-1]) + torch.arange(1, padded + 1, dtype=I32)
        self.decoder.plan(lengths, table)
        k, v = kv.transpose(0, 1).contiguous()
        loc = torch.cat([loc, -torch.ones(padded, dtype=torch.int64)])
        tokens = k, None if self.spec.kv_lora_rank else v, loc, torch.cat([offsets, ends])
        if not self.given:
            self.decoder.append(0, *tokens)
        q = torch.randint(-3, 4, (batch, self.heads * self.spec.group, self.spec.head_dim), generator=made).bfloat16()
        value, total = q.new_full((*q.shape[:2], self.spec.v_dim), float("nan")), torch.full(q.shape[:2], float("nan"))
        outs = [value, total, value.clone(), total.clone()]
        scale = self.spec.head_dim**-0.5
        self.decoder.decode(0, q, out=outs[0], lse=outs[1], scale=scale, new=tokens if self.given else None)
        self.decoder.attend_all(1, q, out=outs[2], lse=outs[3], scale=scale)
        for row, r in enumerate(requests):
            mine = kv[int(offsets[row]) : int(offsets[row + 1])]
            self.said[r] = torch.cat([self.said[r], mine])
            self._check(row, q[row], self.said[r], [x[row] for x in outs])
        for x, nothing in zip(outs, (0.0, float("-inf")) * 2, strict=True):
            assert (x[len(new) :] == nothing).all()
        return outs

    def _check(self, row: int, q: torch.Tensor, tokens: torch.Tensor, outs: list[torch.Tensor]) -> None:
        k, v = tokens.unbind(1)
        v = None if self.spec.kv_lora_rank else v
        budget = self.decoder.budget
        assert budget is not None
        assert self.decoder.pages is not None
        assert self.decoder.counts is not None
        want = oracle.step(self.flow, self.spec, q, k, v, budget, k_scale=self.unit)
        for h in range(self.heads):
            assert self.decoder.pages[row, h, : int(self.decoder.counts[row, h])].tolist() == want.pages[h]
        values = k[..., : self.spec.v_dim] if v is None else v
        heads = [q[h * self.spec.group : (h + 1) * self.spec.group] for h in range(self.heads)]
        each = [oracle.attend(x, k[:, h], values[:, h], self.spec.head_dim**-0.5) for h, x in enumerate(heads)]
        dense = [torch.cat(x) for x in zip(*each, strict=True)]
        for (out, lse), right in zip((outs[:2], outs[2:]), ((want.out, want.lse), dense), strict=True):
            torch.testing.assert_close(out.float(), right[0], rtol=2e-2, atol=2e-2)
            torch.testing.assert_close(lse, right[1], rtol=1e-3, atol=1e-3)

    def leave(self, r: int) -> None:
        self.cache.free(r)
        del self.said[r]


def poisoned(decoder: Decoder, batch: int, columns: int) -> None:
    """Scratch of the caller's, full of what an aborted step may leave, enough for that size and for no more."""
    decoder.set_workspace(None)
    size = decoder.workspace_bytes(batch, columns)
    decoder.set_workspace(torch.full((size,), 0xFF, dtype=torch.uint8))


def steps(run: Run) -> list[list[torch.Tensor]]:
    """Requests join, go from 1 token to the most and leave; short, long and padded rows beside each other."""
    poisoned(run.decoder, 4, 81)
    found = [run.step({0: 1, 1: 300}, padded=1)]
    found.append(run.step({0: MOST - 1, 1: 1, 2: 9}, padded=1))
    run.leave(1)
    found.append(run.step({2: 1, 0: 1}))
    run.leave(0)
    run.decoder.budget = Budget(5, sink=0, recent=1)
    found.append(run.step({3: 1, 2: 1}, padded=2))
    found.append(run.step({2: 1}))
    found += [run.step({3: 1, 2: 1}) for _ in range(8)]  # each of them fills a page
    return found


@vortex.register("test_rows_of_their_own")
class RowsOfTheirOwn(vortex.vFlow):
    """How many pages a head has depends on its scores: fewer than the lists of attend have items for."""

    def create_cache(self, spec: Spec) -> dict[str, vortex.Field]:
        return {"mean": vortex.Field(spec.head_dim)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"mean": page.k.mean(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        score = (cache.mean @ q.T).amax(-1)
        few = vortex.topk(score.abs(), count=score.amax(0) - 8, pages=6)
        return vortex.union(vortex.topp(score.relu(), 0.25, pages=8), few)


EVERYDAY = ("quest", "quest_in_blocks", "test_rows_of_their_own")
REST = ("block_topk", "gqa_block", "masked_quest", "latent_topk", *list(OTHER)[2:])


@pytest.mark.parametrize("name", [*EVERYDAY, *(pytest.param(n, marks=pytest.mark.full) for n in REST)])
def test_steps_of_a_changing_batch(name: str, tmp_path: Path) -> None:
    made = compile_flow(flow_named(name), spec=OTHER.get(name, SPEC), out=tmp_path / "cpu.vxa").artifact
    assert made is not None
    decoder = Decoder(library(name, kernels(name)), budget=BUDGET, dense=True, debug=True)
    layouts = ("HND", "NHD") if name.endswith(IN_BLOCKS) else ("NHD", "HND")
    mine = steps(Run(name, decoder, layouts[0], given=True))
    others = steps(Run(name, load(made, target="cpu", budget=BUDGET, dense=True), layouts[1]))
    for a, b in zip(mine, others, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("given", [False, True], ids=["", "new tokens"])
@pytest.mark.parametrize("variants", [False, True])
def test_one_graph_of_any_lengths(variants: bool, given: bool) -> None:
    """Captured at one token a row; replayed with lengths, tables and budgets that were not known then, and with new
    tokens, where the graph takes some in.
    """
    made = torch.Generator().manual_seed(0)
    built = kernels_with_variants() if variants else kernels("quest")
    decoder = Decoder(library("quest", built), budget=BUDGET, dense=not given)
    device = decoder.library.device
    assert isinstance(device, Eight)
    run = Run("quest", decoder)
    poisoned(decoder, 3, 81)
    decoder.reserve(3, 81)
    lengths, table = torch.ones(3, dtype=I32), torch.full((3, 81), 1 << 28, dtype=I32)
    q = torch.empty(3, HKV * SPEC.group, SPEC.head_dim).bfloat16()
    outs = [torch.empty_like(q), torch.empty(q.shape[:2])] * 2
    tokens, loc = torch.empty(2, 3, HKV, SPEC.head_dim).bfloat16(), torch.zeros(3, dtype=torch.int64)
    TAPE.clear()
    device.recording = True
    decoder.plan(lengths, table)
    new = (*tokens, loc, torch.arange(4, dtype=I32)) if given else None
    decoder.decode(0, q, out=outs[0], lse=outs[1], new=new)
    device.recording = False
    graph = list(TAPE)
    launches = 3 if given else 4  # a plan of dense lists
    assert [len(graph), len(set(map(id, graph)))] == [launches, launches]
    with pytest.raises(VortexError, match="VX6010"):
        decoder.reserve(4, 81)

    pools = run.fill(made)
    for held, budget in (([1, 1, 1], BUDGET), ([MOST, 0, 600], Budget(2)), ([1, 300, 0], BUDGET), ([1] * 3, BUDGET)):
        decoder.budget = budget
        order = torch.randperm(160, generator=made).int()
        lengths.copy_(torch.tensor(held))
        q.copy_(torch.randint(-3, 4, q.shape, generator=made))
        table.fill_(1 << 28)
        tokens.copy_(torch.randint(-3, 4, tokens.shape, generator=made))
        for row, n in enumerate(held):
            pages = -(-n // 8)
            table[row, :pages], order = order[:pages], order[pages:]
            loc[row] = int(table[row, pages - 1]) * 8 + (n - 1) % 8 if n else -1
            if n and given:
                for x in (*pools, *run.cache.fields[0].values()):  # the last token, and what is kept of its page
                    x[loc[row] // 8].select(1, (n - 1) % 8).fill_(float("nan")) if x.dim() == 4 else x[
                        loc[row] // 8
                    ].fill_(float("nan"))
        for x in outs:
            x.fill_(float("nan"))
        for launch in graph:
            launch()
        for row, n in enumerate(held):
            if n and given:
                last = pools[0][loc[row] // 8]
                assert all(
                    torch.equal(x[loc[row] // 8, :, (n - 1) % 8], y[row]) for x, y in zip(pools, tokens, strict=True)
                )
                if n % 8 == 0:
                    assert torch.equal(run.cache.fields[0]["lo"][loc[row] // 8], last.amin(1))
            if not n:
                assert not outs[0][row].any()
                continue
            at = torch.arange(n)
            k, v = (x[table[row, at // 8].long(), :, at % 8] for x in pools)
            want = oracle.step(find_flow("quest"), SPEC, q[row], k, v, budget)
            torch.testing.assert_close(outs[0][row].float(), want.out, rtol=2e-2, atol=2e-2)
            torch.testing.assert_close(outs[1][row], want.lse, rtol=1e-3, atol=1e-3)


class Filled:
    """Pools of random numbers and of their summaries, and requests whose pages lie in them anyhow."""

    def __init__(self, name: str, tokens: Mapping[int, int], **options: Any) -> None:
        made = torch.Generator().manual_seed(7)
        built = kernels_with_variants() if name == "quest" else kernels(name)
        self.decoder = Decoder(library(name, built), budget=BUDGET, dense=True, **options)
        self.tokens, spec = dict(tokens), self.decoder.spec
        self.spec, self.heads = spec, 1 if spec.kv_lora_rank else HKV
        cache = PagedCache(300, self.heads, spec, self.decoder.fields)
        for pool in (cache.k[0], cache.v[0], *cache.fields[0].values()):
            if pool is not None:
                pool.copy_(torch.randn(pool.shape, generator=made))
        self.decoder.bind(0, cache.k[0], cache.v[0], cache.fields[0])
        order = torch.randperm(300, generator=made).int()
        sizes = [-(-n // spec.page_size) for n in tokens.values()]
        self.pages = dict(zip(tokens, order[: sum(sizes)].split(sizes), strict=True))
        shape = (self.heads * spec.group, spec.head_dim)
        self.q = {r: torch.randn(shape, generator=made).bfloat16() for r in tokens}

    def step(self, requests: list[int], columns: int) -> dict[int, list[torch.Tensor]]:
        """By request: its pages and how many, its output and lse, sparse and then dense."""
        lengths = torch.tensor([self.tokens[r] for r in requests], dtype=I32)
        table = torch.full((len(requests), columns), 1 << 28, dtype=I32)
        for row, r in enumerate(requests):
            table[row, : len(self.pages[r])] = self.pages[r]
        q = torch.stack([self.q[r] for r in requests])
        value, total = q.new_full((*q.shape[:2], self.spec.v_dim), float("nan")), torch.full(q.shape[:2], float("nan"))
        outs = [value, total, value.clone(), total.clone()]
        scale = self.spec.head_dim**-0.5
        self.decoder.plan(lengths, table)
        self.decoder.decode(0, q, out=outs[0], lse=outs[1], scale=scale)
        self.decoder.attend_all(0, q, out=outs[2], lse=outs[3], scale=scale)
        pages, counts = self.decoder.pages, self.decoder.counts
        assert pages is not None
        assert counts is not None
        listed = [[pages[row, h, : int(n)] for h, n in enumerate(counts[row])] for row in range(len(requests))]
        return {
            r: [torch.cat(listed[row]), counts[row].clone(), *(x[row] for x in outs)] for row, r in enumerate(requests)
        }


ALONE = {0: MOST, 1: 300, 2: 17, 3: 641}
STEPS = [([0], 81), ([1], 90), ([3, 0], 81), ([2, 3, 1, 0], 120), ([0, 1, 2, 3] * 3, 81)]
"""Requests of a step, and columns of its page table."""


@pytest.mark.parametrize("name", ["quest", "latent_topk"])
def test_a_request_has_the_same_bits_in_any_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``deterministic``; without it some output differs in its last bits, and no selection does."""
    monkeypatch.setattr(Items, "DENSE_TOKENS", 128)

    def other_bits(**options: Any) -> set[int]:
        filled = Filled(name, ALONE, **options)
        found = [(r, x) for requests, columns in STEPS for r, x in filled.step(requests, columns).items()]
        first = {r: x for r, x in reversed(found)}
        return {i for r, x in found for i, (a, b) in enumerate(zip(x, first[r], strict=True)) if not torch.equal(a, b)}

    assert other_bits(deterministic=True) == set()
    assert other_bits()
    assert other_bits() <= {2, 3, 4, 5}


def test_steps_of_two_sizes_run_variants_of_their_own() -> None:
    """They share scratch, whichever has more slots; and what a captured step runs depends on its size alone."""
    made = library("quest", kernels_with_variants())
    called: list[str] = []
    entries = [replace(k, resources={"ctas": 3}) if k.name == "attend_v1" else k for k in made.target.kernels]
    manifest = replace(made.manifest, targets={"sm_90a": replace(made.target, kernels=tuple(entries))})
    decoder = Decoder(heard(replace(made, manifest=manifest), called), budget=BUDGET, dense=True)
    run = Run("quest", decoder)
    poisoned(decoder, 3, 81)
    decoder.reserve(3, 81)
    for new in ({0: 1, 1: 300, 2: 9}, {0: 1}, {0: MOST - 2}, {1: 1, 2: 1, 0: 1}):
        called.clear()
        run.step(new)
        chosen = {s for s in called if s.endswith("_v1")}
        assert chosen == ({f"quest_{kind}_v1" for kind in VARIANTS} if len(new) == 1 else set())
        assert len(called) == 6, "plan for both lists, append, select, attend twice"


def test_what_is_launched_where_new_tokens_are_given() -> None:
    """``select`` takes them in where there is one to a request at most, and it selects."""
    called: list[str] = []
    decoder = Decoder(heard(library("block_topk", kernels("block_topk")), called), budget=BUDGET, keep=[0], debug=True)
    cache = PagedCache(90, HKV, SPEC, decoder.fields)
    decoder.bind(0, cache.k[0], cache.v[0], cache.fields[0])
    requests, q = (0, 1), torch.zeros(2, HKV * SPEC.group, SPEC.head_dim).bfloat16()
    for r in requests:
        cache.add(r)

    def step(each: list[int], **how: Any) -> list[str]:
        loc, offsets = cache.extend_batch(requests, each)
        decoder.plan(cache.lengths(requests), cache.page_table(requests), torch.arange(2, dtype=I32))
        k, v = torch.ones(2, len(loc), HKV, SPEC.head_dim).bfloat16()
        called.clear()
        decoder.decode(0, q, out=q.clone(), new=(k, v, loc, offsets), **how)
        return [s.removeprefix("block_topk_") for s in called]

    taken, apart = ["select", "attend"], ["append", "select", "attend"]
    assert step([300, 9]) == apart
    assert step([1, 1]) == step([0, 1]) == step([0, 0]) == taken
    assert step([1, 2]) == apart
    mine = {"pages": torch.zeros(2, HKV, 81, dtype=I32), "counts": torch.zeros(2, HKV, dtype=I32)}
    assert step([1, 1], **mine) == taken
    for _ in range(4):  # whether it selects is known on the device alone
        assert step([1, 1], every=3) == taken
    loc, offsets = cache.extend_batch(requests, [1, 1])
    decoder.plan(cache.lengths(requests), cache.page_table(requests))
    decoder.decode(0, q, out=q.clone())
    kv = torch.full((2, HKV, SPEC.head_dim), 5.0).bfloat16()
    called.clear()
    decoder.decode(0, q, out=q.clone(), pages_of=0, new=(kv, kv, loc, offsets))
    assert called == ["block_topk_append", "block_topk_attend"]
    assert all((x[loc // 8, :, loc % 8] == 5).all() for x in (cache.k[0], cache.v[0]) if x is not None)
    with pytest.raises(VortexError, match="VX6002") as caught:
        step([0, 2])
    assert "row_offsets[1:3]: are 2 new tokens of request 1; decode(new=...) takes in" in caught.value.render()


def test_a_kind_that_append_launches_too_is_not_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """``select`` does the work of kernels of kind ``append``, and of no others that a call of it launches."""
    made = library("block_topk", kernels("block_topk"))
    assert made.takes_in_tokens
    monkeypatch.setitem(DECLARED, "tally", replace(DECLARED["append"], name="tally"))
    (append,) = [k for k in made.target.kernels if k.kind == "append"]
    target = replace(made.target, kernels=(*made.target.kernels, replace(append, kind="tally")))
    assert not replace(made, manifest=replace(made.manifest, targets={"sm_90a": target})).takes_in_tokens


def test_addresses_are_looked_at_before_a_launch() -> None:
    """A kernel of a GPU would fault on them, and take the process's context with it."""
    decoder = Decoder(library("quest", kernels("quest")), budget=BUDGET, dense=True)
    run = Run("quest", decoder)
    run.step({0: 9})

    def odd(x: torch.Tensor) -> torch.Tensor:
        return torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape)

    k, fields = run.cache.k[0], run.cache.fields[0]
    q = torch.zeros(1, HKV * SPEC.group, SPEC.head_dim).bfloat16()
    narrow = torch.zeros(4, HKV, SPEC.page_size, SPEC.head_dim + 4).bfloat16()[..., : SPEC.head_dim]
    for call, says in (
        (lambda: decoder.bind(0, odd(k), k, fields), "k_pool: begins at"),
        (lambda: decoder.bind(0, narrow, narrow, None), "k_pool: has strides"),
        (lambda: decoder.bind(0, k, k, {"lo": fields["lo"], "hi": odd(fields["hi"])}), "field 'hi': begins at"),
        (lambda: decoder.decode(0, odd(q), out=q.clone()), "q: begins at"),
        (lambda: decoder.attend_all(0, q, out=odd(q)), "out: begins at"),
        (
            lambda: decoder.plan(torch.ones(4097, dtype=I32), torch.zeros(4097, 1, dtype=I32)),
            "has 4097 requests; kernels of a GPU plan up to 4096",
        ),
    ):
        with pytest.raises(VortexError, match="VX6002") as caught:
            call()
        assert says in caught.value.render()


def check(built: Kernels) -> None:
    """Two steps come out right, or an AssertionError or a VortexError says what does not."""
    decoder = Decoder(library("quest", built), budget=BUDGET, dense=True)
    run = Run("quest", decoder)
    poisoned(decoder, 3, 81)
    for _ in range(2):
        run.step({0: 300, 1: 9}, padded=1)


def test_scratch_that_is_too_small_or_another_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    check(kernels("quest"))
    right = Layout.buffers
    for name, change in (
        ("partials", lambda t, s: (t, (s[0] - 4, *s[1:]))),  # no room for the slots
        ("work", lambda t, s: (t, (2, s[1] - 7))),
        ("dense.work", None),  # the work list of the selection instead
    ):

        def wrong(self: Layout, *sizes: Any, name: str = name, change: Any = change) -> dict[str, Any]:
            made = right(self, *sizes)
            buffer = made.pop(name)
            return {**made, name: change(*buffer)} if change else made

        monkeypatch.setattr(Layout, "buffers", wrong)
        assert fails(check, kernels("quest")), name


@pytest.mark.full
@pytest.mark.parametrize("kind", ["plan", "select", "attend"])
def test_arrivals_must_be_cleared(kind: str) -> None:
    """By plan what was there before, and by select and attend what they counted: one counter serves all."""
    whole = kernels("quest")
    check(whole)
    symbol = whole.sources["quest", kind].symbol
    text = whole.texts[symbol]
    [reset] = re.finditer(r"^ *arrivals_ptr\[.*\] = 0;\n", text, re.MULTILINE)
    assert fails(check, whole.mutated(symbol, text[: reset.start()] + text[reset.end() :]))


def test_a_trial_takes_in_the_tokens_of_every_other_step() -> None:
    """What ``vortex run`` judges on a GPU covers both ways to append."""
    decoder = Decoder(library("quest", kernels("quest")), budget=BUDGET)
    launched: list[str] = []
    run = decoder._steps.run

    def heard(step: Any, call: str, layer: int, given: Mapping[str, Any], **how: Any) -> None:
        launched.append(call)
        run(step, call, layer, given, **how)

    decoder._steps.run = heard  # type: ignore[method-assign]
    found, times = judge(decoder, trace(find_flow("quest"), SPEC), [150, 8], steps=4)
    assert all(v.good("bf16") for v in found.values()), [v.why() for v in found.values()]
    steps = "|".join(launched).split("plan|")[-4:]
    assert ["append" in s for s in steps] == [True, False] * 2
    assert len(times) == 4
