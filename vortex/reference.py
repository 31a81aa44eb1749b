"""One request's step by the book (design 3), the flow's part done by its eager code or by its IR."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch

from vortex.budget import Budget
from vortex.flow.flow import vFlow
from vortex.flow.oracle import attend, select_pages, step
from vortex.ir.core import Module
from vortex.ir.dialects.flow import Return
from vortex.ir.interpret import run_function
from vortex.ir.numerics import narrow, widen
from vortex.ir.types import TensorType
from vortex.spec import Spec

Reference: TypeAlias = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, Budget], tuple[list[list[int]], torch.Tensor]
]
"""The pages of each KV head and the output ``[Hq, D]``, from ``q`` ``[Hq, D]`` and ``k``, ``v`` ``[len, Hkv, D]``."""


def eager(flow: type[vFlow], spec: Spec) -> Reference:
    """The flow's own code, run by torch: the oracle."""

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, budget: Budget) -> tuple[list[list[int]], torch.Tensor]:
        made = step(flow, spec, q, k, v, budget)
        return made.pages, made.out

    return run


def interpreted(module: Module, spec: Spec) -> Reference:
    """Flow IR under the reference interpreter."""
    return partial(_interpret, module, spec)


def _interpret(
    module: Module, spec: Spec, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, budget: Budget
) -> tuple[list[list[int]], torch.Tensor]:
    length, heads, dim = k.shape
    pages = -(-length // spec.page_size)
    chosen, outs = [], []
    for h in range(heads):
        group = q[h * spec.group : (h + 1) * spec.group].float()
        scores = torch.empty(0)
        if pages > budget.total(pages):
            whole = slice(budget.sink * spec.page_size, (pages - budget.recent) * spec.page_size)
            tiles = [x[whole, h].float().reshape(-1, spec.page_size, dim).numpy() for x in (k, v)]
            scores = torch.from_numpy(_scores(module, budget.sink, group.numpy(), *tiles))
        kept = select_pages(scores, pages, budget)
        at = [torch.arange(p * spec.page_size, min((p + 1) * spec.page_size, length)) for p in kept]
        tokens = torch.cat(at)
        outs.append(attend(group, k[tokens, h], v[tokens, h], dim**-0.5)[0])
        chosen.append(kept)
    return chosen, torch.cat(outs)


def _scores(module: Module, first: int, q: Any, k_pages: Any, v_pages: Any) -> Any:
    """The score of every candidate page."""
    cache, index = module.functions["cache"], module.functions["index"]
    stored = {d.name: d.type.dtype for d in module.declared("field") if isinstance(d.type, TensorType)}
    end = cache.ops[-1]
    assert isinstance(end, Return)
    made: dict[str, list[Any]] = {name: [] for name in end.names}
    for k, v in zip(k_pages, v_pages, strict=True):
        for name, x in zip(end.names, run_function(cache, [k, v], module), strict=True):
            made[name].append(widen(narrow(x, stored[name])))
    fields = [np.stack(made[a.name]) for a in index.args[1:]]
    [selection] = run_function(index, [q, *fields], module, first=first, pages=len(k_pages))
    return np.asarray(selection.score, np.float32)
