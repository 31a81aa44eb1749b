"""Memory and calls of one shape: what a candidate runs on while it is checked and timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch

from vortex.artifact.manifest import KernelEntry
from vortex.budget import Budget
from vortex.check.weights import random_parameters
from vortex.kinds.kind import KINDS, KernelKind
from vortex.runtime.decoder import Decoder
from vortex.runtime.library import Kernel, Library
from vortex.runtime.parameters import Parameters
from vortex.runtime.scratch import Layout, Size
from vortex.runtime.tensors import TORCH
from vortex.tune.shapes import Shape

SINK, RECENT = 1, 2
POOL = 20 << 30
"""Bytes of all pools of a GPU; a CPU gets 1/64 of it."""
TOUCHED = 400 << 20
"""Bytes that a row of launches should touch before it comes back to the first: more than any L2 cache has."""
MOST_LAYERS = 24
FLUSH = 256 << 20
"""Bytes that are overwritten to empty the L2 cache."""
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 1e-4}
"""Largest difference of an output from that of the default configuration, where values are about 1."""
ODD_PAGES = 1e-3
"""Share of selected pages that may differ from the default's: scores that round to the same."""


def with_kernel(base: Library, kernel: KernelEntry, function: Kernel) -> Library:
    """``base`` with one kernel replaced by another of its kind."""
    entry = base.target
    kernels = tuple(replace(kernel, name=k.name) if k.kind == kernel.kind else k for k in entry.kernels)
    manifest = replace(base.manifest, targets={base.name: replace(entry, kernels=kernels)})
    return replace(base, manifest=manifest, functions={**base.functions, kernel.symbol: function})


