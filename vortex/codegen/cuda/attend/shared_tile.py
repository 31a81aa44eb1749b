"""Tiles of rows in shared memory: copied asynchronously, read as tensor core fragments without conflicts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from vortex.codegen.cuda.ptx import WARP, from_e4m3, permute, pick, ptx, quotient, remainder, words
from vortex.codegen.tir import Buffer, Expr, T, i32

CHUNK = 8
"""Elements of 16 bits in the 16 bytes that one cp.async or one row of ldmatrix moves."""


@dataclass(frozen=True)
class SharedTile:
    """``tokens`` rows of ``dim`` elements of 16 bits in the ``arena``, the 16-byte chunks of a row exchanged by XOR.

    ldmatrix reads one chunk of 8 consecutive rows at once: they must lie in 8 different groups of 4 banks. Rows
    start ``dim / 8`` chunks apart; where that is 2^k times an odd number (k < 3) the start itself differs for
    2^(3-k) rows, and the XOR tells the rest apart.
    """

    arena: Buffer
    tokens: int
    dim: int
    chunk: ClassVar[int] = CHUNK
    """Elements in 16 bytes."""
    narrow: ClassVar[bool] = False
    """Whether the rows are in fp8."""

    @property
    def chunks(self) -> int:
        return self.dim // self.chunk

    @property
    def copies(self) -> int:
        """cp.async of 16 bytes that each lane of the warp issues for one tile; in the last one some may have none."""
        return -(-self.tokens * self.chunks // WARP)

    def lanes_of(self, copy: int) -> int:
        """How many lanes have something to copy in turn ``copy``."""
        return min(WARP, self.tokens * self.chunks - copy * WARP)

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
        return self.arena.ptr_to([base + row * self.dim + self._swizzled(row, chunk) * self.chunk])

    def place(self, lane: Expr, copy: int) -> tuple[Expr, Expr]:
        """Row and chunk that a lane copies in turn ``copy``: neighbours in a warp are neighbours in memory."""
        c = lane + copy * WARP
        return quotient(c, self.chunks), remainder(c, self.chunks)

    def rows_by_dims(self, base: Expr, lane: Expr, row: int, step: int) -> list[Expr]:
        """Fragment A of rows ``row..row+15`` (M) and dims ``16 step ..`` (K)."""
        return matrices(4, self.at(base, remainder(lane, 16) + row, quotient(lane, 16) + step * 2))

    def dims_by_rows(self, base: Expr, lane: Expr, row: int, step: int) -> list[Expr]:
        """Fragment A of dims ``16 step ..`` (M) and rows ``row..row+15`` (K): the tile transposed on the way."""
        at_row = remainder(lane, 8) + quotient(lane, 16) * 8 + row
        return matrices(4, self.at(base, at_row, remainder(quotient(lane, 8), 2) + step * 2), ".trans")

    def keys(self, base: Expr, lane: Expr, row: int) -> Iterator[list[Expr]]:
        """Fragments A of rows ``row..row+15`` (M), 16 dims (K) after another in the order that :meth:`pair` tells."""
        for step in range(self.dim // 16):
            yield self.rows_by_dims(base, lane, row, step)

    def values(self, base: Expr, lane: Expr, row: int) -> Iterator[list[Expr]]:
        """Fragments A of 16 dims (M) after another, as :meth:`dim_of` tells, and rows ``row..row+15`` (K)."""
        for step in range(self.dim // 16):
            yield self.dims_by_rows(base, lane, row, step)

    def pair(self, lane: Expr, k: int) -> Expr:
        """The first of the two dims that word ``k`` of this lane's fragments B must hold."""
        return remainder(lane, 4) * 2 + k * 8

    def dim_of(self, lane: Expr, m: int, half: int) -> Expr:
        """The dim of row ``lane / 4 + 8 half`` of the m-th product with values."""
        return quotient(lane, 4) + (m * 16 + half * 8)


@dataclass(frozen=True)
class ByteTile(SharedTile):
    """Rows in fp8-e4m3: ldmatrix moves pairs of bytes, which become f16 in registers.

    A word of a matrix holds four dims of a token: the first two stand for dims 2t, 2t+1 of a fragment's 16, the others
    for 2t+8, 2t+9. Transposed it holds dims 2g, 2g+1 of tokens 2t, 2t+1: with its middle bytes exchanged, row g of
    the product is dim 2g and row g+8 is dim 2g+1. Queries and sums follow the same order, so nothing else moves.
    """

    chunk: ClassVar[int] = 16
    narrow: ClassVar[bool] = True

    def keys(self, base: Expr, lane: Expr, row: int) -> Iterator[list[Expr]]:
        for low, high in self._chunks(base, lane, row, ""):
            yield keys_of(low, high)

    def values(self, base: Expr, lane: Expr, row: int) -> Iterator[list[Expr]]:
        for pair in self._chunks(base, lane, row, ".trans"):
            yield values_of(*pair)

    def _chunks(self, base: Expr, lane: Expr, row: int, order: str) -> Iterator[list[Expr]]:
        """Rows ``row..row+7`` and the 8 after them of each chunk of 16 dims, two chunks at a time."""
        for chunk in range(0, self.chunks, 2):
            both = chunk + 1 < self.chunks
            at = self.at(base, remainder(lane, 16) + row, quotient(lane, 16) + chunk if both else i32(chunk))
            a = matrices(4 if both else 2, at, order)
            yield a[:2]
            if both:
                yield a[2:]

    def pair(self, lane: Expr, k: int) -> Expr:
        return remainder(lane, 4) * 4 + (k // 2 * 16 + k % 2 * 2)

    def dim_of(self, lane: Expr, m: int, half: int) -> Expr:
        return quotient(lane, 4) * 2 + (m * 16 + half)


def matrices(count: int, at: Expr, order: str = "") -> list[Expr]:
    """A word of each of ``count`` matrices of 8 rows of 16 bytes, of which the lanes have the addresses ``at``; with
    ``.trans`` as ``order``, transposed.
    """
    a = words("at" if order else "a", count)
    ptx(f"ldmatrix.sync.aligned.m8n8.x{count}{order}.shared.b16", *pick(a, 0, count), at)
    return pick(a, 0, count)


def keys_of(low: Expr, high: Expr) -> list[Expr]:
    """Fragment A of 16 tokens and a chunk of 16 bytes, of which ldmatrix gave these words of the first 8 tokens and of
    the others.
    """
    a = words("a", 4)
    from_e4m3(a[0], a[2], low)
    from_e4m3(a[1], a[3], high)
    return pick(a, 0, 4)


def values_of(*pair: Expr) -> list[Expr]:
    """The same transposed: of a chunk of 16 bytes and 16 tokens."""
    a, turned = words("at", 4), words("turned", 2)
    for half in range(2):
        permute(turned[half], pair[half], 0x3120)
        from_e4m3(a[half * 2], a[half * 2 + 1], turned[half])
    return pick(a, 0, 4)
