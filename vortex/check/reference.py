"""One request's step by the book (design 3), the flow's part done by its eager code or by its IR."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch

from vortex.budget import Budget, Cap
from vortex.check import choices
from vortex.check.choices import Bounds
from vortex.flow.flow import vFlow
from vortex.flow.oracle import attend, step
from vortex.ir.core import Module
from vortex.ir.dialects.flow import Return, cap_of
from vortex.ir.interpret import run_function
from vortex.ir.numerics import narrow, widen
from vortex.ir.ranking import Selected
from vortex.ir.types import TensorType
from vortex.spec import Spec


@dataclass(frozen=True, slots=True)
class Judged:
    """What one request's step should have given."""

    pages: list[list[int]]
    """The pages of each KV head, ascending."""
    selected: list[Selected | None]
    """What each head selects of the candidates; None where all pages are kept."""
    out: torch.Tensor
    """``[Hq, D]``, fp32."""


Reference: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, Budget], Judged]
"""From ``q`` ``[Hq, D]`` and ``k``, ``v`` ``[len, Hkv, D]``; under MLA ``k`` are latent rows and ``v`` is None."""

ROUNDING = 2.0**-8
"""Scores this close, relative to the largest, rank either way: summaries are sums rounded to bf16."""


def differing(mine: list[int], right: Judged, head: int, budget: Budget) -> int:
    """Pages that only one of ``mine`` and the reference kept, but for those as good as the last one kept."""
    selected = right.selected[head]
    if selected is None or list(mine) == right.pages[head]:
        return len(set(mine) ^ set(right.pages[head]))
    parts = []
    n = selected.parts[0].candidates + budget.sink + budget.recent
    for part in selected.parts:
        finite = np.abs(part.score[np.isfinite(part.score)])
        slack = np.full(part.candidates, ROUNDING * float(finite.max(initial=0.0)))
        left = budget.total(n) - budget.sink - budget.recent
        parts.append(Bounds.of(part, slack, left, mass=ROUNDING))
    cap = Cap(always=True)  # it was scored
    return choices.differing(mine, parts, n, budget, cap)[0]


def eager(flow: type[vFlow], spec: Spec) -> Reference:
    """The flow's own code, run by torch: the oracle."""

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor | None, budget: Budget) -> Judged:
        made = step(flow, spec, q, k, v, budget)
        selected = [None if x is None else x.ranked() for x in made.selected]
        return Judged(made.pages, selected, made.out)

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
    seen: list[Selected | None] = []
    cap = cap_of(module)
    outs = []
    for h in range(heads):
        group = q[h * spec.group : (h + 1) * spec.group].float()
        chosen_by = None
        kept = list(range(pages))
        if scored := cap.scored(budget, pages):
            whole = slice(budget.sink * spec.page_size, (pages - budget.recent) * spec.page_size)
            parts = (k,) if v is None else (k, v)
            tiles = [x[whole, h].float().reshape(-1, spec.page_size, dim).numpy() for x in parts]
            rows = dict(zip(spec.pools, tiles, strict=True))
            chosen_by = selected(module, group.numpy(), summarise(module, *tiles), rows, budget.sink, len(tiles[0]))
            best = chosen_by.best(cap.total(budget, pages) - budget.sink - budget.recent)
            kept = sorted({*range(budget.sink), *(budget.sink + best).tolist(), *range(budget.sink + scored, pages)})
        at = [torch.arange(p * spec.page_size, min((p + 1) * spec.page_size, length)) for p in kept]
        tokens = torch.cat(at)
        values = k[tokens, h, : spec.v_dim] if v is None else v[tokens, h]
        outs.append(attend(group, k[tokens, h], values, dim**-0.5)[0])
        chosen.append(kept)
        seen.append(chosen_by)
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


def selected(
    module: Module,
    q: Any,
    fields: Mapping[str, Any],
    rows: Mapping[str, Any],
    first: int,
    pages: int = 0,
    layer: int = 0,
) -> Selected:
    """What is selected of the candidates ``first ..`` from ``q`` ``[group, D]``, their fields and their ``rows``
    ``[pages, page, D]`` by the names of the pools; ``pages`` is their number, needed only where the flow reads neither.
    """
    index = module.functions["index"]
    given = [{**fields, **rows}[a.name] for a in index.args[1:]]
    [selection] = run_function(index, [q, *given], module, first=first, pages=pages, layer=layer)
    assert isinstance(selection, Selected)
    return selection
