"""The queries of a row as tensor core fragments, and the factor from a product with them to a power of two's exponent.

Keys in fp8 become f16 on the way to the tensor cores, which is exact, and then the queries must be f16 as well. Those
in bf16 have a wider range: each head is multiplied by the power of two that brings its largest number into
[2^14, 2^15). Its others keep all their bits down to 2^-28 of the largest, and what is lost of smaller ones is less
than 2^-39 of the largest, far below the rounding of the sums.
"""

from __future__ import annotations

from dataclasses import dataclass

from vortex.codegen.arguments import Arguments
from vortex.codegen.cuda.attend.shared_tile import SharedTile
from vortex.codegen.cuda.ptx import (
    LOG2E,
    pack_pair,
    ptx,
    quotient,
    registers,
    remainder,
    shuffle,
    shuffle_xor,
    wide,
    words,
)
from vortex.codegen.tir import F32, U32, Buffer, Expr, T, f32, i32, let, put
from vortex.schedules.cuda_attend import AttendShape

LARGEST = 127 + 14
"""Biased exponent of the largest number of a head once it is scaled."""


@dataclass(frozen=True)
class Fragments:
    """The queries of a row in the registers of a warp."""

    words: Buffer
    """Fragments B, ``[(head tile, 16 dims), 2]`` words."""
    factors: tuple[Expr, ...]
    """By head tile, of head ``lane / 4``: what undoes its power of two; empty where none has one."""


@dataclass(frozen=True)
class Queries:
    """Loads fragment B: heads on N, dims on K in the order of the keys' tile.

    Heads beyond the group repeat its last one: what is computed of them is dropped.
    """

    args: Arguments
    shape: AttendShape
    keys: SharedTile
    dtype: str
    """The element type of the queries in memory."""
    core: str
    """The element type of the fragments."""
    unit: Expr
    """What keys in fp8 are multiples of."""

    @property
    def steps(self) -> int:
        """Products of 16 dims that a score takes."""
        return self.shape.dim // 16

    def load(self, request: Expr, kv_head: Expr, lane: Expr) -> Fragments:
        """Load the queries of one KV head of a request."""
        shape, factors = self.shape, []
        made = words("queries", shape.head_tiles * self.steps * 2)
        source = self.args.buffers["q"]
        for tile in range(shape.head_tiles):
            head = quotient(lane, 4) + tile * 8
            if shape.group % 8:
                head = T.min(head, i32(shape.group - 1))
            head = let("q_head", kv_head * shape.group + head)
            for k in range(self.steps * 2):
                at = source.ptr_to([wide(request), head, self.keys.pair(lane, k)])
                ptx("ld.global.b32", made[tile * self.steps * 2 + k], at)
            if self.core != self.dtype:
                factors.append(to_f16(made, tile * self.steps * 2, self.steps * 2))
        return Fragments(made, tuple(factors))

    def to_log2(self, loaded: Fragments, lane: Expr) -> list[Expr]:
        """The factor of each of the lane's heads ``8 tile + lane % 4 * 2 + e`` of scores, tile first."""
        scale = self.args.scalars["scale"] * f32(LOG2E)
        if self.keys.narrow:
            scale = scale * self.unit
        scale = let("to_log2", scale)
        heads = [(tile, e) for tile in range(self.shape.head_tiles) for e in range(2)]
        if not loaded.factors:
            return [scale for _ in heads]
        return [let("to_log2", scale * factor_of(loaded.factors[tile], lane, e)) for tile, e in heads]


def factor_of(factor: Expr, lane: Expr, e: int) -> Expr:
    """What undoes the power of two of this lane's head ``lane % 4 * 2 + e`` of a tile, which another lane holds."""
    return shuffle(factor, (remainder(lane, 4) * 2 + e) * 4)


def to_f16(made: Buffer, first: int, count: int) -> Expr:
    """Turn ``count`` words of one tile of heads from pairs of bf16 into pairs of f16, each head times a power of two.

    Returns what undoes that of head ``lane / 4``.
    """
    largest = registers("largest", 1, U32)
    put(largest, T.uint32(0), 0)
    with_bits = T.uint32(0x7FFF)
    for k in range(count):
        for half in (T.shift_right(made[first + k], T.uint32(16)), made[first + k]):
            put(largest, T.max(largest[0], T.bitwise_and(half, with_bits)), 0)
    for mask in (1, 2):
        put(largest, T.max(largest[0], shuffle_xor(largest[0], mask)), 0)
    exponent = let("exponent", T.shift_right(largest[0], T.uint32(7)))
    # both 2^n and its inverse are normal numbers
    up = let("up", T.min(T.uint32(253), T.uint32(LARGEST + 127) - exponent))
    factor = let("factor", T.reinterpret(F32, T.shift_left(up, T.uint32(23))))
    inverse = T.reinterpret(F32, T.shift_left(T.uint32(254) - up, T.uint32(23)))
    undo = let("inverse", inverse)
    for k in range(count):
        pair = let("pair", made[first + k])
        low = T.reinterpret(F32, T.shift_left(pair, T.uint32(16)))
        high = T.reinterpret(F32, T.bitwise_and(pair, T.uint32(0xFFFF0000)))
        pack_pair("float16", made[first + k], low * factor, high * factor)
    return undo
