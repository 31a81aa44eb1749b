"""Mistakes with state: one error each, at the flow's own line or naming the argument."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import vortex
from tests.runtime.fake import fake_library
from vortex.artifact.manifest import StateEntry
from vortex.errors import VortexError
from vortex.flow import flow
from vortex.flow.flow import find_flow
from vortex.flow.trace import trace
from vortex.ir.parser import parse_module
from vortex.ir.printer import print_module
from vortex.ir.verify import verify
from vortex.runtime.decoder import Decoder
from vortex.runtime.library import Library
from vortex.runtime.paged_cache import PagedCache

SPEC = vortex.Spec(page_size=16, head_dim=8, group=4)
FLOW = """
import torch
import vortex

@vortex.register("{name}")
class Broken(vortex.vFlow):
    def create_cache(self, spec):
        state = {{"x": vortex.Field(2, state="page"), "m": vortex.Field(8, state="request", init=1)}}
        return {{"a": vortex.Field(8), **state}}

    def forward_cache(self, page):
        return {cache}

    def forward_indexer(self, q, cache):
        score = cache.a.sum(-1) + cache.x[:, 0]
        {index}
"""
CACHE = '{"a": page.k.mean(0)}'
INDEX = 'return vortex.topk(score), {"x": cache.x, "m": q[0]}'

MISTAKES = [
    ("VX1060", CACHE, "return vortex.topk(score)", "return vortex.topk(score)", "state 'x'"),
    ("VX1060", CACHE, 'return vortex.topk(score), {"x": cache.x}', 'return vortex.topk(score), {"x": cache.x}', "'m'"),
    ("VX1061", CACHE, 'return vortex.topk(score), {"x": cache.x, "m": q[0], "y": 1}', '"y"', "not declared"),
    ("VX1061", CACHE, 'return vortex.topk(score), {"x": cache.x, "mm": q[0]}', '"mm"', "did you mean 'm'?"),
    ("VX1061", CACHE, 'return vortex.topk(score), {"x": cache.x, "m": q[0], "a": score}', '"a"', "is a summary"),
    ("VX1062", '{"a": page.k.mean(0), "x": page.k[0, :2]}', INDEX, '"x"', "state across steps"),
    ("VX1011", CACHE, "return vortex.topk(score), q", "return vortex.topk(score), q", "not a dict of state"),
    ("VX1011", CACHE, 'return {"x": cache.x}, vortex.topk(score)', 'return {"x"', "a tuple"),
    ("VX1012", CACHE, 'return vortex.topk(score), {"x": score, "m": q[0]}', '"x"', "declared [S, 2]", "returns [S]"),
    ("VX1012", CACHE, 'return vortex.topk(score), {"x": cache.x, "m": q}', '"m"', "declared [8]", "[4, 8]"),
    ("VX1012", CACHE, 'return vortex.topk(score), {"x": 0, "m": q[0]}', '"x"', "returns []"),
    ("VX1013", CACHE, 'return vortex.topk(score), {"x": None, "m": q[0]}', '"x"', "returns None for state 'x'"),
    ("VX1023", CACHE, "cache.x = score[:, None]\n" + INDEX, "cache.x", "fields with state="),
]


@pytest.mark.parametrize(
    ("code", "cache", "index", "culprit", "said"), [(c, a, i, w, s) for c, a, i, w, *s in MISTAKES]
)
def test_mistakes_in_flows(
    code: str, cache: str, index: str, culprit: str, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "_REGISTRY", {})
    path = tmp_path / "broken.py"
    path.write_text(FLOW.format(name="broken_state", cache=cache, index=textwrap.indent(index, " " * 8).lstrip()))
    with pytest.raises(VortexError) as caught:
        trace(find_flow(str(path)), SPEC)
    error = caught.value
    assert error.code == code
    assert error.loc is not None
    assert path.read_text().splitlines()[error.loc.line - 1][error.loc.col - 1 :].startswith(culprit)
    for text in said:
        assert text in str(error)


TEXT = """// vortex-ir 1 | stage flow
flow.module @m {page_size = 4, head_dim = 8, group = 2, dtype = "f32"} {
  field @x : f32[] {state = "page", init = -inf}

  func @cache(%k: f32[4, 8], %v: f32[4, 8]) {
    flow.return() {names = []}
  }

  func @index(%q: f32[2, 8], %x: f32[S]) {
    %pages = flow.topk(%x) : selection
    flow.return(%pages, %x) {names = ["pages", "x"]}
  }
}
"""


def test_text_is_read_and_printed() -> None:
    module = parse_module(TEXT)
    verify(module)
    again = print_module(module)
    assert 'field @x : f32[] {state = "page", init = -inf}' in again
    assert print_module(parse_module(again)) == again


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('state = "page"', 'state = "slot"', "needs state"),
        ("init = -inf", "init = nan", "a number as init"),
        ("init = -inf", 'init = "0"', "a number as init"),
        ('(%pages, %x) {names = ["pages", "x"]}', '(%pages) {names = ["pages"]}', "state ['x'] are needed"),
        ('(%pages, %x) {names = ["pages", "x"]}', "(%pages)", "state ['x'] are needed"),
        ('["pages", "x"]', '["x", "pages"]', "the selection, 'pages'"),
        ('{state = "page", init = -inf}', "", "@cache returns []"),
        ('state = "page"', 'state = "request"', "f32[] in @index"),
    ],
)
def test_modules_that_do_not_hold(old: str, new: str, said: str) -> None:
    with pytest.raises(VortexError) as caught:
        verify(parse_module(TEXT.replace(old, new)))
    assert caught.value.code == "VX2008"
    assert said in str(caught.value)


def test_programs_write_state_last() -> None:
    from vortex.passes.manager import PassContext, run_pipeline

    program = run_pipeline(parse_module(TEXT), "outline,fuse,plan-memory,schedule", PassContext(None))
    select = program.functions["select"]
    verify(program)
    text = print_module(program).replace('role = "state"', 'role = "field"')
    select.ops.append(select.ops.pop(next(i for i, o in enumerate(select.ops) if o.attrs.get("buffer") == "pages")))
    with pytest.raises(VortexError, match="writes state last"):
        verify(program)
    with pytest.raises(VortexError, match="for role 'state' alone"):
        verify(parse_module(text))


def decoder(debug: bool = False) -> Decoder:
    """A decoder on kernels that are never launched; its flow has state of both kinds."""
    library = fake_library(SMALL)
    states = (StateEntry("x", (2,), "f32", "page"), StateEntry("m", (), "bf16", "request", "1.0"))
    made = Library(replace(library.manifest, states=states), "cpu", library.functions, library.constants)
    return Decoder(made, budget=vortex.Budget(2), debug=debug)


SMALL = vortex.Spec(page_size=4, head_dim=8, group=2, dtype="f32")


def cache_of(d: Decoder, **given: int) -> PagedCache:
    return PagedCache(9, 2, SMALL, d.fields, states=d.states, **{"slots": 3, "columns": 5, **given})


def bound(d: Decoder) -> PagedCache:
    cache = cache_of(d)
    d.bind(0, cache.k[0], cache.v[0], cache.fields[0], state=cache.state[0])
    return cache


def test_memory_of_state_is_stated() -> None:
    d = decoder()
    with pytest.raises(VortexError, match="VX6003"):
        d.state_bytes(3, 5)
    cache = bound(d)
    assert cache.state_bytes == d.state_bytes(3, 5) == 3 * 2 * (5 * 2 * 4 + 2)
    assert cache.state[0]["x"].shape == (3, 2, 5, 2)
    assert cache.state[0]["m"].shape == (3, 2)


def test_mistakes_with_a_decoder() -> None:
    d = decoder(debug=True)
    cache = bound(d)
    lengths, table = torch.tensor([3, 9], dtype=torch.int32), torch.zeros(2, 4, dtype=torch.int32)

    def said(*args: object, **named: object) -> str:
        with pytest.raises(VortexError) as caught:
            d.plan(*args, **named)  # type: ignore[arg-type]
        assert caught.value.code == "VX6002"
        return caught.value.message

    slots = torch.tensor([0, 2], dtype=torch.int32)
    assert "slots: are not given; flow 'fake' has state (x, m)" in said(lengths, table)
    assert "int64" in said(lengths, table, slots.long()) or "i64" in said(lengths, table, slots.long())
    assert "[3]" in said(lengths, table, torch.zeros(3, dtype=torch.int32))
    assert "fresh" in said(lengths, table, slots, torch.zeros(3, dtype=torch.int32))
    assert "room for 5 pages" in said(lengths, torch.zeros(2, 6, dtype=torch.int32), slots)
    assert "slots 0 to 2" in said(lengths, table, slots + 1)
    assert "another request's" in said(lengths, table, torch.zeros_like(slots))
    d.plan(lengths, table, torch.tensor([-1, -1], dtype=torch.int32))
    d.plan(lengths, table, slots)

    small = cache_of(d, slots=2)  # a layer with less room: what all layers have counts
    d.bind(1, small.k[0], small.v[0], small.fields[0], state=small.state[0])
    assert "slots 0 to 1" in said(lengths, table, slots)

    k, v, fields, state = cache.k[0], cache.v[0], cache.fields[0], cache.state[0]
    for wrong, text in (
        (None, "missing or unknown: ['m', 'x']"),
        ({"x": state["x"]}, "missing or unknown: ['m']"),
        ({**state, "m": state["m"].float()}, "bf16 is needed"),
        ({**state, "x": state["x"][:, :1]}, "is needed"),
        ({**state, "x": state["x"][:2]}, "slots"),
        ({**state, "x": state["x"][:, :, :0]}, "at least one slot and page"),
    ):
        with pytest.raises(VortexError) as caught:
            d.bind(0, k, v, fields, state=wrong)
        assert caught.value.code == "VX6002"
        assert text in caught.value.message


def test_a_cache_has_no_more_requests_than_slots() -> None:
    cache = cache_of(decoder(), slots=2)
    cache.add("a")
    cache.add("b")
    with pytest.raises(VortexError, match="one more than the 2 slots"):
        cache.add("c")
    cache.free("a")
    cache.add("c")
    assert cache.slots(["c"]).tolist() == [0]
    with pytest.raises(VortexError, match="needs slots="):
        cache_of(decoder(), slots=0)


def test_state_is_kept_in_floats() -> None:
    with pytest.raises(VortexError, match="state cannot be kept as int8"):
        vortex.Field(8, dtype="int8", state="page")
