"""Instructions of the GPU as statements, and the addressing that TVM leaves to us; importing this imports TVM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm.backend.cuda  # noqa: F401 - registers the CUDA dialect
from tvm.backend.cuda.ptx import PTXNamespace
from tvm.backend.cuda.script import CUDANamespace

from vortex.codegen.tir import F32, I32, U32, Buffer, Expr, IRBuilder, T, cast, let, tirx
from vortex.targets.gpu import WARP

_PTX, _CUDA = PTXNamespace(), CUDANamespace()
LOG2E = 1.4426950408889634
LN2 = 0.6931471805599453
_ENDLESS = 1 << 62

TILE_TYPES = {"bfloat16": "bf16", "float16": "f16"}
"""Element types that tensor cores take, with their names in PTX."""


def ptx(chain: str, *operands: Expr) -> None:
    """Emit one instruction; its destinations come first."""
    # the builder drops a call that is not a statement
    T.evaluate(_PTX[chain](*operands))


def cta_sync() -> None:
    """Wait until all threads of the CTA arrive; they then see the shared memory that was written before."""
    T.evaluate(_CUDA.cta_sync())


def cluster_sync() -> None:
    """Wait until all threads of the cluster arrive; they then see all memory that any of them wrote before."""
    # not .aligned: nothing tells the compilers that the lanes of a warp are to be at these together
    ptx("barrier.cluster.arrive.release")
    ptx("barrier.cluster.wait.acquire")


def warp_sync() -> None:
    """Wait until all lanes of the warp arrive; they then see the shared memory that was written before."""
    T.evaluate(_CUDA.warp_sync())


def overlap_launch(overlap: int) -> None:
    """Say, before ``device_entry``, whether this kernel may be launched before the one in front of it has ended."""
    if overlap:
        T.func_attr({"tirx.kernel_launch_params": ["tirx.use_programtic_dependent_launch"]})  # TVM's spelling


def overlap_begin(overlap: int) -> None:
    """Let the next kernel be launched as soon as all CTAs of this one are; every kernel but ``plan`` begins with it.

    Since ``plan`` does not say so, whatever is launched later finds what it wrote, and may read that (by
    :func:`early`) before :func:`overlap_wait`; nothing else, and it must not write.
    """
    if overlap:
        ptx("griddepcontrol.launch_dependents")


def overlap_wait(overlap: int) -> None:
    """Wait for the end of the kernels in front: all that they wrote is there, and nothing they read is still needed."""
    if overlap:
        ptx("griddepcontrol.wait")


def early(name: str, buffer: Buffer, *index: Expr) -> Expr:
    """Read a 32-bit integer that ``plan`` or the caller wrote, past the L1 cache, which may still have an old one."""
    made = registers(name, 2, I32)
    ptx("ld.relaxed.gpu.global.s32", made[0], buffer.ptr_to(list(index)))
    return let(name, made[0])


def shuffle(x: Expr, lane: Expr) -> Expr:
    """``x`` of another lane of the warp; all 32 lanes take part."""
    return T.tvm_warp_shuffle(T.uint32(0xFFFFFFFF), x, lane, WARP, WARP)


def shuffle_xor(x: Expr, mask: int) -> Expr:
    """``x`` of the lane whose number differs in the bits of ``mask``; all 32 lanes take part."""
    return T.tvm_warp_shuffle_xor(T.uint32(0xFFFFFFFF), x, mask, WARP, WARP)


def warp_extreme(which: str, x: Expr) -> Expr:
    """The "min" or "max" of an unsigned number of all 32 lanes."""
    made = registers(which, 2, U32)
    ptx(f"redux_sync.{which}.u32", made[0], x, T.uint32(0xFFFFFFFF))
    return let(f"warp_{which}", made[0])


def warp_sum(x: Expr) -> Expr:
    """The sum of an unsigned number over all 32 lanes."""
    made = registers("sum", 2, U32)
    ptx("redux_sync.add.u32", made[0], x, T.uint32(0xFFFFFFFF))
    return let("warp_sum", made[0])


def quotient(a: Expr, b: Expr) -> Expr:
    """a / b of non-negative numbers, without the sign fix-up of a floor division."""
    return tirx.truncdiv(a, b)


def remainder(a: Expr, b: Expr) -> Expr:
    """a % b of non-negative numbers."""
    return tirx.truncmod(a, b)


def ceil_quotient(a: Expr, b: Expr) -> Expr:
    """a / b of non-negative numbers, rounded up."""
    return tirx.truncdiv(a + b - 1, b)


def exp2(out: Buffer, at: Expr, x: Expr) -> None:
    """out[at] = 2 ** x by the special function unit: relative error 2^-22, 2^-inf is 0, NaN stays."""
    ptx("ex2.approx.ftz.f32", out[at], x)


def flat_view(buffer: Buffer, dtype: str, align: int) -> Buffer:
    """The memory behind an argument as one endless row, indexed in 64 bits.

    TVM's CUDA lowering ignores the strides of a buffer (its default layout is compact), so strided
    pools are addressed by hand: the host side still checks the strides and passes them.
    """
    return T.decl_buffer((tirx.const(_ENDLESS, "int64"),), dtype, data=buffer.data, align=align)


def wide(x: Expr) -> Expr:
    """``x`` in 64 bits: pools have more than 2^31 elements."""
    return cast("int64", x)


def registers(name: str, size: int, dtype: str = F32) -> Buffer:
    """A thread's own numbers, indexed by constants alone."""
    made = T.alloc_buffer((size,), dtype, scope="local")
    IRBuilder.name(name, made)
    return made


