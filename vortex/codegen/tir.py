"""The few TVM builder idioms the emitters use; importing this imports TVM (seconds), so import it late."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from keyword import iskeyword
from typing import Any, TypeAlias

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.sym import Analyzer
from tvm.tirx.script import builder as T

Expr: TypeAlias = Any
"""A TVM scalar expression (PrimExpr), or an int where TVM takes one."""
Buffer: TypeAlias = Any

F32 = "float32"
I32 = "int32"
I64 = "int64"
U32 = "uint32"
STACK_BYTES = 1024


def f32(x: float) -> Expr:
    return T.float32(x)


def i32(x: int) -> Expr:
    return T.int32(x)


def kind(x: Expr) -> str:
    """The element type of an expression, such as "float32"."""
    return str(x.ty)


def cast(dtype: str, x: Expr) -> Expr:
    """``x`` as ``dtype``; nothing when it is that already."""
    if isinstance(x, int):
        return tirx.const(x, dtype)
    return x if kind(x) == dtype else T.Cast(dtype, x)


def equal(a: Expr, b: Expr) -> Expr:
    """a == b as an expression: the operator itself makes an object that has no type yet."""
    return tirx.EQ(a, b)


def differ(a: Expr, b: Expr) -> Expr:
    """a != b as an expression."""
    return tirx.NE(a, b)


def is_nan(x: Expr) -> Expr:
    """Whether fp32 ``x`` is NaN, by its bits: TVM folds ``x != x`` to false, and its isnan breaks up vectors."""
    return T.bitwise_and(bits_of(x), T.uint32(0x7FFFFFFF)) > T.uint32(0x7F800000)


def bits_of(x: Expr) -> Expr:
    """The bits of fp32 ``x`` as uint32: a number where ``x`` is one, whose address TVM's CUDA C++ would take."""
    number = literal(x)
    return T.reinterpret(U32, x) if number is None else T.uint32(int(np.float32(number).view(np.uint32)))


def literal(x: Expr) -> float | None:
    """The number that fp32 ``x`` is, where the text alone tells."""
    found = Analyzer().simplify(x)
    return float(found.value) if isinstance(found, tirx.FloatImm) else None


def word_of(x: Expr) -> Expr:
    """The fp32 word that has the bits of integer ``x``. Of a literal, TVM's CUDA C++ would take the address; a sum with
    a 0 that only the compilers behind TVM know is none.
    """
    literal = isinstance(Analyzer().simplify(x), tirx.IntImm)
    return T.reinterpret(F32, x + cast(kind(x), T.sqrt(f32(0))) if literal else x)


def let(name: str, value: Expr) -> Expr:
    """Bind ``value`` to a named variable here."""
    bound = T.Bind(value)
    IRBuilder.name(_free(name), bound)
    return bound


def local(name: str, size: int, dtype: str = F32) -> Buffer:
    """A buffer on chip that only this iteration sees.

    TVM's LLVM lowering puts what is under 1 KiB and of scope "global" on the stack, where it can live in
    registers; the rest, and all of scope "local", comes from the thread's arena. On a GPU "local" is registers.
    """
    for_cpu = IRBuilder.current().frames[0].s_tir
    small = size * 4 < STACK_BYTES
    made = T.alloc_buffer((size,), dtype, scope="global" if for_cpu and small else "local")
    IRBuilder.name(_free(name), made)
    return made


TYPES = {"half", "half2", "nv_bfloat16", "nv_bfloat162", "uint", "signed", "unsigned", "int64_t", "uint64_t"}
"""Types of CUDA C++ that TVM writes casts to, and whose names it gives to variables."""


def _free(name: str) -> str:
    """The name of a variable that means nothing else: a value may be called after an op such as flow.and, and the text
    is read as Python, in which ``T`` is TVM, or ``half``, and from there on no cast to that type is one.
    """
    return f"{name}_" if iskeyword(name) or name == "T" or name in TYPES else name


def put(buffer: Buffer, value: Expr, *index: Expr) -> None:
    """buffer[index] = value"""
    T.buffer_store(buffer, value, list(index))


def register(name: str, value: Expr, dtype: str = I32) -> Expr:
    """``value`` in a register of its own: TVM writes a value that :func:`let` binds out wherever it is used, and takes
    long to simplify what is used many times.
    """
    made = local(name, 1, dtype)
    put(made, value, 0)
    return made[0]


def prefetch(buffer: Buffer, *index: Expr) -> None:
    """Ask for the cache line of buffer[index]; a CPU's hint, with no effect on what is computed."""
    where = T.address_of(buffer[tuple(index)])
    T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", where, i32(0), i32(3), i32(1)))


@contextmanager
def when(condition: Expr) -> Iterator[None]:
    """if condition:"""
    with T.If(condition), T.Then():
        yield


@contextmanager
def choose(condition: Expr) -> Iterator[tuple[Any, Any]]:
    """if / else: ``with choose(c) as (then, other): with then(): ...; with other(): ...``"""
    with T.If(condition):
        yield T.Then, T.Else


@contextmanager
def loop(name: str, extent: Expr, start: Expr = 0, *, rolled: bool = False) -> Iterator[Expr]:
    """for name in range(start, extent); a ``rolled`` one stays a loop, of others a compiler writes out some turns."""
    with T.serial(start, extent, **({"unroll": False} if rolled else {})) as v:
        IRBuilder.name(name, v)
        yield v


@contextmanager
def parallel(name: str, extent: Expr) -> Iterator[Expr]:
    """Independent iterations over the machine's threads."""
    with T.parallel(0, extent) as v:
        IRBuilder.name(name, v)
        yield v


@contextmanager
def lanes(extent: int) -> Iterator[Expr]:
    """One vector operation of ``extent`` elements; a plain index where that is 1."""
    if extent == 1:
        yield i32(0)
        return
    with T.vectorized(0, extent) as v:
        IRBuilder.name("l", v)
        yield v


def nest(extents: Sequence[int], body: Callable[[list[Expr]], None], prefix: str = "i") -> None:
    """Serial loops over all ``extents`` around ``body(indices)``; loops of one iteration are left out."""

    def level(done: list[Expr]) -> None:
        if len(done) == len(extents):
            body(done)
            return
        extent = extents[len(done)]
        if extent == 1:
            level([*done, i32(0)])
            return
        with loop(f"{prefix}{len(done)}", extent) as v:
            level([*done, v])

    level([])


def flat(index: Sequence[Expr], shape: Sequence[int]) -> Expr:
    """The row-major position of ``index`` in ``shape``."""
    at: Expr = i32(0)
    for i, d in zip(index, shape, strict=True):
        at = at * d + i
    return at


def unflat(at: Expr, shape: Sequence[int]) -> list[Expr]:
    """The index in ``shape`` at a row-major position."""
    index: list[Expr] = []
    for d in reversed(shape):
        index.append(i32(0) if d == 1 else T.floormod(at, i32(d)))
        at = T.floordiv(at, i32(d)) if d != 1 else at
    return index[::-1]
