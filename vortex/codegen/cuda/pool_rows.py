"""The rows of a pool, which lie where the strides say that the caller gives. TVM's lowering for GPUs does not look at
strides, so rows are addressed by hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vortex.codegen.arguments import Arguments
from vortex.codegen.cuda.ptx import quotient, remainder, wide
from vortex.codegen.tir import Buffer, Expr, T, let
from vortex.ir.dialects.page import scaled
from vortex.ir.types import TensorType


def element_at(where: Sequence[Expr], steps: Sequence[Expr]) -> Expr:
    """The element at ``where`` of a tensor whose strides count elements."""
    at: Expr = T.int64(0)
    for i, step in zip(where, steps, strict=True):
        at = at + wide(i) * step
    return at


def row_words(where: Sequence[Expr], steps: Sequence[Expr], packed: int, words: int) -> Expr:
    """The first 32-bit word of the row at ``where`` of a tensor whose strides count elements, ``packed`` to a word.

    Rows begin at multiples of ``words``, and the address shows it: a vector of words that TVM cannot prove to be
    aligned becomes a load for each. On an H200 ``select`` of ``quest_then_exact`` took up to 1.75 times as long.
    """
    return element_at(where, [quotient(step, packed * words) for step in steps]) * words


@dataclass(frozen=True)
class PoolRows:
    """K, V or latents as rows of 32-bit words, one for each token of a page and KV head."""

    args: Arguments
    name: str
    words: Buffer
    """The pool as one endless row of words."""

    @property
    def type(self) -> TensorType:
        """Of one page."""
        return self.args.type_of(self.name)

    @property
    def size(self) -> int:
        """Bytes of an element."""
        return self.type.dtype.bytes

    @property
    def row_size(self) -> int:
        """Words of a row."""
        return self.type.tile[1] * self.size // 4

    @property
    def width(self) -> int:
        """Words of the widest access that a row divides into."""
        return math.gcd(self.type.tile[1] * self.size, 16) // 4

    @property
    def strides(self) -> list[Expr]:
        """In elements, of pages, KV heads, tokens and dims."""
        return list(self.args.buffers[self.name].strides)

    @property
    def scale(self) -> Expr | None:
        """What its numbers are multiples of, if it has a scale."""
        return self.args.scale_of(self.name) if scaled(self.args.program.decls[self.name]) else None

    def element(self, physical: Expr, head: Expr, token: Expr, dim: Expr) -> Expr:
        """An element, counted from the pool's first."""
        return element_at((physical, head, token, dim), self.strides)

    def row(self, physical: Expr, head: Expr, token: Expr, width: int) -> Expr:
        """The first word of the row of a token of a page, which is read by ``width`` words at once."""
        return row_words((physical, head, token), self.strides[:-1], 4 // self.size, width)

    def row_of_record(self, record: Expr, token: Expr, width: int) -> Expr:
        """The same of a token of the page (of the block, where pages have several) of a *record*, which numbers pages
        as in summaries: ``(physical page * KV heads + head) * blocks + block``.
        """
        heads, each = self.args.size("Hkv"), self.args.page_blocks
        page = record
        if each > 1:
            page, token = quotient(record, each), remainder(record, each) * self.args.block_size + token
        physical = let("physical_page", quotient(page, heads))
        return self.row(physical, page - physical * heads, token, width)
