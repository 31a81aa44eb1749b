"""What a flow may ask about where it runs: layer, KV head, which pages it sees. Traced, or from the eager step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from vortex.errors import FLOW_RAISED, VortexError
from vortex.flow.integers import MOST_LAYERS, MOST_PAGES, Whole
from vortex.flow.tracer import active, current, fail
from vortex.ir.core import Op
from vortex.ir.dialects import flow
from vortex.ir.types import S, TensorType, i32, whole_pages

if TYPE_CHECKING:
    from vortex.flow.shortlist import EagerNear


@dataclass(frozen=True, slots=True)
class Place:
    """Where an eager step runs: layer, KV head of the model, candidates ``[first_page, first_page + pages)``."""

    layer: int = 0
    first_page: int = 0
    pages: int | None = None
    """None where a summary is made: a page does not know its request."""
    head: int = 0
    parameters: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """All sets of each parameter, as files have them."""
    lists: list[EagerNear] = field(default_factory=list)
    """The shortlists that were made so far."""
    parents: tuple[int | None, ...] | None = None
    """Which of them each is a shortlist of, if any; None where sizes have to tell."""
    units: tuple[int, ...] = ()
    """How many candidates an element of each is, where not one."""
    blocks: int = 1
    """How many candidates make a page, where the flow knows of blocks."""

    def unit(self) -> int:
        """How many candidates an element of the next shortlist is."""
        return self.units[len(self.lists)] if self.units else 1

    def parent(self, scored: int) -> EagerNear | None:
        """The shortlist whose ``scored`` pages the next one ranks, None where it ranks all candidates."""
        if self.parents is not None:
            number = self.parents[len(self.lists)]
            return None if number is None else self.lists[number]
        return None if scored == self.pages else next((x for x in self.lists if len(x.candidates) == scored), None)


_place: ContextVar[Place | None] = ContextVar("place", default=None)


@contextmanager
def eager(place: Place) -> Iterator[None]:
    """Run a flow on real tensors at ``place``."""
    token = _place.set(place)
    try:
        yield
    finally:
        _place.reset(token)


def place() -> Place | None:
    """Where the eager step runs that is under way; None outside."""
    return _place.get()


def here(what: str) -> Place:
    """Where the eager step stands that calls ``vortex.<what>()``."""
    place = _place.get()
    if place is None:
        text = f"vortex.{what}() is called outside forward_cache and forward_indexer"
        raise fail(FLOW_RAISED, type="RuntimeError", text=text, hint="it has a value only in a step")
    return place


def _pages(what: str) -> int:
    pages = here(what).pages
    if pages is None:
        raise _no_pages(what)
    return pages


def _no_pages(what: str) -> VortexError:
    text = f"vortex.{what}() has no value in forward_cache: a page does not know where it stands"
    return fail(FLOW_RAISED, type="RuntimeError", text=text, hint="ask in forward_indexer")


def _leaf(name: str, op: Op) -> Any:
    tracer = current()
    assert tracer is not None
    if name not in ("layer", "head") and tracer.function.name == "cache":
        raise _no_pages(name)
    made = tracer.once(name, op, name)
    tracer.integers.know(made.value, Whole(torch.int32, 0, MOST_LAYERS if name in ("layer", "head") else MOST_PAGES))
    made.copied = True  # each call gives a tensor of its own
    return made


def layer() -> Any:
    """The number of the layer that decodes, an int32 scalar."""
    if current() is not None:
        return _leaf("layer", flow.Layer(TensorType(i32)))
    return torch.tensor(here("layer").layer, dtype=torch.int32)


def head() -> Any:
    """The KV head of the row, counted over the whole model, an int32 scalar; 0 under MLA, on every rank."""
    if current() is not None:
        return _leaf("head", flow.Head(TensorType(i32)))
    return torch.tensor(here("head").head, dtype=torch.int32)


def page_indices(blocks: int) -> Any:
    """The traced index of each page of so many candidates, int32 [S/blocks]."""
    name = "page_index" if blocks == active().blocks else "block_index"
    return active().once(name, flow.PageIndex(TensorType(i32, (whole_pages(blocks),))), name)


def page_index() -> Any:
    """Each candidate's page index in its request, int32 [S]; in a flow with fields of pages and blocks that of each
    page, int32 [S / blocks].
    """
    if (tracer := current()) is not None:
        return _leaf("page_index", flow.PageIndex(TensorType(i32, (whole_pages(tracer.blocks),))))
    return _indices("page_index", here("page_index").blocks)


def block_index() -> Any:
    """Each candidate's block index in its request, int32 [S]: that of its page where the flow knows of no blocks."""
    if (tracer := current()) is not None:
        return page_index() if tracer.blocks == 1 else _leaf("block_index", flow.PageIndex(TensorType(i32, (S,))))
    return _indices("block_index", 1)


def _indices(what: str, blocks: int) -> torch.Tensor:
    pages, first = _pages(what) // blocks, here(what).first_page // blocks
    return torch.arange(first, first + pages, dtype=torch.int32)


def page_count() -> Any:
    """How many candidate pages there are, an int32 scalar."""
    if (tracer := current()) is None:
        return torch.tensor(_pages("page_count") // here("page_count").blocks, dtype=torch.int32)
    counted = _leaf("page_count", flow.PageCount(TensorType(i32)))
    return counted if tracer.blocks == 1 else counted // tracer.blocks