class Stage:
    """One shape: pools of several layers, a page table with random pages, a query, outputs.

    Each layer has pools of its own, as in a model: a launch on every layer in turn finds its pages in memory and not
    in the L2 cache.
    """

    def __init__(self, base: Library, shape: Shape, seed: int = 0) -> None:
        self.base, self.shape, self.spec = base, shape, base.manifest.spec
        self.device = torch.device(base.device.kind)
        self.cuda = self.device.type == "cuda"
        self.heads = shape.kv_heads
        spec, page = self.spec, self.spec.page_size
        self.columns = shape.columns(page)
        self.blocks = shape.columns(spec.block_size)
        kept = min(shape.kept, self.blocks)
        self.budget = Budget(max(0, kept - SINK - RECENT), sink=SINK, recent=RECENT)
        dtype, kv = TORCH[spec.dtype], TORCH[spec.kv_dtype]
        mla = bool(spec.kv_lora_rank)
        inner = () if mla else (self.heads,)
        block_bytes = self.heads * spec.block_size * spec.head_dim * kv.itemsize * (1 if mla else 2)
        page_bytes = self.heads * page * spec.head_dim * kv.itemsize * (1 if mla else 2)
        touched = shape.batch * kept * block_bytes
        self.layers = max(2, min(MOST_LAYERS, -(-TOUCHED // touched))) if self.cuda else 2
        most = (POOL if self.cuda else POOL // 64) // self.layers // page_bytes
        self.pool_pages = max(1, min(shape.batch * self.columns, most))
        chance = torch.Generator(self.device).manual_seed(seed)

        def noise(*size: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            made = torch.empty(size, dtype=dtype, device=self.device)
            step = max(1, size[0] // 32)
            for first in range(0, size[0], step):
                part = made[first : first + step]
                if dtype.is_floating_point:
                    part.copy_(torch.randn(part.shape, device=self.device, generator=chance).to(dtype))
                else:  # codes and bits: any byte is some
                    part.view(torch.uint8).random_(256, generator=chance)
            return made

        k = noise(self.pool_pages, *inner, page, spec.head_dim, dtype=kv)
        v = None if mla else noise(self.pool_pages, *inner, page, spec.head_dim, dtype=kv)
        fields = {
            f.name: noise(self.pool_pages, self.heads, *f.packed, dtype=TORCH[f.dtype]) for f in base.manifest.fields
        }
        self.memory = [(k, v, fields)]
        for _ in range(1, self.layers):  # numbers are dear to make and cheap to copy; only addresses need to differ
            self.memory.append((k.clone(), None if v is None else v.clone(), {n: x.clone() for n, x in fields.items()}))
        each = {"page": (self.heads, self.columns), "request": (self.heads,)}
        state = {s.name: noise(shape.batch, *each[s.per], *s.tile, dtype=TORCH[s.dtype]) for s in base.manifest.states}
        self.state = [{n: x.clone() for n, x in state.items()} for _ in range(self.layers)]
        self._first_state = state
        self.slots = torch.arange(shape.batch, dtype=torch.int32, device=self.device)
        ids = torch.randint(self.pool_pages, (shape.batch, self.columns), device=self.device, generator=chance)
        # two requests that appended to one page would not give the same every time
        ids[:, -1] = torch.arange(shape.batch, device=self.device) % self.pool_pages
        self.table = ids.int()
        self.lengths = torch.full((shape.batch,), shape.tokens, dtype=torch.int32, device=self.device)
        self.q = noise(shape.batch, self.heads * spec.group, spec.head_dim)
        value = spec.kv_lora_rank or spec.head_dim
        self.out = torch.empty(shape.batch, self.heads * spec.group, value, dtype=dtype, device=self.device)
        size = (shape.batch, self.heads, kept)
        self.pages = torch.empty(size, dtype=torch.int32, device=self.device)
        self.counts = torch.empty(size[:2], dtype=torch.int32, device=self.device)
        self.new = (
            noise(shape.batch, *inner, spec.head_dim),
            None if mla else noise(shape.batch, *inner, spec.head_dim),
        )
        last = self.table[:, (shape.tokens - 1) // page].long() * page + (shape.tokens - 1) % page
        self.loc = last
        self.offsets = torch.arange(shape.batch + 1, dtype=torch.int32, device=self.device)
        entries = base.manifest.parameters
        made_up = random_parameters(entries, self.layers, self.heads, seed)
        self.weights = Parameters(base.manifest.flow, entries, made_up)
        self.scrub = torch.empty(FLUSH // 4, device=self.device) if self.cuda else None
        # what the default configuration makes of it is what others are compared with; it appends first, so that
        # the memory is the same whether or not a candidate of append has run
        self.decoder(base).append(0, *self.new, self.loc, self.offsets)
        self.decoder(base).select(0, self.q, pages=self.pages, counts=self.counts)
        self.right_pages, self.right_counts = self.pages.clone(), self.counts.clone()
        self.scale = spec.head_dim**-0.5
        self.decoder(base).attend(0, self.q, self.right_pages, self.right_counts, out=self.out, scale=self.scale)
        self.right_out = self.out.clone()
        self.given = self._given()
        self.right = self._right()

    def decoder(self, library: Library) -> Decoder:
        """A decoder on ``library`` over this memory, its step planned."""
        made = Decoder(library, budget=self.budget, parameters=self.weights)
        for layer, (k, v, fields) in enumerate(self.memory):
            made.bind(layer, k, v, fields, state=self.state[layer])
        made.reserve(self.shape.batch, self.columns)
        made.plan(self.lengths, self.table, self.slots)
        return made

    def _given(self) -> dict[str, object]:
        """What a caller gives to kernels that the decoder's own calls do not launch, by name: the tensors above, and
        zeros of the declared shape.
        """
        kernels = self.base.target.kernels
        size = Size(self.shape.batch, self.columns * self.spec.page_blocks, min(self.shape.kept, self.blocks))
        sizes = Layout.of(kernels, self.heads, 1, dense=False).sizes(size, kernels)
        given: dict[str, object] = {
            "q": self.q, "pages": self.right_pages, "counts": self.right_counts, "scale": self.scale,
            "loc": self.loc, "row_offsets": self.offsets, "out": self.out,
        }  # fmt: skip
        for a in (a for k in _launched_alone(kernels) for a in k.arguments if a.giver == "call" and a.shape):
            shape = [d if isinstance(d, int) else sizes[d] for d in a.shape]
            given.setdefault(a.name, torch.zeros(shape, dtype=TORCH[a.dtype], device=self.device))
        return given

    def _right(self) -> dict[str, torch.Tensor]:
        """What the default configuration writes to outputs of such kernels."""
        right: dict[str, torch.Tensor] = {}
        for kind in _launched_alone(self.base.target.kernels):
            self.call(kind.name, self.decoder(self.base))(0)
            right |= {n: x.clone() for n in kind.outputs if isinstance(x := self.given[n], torch.Tensor)}
        return right

    def call(self, kind: str, decoder: Decoder) -> Callable[[int], None]:
        """One launch on a layer of the kernels that are timed to time those of ``kind``: of ``plan``, those that walk
        its work lists.
        """

        def plan(layer: int) -> None:
            decoder.plan(self.lengths, self.table, self.slots)

        def select(layer: int) -> None:
            decoder.select(layer, self.q, pages=self.pages, counts=self.counts)

        def attend(layer: int) -> None:
            decoder.attend(layer, self.q, self.right_pages, self.right_counts, out=self.out, scale=self.scale)

        def append(layer: int) -> None:
            decoder.append(layer, *self.new, self.loc, self.offsets)

        def alone(kind: KernelKind) -> Callable[[int], None]:
            given = {a.name: self.given[a.name] for a in kind.arguments if a.name in self.given}
            return lambda layer: decoder.launch(kind.name, layer, **given)

        calls = {"plan": plan, "select": select, "attend": attend, "append": append}
        launched = [KINDS[name] for name in KINDS[kind].launched]
        launches = [calls[k.call] if k.call else alone(k) for k in launched]

        def step(layer: int) -> None:
            for launch in launches:
                launch(layer)

        return launches[0] if len(launches) == 1 else step

    def wrong(self, kind: str, call: Callable[[int], None]) -> str:
        """What differs from the default configuration's results on the first layer; empty when nothing does."""
        if KINDS[kind].writes_cache:
            return ""
        outputs = frozenset[str]().union(*(KINDS[name].outputs for name in KINDS[kind].launched))
        self.out.fill_(float("nan"))
        self.pages.fill_(-1)
        self.counts.fill_(-1)
        for name, x in self._first_state.items():
            self.state[0][name].copy_(x)  # a step that changes state begins where the default's did
        call(0)
        self.synchronize()
        if "pages" in outputs:
            if not torch.equal(self.counts, self.right_counts):
                return "other counts of pages than with the default"
            listed = torch.arange(self.pages.shape[2], device=self.device) < self.counts[..., None]
            odd = int(((self.pages != self.right_pages) & listed).sum())
            if odd > max(2, ODD_PAGES * int(self.counts.sum())):
                return f"{odd} of {int(self.counts.sum())} pages are others than with the default"
        if "out" in outputs:
            error = float((self.out.float() - self.right_out.float()).abs().max())
            if not error <= TOLERANCE[self.out.dtype]:
                return f"the output differs from the default's by {error:.2e}"
        for name in outputs & self.right.keys():
            found, right = self.given[name], self.right[name]
            assert isinstance(found, torch.Tensor)
            error = float((found.double() - right.double()).abs().max())
            if not error <= TOLERANCE.get(right.dtype, 0.0):
                return f"'{name}' differs from the default's by {error:.2e}"
        return ""

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def timer(self, call: Callable[[int], None], layers: Sequence[int]) -> Callable[[], float]:
        """What measures microseconds of a launch, over a row of launches on ``layers``."""
        call(layers[0])
        self.synchronize()
        return self._graph_timer(call, layers) if self.cuda else self._wall_timer(call, layers)

    def _wall_timer(self, call: Callable[[int], None], layers: Sequence[int]) -> Callable[[], float]:
        def once() -> float:
            start = time.perf_counter()
            for layer in layers:
                call(layer)
            return (time.perf_counter() - start) * 1e6 / len(layers)

        return once

    def _graph_timer(self, call: Callable[[int], None], layers: Sequence[int]) -> Callable[[], float]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for layer in layers:
                call(layer)
        cold = len(set(layers)) > 1

        def once() -> float:
            if cold and self.scrub is not None:
                self.scrub.zero_()
            else:
                graph.replay()
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            before.record()
            graph.replay()
            after.record()
            torch.cuda.synchronize()
            return before.elapsed_time(after) * 1e3 / len(layers)

        once()
        return once


def _launched_alone(kernels: Iterable[KernelEntry]) -> list[KernelKind]:
    """The kinds of ``kernels`` that ``Decoder.launch`` launches."""
    return [k for name in dict.fromkeys(entry.kind for entry in kernels) if not (k := KINDS[name]).call]
