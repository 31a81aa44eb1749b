"""The scratch of a decoder: which buffers its kernels share, how large they are, and where they lie in one block.

============  ==============================  =================================================================
buffer        shape                           what it is
============  ==============================  =================================================================
budget        i32 ``[7]``                     the budget as numbers, and how attend is cut where that is fixed
                                              (:class:`Items`); read by plan, rewritten when it changes
request_budget  i32 ``[B, 5]``                -1: the budget of requests that have none of their own, where
                                              kernels know such
plan          i32 ``[4, B]``                  what each request keeps and scores
work          i32 ``[2, 2 + B + room]``       GPU: work items of select and attend
arrivals      i32 ``[B * Hkv * C]``           GPU: CTAs that came so far; plan clears it, kernels leave it zero;
                                              C is the most ``row_counters`` of a kernel's schedule, 1 without
partials      f32 ``[B + room, Hkv, N]``      GPU: what an item of attend leaves to the last of its row
workspace     f32 ``[B * Hkv, W]``            intermediates of select, ``W = page_words * Pmax + row_words``
pages         i32 ``[B, Hkv, K]``             the selection of :meth:`Decoder.decode`
counts        i32 ``[B, Hkv]``                how many pages of it are in use
kept.*        pages, counts, and state i32    the selections of layers that others or later steps take, of the
              ``[2 + 2 B]`` of the largest    largest step's K (:mod:`vortex.runtime.reuse`); ``mapped`` is one with
              step, ``kept.items`` i32 ``[1]`` heads exchanged
dense.*       as budget, plan, work,          the same for :meth:`Decoder.attend_all`, where it is wanted:
              pages and counts                all pages of every request, once a step
============  ==============================  =================================================================

A kind of kernel that declares other scratch (:class:`vortex.kinds.kind.Argument`) gets it in the same way.

A block is laid out for the largest step (batch, columns, capacity), each buffer on a boundary of 256 bytes. A smaller
step takes the beginning of each: a buffer's address is the same for every size, so CUDA graphs of several batch sizes
share the block, and what lasts beyond a step (both budgets, ``dense.pages``) stays where it is. ``dense.pages`` alone
keeps the width of the largest step, for the same reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch

from vortex.artifact.manifest import KernelEntry
from vortex.budget import EVERY_PAGE
from vortex.errors import SCRATCH_FIXED
from vortex.kinds.kind import KINDS
from vortex.runtime.reuse import Kept
from vortex.runtime.tensors import ALIGNMENT, TORCH, wrong

ALIGN = 256
"""Bytes between the beginnings of buffers: no two share a line of a cache."""
ROUNDS = 1
"""CTAs at work for each that the device holds. On an H200 four make a layer of 32 x 32K 29 % slower (84 for 65 us):
rows are cut that need not be, and meeting costs more than the last CTAs leave idle (bench/gpu_layer.py).
"""
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Size:
    """Of a step: rows and columns of the page table (blocks in them, where pages have several), pages that a selection
    holds.
    """

    batch: int = 0
    columns: int = 0
    capacity: int = 0

    def __str__(self) -> str:
        return f"{self.batch} requests, {self.columns} columns and {self.capacity} selected pages"

    def __or__(self, other: Size) -> Size:
        """The smallest that has room for both."""
        return Size(max(self.batch, other.batch), max(self.columns, other.columns), max(self.capacity, other.capacity))


@dataclass(frozen=True, slots=True)
class Items:
    """Work items of attend that have the same pages whatever else a step decodes."""

    pages: int
    """Of an item over selected pages."""
    dense: int
    """Of one where all pages of a request are attended to: a request has many more of them."""

    DENSE_TOKENS: ClassVar[int] = 1024

    @classmethod
    def of(cls, kernels: Sequence[KernelEntry], block_size: int) -> Items:
        """Items as long as the fewest pages that ``plan`` cuts for a busy device; on a CPU, which cuts none, of 1."""
        plan = next(k for k in kernels if k.kind == "plan")
        pages = _int(plan.schedule.get("attend_busy", 1))
        return cls(pages, max(pages, cls.DENSE_TOKENS // block_size))

    def most(self, size: Size, *, dense: bool) -> int:
        """Of a request, in a step of ``size``."""
        whole = -(-size.columns // self.dense) if dense else 0
        return max(whole, -(-size.capacity // self.pages))


@dataclass(frozen=True, slots=True)
class Layout:
    """What the kernels of a library need for ``heads`` KV heads; ``dense`` adds the lists of all pages."""

    kernels: tuple[KernelEntry, ...]
    """All of them, variants too."""
    heads: int
    multiprocessors: int
    dense: bool
    page_blocks: int = 1
    """Blocks of a page: what :class:`Size` calls columns are so many times those of the page table."""
    keep: tuple[int, ...] = ()
    """The layers whose selections are kept."""
    items: Items | None = None
    """How attend is cut where nothing may depend on the rest of the batch."""

    @classmethod
    def of(
        cls,
        kernels: Sequence[KernelEntry],
        heads: int,
        multiprocessors: int,
        *,
        dense: bool,
        page_blocks: int = 1,
        keep: tuple[int, ...] = (),
        items: Items | None = None,
    ) -> Layout:
        """A layout for any step that runs some of ``kernels``."""
        return cls(tuple(kernels), heads, multiprocessors, dense, page_blocks, keep, items)

    def room(self, size: Size, kernels: Sequence[KernelEntry]) -> int:
        """Items of a step of ``size`` beyond one a request; where items of attend are fixed, as many as it may have."""
        slots = self.slots(kernels)
        return slots if self.items is None else max(slots, size.batch * self.items.most(size, dense=self.dense))

    def slots(self, kernels: Sequence[KernelEntry]) -> int:
        """Items that are cut beyond one a request: ``ROUNDS`` times as many CTAs of the kernels that pace (attend) are
        at work as the device holds.
        """
        return max(map(self._slots, (k for k in kernels if KINDS[k.kind].paces)), default=self._slots(None))

    def _slots(self, pacer: KernelEntry | None) -> int:
        held = _int(pacer.resources.get("ctas", 1)) if pacer else 1
        each = _int(pacer.schedule.get("item_ctas", 1)) if pacer else 1
        return -(-ROUNDS * self.multiprocessors * held // (self.heads * each))

    @property
    def planned(self) -> bool:
        """Whether plan writes work lists: kernels of a GPU."""
        return self.needs("work")

    def needs(self, argument: str) -> bool:
        return any(argument in k.args for k in self.kernels)

    def buffers(
        self, size: Size, most: Size, kernels: Sequence[KernelEntry] | None = None
    ) -> dict[str, tuple[torch.dtype, Shape]]:
        """Type and shape of each buffer in a step of ``size`` that runs ``kernels`` (without them, large enough for
        any), in a block for ``most``.
        """
        sizes = self.sizes(size, self.kernels if kernels is None else kernels)
        scratch = {name: a for k in KINDS.values() for name, a in k.scratch.items()}
        made = {
            a.name: (TORCH[a.dtype], tuple(d if isinstance(d, int) else sizes[d] for d in a.shape))
            for a in scratch.values()
            if self.needs(a.name)
        }
        i32 = torch.int32
        made["pages"] = (i32, (size.batch, self.heads, max(1, min(size.columns, size.capacity))))
        made["counts"] = (i32, (size.batch, self.heads))
        wide = (size.batch, self.heads, max(1, min(most.columns, most.capacity)))
        for name in (*(f"kept.{layer}" for layer in self.keep), *(("mapped",) if self.keep else ())):
            made |= {f"{name}.pages": (i32, wide), f"{name}.counts": made["counts"]}
        made |= {f"kept.{layer}.state": (i32, (2 + 2 * most.batch,)) for layer in self.keep}
        if self.keep and self.planned:
            made["kept.items"] = (i32, (1,))
        if self.dense:
            if self.planned:
                made |= {f"dense.{name}": made[name] for name in ("budget", "plan", "work")}
            made["dense.pages"] = (i32, (size.batch, self.heads, most.columns))
            made["dense.counts"] = made["counts"]
        return made

    def sizes(self, size: Size, kernels: Sequence[KernelEntry]) -> dict[str, int]:
        """The sizes that declarations of arguments name, in a step of ``size`` that runs ``kernels``."""
        room = self.room(size, kernels)
        partials = self._partials(size, room, kernels)
        return {
            "requests": size.batch,
            "heads": self.heads,
            "rows": size.batch * self.heads,
            "columns": size.columns,
            "capacity": size.capacity,
            "work_list": 2 + size.batch + room,
            "arrivals": size.batch * self.heads * max(map(_counters, kernels), default=1),
            "workspace_words": max((k.page_words * size.columns + k.row_words for k in kernels), default=0),
            **dict(zip(("partial_rows", "partial_heads", "partial_words"), partials, strict=True)),
        }

    def _partials(self, size: Size, room: int, kernels: Sequence[KernelEntry]) -> Shape:
        mine = [k for k in kernels if "partials" in k.args]
        words = max((_int(k.schedule["partial_words"]) for k in mine), default=0)
        return size.batch + room if mine else 0, self.heads, words

    def places(self, most: Size) -> tuple[dict[str, int], int]:
        """Where each buffer begins in a block for ``most``, and the bytes of the block."""
        places, end = {}, 0
        for name, (dtype, shape) in self.buffers(most, most).items():
            places[name] = end
            end += -(-prod(shape) * dtype.itemsize // ALIGN) * ALIGN
        return places, end


class Scratch:
    """A block of a layout, the decoder's own or the caller's, that grows until a CUDA graph has seen it."""

    def __init__(self, layout: Layout, device: torch.device, block: torch.Tensor | None = None) -> None:
        """``block`` is the caller's memory, any contiguous tensor of one axis."""
        self.layout, self.device = layout, device
        self.most = Size()
        self.fixed = False
        """A captured graph has addresses in it."""
        self._given = None if block is None else block.view(torch.uint8)
        with torch.inference_mode(False):
            self._block = torch.empty(0, dtype=torch.uint8, device=device) if self._given is None else self._given
        self._places: dict[str, int] = {}

    def bytes(self, size: Size) -> int:
        return self.layout.places(size)[1]

    @torch.inference_mode(False)  # what lasts beyond a step is written in and out of inference mode
    def reserve(self, size: Size, budget: Sequence[int], *, capturing: bool) -> bool:
        """Make room for steps of ``size``; whether buffers moved, so that all views are to be taken anew.

        Raises:
            VortexError: VX6002 when the caller's block is too small, VX6010 when it must grow and a CUDA graph is
                being captured or has been.
        """
        most = self.most | size
        if most == self.most:
            return False
        places, need = self.layout.places(most)
        self.require_free(f"a step of {size}", most, capturing=capturing)
        if self._given is not None and self._given.numel() < need:
            raise wrong("workspace", f"has {self._given.numel()} bytes; this step needs {need}")
        if self._block.numel() < need:
            if self._block.is_cuda:
                # steps may still run on a stream that did not allocate it
                self._block.record_stream(torch.cuda.current_stream(self.device))
            self._block = torch.empty(need, dtype=torch.uint8, device=self.device)
        self.most, self._places = most, places
        self.write_budget(budget)
        lasting = self.views(most)
        for name, x in lasting.items():
            if name.startswith("kept."):
                x.zero_()  # of no step
        if "request_budget" in lasting:
            lasting["request_budget"].fill_(-1)
        if "dense.budget" in lasting:
            lasting["dense.budget"].copy_(
                torch.tensor((*EVERY_PAGE.numbers(), *self._cut(dense=True)), dtype=torch.int32)
            )
        if "dense.pages" in lasting:
            lasting["dense.pages"].copy_(torch.arange(most.columns, dtype=torch.int32, device=self.device))
        return True

    def require_free(self, what: str, most: Size | None = None, *, capturing: bool) -> None:
        """VX6010 when ``what`` would move the scratch and a CUDA graph is being captured or has been."""
        if capturing or self.fixed:
            when = "a CUDA graph is being captured" if capturing else "a captured CUDA graph uses it"
            n = most or self.most
            columns = n.columns // self.layout.page_blocks
            raise SCRATCH_FIXED.at(
                what=what, have=self.most, when=when, batch=n.batch, columns=columns, capacity=n.capacity
            )

    def forget(self) -> None:
        """Kept selections stand for no step from here on in the current stream."""
        if self._places and self.layout.keep:
            views = self.views(self.most)
            for layer in self.layout.keep:
                Kept.of(views, layer).forget()

    def write_budget(self, budget: Sequence[int]) -> None:
        """New numbers for the steps after this one in the current stream."""
        if self._places:
            numbers = (*budget, *self._cut(dense=False))
            self.views(Size())["budget"].copy_(torch.tensor(numbers, dtype=torch.int32))

    def _cut(self, *, dense: bool) -> tuple[int, int]:
        """The words of a budget that say how attend is cut: pages of an item, and slots; zeros leave both to plan."""
        items = self.layout.items
        if items is None:
            return 0, 0
        return items.dense if dense else items.pages, self.layout.slots(self.layout.kernels)

    @torch.inference_mode(False)
    def views(self, size: Size, kernels: Sequence[KernelEntry] | None = None) -> dict[str, torch.Tensor]:
        """The buffers of a step of ``size``, which is reserved, that runs ``kernels`` (all, unless given)."""
        made = {}
        for name, (dtype, shape) in self.layout.buffers(size, self.most, kernels).items():
            at, count = self._places[name], prod(shape)
            made[name] = self._block[at : at + count * dtype.itemsize].view(dtype).view(shape)
        return made


def require_block(block: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``block`` when it can be carved up: one axis, contiguous, on ``device``, aligned; VX6002 otherwise."""
    if not isinstance(block, torch.Tensor) or block.dim() != 1 or not block.is_contiguous():
        got = f"{block.dim()} axes" if isinstance(block, torch.Tensor) else type(block).__name__
        raise wrong("workspace", f"is of {got}; a contiguous tensor of one axis is needed")
    if block.device != device:
        raise wrong("workspace", f"is on {block.device}; {device} is needed")
    if block.is_conj() or block.is_neg():
        raise wrong("workspace", "is a lazily conjugated or negated view; memory as it is, is needed")
    if block.data_ptr() % ALIGNMENT:
        raise wrong("workspace", f"begins at an address that is not a multiple of {ALIGNMENT} bytes")
    return block


def _counters(kernel: KernelEntry) -> int:
    """Arrivals of a row: CTAs for different heads of it count apart, and so do groups of its CTAs."""
    return _int(kernel.schedule.get("row_counters", 1))


def _int(value: object) -> int:
    """A number that a manifest holds."""
    return value if isinstance(value, int) else 1
