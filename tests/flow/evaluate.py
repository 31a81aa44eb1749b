"""A function of a flow module on numpy arrays, op by op."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from vortex.flow.oracle import TORCH
from vortex.ir.core import Module
from vortex.ir.dialects import flow
from vortex.ir.types import TensorType


def run(
    module: Module,
    args: dict[str, torch.Tensor],
    pages: int,
    name: str = "index",
    layer: int = 0,
    head: int = 0,
    parameters: Mapping[str, torch.Tensor] | None = None,
) -> list[Any]:
    """The values that the function returns; for a selection its score."""
    f = module.functions[name]
    env: dict[Any, Any] = {a: _array(args[a.name]) for a in f.args}
    for o in f.ops:
        given = [env[v] for v in o.operands]
        if isinstance(o, flow.Return):
            return given
        with np.errstate(all="ignore"):
            env[o.value] = _leaf(module, o, pages, layer, head, parameters or {}) if not given else _run(o, given)
        if isinstance(o.value.type, TensorType):
            want = tuple(d if isinstance(d, int) else pages for d in o.value.type.shape)
            assert np.shape(env[o.value]) == want, f"{o.name}: {np.shape(env[o.value])} is not {want}"
    raise AssertionError("no flow.return")


def _run(o: Any, given: list[Any]) -> Any:
    return given[0] if isinstance(o, flow.Selection) else o.evaluate(*given)


def _leaf(module: Module, o: Any, pages: int, layer: int, head: int, parameters: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(o, flow.Param):
        return _array(parameters[o.symbol][{"model": (), "layer": (layer,), "head": (layer, head)}[o.per]])
    if isinstance(o, flow.Head):
        return np.int32(head)
    if isinstance(o, flow.Resource):
        d = module.decls[o.symbol]
        assert isinstance(d.type, TensorType)
        dtype = {"i32": torch.int32, "bool": torch.bool, **TORCH}[d.type.dtype.name]
        raw = bytearray(base64.b64decode(d.attrs["data"]))
        x = torch.frombuffer(raw, dtype=dtype) if raw else torch.zeros(0, dtype=dtype)
        return _array(x.reshape(tuple(d.type.tile)))
    if isinstance(o, flow.Layer):
        return np.int32(layer)
    if isinstance(o, flow.PageIndex):
        return np.arange(pages, dtype=np.int32)
    if isinstance(o, flow.PageCount):
        return np.int32(pages)
    return o.evaluate()


def _array(x: torch.Tensor) -> Any:
    return x.float().numpy() if x.dtype.is_floating_point else x.numpy()
