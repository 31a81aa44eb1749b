"""Tiles of 16-bit rows in shared memory: copied asynchronously, read as tensor core fragments without conflicts."""

from __future__ import annotations

from dataclasses import dataclass

from vortex.codegen.cuda.ptx import WARP, pick, ptx, quotient, remainder, words
from vortex.codegen.tir import Buffer, Expr, T

CHUNK = 8
"""Elements of 16 bits in the 16 bytes that one cp.async or one row of ldmatrix moves."""


@dataclass(frozen=True)
class SharedTile:
    """``tokens`` rows of ``dim`` elements in the ``arena``, the 16-byte chunks of a row exchanged by XOR.

    ldmatrix reads one chunk of 8 consecutive rows at once: they must lie in 8 different groups of 4 banks. Rows
    start ``dim / 8`` chunks apart; where that is 2^k times an odd number (k < 3) the start itself differs for
    2^(3-k) rows, and the XOR tells the rest apart.
    """

    arena: Buffer
    tokens: int
    dim: int

    @property
    def chunks(self) -> int:
        return self.dim // CHUNK

    @property
    def copies(self) -> int:
        """cp.async of 16 bytes that each lane of the warp issues for one tile."""
        return self.tokens * self.chunks // WARP

    def _swizzled(self, row: Expr, chunk: Expr) -> Expr:
        free = 0
        while free < 3 and self.chunks % (2 << free) == 0:
            free += 1
        if free == 0:
            return chunk
        key = remainder(quotient(row, 1 << (3 - free)) if free < 3 else row, 1 << free)
        return T.bitwise_xor(chunk, key)

    def at(self, base: Expr, row: Expr, chunk: Expr) -> Expr:
        """The address of a chunk of a row of the tile at ``base``."""
        return self.arena.ptr_to([base + row * self.dim + self._swizzled(row, chunk) * CHUNK])

    def place(self, lane: Expr, copy: int) -> tuple[Expr, Expr]:
        """Row and chunk that a lane copies in turn ``copy``: neighbours in a warp are neighbours in memory."""
        c = lane + copy * WARP
        return quotient(c, self.chunks), remainder(c, self.chunks)

    def rows_by_dims(self, base: Expr, lane: Expr, row: int, step: int) -> list[Expr]:
        """Fragment A of rows ``row..row+15`` (M) and dims ``16 step ..`` (K)."""
        a = words("a", 4)
        at = self.at(base, remainder(lane, 16) + row, quotient(lane, 16) + step * 2)
        ptx("ldmatrix.sync.aligned.m8n8.x4.shared.b16", *pick(a, 0, 4), at)
        return pick(a, 0, 4)

    def dims_by_rows(self, base: Expr, lane: Expr, row: int, step: int) -> list[Expr]:
        """Fragment A of dims ``16 step ..`` (M) and rows ``row..row+15`` (K): the tile transposed on the way."""
        a = words("at", 4)
        at_row = remainder(lane, 8) + quotient(lane, 16) * 8 + row
        at = self.at(base, at_row, remainder(quotient(lane, 8), 2) + step * 2)
        ptx("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16", *pick(a, 0, 4), at)
        return pick(a, 0, 4)
