"""Every operator on real tensors against its definition, element by element."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch

import vortex
from vortex.compat.vortex_torch import cache, calls, indexer

Tensor = torch.Tensor
DECLARED = calls.Declared(vortex.Spec(), {}, {})


def tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def each(shape: tuple[int, ...], f: Callable[..., float]) -> Tensor:
    made = torch.empty(shape)
    for at in product(*map(range, shape)):
        made[at] = f(*at)
    return made


def ran(op: Any, *operands: Any, method: str = "forward_indexer") -> Tensor:
    with calls.running(calls.Call(method, DECLARED)):
        return op(*operands)


def at(x: Tensor, *index: int) -> float:
    """An element; sizes of 1 broadcast."""
    return float(x[tuple(i if n > 1 else 0 for i, n in zip(index, x.shape, strict=True))])


X, Y, Q = tensor(3, 2, 4), tensor(3, 2, 4, seed=1), tensor(1, 2, 4, seed=2)
UNARY: dict[str, tuple[tuple[float, float], Callable[[float, float, float], float]]] = {
    "Relu": ((0, 0), lambda x, a, b: x if x >= a else b),
    "Sigmoid": ((0, 0), lambda x, a, b: 1 / (1 + math.exp(b * x + a))),
    "Silu": ((0, 0), lambda x, a, b: x / (1 + math.exp(b * x + a))),
    "Add_Mul": ((0, 1), lambda x, a, b: b * x + a),
    "Abs": ((0, 1), lambda x, a, b: abs(b * x + a)),
    "Log": ((0, 1), lambda x, a, b: math.log(b * x + a) if b * x + a > 0 else math.nan),
    "Exp": ((0, 1), lambda x, a, b: math.exp(b * x + a)),
}


@pytest.mark.parametrize("name", UNARY)
def test_unary(name: str) -> None:
    defaults, f = UNARY[name]
    for side, method in ((indexer, "forward_indexer"), (cache, "forward_cache")):
        made = getattr(side, name)
        for op, (a, b) in ((made(), defaults), (made(0.3, -0.7), (0.3, -0.7)), (made(beta=-1.0), (defaults[0], -1.0))):
            want = each((3, 2, 4), lambda *i, a=a, b=b: f(at(X, *i), a, b))
            torch.testing.assert_close(ran(op, X, method=method), want, equal_nan=True)


BINARY: dict[str, Callable[[float, float], float]] = {
    "Multiply": lambda x, y: x * y,
    "Add": lambda x, y: x + y,
    "Maximum": max,
    "Minimum": min,
    "WhereEqual": lambda x, y: 0.0 if x == y else -1e30,
    "WhereNotEqual": lambda x, y: 0.0 if x != y else -1e30,
    "WhereGreater": lambda x, y: 0.0 if x > y else -1e30,
    "WhereGreaterEqual": lambda x, y: 0.0 if x >= y else -1e30,
    "WhereLess": lambda x, y: 0.0 if x < y else -1e30,
    "WhereLessEqual": lambda x, y: 0.0 if x <= y else -1e30,
}


@pytest.mark.parametrize("name", BINARY)
def test_binary(name: str) -> None:
    small = (X * 1.5).round(), (Y * 1.5).round()  # some are equal
    for x, y in (small, (X, tensor(3, 1, 1)), (Q, tensor(3, 1, 4)), (tensor(3, 2, 1), Q)):
        want = each((3, 2, 4), lambda *i, x=x, y=y: BINARY[name](at(x, *i), at(y, *i)))
        torch.testing.assert_close(ran(getattr(indexer, name)(), x, y), want)
        torch.testing.assert_close(ran(getattr(cache, name)(), x, y, method="forward_cache"), want)


def test_add_weighs() -> None:
    torch.testing.assert_close(ran(indexer.Add(alpha=0.5, beta=-2.0), X, Y), 0.5 * X - 2 * Y)
    torch.testing.assert_close(ran(indexer.Add(2.0, -1.0), X, Q), 2 * X - Q)


def test_gemm_is_y_times_x_transposed() -> None:
    for x, y in ((X, Y), (Q, Y), (X, Q), (Q, Q), (tensor(1, 1, 4), Y), (Q, tensor(3, 1, 4))):
        shape = max(len(x), len(y)), y.shape[1], x.shape[1]
        want = each(shape, lambda s, a, b, x=x, y=y: sum(at(y, s, a, k) * at(x, s, b, k) for k in range(4)))
        torch.testing.assert_close(ran(indexer.GeMM(), x, y), want)
    torch.testing.assert_close(ran(cache.GeMM(), Q, Q, method="forward_cache"), Q @ Q.mT)
    assert ran(indexer.GeMV(), tensor(1, 1, 4), tensor(3, 1, 4)).shape == (3, 1, 1)


FOLDS: dict[str, Callable[[Tensor], float]] = {
    "Mean": lambda x: float(x.mean()),
    "Max": lambda x: float(x.max()),
    "Min": lambda x: float(x.min()),
    "Sum": lambda x: float(x.sum()),
    "L2Norm": lambda x: math.sqrt(float((x * x).sum())),
}


@pytest.mark.parametrize("name", FOLDS)
def test_folds_keep_their_axis(name: str) -> None:
    f = FOLDS[name]
    made = getattr(indexer, name)
    torch.testing.assert_close(ran(made(dim=0), X), each((1, 2, 4), lambda _, a, b: f(X[:, a, b])))
    torch.testing.assert_close(ran(made(dim=1), X), each((3, 1, 4), lambda s, _, b: f(X[s, :, b])))
    torch.testing.assert_close(ran(made(dim=2), X), each((3, 2, 1), lambda s, a, _: f(X[s, a])))
    torch.testing.assert_close(ran(made(dim=-1), X), ran(made(dim=2), X))
    if name != "Sum":
        whole = tensor(1, 6, 4)
        run = getattr(cache, f"{name}Interleave")
        want = each((1, 2, 4), lambda _, a, b: f(whole[0, 3 * a : 3 * a + 3, b]))
        torch.testing.assert_close(ran(run(dim=1, k=3), whole, method="forward_cache"), want)
        want = each((1, 6, 2), lambda _, a, b: f(whole[0, a, 2 * b : 2 * b + 2]))
        torch.testing.assert_close(ran(run(dim=2, k=2), whole, method="forward_cache"), want)


def test_kron() -> None:
    x, y = tensor(3, 2, 3), tensor(3, 4, 2, seed=1)
    for a, b in ((x, y), (x[:1], y), (x, y[:1])):
        want = each((3, 8, 6), lambda s, i, k, a=a, b=b: at(a, s, i // 4, k // 2) * at(b, s, i % 4, k % 2))
        torch.testing.assert_close(ran(indexer.Kron(), a, b), want)
    y = tensor(3, 4, 3, seed=1)
    want = each((3, 8, 3), lambda s, i, k: at(x, s, i // 4, k) * at(y, s, i % 4, k))
    torch.testing.assert_close(ran(indexer.Kron(dim=1), x, y), want)
    want = each((3, 8, 3), lambda s, i, k: at(x, s, i // 4, k) * at(y[:, :, :1], s, i % 4, k))
    torch.testing.assert_close(ran(indexer.Kron(1), x, y[:, :, :1]), want)
    y = tensor(3, 2, 5, seed=1)
    want = each((3, 2, 15), lambda s, c, k: at(x, s, c, k // 5) * at(y, s, c, k % 5))
    torch.testing.assert_close(ran(indexer.Kron(dim=(2,)), x, y), want)


@pytest.mark.parametrize("taps", [1, 2, 3, 4, 5])
def test_conv1d(taps: int) -> None:
    x, w = tensor(6, 2, 3), tensor(taps, 2, 3, seed=1).bfloat16().float()

    def one(s: int, a: int, b: int) -> float:
        inside = [k for k in range(taps) if 0 <= s + k - taps // 2 < 6]
        return sum(float(w[k, a, b] * x[s + k - taps // 2, a, b]) for k in inside)

    torch.testing.assert_close(ran(indexer.Conv1d(w.tolist(), dim=0), x), each((6, 2, 3), one))


def test_over_pages() -> None:
    weights = (X * -0.4).exp()
    torch.testing.assert_close(ran(indexer.Softmax(dim=0, scale=-0.4), X), weights / weights.sum(0))
    torch.testing.assert_close(ran(indexer.Normalize(), X), X / X.sum(0))


def test_in_place_where_the_result_is_dropped() -> None:
    x = X.clone()
    with calls.running(calls.Call("forward_indexer", DECLARED)):
        kept = indexer.Softmax()(x)
        assert torch.equal(x, X)
        indexer.Softmax()(x)
    torch.testing.assert_close(x, kept)


def test_shapes() -> None:
    torch.testing.assert_close(ran(indexer.Transpose(), X), X.mT)
    torch.testing.assert_close(ran(indexer.Reshape(-1, 8, 1), X), X.reshape(3, 8, 1))
    want = each((3, 2, 4), lambda s, a, b: 0.5 if 1 <= b < 3 else -1.0)
    torch.testing.assert_close(ran(indexer.MaskSlice(1, 3, 2, 0.5, -1.0), X), want)
    want = each((3, 2, 4), lambda s, a, b: 2.0 if a >= 1 else 0.0)
    torch.testing.assert_close(ran(indexer.MaskSlice(start=1, end=1 << 30, dim=1, alpha=2.0, beta=0.0), X), want)
