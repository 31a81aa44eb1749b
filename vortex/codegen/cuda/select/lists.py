"""Shortlists in ``select``: their pages are chosen between sweeps, and later sweeps find their pages in the lists.

    position on the axis of the list -> candidate -> physical page

The CTA that arrives last does those sweeps alone, for it has all keys that the list is chosen by.
"""

from __future__ import annotations

from dataclasses import dataclass

from vortex.codegen.cuda.ptx import cta_sync
from vortex.codegen.cuda.select.layout import Layout, RowMemory
from vortex.codegen.cuda.select.reserved import Reserved
from vortex.codegen.cuda.select.topk import TopK
from vortex.codegen.cuda.storage import Held, StoredValues
from vortex.codegen.cuda.warp import Cta
from vortex.codegen.sweep import Row, key_slot, list_of_loads, lists_of, parts_of
from vortex.codegen.tir import Expr, T, let
from vortex.codegen.values import pages_on, type_of
from vortex.ir.dialects import flow
from vortex.ir.types import Sym


@dataclass(frozen=True)
class Lists:
    """The shortlists of a row, and the keys that they and the selection are chosen by."""

    layout: Layout
    reserved: Reserved
    memory: RowMemory
    cta: Cta
    row: Row
    values: StoredValues

    def keys(self, o: flow.Ranking) -> Held:
        """Where the keys of the row's pages are kept for a part of the selection, or for a shortlist."""
        return self.memory.of_page(key_slot(self.layout.f, o))

    def candidate(self, axis: Sym, position: Expr) -> Expr:
        """The candidate at a position of what a sweep goes over, by the list with which it finds what it loads."""
        by = list_of_loads(self.layout.program, self.layout.f, axis)
        return position if by is None else self.values.read(by, [position])

    def before_read(self, level: int, topk: TopK | None) -> None:
        """Choose the shortlists whose scores are complete, and make ready what sweep ``level`` over a list writes."""
        listed = [o for o in parts_of(self.layout.f) if o.near is not None and self.layout.staging.loop[o] == level]
        for part in listed:
            self._clear_keys(part)
        made = lists_of(self.layout.f, self.layout.staging, level)
        for o in made:
            assert topk is not None
            self._list(o, topk)
        if listed and not made:
            cta_sync()

    def _list(self, o: flow.Shortlist, topk: TopK) -> None:
        """Choose the pages of a shortlist by their keys, ascending; then all threads find them."""
        ranked, to = type_of(o.score).pages, self.reserved.lists[o]
        assert ranked is not None
        keys = topk.load(self.keys(o), let("ranked", pages_on(ranked, self.row.scored)))
        topk.take(keys, let("wanted", pages_on(o.listed, self.row.scored)), to.put)
        self.values.storages[o.value] = to
        cta_sync()

    def _clear_keys(self, o: flow.Part) -> None:
        """Leave the least key, 0, for all candidates of a part that chooses among those of a shortlist."""
        keys = self.keys(o)
        with self.cta.share("s", self.row.scored) as s:
            keys.set(T.float32(0), s)
