"""PagedCache against a model that stores tokens in a dict."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vortex.artifact.manifest import FieldEntry
from vortex.errors import VortexError
from vortex.runtime.paged_cache import PagedCache
from vortex.spec import Spec

SPEC = Spec(page_size=4, head_dim=2, group=1, dtype="f32")
PAGES = 12


class Model(RuleBasedStateMachine):
    """Tokens are numbered; each is written where the cache says and must be found by the page table."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = PagedCache(PAGES, 1, SPEC, layout="NHD")
        self.tokens: dict[int, list[int]] = {}
        self.serial = 0

    def needed(self, request: int, more: int) -> int:
        held = len(self.tokens[request])
        return -(-(held + more) // 4) - -(-held // 4)

    @rule(request=st.integers(0, 4))
    def add(self, request: int) -> None:
        if request in self.tokens:
            assert refused(lambda: self.cache.add(request)) == "VX6002"
            return
        self.cache.add(request)
        self.tokens[request] = []

    @rule(request=st.integers(0, 4), more=st.integers(0, 19))
    def extend(self, request: int, more: int) -> None:
        if request not in self.tokens:
            assert refused(lambda: self.cache.extend(request, more)) == "VX6007"
            return
        if self.needed(request, more) > self.cache.free_pages:
            assert refused(lambda: self.cache.extend(request, more)) == "VX6005"
            return
        self.write([request], [more])

    @precondition(lambda self: len(self.tokens) > 1)
    @rule(more=st.lists(st.integers(0, 9), min_size=5, max_size=5))
    def extend_all(self, more: list[int]) -> None:
        requests = list(self.tokens)
        counts = more[: len(requests)]
        if sum(map(self.needed, requests, counts)) > self.cache.free_pages:
            assert refused(lambda: self.cache.extend_batch(requests, counts)) == "VX6005"
            return
        self.write(requests, counts)

    def write(self, requests: list[int], counts: list[int]) -> None:
        loc, offsets = self.cache.extend_batch(requests, counts)
        assert loc.dtype == torch.int64
        assert loc.shape == (sum(counts),)
        assert offsets.tolist() == [sum(counts[:i]) for i in range(len(counts) + 1)]
        for request, count in zip(requests, counts, strict=True):
            self.tokens[request] += range(self.serial, self.serial + count)
            self.serial += count
        new = torch.arange(self.serial - len(loc), self.serial, dtype=torch.float32)
        self.cache.k[0][loc // 4, 0, loc % 4, 0] = new

    @rule(request=st.integers(0, 4))
    def free(self, request: int) -> None:
        if request not in self.tokens:
            assert refused(lambda: self.cache.free(request)) == "VX6007"
            return
        self.cache.free(request)
        del self.tokens[request]

    @invariant()
    def agrees(self) -> None:
        requests = list(self.tokens)
        cache = self.cache
        assert cache.requests == tuple(requests)
        assert cache.lengths(requests).tolist() == [len(self.tokens[r]) for r in requests]
        table = cache.page_table(requests)
        assert table.dtype == torch.int32
        held = [p for r in requests for p in cache.pages(r)]
        assert len(set(held)) == len(held) == PAGES - cache.free_pages
        slots = cache.slots(requests).tolist()
        assert len(set(slots)) == len(slots)
        assert all(s < 5 for s in slots)
        for row, request in enumerate(requests):
            tokens = self.tokens[request]
            found = [float(cache.k[0][table[row, i // 4], 0, i % 4, 0]) for i in range(len(tokens))]
            assert found == tokens
            assert table[row, -(-len(tokens) // 4) :].eq(0).all()


def refused(call: Any) -> str:
    with pytest.raises(VortexError) as caught:
        call()
    caught.value.render()
    return caught.value.code


Model.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestModel = Model.TestCase


@pytest.mark.parametrize("layout", ["HND", "NHD"])
def test_pools(layout: Any) -> None:
    fields = (FieldEntry("lo", (2,), "bf16"), FieldEntry("m", (), "fp8_e4m3"))
    cache = PagedCache(3, 5, SPEC, fields, layers=2, layout=layout)
    for layer in range(2):
        for pool in (cache.k[layer], cache.v[layer]):
            assert pool.shape == (3, 5, 4, 2)
            assert pool.is_contiguous() == (layout == "HND")
            assert pool.transpose(1, 2).is_contiguous() == (layout == "NHD")
        assert cache.fields[layer]["lo"].shape == (3, 5, 2)
        assert cache.fields[layer]["m"].dtype == torch.float8_e4m3fn
    assert len({p.data_ptr() for p in (*cache.k, *cache.v)}) == 4


def test_freed_pages_come_again_and_any_length_fits() -> None:
    cache = PagedCache(100, 1, SPEC)
    cache.add("long")
    assert cache.extend("long", 400).tolist() == list(range(400))
    cache.free("long")
    cache.add("again")
    assert cache.extend("again", 0).shape == (0,)
    assert cache.extend("again", 1).tolist() == [0]
    assert cache.page_table(["again"], 7).tolist() == [[0] * 7]
    assert cache.page_table([]).shape == (0, 1)


def test_bad_arguments() -> None:
    cache = PagedCache(2, 1, SPEC)
    cache.add("a")
    cache.extend("a", 8)
    assert refused(lambda: PagedCache(0, 1, SPEC)) == "VX6002"
    assert refused(lambda: PagedCache(1, 1, SPEC, layout="DHN")) == "VX6002"  # type: ignore[arg-type]
    assert refused(lambda: cache.extend("a", -1)) == "VX6002"
    assert refused(lambda: cache.extend_batch(["a", "a"], [0, 0])) == "VX6002"
    assert refused(lambda: cache.page_table(["a"], 1)) == "VX6002"
    assert refused(lambda: cache.lengths(["b"])) == "VX6007"
    assert cache.lengths(["a"]).tolist() == [8]


def test_packed_fields_lie_in_bytes() -> None:
    fields = (
        FieldEntry("x", (4, 6), "int4"),
        FieldEntry("x_scale", (4, 1), "f16"),
        FieldEntry("b", (16,), "uint1"),
        FieldEntry("i", (3,), "int8"),
    )
    held = PagedCache(5, 2, Spec(page_size=4, head_dim=8, group=1), fields).fields[0]
    shapes = {name: (list(x.shape), x.dtype) for name, x in held.items()}
    assert shapes == {
        "x": ([5, 2, 4, 3], torch.uint8),
        "x_scale": ([5, 2, 4, 1], torch.float16),
        "b": ([5, 2, 2], torch.uint8),
        "i": ([5, 2, 3], torch.int8),
    }
    assert [f.tile_bytes for f in fields] == [12, 8, 2, 3]
    assert all(f.tile_bytes == held[f.name][0, 0].nbytes for f in fields)


def test_what_does_not_fit_the_memory_is_named_with_its_bytes() -> None:
    fields = (FieldEntry("keys", (16, 128), "int4"),)
    with pytest.raises(VortexError, match="VX6040") as e:
        PagedCache(1 << 40, 2, Spec(page_size=16, head_dim=128, group=1), fields)
    assert f"field 'keys' {(1 << 41) * 1024} bytes" in str(e.value)
