"""Small TensorIR functions that use what host_threads.c offers: threads, scratch memory, errors."""

from __future__ import annotations

from tvm.script import tirx as T


@T.prim_func
def squares(a: T.handle, o: T.handle):
    """o[p] = sum(a[p] ** 2), through two blocks of scratch a task."""
    n = T.int32()
    A = T.match_buffer(a, (n, 4096), "float32")
    R = T.match_buffer(o, (n,), "float32")
    for p in T.parallel(n):
        first = T.alloc_buffer((4096,), "float32")
        second = T.alloc_buffer((8192,), "float32")
        for i in T.serial(4096):
            first[i] = A[p, i] * A[p, i]
            second[2 * i] = first[i]
        R[p] = T.float32(0)
        for i in T.serial(4096):
            R[p] = R[p] + second[2 * i]


@T.prim_func
def positive(a: T.handle):
    """Fails in the task that meets a negative number."""
    n = T.int32()
    A = T.match_buffer(a, (n,), "float32")
    for p in T.parallel(n):
        assert A[p] >= T.float32(0), "a number is negative"
        A[p] = A[p] * T.float32(2)


@T.prim_func
def comparisons(a: T.handle, b: T.handle, o: T.handle):
    n = T.int32()
    A = T.match_buffer(a, (n,), "float32")
    B = T.match_buffer(b, (n,), "float32")
    R = T.match_buffer(o, (5, n), "float32")
    for i in T.serial(n):
        R[0, i] = T.Select(A[i] > B[i], A[i], B[i])
        R[1, i] = T.Select(A[i] < B[i], T.float32(1), T.float32(0))
        R[2, i] = T.Select(T.isnan(A[i]), T.float32(1), T.float32(0))
        R[3, i] = T.Select(A[i] != A[i], T.float32(1), T.float32(0))
        R[4, i] = T.max(A[i], B[i])
