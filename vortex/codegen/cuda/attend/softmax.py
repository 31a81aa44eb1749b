"""The running softmax of ``attend``: what a thread keeps from tile to tile."""

from __future__ import annotations

from dataclasses import dataclass

from vortex.codegen.cuda.ptx import registers
from vortex.codegen.tir import Buffer, Expr, f32, let, put

LOWEST = -3.0e38
"""The maximum of no scores: finite, so that the difference of two of them is 0 and not NaN."""

HEADROOM = 14.0
"""Weights in f16 go up to 2 to this power where pools are fp8, so that those of 2^-38 are not lost."""


@dataclass(frozen=True)
class SoftmaxState:
    """Registers of one thread. Scores and maxima are exponents of two."""

    top: Buffer
    """The largest score so far, by head."""
    total: Buffer
    """The sum of the weights ``2 ** (score - top)`` so far, by head; a thread has its own tokens' share of it."""
    sums: Buffer
    """Weighted sums of values, as the tensor cores leave them."""

    headroom: float
    """Powers of two between the largest weight and 1."""

    @classmethod
    def start(cls, heads: int, sums: int, *, narrow: bool) -> SoftmaxState:
        """The state before the first token; ``narrow`` where the pools are fp8."""
        headroom = HEADROOM if narrow else 0.0
        made = cls(registers("top", heads), registers("total", heads), registers("sums", sums), headroom)
        for e in range(heads):
            put(made.top, f32(LOWEST), e)
            put(made.total, f32(0), e)
        for e in range(sums):
            put(made.sums, f32(0), e)
        return made

    def reference(self, top: Expr) -> Expr:
        """The exponent of a weight of 1, where the largest score is ``top``."""
        return let("reference", top - f32(self.headroom)) if self.headroom else top
