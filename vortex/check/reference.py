"""One request's step by the book (design 3), the flow's part done by its eager code or by its IR."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch

from vortex.budget import Budget
from vortex.flow.flow import vFlow
from vortex.flow.oracle import Scores, attend, select_pages, step
from vortex.ir.core import Module
from vortex.ir.dialects.flow import Return
from vortex.ir.interpret import run_function
from vortex.ir.numerics import narrow, widen
from vortex.ir.types import TensorType
from vortex.spec import Spec


@dataclass(frozen=True, slots=True)
class Judged:
    """What one request's step should have given."""

    pages: list[list[int]]
    """The pages of each KV head, ascending."""
    scores: list[torch.Tensor | None]
    """Each head's scores of the candidates; None where all pages are kept."""
    out: torch.Tensor
    """``[Hq, D]``, fp32."""


Reference: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, Budget], Judged]
"""From ``q`` ``[Hq, D]`` and ``k``, ``v`` ``[len, Hkv, D]``; under MLA ``k`` are latent rows and ``v`` is None."""

ROUNDING = 2.0**-8
"""Scores this close, relative to the largest, rank either way: summaries are sums rounded to bf16."""


def differing(mine: list[int], right: Judged, head: int, budget: Budget) -> int:
    """Pages that only one of ``mine`` and the reference kept, but for those as good as the last one kept."""
    odd = set(mine) ^ set(right.pages[head])
    scores = right.scores[head]
    if scores is None or not odd:
        return len(odd)
    ranked = [float(scores[p - budget.sink]) for p in right.pages[head] if 0 <= p - budget.sink < len(scores)]
    slack = ROUNDING * float(scores[scores.isfinite()].abs().max()) if bool(scores.isfinite().any()) else 0.0
    last = min(ranked, default=0.0)
    return sum(not abs(float(scores[p - budget.sink]) - last) <= slack for p in odd)


def eager(flow: type[vFlow], spec: Spec) -> Reference:
    """The flow's own code, run by torch: the oracle."""

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor | None, budget: Budget) -> Judged:
        made = step(flow, spec, q, k, v, budget)
        return Judged(made.pages, made.scores, made.out)

    return run


def interpreted(module: Module, spec: Spec) -> Reference:
    """Flow IR under the reference interpreter."""
    return partial(_interpret, module, spec)


def _interpret(
    module: Module, spec: Spec, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor | None, budget: Budget
) -> Judged:
    length, heads, dim = k.shape
    pages = -(-length // spec.page_size)
    chosen: list[list[int]] = []
    seen: list[torch.Tensor | None] = []
    outs = []
    for h in range(heads):
        group = q[h * spec.group : (h + 1) * spec.group].float()
        found, scores = None, torch.empty(0)
        if pages > budget.total(pages):
            whole = slice(budget.sink * spec.page_size, (pages - budget.recent) * spec.page_size)
            parts = (k,) if v is None else (k, v)
            tiles = [x[whole, h].float().reshape(-1, spec.page_size, dim).numpy() for x in parts]
            rows = dict(zip(spec.pools, tiles, strict=True))
            found = scores_of(module, group.numpy(), summarise(module, *tiles), rows, budget.sink, len(tiles[0]))
            scores = found.over(len(tiles[0]))
        kept = select_pages(scores if found is None else found, pages, budget)
        at = [torch.arange(p * spec.page_size, min((p + 1) * spec.page_size, length)) for p in kept]
        tokens = torch.cat(at)
        values = k[tokens, h, : spec.v_dim] if v is None else v[tokens, h]
        outs.append(attend(group, k[tokens, h], values, dim**-0.5)[0])
        chosen.append(kept)
        seen.append(scores if len(scores) else None)
    return Judged(chosen, seen, torch.cat(outs))


def summarise(module: Module, *parts: Any, layer: int = 0) -> dict[str, Any]:
    """The fields of full pages from their ``parts`` ``[pages, page, D]``, K and V or latent rows, as they are stored:
    ``{name: [pages, *tile]}``.
    """
    cache = module.functions["cache"]
    stored = {d.name: d.type.dtype for d in module.declared("field") if isinstance(d.type, TensorType)}
    end = cache.ops[-1]
    assert isinstance(end, Return)
    made: dict[str, list[Any]] = {name: [] for name in end.names}
    for of_page in zip(*parts, strict=True):
        for name, x in zip(end.names, run_function(cache, list(of_page), module, layer=layer), strict=True):
            made[name].append(widen(narrow(x, stored[name])))
    return {name: np.stack(x) for name, x in made.items()}


def scores_of(
    module: Module,
    q: Any,
    fields: Mapping[str, Any],
    rows: Mapping[str, Any],
    first: int,
    pages: int = 0,
    layer: int = 0,
) -> Scores:
    """The scores, fp32, of the candidates ``first ..`` from ``q`` ``[group, D]``, their fields and their rows
    ``[pages, page, D]`` by the names of the pools; ``pages`` is their number, needed only where the flow reads neither.
    """
    index = module.functions["index"]
    given = [{**fields, **rows}[a.name] for a in index.args[1:]]
    [selection] = run_function(index, [q, *given], module, first=first, pages=pages, layer=layer)
    near = None if selection.near is None else torch.from_numpy(np.asarray(selection.near, np.int64))
    return Scores(torch.from_numpy(np.asarray(selection.score, np.float32)), near)
