"""What torch computes in a flow, where torch itself leaves it open or rounds more often."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Fp32Arithmetic(TorchFunctionMode):
    """Narrow floats are storage: a cast rounds, what is computed from the result is fp32 again.

    It holds for what a flow computes of real tensors while it is traced, and for all that it computes eagerly.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        stable = STABLE.get(func)
        if stable is not None and isinstance(args[0], Tensor) and args[0].ndim:
            return _widened(stable(*args, **(kwargs or {})))
        return _widened(func(*args, **(kwargs or {})))


def _sort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = True) -> Any:
    return torch.sort(input, dim=dim, descending=descending, stable=True)


def _argsort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
    return torch.argsort(input, dim=dim, descending=descending, stable=True)


def _topk(input: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    values, indices = torch.sort(input, dim=dim, descending=largest, stable=True)
    return torch.return_types.topk((values.narrow(dim, 0, k), indices.narrow(dim, 0, k)))


def _kthvalue(input: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    values, indices = (x.narrow(dim, k - 1, 1) for x in torch.sort(input, dim=dim, stable=True))
    return torch.return_types.kthvalue((values, indices) if keepdim else (values.squeeze(dim), indices.squeeze(dim)))


STABLE: dict[Any, Callable[..., Any]] = {
    getattr(scope, f.__name__[1:]): f for scope in (torch, Tensor) for f in (_sort, _argsort, _topk, _kthvalue)
}
"""What torch computes where it leaves open which of equal elements comes first: the one with the lower index does."""


def _widened(x: Any) -> Any:
    if isinstance(x, Tensor) and x.dtype in (torch.bfloat16, torch.float16, torch.float8_e4m3fn):
        with torch._C.DisableTorchFunction():
            return x.float()
    if type(x) in (tuple, list):
        return type(x)(_widened(i) for i in x)
    return x
