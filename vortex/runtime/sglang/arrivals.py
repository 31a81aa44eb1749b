"""Summaries of pages that HiCache brings back from host memory.

SGLang copies what a batch needs layer by layer, on a stream of its own, and after each layer records the event that
whoever reads the layer waits for. Its summaries are made just before that event and on that stream: whoever waits
for rows has waited for their summaries, whichever batch reads them first and whatever becomes of the pages later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vortex.budget import Budget
from vortex.runtime.decoder import Decoder
from vortex.runtime.library import Library
from vortex.runtime.parameters import Parameters
from vortex.runtime.sglang.step import Layer


class Arrivals:
    """A decoder that summarises whole pages and nothing else, for the pool of one backend.

    Pages that come together are read as requests of up to ``columns`` pages each whose tokens are all new.
    """

    def __init__(
        self,
        library: Library,
        budget: Budget,
        layers: Mapping[int, Layer],
        columns: int,
        weights: Parameters,
        first_head: int,
    ) -> None:
        self._page, self._columns = library.manifest.spec.page_size, columns
        self._numbers = tuple(layers)
        self._decoder = Decoder(library, budget=budget, parameters=weights, head_offset=first_head)
        self._scored = frozenset(number for number, layer in layers.items() if layer.fields is not None)
        for number in sorted(self._scored):
            layers[number].bind(self._decoder, number)
        self._slots: Sequence[torch.Tensor] = ()
        self._pages = 0

    def expect(self, slots: Sequence[torch.Tensor]) -> None:
        """The next pages to come lie in these slots of the pool, i64 on its device: whole pages, each in order."""
        self._slots = slots
        self._pages = sum(len(part) for part in slots) // self._page

    def summarise(self, index: int) -> None:
        """The rows of the pool's ``index``-th layer are there, for kernels that follow in the current stream."""
        number = self._numbers[index]
        if not self._pages or not self._scored:
            return
        if index == 0:
            self._plan()
        if number in self._scored:
            self._decoder.append(number, None, None, self._loc, self._offsets)

    def _plan(self) -> None:
        """In the stream of the copies: what is made here is its own, and is given to no other while kernels read it."""
        page, columns, pages = self._page, self._columns, self._pages
        rows = -(-pages // columns)
        self._loc = torch.cat(list(self._slots))
        for part in self._slots:
            if part.is_cuda:
                part.record_stream(torch.cuda.current_stream(part.device))
        self._slots = ()
        device = self._loc.device
        table = torch.zeros(rows * columns, dtype=torch.int32, device=device)
        table[:pages] = self._loc[::page] // page
        lengths = torch.full((rows,), columns * page, dtype=torch.int32, device=device)
        lengths[-1:] = (pages - (rows - 1) * columns) * page
        self._offsets = torch.arange(rows + 1, dtype=torch.int32, device=device) * (columns * page)
        self._offsets[-1:] = pages * page
        nobody = torch.full((rows,), -1, dtype=torch.int32, device=device)
        self._decoder.plan(lengths, table.view(rows, columns), nobody)


def expect(controller: Any) -> None:
    """Before ``HiCacheController.start_loading``: which pages are about to come, where this backend runs."""
    arrivals = getattr(controller.mem_pool_device, "vortex_arrivals", None)
    if arrivals is not None:
        arrivals.expect([operation.device_indices for operation in controller.load_queue])
        for event in controller.layer_done_counter.events:
            event.vortex_arrivals = arrivals


def summarise(event: Any, layer_index: int) -> None:
    """Before ``LayerLoadingEvent.complete``: a layer has been copied, and nobody was told yet."""
    arrivals = getattr(event, "vortex_arrivals", None)
    if arrivals is not None:
        arrivals.summarise(layer_index)
