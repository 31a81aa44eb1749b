"""The decoder over kernels written in torch: what it hands them, what it refuses, what it costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.runtime.fake import fake_library
from vortex.budget import Budget
from vortex.errors import VortexError
from vortex.runtime.checks import check_one_each
from vortex.runtime.decoder import Decoder, NewTokens, load
from vortex.runtime.device import Cpu
from vortex.runtime.library import Library
from vortex.runtime.paged_cache import PagedCache
from vortex.spec import Spec

SPEC = Spec(page_size=4, head_dim=8, group=2, dtype="f32")
HKV = 3


class Setting:
    """Two layers over one cache whose memory is NaN, with every token also kept aside."""

    def __init__(self, budget: Budget | None = None, layout: Any = "HND", **options: Any) -> None:
        self.decoder = Decoder(fake_library(SPEC), budget=budget or Budget(2), **options)
        self.cache = PagedCache(40, HKV, SPEC, self.decoder.fields, layers=2, layout=layout)
        self.said: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}  # per request: [2, Hkv, D] a token
        self.new: list[NewTokens] = []  # of the step, by layer
        for layer in range(2):
            pools = (self.cache.k[layer], self.cache.v[layer], *self.cache.fields[layer].values())
            for pool in pools:
                pool.fill_(float("nan"))
            self.decoder.bind(layer, self.cache.k[layer], self.cache.v[layer], self.cache.fields[layer])

    def step(self, new: dict[int, int], stored: bool = False, append: bool = True) -> list[int]:
        requests = list(new)
        for r in requests:
            if r not in self.said:
                self.cache.add(r)
                self.said[r] = []
        loc, offsets = self.cache.extend_batch(requests, list(new.values()))
        self.decoder.plan(self.cache.lengths(requests), self.cache.page_table(requests))
        k, v = torch.randn(2, 2, len(loc), HKV, SPEC.head_dim)
        self.new = [(None, None, None, offsets) if stored else (k[n], v[n], loc, offsets) for n in range(2)]
        for layer in range(2):
            if stored:
                at = (loc // 4, slice(None), loc % 4)
                self.cache.k[layer][at], self.cache.v[layer][at] = k[layer], v[layer]
            if append:
                self.decoder.append(layer, *self.new[layer])
        for i, r in enumerate(requests):
            self.said[r] += [(k[:, t], v[:, t]) for t in range(int(offsets[i]), int(offsets[i + 1]))]
        return requests

    def expected(self, layer: int, r: int, h: int, q: torch.Tensor, pages: list[int]) -> torch.Tensor:
        tokens = [t for p in pages for t in range(p * 4, min(p * 4 + 4, len(self.said[r])))]
        k = torch.stack([self.said[r][t][0][layer, h] for t in tokens])
        v = torch.stack([self.said[r][t][1][layer, h] for t in tokens])
        return torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None])[0]

    def best(self, layer: int, r: int, h: int, q: torch.Tensor) -> list[int]:
        """The pages that Quest keeps, from the tokens alone."""
        budget = self.decoder.budget
        assert budget is not None
        n = -(-len(self.said[r]) // 4)
        if n <= budget.total(n):
            return list(range(n))
        keys = torch.stack([k[layer, h] for k, _ in self.said[r]])
        scores = {}
        for p in range(budget.sink, n - budget.recent):
            lo, hi = keys[p * 4 : p * 4 + 4].amin(0), keys[p * 4 : p * 4 + 4].amax(0)
            scores[p] = float(torch.maximum(q * lo, q * hi).sum(-1).amax())
        best = sorted(scores, key=lambda p: -scores[p])[: budget.total(n) - budget.sink - budget.recent]
        return sorted([*range(budget.sink), *best, *range(n - budget.recent, n)])


@pytest.mark.parametrize("append", [False, True], ids=["with the queries", "appended"])
@pytest.mark.parametrize("layout", ["HND", "NHD"])
@pytest.mark.parametrize("stored", [False, True])
def test_steps_of_a_changing_batch(layout: str, stored: bool, append: bool) -> None:
    torch.manual_seed(0)
    s = Setting(Budget(1, "1/3"), layout=layout, debug=True)
    for new in ({0: 1, 1: 37}, {0: 1, 1: 1, 2: 12}, {2: 1, 0: 1}, {0: 3, 3: 20}, {3: 1, 1: 1, 0: 1, 2: 9}):
        if 3 in new and 2 in s.said and 2 not in new:
            s.cache.free(2)
            del s.said[2]
        requests = s.step(new, stored, append)
        for layer in range(2):
            q = torch.randn(len(requests), HKV * 2, 8)
            out, lse = torch.empty_like(q), torch.empty(q.shape[:2])
            s.decoder.decode(layer, q, out=out, lse=lse, new=None if append else s.new[layer])
            alone = torch.empty_like(q)
            s.decoder.decode(layer, q, out=alone)
            assert torch.equal(out, alone)
            assert lse.isfinite().all()
            pages, counts = s.decoder.pages, s.decoder.counts
            assert pages is not None
            assert counts is not None
            for row, r in enumerate(requests):
                for h in range(HKV):
                    mine = q[row, 2 * h : 2 * h + 2]
                    listed = pages[row, h, : int(counts[row, h])].tolist()
                    assert listed == s.best(layer, r, h, mine)
                    torch.testing.assert_close(
                        out[row, 2 * h : 2 * h + 2], s.expected(layer, r, h, mine, listed), rtol=1e-4, atol=1e-5
                    )


def test_budget_may_change_between_steps() -> None:
    s = Setting(Budget(0))
    s.step({0: 60})
    q = torch.randn(1, 6, 8)
    out = torch.empty_like(q)
    s.decoder.decode(0, q, out=out)
    assert s.decoder.counts is not None
    assert s.decoder.counts.eq(3).all()
    s.decoder.budget = Budget(4, sink=2, recent=1)
    assert refused(lambda: s.decoder.decode(0, q, out=out))[0] == "VX6003"
    s.step({0: 1})
    s.decoder.decode(0, q, out=out)
    assert s.decoder.counts.eq(7).all()
    pages, counts = torch.empty(1, HKV, 16, dtype=torch.int32), torch.empty(1, HKV, dtype=torch.int32)
    s.decoder.decode(0, q, out=out, pages=pages, counts=counts)
    assert torch.equal(pages[:, :, :7], s.decoder.pages)


def test_scratch_is_kept_and_may_be_the_callers() -> None:
    s = Setting()
    s.step({0: 61, 1: 9})
    assert s.decoder.pages is not None
    own = s.decoder.pages.data_ptr()
    s.step({1: 1})
    s.step({0: 1, 1: 1})
    assert s.decoder.pages.data_ptr() == own
    q = torch.randn(2, 6, 8)
    out, again = torch.empty_like(q), torch.empty_like(q)
    s.decoder.decode(0, q, out=out)
    size = s.decoder.workspace_bytes(2, 16)
    mine = torch.zeros(size, dtype=torch.uint8)
    s.decoder.set_workspace(mine)
    assert "plan" in refused(lambda: s.decoder.decode(0, q, out=again))[1]
    s.step({0: 0, 1: 0})
    s.decoder.decode(0, q, out=again)
    assert torch.equal(out, again)
    # the workspace of select, which fills it with NaN, is in there and does not touch what lies around it
    assert int(mine.view(torch.float32).isnan().sum()) == 2 * HKV * (16 + 3)
    assert s.decoder.pages.data_ptr() - mine.data_ptr() in range(0, size, 256)
    s.decoder.set_workspace(mine[16:])
    assert f"workspace: has {size - 16} bytes; this step needs {size}" in refused(lambda: s.step({0: 0, 1: 0}))[1]
    s.decoder.set_workspace(torch.zeros(size))  # four times as many, and any type
    s.step({0: 0, 1: 0})
    for bad, text in ((mine[1:], "16 bytes"), (mine.view(2, -1), "2 axes"), (7, "int"), (mine[::2], "contiguous")):
        assert text in refused(lambda b=bad: s.decoder.set_workspace(b))[1]


def test_an_empty_batch_is_no_work() -> None:
    made, launched = fake_library(SPEC), list[str]()
    heard = {name: lambda *_, name=name: launched.append(name) for name in made.functions}
    decoder = Decoder(replace(made, functions=heard), budget=Budget(2), dense=True)
    decoder.bind(0, POOL, POOL, {"lo": FIELD, "hi": FIELD})
    decoder.plan(torch.empty(0, dtype=I32), torch.empty(0, 1, dtype=I32))
    q, kv, loc = torch.empty(0, 6, 8), torch.empty(0, HKV, 8), torch.empty(0, dtype=torch.int64)
    decoder.append(0, kv, kv, loc, torch.zeros(1, dtype=I32))
    decoder.decode(0, q, out=q.clone())
    decoder.attend_all(0, q, out=q.clone())
    assert launched == []
    assert decoder.counts is not None
    assert decoder.counts.shape == (0, HKV)
    decoder.plan(torch.ones(1, dtype=I32), torch.zeros(1, 1, dtype=I32))
    assert launched == ["plan0"]


def refused(call: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(VortexError) as caught:
        call()
    return caught.value.code, caught.value.render()


I32 = torch.int32
POOL = torch.zeros(5, HKV, 4, 8)
FIELD = torch.zeros(5, HKV, 8)


@pytest.mark.parametrize(
    ("code", "says", "change"),
    [
        ("VX6001", ["page size of k_pool is 16", "page size 4", "--page-size 16"], {"k": torch.zeros(5, HKV, 16, 8)}),
        ("VX6001", ["head dim of v_pool is 64", "head dim 8", "--head-dim 64"], {"v": torch.zeros(5, HKV, 4, 64)}),
        ("VX6001", ["type of k_pool is bf16", "compiled for f32", "--dtype bf16"], {"k": POOL.bfloat16()}),
        ("VX6002", ["v_pool", "[4, 3, 4, 8]", "[5, 3, 4, 8]"], {"v": POOL[1:]}),
        ("VX6002", ["k_pool", "strides"], {"k": torch.zeros(5, HKV, 8, 4).transpose(2, 3)}),
        ("VX6002", ["k_pool", "4 axes"], {"k": FIELD}),
        ("VX6002", ["k_pool", "NoneType"], {"k": None}),
        ("VX6002", ["fields", "hi"], {"fields": {"lo": FIELD}}),
        ("VX6002", ["fields", "x"], {"fields": {"lo": FIELD, "hi": FIELD, "x": FIELD}}),
        ("VX6002", ["field 'hi'", "[5, 3, 9]", "[5, 3, 8]"], {"fields": {"lo": FIELD, "hi": torch.zeros(5, HKV, 9)}}),
        ("VX6002", ["field 'hi'", "bf16", "f32"], {"fields": {"lo": FIELD, "hi": FIELD.bfloat16()}}),
        ("VX6002", ["layer", "-1"], {"layer": -1}),
        ("VX6002", ["k_pool", "meta", "cpu"], {"k": POOL.to("meta")}),
    ],
)
def test_bind_refuses(code: str, says: list[str], change: dict[str, Any]) -> None:
    decoder = Decoder(fake_library(SPEC), budget=Budget(2))
    given = {"layer": 0, "k": POOL, "v": POOL, "fields": {"lo": FIELD, "hi": FIELD}, **change}
    got, text = refused(lambda: decoder.bind(given["layer"], given["k"], given["v"], given["fields"]))
    assert got == code
    assert all(s in text for s in says), text


def test_scales_belong_to_fp8() -> None:
    decoder = Decoder(fake_library(SPEC), budget=Budget(2))
    code, text = refused(lambda: decoder.bind(0, POOL, POOL, {"lo": FIELD, "hi": FIELD}, k_scale=2.0))
    assert code == "VX6002"
    assert "have no scale" in text
    spec = replace(SPEC, dtype="bf16", kv_dtype="fp8_e4m3")
    decoder = Decoder(fake_library(spec), budget=Budget(2))
    code, text = refused(lambda: decoder.bind(0, POOL.bfloat16(), POOL.bfloat16()))
    assert code == "VX6001"
    assert "type of k_pool is bf16; the artifact was compiled for fp8_e4m3" in text
    pool, fields = POOL.to(torch.float8_e4m3fn), {"lo": FIELD.bfloat16(), "hi": FIELD.bfloat16()}
    for scale in (0, -1.0, float("nan"), float("inf"), None):
        assert refused(lambda s=scale: decoder.bind(0, pool, pool, fields, 1.0, s))[0] == "VX6002"
    decoder.bind(0, pool, pool.view(torch.uint8), fields, 0.5, 2)
    seen = decoder._steps.layers[0]
    assert [seen[n] for n in ("k_scale", "v_scale")] == [0.5, 2.0]
    assert all(getattr(seen[n], "dtype", None) == torch.uint8 for n in ("k", "v"))


def test_what_is_no_path_or_pool() -> None:
    assert refused(lambda: load(3)) == ("VX6002", "error[VX6002]: path: is int; an artifact's folder is needed")
    s = Setting()
    said = refused(lambda: s.decoder.bind(1, [1], s.cache.v[0], s.cache.fields[0]))[1]
    assert "k_pool: is list; a tensor of 4 axes is needed" in said


def test_layers_have_the_same_heads() -> None:
    s = Setting()
    two = PagedCache(4, 2, SPEC, s.decoder.fields)
    assert "layer 2 has 2 KV heads; layer 0 has 3" in refused(
        lambda: s.decoder.bind(2, two.k[0], two.v[0], two.fields[0])
    )[1].replace("'", "").replace(": has", " has")


def test_out_of_order() -> None:
    s = Setting()
    q = torch.zeros(1, 6, 8)
    fresh = Decoder(fake_library(SPEC))
    lengths, table = torch.ones(1, dtype=I32), torch.zeros(1, 1, dtype=I32)
    assert refused(lambda: fresh.plan(lengths, table)) == ("VX6003", "error[VX6003]: plan needs bind first")
    fresh.bind(0, s.cache.k[0], s.cache.v[0], s.cache.fields[0])
    assert "budget" in refused(lambda: fresh.plan(lengths, table))[1]
    new = (torch.zeros(1, HKV, 8),) * 2 + (torch.zeros(1, dtype=torch.int64), torch.arange(2, dtype=I32))
    for how in ({}, {"new": new}):
        assert "decode needs plan" in refused(lambda h=how: s.decoder.decode(0, q, out=q.clone(), **h))[1]
    s.step({0: 1})
    assert "bind(7, ...)" in refused(lambda: s.decoder.decode(7, q, out=q.clone()))[1]
    assert "bind('0', ...)" in refused(lambda: s.decoder.decode("0", q, out=q.clone()))[1]
    for scale in ("x", float("nan"), float("inf"), True):
        code, text = refused(lambda a=scale: s.decoder.decode(0, q, out=q.clone(), scale=a))
        assert code == "VX6002" and "a finite number is needed" in text
    assert refused(lambda: Decoder(fake_library(SPEC)).workspace_bytes(1, 1))[0] == "VX6003"


@pytest.mark.parametrize(
    ("lengths", "table", "says"),
    [
        (torch.ones(1), torch.zeros(1, 1, dtype=I32), "f32; i32"),
        (torch.ones(1, 1, dtype=I32), torch.zeros(1, 1, dtype=I32), "[B]"),
        (torch.ones(2, dtype=I32), torch.zeros(1, 1, dtype=I32), "[2, Pmax]"),
        (torch.ones(1, dtype=I32), torch.zeros(1, 0, dtype=I32), "no columns"),
        (torch.ones(2, dtype=I32), torch.zeros(2, 4, dtype=I32)[:, :2], "strides [4, 1]"),
        ([1], torch.zeros(1, 1, dtype=I32), "list"),
    ],
)
def test_plan_refuses(lengths: Any, table: Any, says: str) -> None:
    s = Setting()
    s.step({0: 5})
    code, text = refused(lambda: s.decoder.plan(lengths, table))
    assert code == "VX6002"
    assert says in text
    q = torch.zeros(1, 6, 8)
    if isinstance(lengths, torch.Tensor):  # what was planned before is not used by mistake
        assert refused(lambda: s.decoder.decode(0, q, out=q.clone()))[0] == "VX6003"


PAGES, COUNTS = torch.zeros(1, HKV, 5, dtype=I32), torch.zeros(1, HKV, dtype=I32)
Q = torch.zeros(1, 6, 8)


@pytest.mark.parametrize(
    ("code", "says", "change"),
    [
        ("VX6001", ["query heads over 3 KV heads is 12", "2 query heads to a KV head", "--heads 12/3"],
         {"q": torch.zeros(1, 12, 8)}),
        ("VX6001", ["query heads over 3 KV heads is 7", "--heads QUERY/KV"], {"q": torch.zeros(1, 7, 8)}),
        ("VX6001", ["head dim of q is 16", "--head-dim 16"], {"q": torch.zeros(1, 6, 16)}),
        ("VX6001", ["type of q is bf16", "--dtype bf16"], {"q": Q.bfloat16()}),
        ("VX6002", ["q", "[2, 6, 8]", "[1, 6, 8]"], {"q": torch.zeros(2, 6, 8)}),
        ("VX6002", ["q", "strides"], {"q": torch.zeros(1, 8, 6).transpose(1, 2)}),
        ("VX6002", ["pages", "i64; i32"], {"pages": PAGES.long()}),
        ("VX6002", ["pages", "[1, 3, K]"], {"pages": PAGES[:, :2]}),
        ("VX6002", ["counts", "[1, 3]"], {"counts": COUNTS[0]}),
        ("VX6002", ["counts", "ndarray"], {"counts": COUNTS.numpy()}),
        ("VX6006", ["up to 5 pages", "holds 4"], {"pages": PAGES[:, :, :4].contiguous()}),
        ("VX6002", ["out", "bf16; f32"], {"out": Q.bfloat16()}),
        ("VX6002", ["out", "[1, 6, 9]"], {"out": torch.zeros(1, 6, 9)}),
        ("VX6002", ["lse", "[1, 6]"], {"lse": torch.zeros(6)}),
        ("VX6002", ["lse", "bf16; f32"], {"lse": torch.zeros(1, 6).bfloat16()}),
        ("VX6002", ["decode", "both or neither"], {"pages": None}),
    ],
)  # fmt: skip
def test_decode_refuses(code: str, says: list[str], change: dict[str, Any]) -> None:
    s = Setting()
    s.step({0: 60})
    good: dict[str, Any] = {"q": Q, "out": Q.clone(), "lse": torch.zeros(1, 6), "pages": PAGES, "counts": COUNTS}

    def decode(given: dict[str, Any]) -> None:
        s.decoder.decode(0, **given)

    decode(good)  # so that a checked signature is at hand
    got, text = refused(lambda: decode({**good, **change}))
    assert got == code, text
    assert all(x in text for x in says), text
    decode(good)


@pytest.mark.parametrize(
    ("says", "change"),
    [
        ("both or neither", {"v": None}),
        ("no loc", {"loc": None}),
        ("loc: is i32; i64", {"loc": torch.zeros(2, dtype=I32)}),
        ("loc: has shape [3]; [2]", {"loc": torch.zeros(3, dtype=torch.int64)}),
        ("row_offsets: has shape [1]; [2]", {"row_offsets": torch.zeros(1, dtype=I32)}),
        ("v: has shape [1, 3, 8]; [2, 3, 8]", {"v": torch.zeros(1, HKV, 8)}),
        ("k: has shape [2, 2, 8]; [T, 3, 8]", {"k": torch.zeros(2, 2, 8)}),
    ],
)
def test_append_refuses(says: str, change: dict[str, Any]) -> None:
    s = Setting()
    s.step({0: 2})
    kv = torch.zeros(2, HKV, 8)
    good: dict[str, Any] = {"k": kv, "v": kv, "loc": torch.arange(2), "row_offsets": torch.tensor([0, 2], dtype=I32)}
    s.decoder.append(0, **good)
    q, wrong = torch.zeros(1, 6, 8), {**good, **change}
    new = tuple(wrong[n] for n in ("k", "v", "loc", "row_offsets"))
    for call in (lambda: s.decoder.append(0, **wrong), lambda: s.decoder.decode(0, q, out=q.clone(), new=new)):
        code, text = refused(call)
        assert code == "VX6002"
        assert says in text.replace("'", "")


@pytest.mark.parametrize(
    ("says", "change"),
    [
        ("new: is a tuple of 3; (k, v, loc, row_offsets), the arguments of append, are needed", lambda new: new[:3]),
        ("new: is a list of 5;", lambda new: [*new, new[0]]),
        ("new: is Tensor;", lambda new: new[0]),
        ("row_offsets: is NoneType; a torch tensor is needed", lambda new: (None,) * 4),
    ],
)
def test_new_tokens_are_the_arguments_of_append(says: str, change: Callable[[NewTokens], Any]) -> None:
    s = Setting()
    s.step({0: 1}, append=False)
    q = torch.zeros(1, 6, 8)
    code, text = refused(lambda: s.decoder.decode(0, q, out=q.clone(), new=change(s.new[0])))
    assert code == "VX6002"
    assert says in text


def test_one_new_token_of_a_request_is_taken_in() -> None:
    for fine in ([0], [0, 1], [0, 1, 1, 2], [0, 0]):
        check_one_each(torch.tensor(fine, dtype=I32))
    code, text = refused(lambda: check_one_each(torch.tensor([0, 1, 1, 3, 5], dtype=I32)))
    assert code == "VX6002"
    assert "row_offsets[2:4]: are 2 new tokens of request 2; decode(new=...) takes in at most one" in text


def test_debug_looks_at_numbers() -> None:
    s = Setting(debug=True)
    s.step({0: 9, 1: 3})
    lengths, table = s.cache.lengths([0, 1]), s.cache.page_table([0, 1])
    bad = table.clone()
    bad[1, 2] = 99  # not in use: request 1 has one page
    s.decoder.plan(lengths, bad)
    for page in (40, -1):
        bad[0, 1] = page
        code, text = refused(lambda: s.decoder.plan(lengths, bad))
        assert code == "VX6004"
        assert f"[0, 1] is {page}; the pool has pages 0 to 39" in text
    assert "lengths[1]" in refused(lambda: s.decoder.plan(torch.tensor([1, 13], dtype=I32), table))[1]
    s.decoder.plan(lengths, table)

    def append(loc: list[int], offsets: list[int]) -> None:
        new = torch.zeros(len(loc), HKV, 8)
        s.decoder.append(0, new, new, torch.tensor(loc), torch.tensor(offsets, dtype=I32))

    last0, last1 = int(table[0, 2]) * 4, int(table[1, 0]) * 4 + 2
    append([last0, last1], [0, 1, 2])
    append([-1, last1], [0, 1, 2])
    # where tokens lie that the engine has stored is its own affair
    s.decoder.append(0, None, None, torch.tensor([last0 + 7, -3]), torch.tensor([0, 1, 2], dtype=I32))
    assert "loc[1]" in refused(lambda: append([last0, last1 - 1], [0, 1, 2]))[1]
    assert "row_offsets" in refused(lambda: append([last0, last1], [0, 1, 1]))[1]
    assert "row_offsets[0:2]" in refused(lambda: append([last0, last1], [0, -1, 2]))[1]
    assert "row_offsets[1:3]" in refused(lambda: append([last0] * 5, [0, 1, 5]))[1]

    q = torch.zeros(2, 6, 8)
    counts = torch.ones(2, HKV, dtype=I32)
    pages = torch.zeros(2, HKV, 3, dtype=I32)
    s.decoder.attend(0, q, pages, counts, out=q.clone())
    for at, value, text in (((1, 2), 4, "counts[1, 2]"), ((0, 0), 2, "pages[0, 0]")):
        wrong = counts.clone()
        wrong[at] = value
        assert text in refused(lambda w=wrong: s.decoder.attend(0, q, pages, w, out=q.clone()))[1]
    pages[1, 0, 0] = 1
    assert "pages[1, 0]" in refused(lambda: s.decoder.attend(0, q, pages, counts, out=q.clone()))[1]


def test_a_decode_call_costs_little() -> None:
    """Under 60 us of Python beside the kernels (design: speed), here with kernels that do nothing."""
    library = fake_library(SPEC)
    idle = Library(library.manifest, "cpu", dict.fromkeys(library.functions, lambda *a: None), library.constants)
    decoder = Decoder(idle, budget=Budget(2))
    layers = 32
    cache = PagedCache(40, HKV, SPEC, decoder.fields, layers=layers)
    for layer in range(layers):
        decoder.bind(layer, cache.k[layer], cache.v[layer], cache.fields[layer])
    for r in range(8):
        cache.add(r)
    cache.extend_batch(range(8), [9] * 8)
    q = torch.zeros(8, 6, 8)
    out, lse = q.clone(), torch.zeros(8, 6)
    costs = []
    for _ in range(30):  # each step has tensors of its own, so that every layer's call is prepared again
        decoder.plan(cache.lengths(range(8)), cache.page_table(range(8)))
        start = time.perf_counter()
        for layer in range(layers):
            decoder.decode(layer, q, out=out, lse=lse)
        costs.append((time.perf_counter() - start) / layers * 1e6)
    print(f"decode: {min(costs):.1f} us a call at best, {sorted(costs)[len(costs) // 2]:.1f} us in the middle")
    assert min(costs) < 60


def test_the_budget_is_handed_over_as_numbers() -> None:
    seen = []
    library = fake_library(SPEC)
    functions = {**library.functions, "plan0": lambda lengths, budget, plan: seen.append(budget.tolist())}
    s = Setting()
    decoder = Decoder(replace(library, functions=functions), budget=Budget(3, "1/16", sink=2, recent=5))
    decoder.bind(0, s.cache.k[0], s.cache.v[0], s.cache.fields[0])
    decoder.plan(torch.ones(1, dtype=I32), torch.zeros(1, 9, dtype=I32))
    assert seen == [[3, 2, 5, 1, 16, 0, 0]]
    assert [decoder.capacity(n) for n in (0, 1, 9, 10, 160, 176)] == [1, 1, 9, 10, 10, 11]


def test_a_gpu_of_another_architecture() -> None:
    class Other(Cpu):
        def architecture(self, device: torch.device) -> str:
            return "sm_100"

    library = fake_library(SPEC)
    manifest = replace(library.manifest, targets={"sm_90a": library.manifest.targets["cpu"]})
    decoder = Decoder(replace(library, manifest=manifest, name="sm_90a", runs_on=Other()), budget=Budget(2))
    code, text = refused(lambda: decoder.bind(0, POOL, POOL, {"lo": FIELD, "hi": FIELD}))
    assert code == "VX6009"
    assert "holds kernels for sm_90a; k_pool is on cpu" in text
    assert decoder.kv_heads == 0


def test_a_launch_that_fails_says_which() -> None:
    def fails(*arguments: object) -> None:
        raise RuntimeError("no kernel image")

    library = fake_library(SPEC)
    s = Setting()
    decoder = Decoder(replace(library, functions={**library.functions, "attend0": fails}), budget=Budget(2))
    decoder.bind(0, s.cache.k[0], s.cache.v[0], s.cache.fields[0])
    decoder.plan(torch.ones(1, dtype=I32), torch.zeros(1, 9, dtype=I32))
    code, text = refused(lambda: decoder.decode(0, Q, out=Q.clone()))
    assert code == "VX6012"
    assert "attend of layer 0: no kernel image" in text


def test_debug_names_the_first_of_several_and_passes_padding_by() -> None:
    s = Setting(debug=True)
    s.step({0: 9, 1: 3, 2: 20})
    lengths, table = s.cache.lengths([0, 1, 2]), s.cache.page_table([0, 1, 2])
    bad = table.clone()
    bad[2, 3], bad[2, 1], bad[0, 4] = -5, 77, 99  # the last one is not in use
    assert "[2, 1] is 77" in refused(lambda: s.decoder.plan(lengths, bad))[1]
    assert "lengths[1]" in refused(lambda: s.decoder.plan(torch.tensor([9, 21, -1], dtype=I32), bad))[1]
    lengths[1] = 0  # a padded row, whose token is at no place of its own
    s.decoder.plan(lengths, table)
    loc = [int(table[r, n // 4]) * 4 + n % 4 for r, n in ((0, 8), (1, 1), (2, 19))]
    new, offsets = torch.zeros(3, HKV, 8), torch.arange(4, dtype=I32)
    s.decoder.append(0, new, new, torch.tensor(loc), offsets)
    loc[2] += 1
    says = refused(lambda: s.decoder.append(0, new, new, torch.tensor(loc), offsets))[1]
    assert f"loc[2]: is {loc[2]}; token 19 of request 2 is at {loc[2] - 1} by the page table" in says
    counts = torch.ones(3, HKV, dtype=I32)
    pages = torch.zeros(3, HKV, 8, dtype=I32)
    counts[1] = 0
    q = torch.zeros(3, 6, 8)
    counts[2, 2], pages[2, 2, :6] = 6, torch.arange(6, dtype=I32)  # ascending, but the plan keeps 5
    says = refused(lambda: s.decoder.attend(0, q, pages, counts, out=q.clone()))[1]
    assert "counts[2, 2]: is 6; 0 to 5 is needed" in says
