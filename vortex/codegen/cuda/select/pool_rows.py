"""The rows of a pool as tensor cores take them in ``select``: 32-bit words that lie where the caller's strides say, of
numbers that are multiples of the pool's scale.

A page is known by its *record*, ``(physical page * KV heads + head) * blocks + block``, as for summaries.
"""

from __future__ import annotations

from dataclasses import dataclass

from vortex.codegen.arguments import Arguments
from vortex.codegen.cuda.ptx import flat_view, quotient, remainder
from vortex.codegen.cuda.vector_load import row_words
from vortex.codegen.tir import U32, Buffer, Expr, let
from vortex.ir.dialects.page import scaled


@dataclass(frozen=True)
class PoolRows:
    """The rows of one pool, for the pages or blocks of a sweep."""

    args: Arguments
    name: str
    view: Buffer
    """The pool as one endless row of words."""

    @classmethod
    def of(cls, args: Arguments, name: str) -> PoolRows:
        return cls(args, name, flat_view(args.buffers[name], U32, 16))

    @property
    def scale(self) -> Expr | None:
        """What its numbers are multiples of, if it has a scale."""
        return self.args.scale_of(self.name) if scaled(self.args.program.decls[self.name]) else None

    def begin(self, record: Expr, row: Expr, packed: int, words: int) -> Expr:
        """The first word of a row of a page (of a block, where pages have several), of ``packed`` numbers to a word and
        read by ``words`` words at once.
        """
        heads, each = self.args.size("Hkv"), self.args.page_blocks
        page, token = record, row
        if each > 1:
            page, token = quotient(record, each), remainder(record, each) * self.args.block_size + row
        physical = let("physical_page", quotient(page, heads))
        where = (physical, page - physical * heads, token)
        return row_words(where, self.args.buffers[self.name].strides[:-1], packed, words)
