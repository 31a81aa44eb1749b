"""What the lanes of a lane group read: which row of a summary's tile, and the elements of a loaded register.

Which folds have a lane group is decided in :mod:`vortex.schedules.contractions`.
"""

from __future__ import annotations

from vortex.codegen.tir import F32, Expr, T, cast, flat, i32, tirx
from vortex.codegen.values import Index, type_of
from vortex.ir.types import DType, bf16, fp8_e4m3
from vortex.ir.types import f32 as f32_type
from vortex.schedules.contractions import LaneGroupLoad


def sees(x: LaneGroupLoad, index: Index, at: dict[int, Expr]) -> bool:
    """Whether a load at ``index`` (page axis first) asks for the row that ``x.rows`` means at ``at``."""
    return all(
        i is at.get(r) if r >= 0 else isinstance(i, tirx.IntImm) and int(i) == ~r
        for i, r in zip(index[1:-1], x.rows, strict=True)
    )


def row_of(x: LaneGroupLoad, at: dict[int, Expr]) -> Expr:
    """Which row of the tile that is."""
    return flat([at[r] if r >= 0 else i32(~r) for r in x.rows], type_of(x.load.value).tile[:-1])


def unpack(word: Expr, k: Expr | int, dtype: DType) -> Expr:
    """Element ``k`` of a register of packed elements, widened to fp32 (fp8: its byte)."""
    if dtype == f32_type:
        return T.reinterpret(F32, word)
    if dtype == fp8_e4m3:
        return cast("uint8", T.bitwise_and(T.shift_right(word, T.uint32(8 * int(k))), T.uint32(0xFF)))
    if dtype == bf16:
        high = T.bitwise_and(word, T.uint32(0xFFFF0000)) if k else T.shift_left(word, T.uint32(16))
        return T.reinterpret(F32, high)
    half = T.shift_right(word, T.uint32(16)) if k else T.bitwise_and(word, T.uint32(0xFFFF))
    return T.reinterpret("float16", T.Cast("uint16", half))
