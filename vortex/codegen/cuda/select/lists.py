"""Shortlists in ``select``: their pages are chosen between sweeps, and later sweeps find their pages in the lists.

    position on the axis of the list -> candidate -> physical page

The CTA that arrives last does those sweeps alone, for it has all keys that the list is chosen by. In a cluster each CTA
chooses the same list for itself, and they share its pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from vortex.codegen.cuda.cluster import Cluster
from vortex.codegen.cuda.ptx import cta_sync
from vortex.codegen.cuda.select.layout import Layout, RowMemory
from vortex.codegen.cuda.select.prefilter import Greatest
from vortex.codegen.cuda.select.reserved import Reserved
from vortex.codegen.cuda.select.topk import Choice, TopK
from vortex.codegen.cuda.storage import Held, StoredValues
from vortex.codegen.scalar import convert
from vortex.codegen.sweep import Row, left_to, list_of_loads, listed_in, lists_of, parts_of, wanted
from vortex.codegen.tir import I32, Expr, T, let, register
from vortex.codegen.values import pages_on, type_of
from vortex.ir.dialects import flow
from vortex.ir.types import Sym


@dataclass(frozen=True)
class Lists:
    """The shortlists of a row, and the keys that they and the selection are chosen by."""

    layout: Layout
    reserved: Reserved
    memory: RowMemory
    cluster: Cluster
    row: Row
    values: StoredValues
    greatest: dict[flow.Ranking, Greatest]
    """Of the rankings whose page tiles leave it."""

    @classmethod
    def open(
        cls,
        layout: Layout,
        reserved: Reserved,
        memory: RowMemory,
        cluster: Cluster,
        row: Row,
        values: StoredValues,
        in_registers: int,
    ) -> Lists:
        """Those of a row; the choice keeps so many keys ``in_registers``."""
        greatest: dict[flow.Ranking, Greatest] = {}
        for o, kept in memory.greatest():
            ranked = type_of(o.scored).pages
            assert ranked is not None
            greatest[o] = Greatest.open(kept, pages_on(ranked, row.scored), in_registers)
        return cls(layout, reserved, memory, cluster, row, values, greatest)

    def choice(self, o: flow.Part, topk: TopK, most: Expr) -> Choice:
        """A part of the selection, where all parts together may take ``most`` pages; its count is ready."""
        assert self.layout.selection is not None
        parts, held, ranked, axis = parts_of(self.layout.f), self.keys(o), self.row.scored, type_of(o.scored).pages
        placed = self.by_position(o)
        if placed:
            ranked = let("ranked", listed_in(o, self.row.scored))
        assert axis is not None
        alone = len(parts) == 1 and not o.share
        few = topk.load_few(held, ranked, axis.limit) if alone and placed else None
        whole = None if few or (alone and not placed) else topk.load(held, ranked)
        again = any(before.share for before in parts[: parts.index(o)])
        count = None
        if o.counted is not None:
            # in a register: C++ takes -2^31, which a cast of a float may give, for a number of 64 bits
            count = register("count", convert(self.values.read(o.counted, []), I32))
        left = left_to(o, self.layout.selection.cap, most, self.row.scored)
        if few is not None:
            return Choice(few, wanted(o, left, count, None), partial(self._listed, o))
        if whole is None:
            best = wanted(o, left, count, None)
            return Choice(topk.load_best(held, self.greatest.get(o), self.row.scored, best, o.most or None), best)
        best = wanted(o, left, count, lambda: topk.reaching(whole, o.share, again=again))
        return Choice(whole, best, partial(self._listed, o)) if placed else Choice(whole, best)

    def best_of(self, o: flow.Part, most: Expr) -> Expr:
        """How many candidates a part takes that neither counts pages nor has a share, of ``most`` for all parts."""
        assert self.layout.selection is not None
        return wanted(o, left_to(o, self.layout.selection.cap, most, self.row.scored), None, None)

    def _listed(self, o: flow.Part, position: Expr) -> Expr:
        """The candidate at a position of the list that a part chooses from."""
        assert o.near is not None
        return self.values.place(o.near, position)

    def keys(self, o: flow.Ranking) -> Held:
        """Where the keys of the row's pages are kept for a part of the selection, or for a shortlist."""
        return self.memory.keys(o)

    def by_position(self, o: flow.Ranking) -> bool:
        """Whether those are keys of the pages of a list in its order, and not of candidates."""
        return self.memory.by_position(o)

    def candidate(self, axis: Sym, position: Expr) -> Expr:
        """The candidate at a position of what a sweep goes over, by the list with which it finds what it loads."""
        by = list_of_loads(self.layout.program, self.layout.f, axis)
        return position if by is None else self.values.read(by, [position])

    def before_read(self, level: int, topk: TopK | None) -> None:
        """Choose the shortlists whose scores are complete, and make ready what sweep ``level`` over a list writes."""
        parts = [o for o in parts_of(self.layout.f) if o.near is not None and not self.by_position(o)]
        listed = [o for o in parts if self.layout.staging.loop[o] == level]
        for part in listed:
            with self.cluster.one_for_all():
                self._clear_keys(part)
        made = lists_of(self.layout.f, self.layout.staging, level)
        for o in made:
            assert topk is not None
            self._list(o, topk)
        if listed and (self.cluster.shared or not made):
            self.cluster.sync()

    def _list(self, o: flow.Shortlist, topk: TopK) -> None:
        """Choose the pages of a shortlist by their keys, ascending; then all threads find them."""
        ranked, to = type_of(o.score).pages, self.reserved.lists[o]
        assert ranked is not None
        wanted = let("wanted", pages_on(o.listed, self.row.scored))
        count = let("ranked", pages_on(ranked, self.row.scored))
        keys = topk.load_best(self.keys(o), self.greatest.get(o), count, wanted, o.listed.limit)
        topk.take(keys, wanted, to.put)
        self.values.storages[o.value] = to
        cta_sync()

    def _clear_keys(self, o: flow.Part) -> None:
        """Leave the least key, 0, for all candidates of a part that chooses among those of a shortlist."""
        keys = self.keys(o)
        with self.cluster.cta.share("s", self.row.scored) as s:
            keys.set(T.float32(0), s)