def words(name: str, size: int) -> Buffer:
    """Registers of packed pairs, each an instruction's operand."""
    return registers(name, max(2, size), U32)


def pick(buffer: Buffer, at: int, count: int) -> list[Any]:
    """``count`` registers from ``at`` on."""
    return [buffer[at + i] for i in range(count)]


def mma(dtype: str, d: Sequence[Expr], a: Sequence[Expr], b: Sequence[Expr]) -> None:
    """d += a b on a warp: a 16 x 16 row-major, b 16 x 8, d 16 x 8 in fp32."""
    t = TILE_TYPES[dtype]
    ptx(f"mma.sync.aligned.m16n8k16.row.col.f32.{t}.{t}.f32", *d, *a, *b, *d)


def pack_pair(dtype: str, out: Expr, low: Expr, high: Expr) -> None:
    """Round two fp32 numbers to the nearest even of a 16-bit type, and put them into one word."""
    ptx(f"cvt.rn.{TILE_TYPES[dtype]}x2.f32", out, high, low)


def from_e4m3(low: Expr, high: Expr, word: Expr) -> None:
    """Widen four numbers in fp8-e4m3 to two words of f16 pairs, which is exact; NaN stays NaN."""
    # ptxas finds the instruction that reads an upper half behind this move, and not behind a shift
    pairs = registers("byte_pairs", 2, "uint16")
    ptx("mov.b32", pairs[0], pairs[1], word)
    for out, pair in ((low, pairs[0]), (high, pairs[1])):
        ptx("cvt.rn.f16x2.e4m3x2", out, pair)


def permute(out: Expr, word: Expr, order: int, high: int = 0) -> None:
    """Put bytes in another order: byte i becomes the one that nibble i of ``order`` names, of ``word`` those from 0 to
    3, of ``high`` those from 4 to 7.
    """
    ptx("prmt.b32", out, word, T.uint32(high), T.uint32(order))


def masked_xor(out: Expr, word: Expr, mask: int, flipped: int) -> None:
    """``word & mask ^ flipped`` in one instruction, which compilers do not see where two of three are constants."""
    ptx("lop3.b32", out, word, T.uint32(mask), T.uint32(flipped), 0x6A)


def subtract_pair(out: Expr, pair: Expr, number: int) -> None:
    """Subtract an f16 number, given by its bits, from both of a pair."""
    ptx("sub.rn.f16x2", out, pair, T.uint32(number << 16 | number))


def multiply_pair(out: Expr, pair: Expr, factor: int, plus: int) -> None:
    """Multiply both f16 numbers of a pair, and add: the numbers are given by their bits."""
    ptx("fma.rn.f16x2", out, pair, T.uint32(factor << 16 | factor), T.uint32(plus << 16 | plus))
