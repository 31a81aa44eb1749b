"""What torch itself refuses: a call that eager torch would not run on such element types is no flow either."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import torch

from vortex.flow.tensor import PageDim, Withheld, vTensor
from vortex.flow.tracer import active, refuse

PAGES = 2
"""Of the tensors of zeros that stand for traced ones."""
REFUSALS = {
    r"not implemented for '(Int|Long|Bool|Byte|Char|Short)'|floating point|no longer supported": "x.float() first",
    r"on a bool tensor|Bool(ean)? inputs|bool.*not supported": "make it a number: mask.float(), or mask.logical_not()",
    r"must be Tensor, not (int|float|bool)": "a tensor there: torch.full_like(x, n); or x.clamp(min=n, max=n)",
    r"must be \w+, not Tensor": "a Python number there",
    r"invalid combination of arguments|missing \d+ required|positional argument": "arguments as torch takes them",
    r"cannot be converted to type|too big to convert": "a number that the type holds; math.inf is above all floats",
    r"same dtype|expected scalar type": "one element type: x.float()",
}
"""Patterns of messages that speak of the types of the arguments, whatever their values, with what works."""


class _NoExample(Exception):
    """An argument that real tensors do not show."""


def check(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Run the call on zeros of the same types; VX1005 where torch refuses those types.

    Other errors say something of the values, which zeros have not, and are passed over.
    """
    try:
        given, named = _example(args), _example(kwargs)
    except _NoExample:
        return
    tracer = active()
    before = tracer.refused
    try:
        with warnings.catch_warnings(), torch._C.DisableTorchFunctionSubclass():
            warnings.simplefilter("ignore")
            function(*given, **named)
    except (RuntimeError, TypeError, NotImplementedError, OverflowError) as error:
        message = str(error).partition("\n")[0]
        works = next((text for pattern, text in REFUSALS.items() if re.search(pattern, message)), None)
        if works is not None:
            raise refuse(f"torch refuses it: {message}", works) from None
    except Exception:  # what zeros are to blame for, such as a division by them
        tracer.refused = before


def _example(x: Any) -> Any:
    if isinstance(x, vTensor):
        known = active().integers.of(x.value)
        if known is not None and known.python and not x.ndim:
            return 1
        return torch.zeros([d if isinstance(d, int) else PAGES for d in x.dims], dtype=x.dtype)
    if isinstance(x, PageDim):
        return PAGES
    if isinstance(x, Withheld):
        raise _NoExample
    if isinstance(x, slice):
        return slice(*(_example(b) for b in (x.start, x.stop, x.step)))
    if isinstance(x, tuple):
        return tuple(_example(i) for i in x)
    if isinstance(x, list):
        return [_example(i) for i in x]
    return {k: _example(v) for k, v in x.items()} if isinstance(x, dict) else x
