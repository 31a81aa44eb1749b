"""What a CUDA graph pins: scratch that may not move, selections that a budget must fit. The device is a stand-in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from tests.runtime.fake import fake_library
from vortex.budget import Budget
from vortex.errors import VortexError
from vortex.runtime.decoder import Decoder
from vortex.runtime.device import Cpu
from vortex.runtime.paged_cache import PagedCache
from vortex.spec import Spec

SPEC = Spec(page_size=4, head_dim=8, group=2, dtype="f32")
HKV = 3
I32 = torch.int32


@dataclass
class Recorder(Cpu):
    """A CPU that can be told that it records; calls are run and kept, to be replayed."""

    on: bool = False

    def capturing(self) -> bool:
        return self.on


class Setting:
    """A decoder whose launches can be recorded with their arguments and replayed, as a CUDA graph does."""

    def __init__(self, budget: Budget, **options: Any) -> None:
        self.device, self.tape = Recorder(), []  # type: ignore[var-annotated]
        library = fake_library(SPEC)
        functions = {name: self._recorded(f) for name, f in library.functions.items()}
        self.decoder = Decoder(replace(library, functions=functions, runs_on=self.device), budget=budget, **options)
        self.cache = PagedCache(60, HKV, SPEC, self.decoder.fields)
        for pool in (self.cache.k[0], self.cache.v[0]):
            pool.normal_()
        self.cache.fields[0]["lo"].copy_(self.cache.k[0].amin(2))
        self.cache.fields[0]["hi"].copy_(self.cache.k[0].amax(2))
        self.decoder.bind(0, self.cache.k[0], self.cache.v[0], self.cache.fields[0])

    def _recorded(self, f: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> None:
            if self.device.on:
                self.tape.append((f, arguments))
            f(*arguments)

        return call

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        self.device.on = True
        self.tape = []
        step()
        self.device.on = False
        tape = self.tape

        def replay() -> None:
            for f, arguments in tape:
                f(*arguments)

        return replay


def refused(call: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(VortexError) as caught:
        call()
    return caught.value.code, caught.value.render()


class Batch:
    """Static inputs and outputs of a graph of ``rows`` rows."""

    def __init__(self, s: Setting, rows: int, columns: int = 12) -> None:
        self.s = s
        self.lengths = torch.ones(rows, dtype=I32)
        self.table = torch.arange(rows * columns, dtype=I32).view(rows, columns)
        self.q = torch.randn(rows, HKV * 2, 8)
        self.out = torch.full_like(self.q, float("nan"))

    def step(self) -> None:
        self.s.decoder.plan(self.lengths, self.table)
        self.s.decoder.decode(0, self.q, out=self.out)

    def alone(self, lengths: list[int], budget: Budget) -> torch.Tensor:
        """The same step in a decoder of its own."""
        fresh = Setting(budget)
        fresh.decoder.bind(0, self.s.cache.k[0], self.s.cache.v[0], self.s.cache.fields[0])
        out = torch.empty_like(self.out)
        fresh.decoder.plan(torch.tensor(lengths, dtype=I32), self.table)
        fresh.decoder.decode(0, self.q, out=out)
        return out


def test_graphs_of_several_sizes_share_scratch_that_stays() -> None:
    torch.manual_seed(0)
    s = Setting(Budget(2))
    s.decoder.reserve(5, 12)
    batches = [Batch(s, rows) for rows in (1, 3, 5)]
    graphs = [s.capture(b.step) for b in batches]
    for lengths in ([1] * 5, [48] * 5, [30, 1, 48, 7, 9], [1] * 5):
        for b, replay in zip(batches, graphs, strict=True):
            own = lengths[: len(b.q)]
            b.lengths.copy_(torch.tensor(own, dtype=I32))
            replay()
            assert torch.equal(b.out, b.alone(own, Budget(2)))
    # a size that was not captured, but reserved, moves nothing
    other = Batch(s, 4, 10)
    other.step()
    graphs[2]()
    assert torch.equal(batches[2].out, batches[2].alone([1] * 5, Budget(2)))


def test_scratch_does_not_grow_under_a_graph() -> None:
    s = Setting(Budget(2))
    s.decoder.reserve(2, 12)
    big, small = Batch(s, 3), Batch(s, 2)
    s.device.on = True
    code, text = refused(big.step)
    assert code == "VX6010"
    assert "is being captured" in text
    assert "decoder.reserve(3, 12, capacity=5)" in text
    s.device.on = False
    big.step()  # nothing is captured yet
    replay = s.capture(small.step)
    for call, says in (
        (Batch(s, 4).step, "4 requests"),
        (Batch(s, 2, 13).step, "13 columns"),
        (lambda: s.decoder.reserve(3, 12, capacity=6), "reserve(3, 12, capacity=6)"),
        (lambda: s.decoder.set_workspace(None), "set_workspace"),
    ):
        code, text = refused(call)
        assert code == "VX6010"
        assert says in text
        assert "a captured CUDA graph uses it" in text
    big.step()
    replay()
    assert torch.equal(small.out, small.alone([1, 1], Budget(2)))


def test_the_budget_of_a_graph_changes_between_replays() -> None:
    torch.manual_seed(1)
    s = Setting(Budget(1))
    s.decoder.reserve(2, 12, capacity=9)
    b = Batch(s, 2)
    replay = s.capture(b.step)
    b.lengths.copy_(torch.tensor([48, 41], dtype=I32))
    for budget in (Budget(1), Budget(6), Budget(0, sink=0, recent=1), Budget(3, sink=2)):
        s.decoder.budget = budget
        replay()
        assert torch.equal(b.out, b.alone([48, 41], budget))
        assert int(s.cache.k[0].isnan().sum()) == 0
    code, text = refused(lambda: setattr(s.decoder, "budget", Budget(7)))
    assert code == "VX6006"
    assert "captured" in text
    s.device.on = True
    assert refused(lambda: setattr(s.decoder, "budget", Budget(1)))[0] == "VX6011"
    s.device.on = False
    assert s.decoder.budget == Budget(3, sink=2)
    replay()
    assert torch.equal(b.out, b.alone([48, 41], Budget(3, sink=2)))


def test_debug_cannot_be_captured() -> None:
    s = Setting(Budget(1), debug=True)
    b = Batch(s, 2)
    b.step()
    s.device.on = True
    assert refused(b.step)[0] == "VX6011"


@pytest.mark.parametrize("rows", [0, 3])
def test_all_pages(rows: int) -> None:
    torch.manual_seed(2)
    s = Setting(Budget(1), dense=True)
    s.decoder.bind(1, s.cache.k[0], s.cache.v[0])  # a layer that the flow skips
    # the lists of a narrow step lie where those of the wide one do
    for columns in (12, 5, 12):
        b = Batch(s, rows, columns)
        lengths = [columns * 4, 9, 1][:rows]
        b.lengths.copy_(torch.tensor(lengths, dtype=I32))
        b.step()
        sparse, lse = b.out.clone(), torch.empty(rows, HKV * 2)
        s.decoder.attend_all(1, b.q, out=b.out, lse=lse)
        for r, n in enumerate(lengths):
            at = torch.arange(n)
            k, v = (
                pool[b.table[r, at // 4].long(), :, at % 4].transpose(0, 1) for pool in (s.cache.k[0], s.cache.v[0])
            )
            q = b.q[r].view(HKV, 2, 8)
            want = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            torch.testing.assert_close(b.out[r].view(HKV, 2, 8), want)
            torch.testing.assert_close(lse[r].view(HKV, 2), (q @ k.mT * 8**-0.5).logsumexp(-1))
        b.step()
        assert torch.equal(b.out, sparse)
    nothing = None, None, None, torch.zeros(rows + 1, dtype=I32)
    for call in (
        lambda: s.decoder.decode(1, b.q, out=b.out),
        lambda: s.decoder.append(1, *nothing),
        lambda: s.decoder.decode(1, b.q, out=b.out, pages=s.decoder.pages, counts=s.decoder.counts, new=nothing),
        lambda: s.decoder.select(1, b.q, pages=s.decoder.pages, counts=s.decoder.counts),
    ):
        assert "with the flow's fields" in refused(call)[1]
    with pytest.raises(VortexError, match=r"\[3, 6, 8\]" if rows else r"\[0, 6, 8\]"):
        s.decoder.attend_all(1, b.q, out=torch.empty(1, 1, 8))
    plain = Setting(Budget(1))
    assert "dense=True" in refused(lambda: plain.decoder.attend_all(0, b.q, out=b.out))[1]
