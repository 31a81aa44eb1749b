"""Bits in words: what is compared 32 at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from vortex.ir.core import Op, Value, op
from vortex.ir.dialects.flow.kinds import Binary, tensor
from vortex.ir.numerics import words_of_bits
from vortex.ir.types import DType, Sym, TensorType, bool_, i32, uint1

WORD_BITS = 32


@op("flow.pack_bits")
class PackBits(Op):
    """Bools, or stored bits, along the last axis as words: element i is bit i % 32 of word i // 32, zeros fill up."""

    x: Value
    role = "nest"

    def infer(self) -> TensorType:
        t = tensor(self, self.x)
        self.require(t.dtype in (bool_, uint1), f"needs bools or bits, got {t.dtype}")
        last = t.shape[-1] if t.shape else None
        if last is None or isinstance(last, Sym):
            self.require(False, f"the last axis of {t} cannot be packed")
        assert isinstance(last, int)
        return TensorType(i32, (*t.shape[:-1], -(-last // WORD_BITS)))

    def evaluate(self, x: Any) -> Any:
        return words_of_bits(x)


@op("flow.differing_bits")
class DifferingBits(Binary):
    """In how many of their 32 bits two words differ."""

    commutes = True

    def dtype(self, a: DType, b: DType) -> DType:
        self.require(a == b == i32, f"needs words in i32, got {a} and {b}")
        return i32

    def evaluate(self, a: Any, b: Any) -> Any:
        odd = np.ascontiguousarray(np.bitwise_xor(a, b))[..., None].view(np.uint8)
        return np.unpackbits(odd, axis=-1).sum(-1, dtype=np.int32)
