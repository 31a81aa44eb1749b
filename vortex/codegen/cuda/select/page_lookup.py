"""Where the pages of a sweep lie: candidate -> physical page (or block) -> the place of its summaries."""

from __future__ import annotations

from dataclasses import dataclass

from vortex.codegen.arguments import Arguments, Place
from vortex.codegen.cuda.ptx import early, quotient, remainder, wide
from vortex.codegen.cuda.select.page_tile import PageTile
from vortex.codegen.sweep import Row
from vortex.codegen.tir import Expr, let
from vortex.ir.types import Sym


@dataclass(frozen=True)
class PageLookup:
    """Finds the pages of a row by the page table.

    Where pages have several blocks, sweeps over blocks count blocks in all three, and those over whole pages, pages.
    """

    args: Arguments
    row: Row

    def physical(self, axis: Sym, candidate: Expr) -> Expr:
        """The physical page, or block, of a candidate; of a page where the axis is one of whole pages."""
        table, request, each = self.args.buffers["page_table"], wide(self.row.request), self.args.page_blocks
        if axis.blocks > 1:
            return early("physical", table, request, quotient(self.row.first, axis.blocks) + candidate)
        if each == 1:
            return early("physical", table, request, self.row.first + candidate)
        logical = let("logical_block", self.row.first + candidate)
        return early("physical", table, request, quotient(logical, each)) * each + remainder(logical, each)

    def record(self, axis: Sym, physical: Expr) -> Expr:
        """Where the summaries of a page, or block, lie in every field."""
        heads, each = self.args.size("Hkv"), self.args.page_blocks
        if each == 1 or axis.blocks > 1:
            return physical * heads + self.row.head
        return (quotient(physical, each) * heads + self.row.head) * each + remainder(physical, each)

    def place(self, page_tile: PageTile) -> Place | None:
        """The place of this lane's page, where it was looked up."""
        if page_tile.physical is None:
            return None
        return Place(wide(page_tile.physical), None) if page_tile.whole else self.args.of_block(page_tile.physical)
