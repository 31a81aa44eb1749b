"""One request's step by the book (design 3), the flow's part done by its eager code or by its IR."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch

from vortex.budget import Budget, Cap
from vortex.check import choices
from vortex.check.choices import Bounds
from vortex.flow.flow import vFlow
from vortex.flow.oracle import attend, candidates_of, cap, step
from vortex.ir.core import Decl, Module
from vortex.ir.dialects.flow import Return, blocks_of_page, cap_of, of_pages
from vortex.ir.interpret import began, held_as, run_function
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
    total: int
    """How many pages there are."""
    cap: Cap
    """What bounds those that are selected."""


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
    n = right.total
    for part in selected.parts:
        finite = np.abs(part.score[np.isfinite(part.score)])
        slack = np.full(part.candidates, ROUNDING * float(finite.max(initial=0.0)))
        left = budget.total(n) - budget.sink - budget.recent
        parts.append(Bounds.of(part, slack, left, mass=ROUNDING))
    cap = replace(right.cap, always=True)  # it was scored
    return choices.differing(mine, parts, n, budget, cap)[0]


def eager(flow: type[vFlow], spec: Spec, parameters: Mapping[str, torch.Tensor] | None = None) -> Reference:
    """The flow's own code, run by torch: the oracle. ``parameters`` are all sets of its parameters."""

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor | None, budget: Budget) -> Judged:
        made = step(flow, spec, q, k, v, budget, parameters=parameters)
        selected = [None if x is None else x.ranked() for x in made.selected]
        return Judged(made.pages, selected, made.out, -(-len(k) // spec.block_size), cap(flow, spec))

    return run


def interpreted(module: Module, spec: Spec) -> Reference:
    """Flow IR under the reference interpreter."""
    return partial(_interpret, module, spec)


def _interpret(
    module: Module, spec: Spec, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor | None, budget: Budget
) -> Judged:
    length, heads, dim = k.shape
    pages = -(-length // spec.block_size)
    chosen: list[list[int]] = []
    seen: list[Selected | None] = []
    bound = cap_of(module)
    outs = []
    for h in range(heads):
        group = q[h * spec.group : (h + 1) * spec.group].float()
        chosen_by = None
        kept = list(range(pages))
        if scored := bound.scored(budget, pages):
            candidates = bound.candidates(budget, pages)
            first, last = candidates.start, candidates.stop
            whole = slice(first * spec.block_size, last * spec.block_size)
            parts = (k,) if v is None else (k, v)
            tiles = [x[whole, h].float().reshape(-1, spec.block_size, dim).numpy() for x in parts]
            chosen_by = selected(module, group.numpy(), summarise(module, *tiles), first, len(tiles[0]))
            best = chosen_by.best(bound.most(budget, pages))
            kept = sorted({*range(first), *(first + best).tolist(), *range(first + scored, pages)})
        at = [torch.arange(p * spec.block_size, min((p + 1) * spec.block_size, length)) for p in kept]
        tokens = torch.cat(at)
        values = k[tokens, h, : spec.v_dim] if v is None else v[tokens, h]
        outs.append(attend(group, k[tokens, h], values, dim**-0.5)[0])
        chosen.append(kept)
        seen.append(chosen_by)
    return Judged(chosen, seen, torch.cat(outs), pages, bound)


def summarise(
    module: Module, *parts: Any, layer: int = 0, head: int = 0, parameters: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The fields of full pages (blocks, where pages have several) from their ``parts`` ``[pages, page, D]``, K and V or
    latent rows, as they are stored: ``{name: [pages, *tile]}``; a field of whole pages has a row for each full one.
    """
    cache = module.functions["cache"]
    declared = module.declared("field")
    stored = {d.name: d.type.dtype for d in declared if isinstance(d.type, TensorType)}
    end = cache.ops[-1]
    assert isinstance(end, Return)
    made: dict[str, list[Any]] = {name: [] for name in end.names}
    whole = of_pages(module)
    blocks = blocks_of_page(module) if whole else 1
    for p, of_block in enumerate(zip(*parts, strict=True)):
        first = p - p % blocks
        full = first + blocks <= len(parts[0])
        rows = list(of_block)
        if whole:
            none = [np.zeros((blocks * x.shape[1], x.shape[2]), x.dtype) for x in parts]
            rows += [x[first : first + blocks].reshape(-1, x.shape[-1]) for x in parts] if full else none
        values = run_function(cache, rows, module, layer=layer, head=head, parameters=parameters)
        for name, x in zip(end.names, values, strict=True):
            if name not in whole or (full and p == first):
                made[name].append(np.asarray(narrow(x, stored[name]), held_as(stored[name])))
    tiles = {d.name: d.type.tile for d in declared if isinstance(d.type, TensorType)}
    empty = {n: np.zeros((0, *tile), held_as(stored[n])) for n, tile in tiles.items()}
    return {name: np.stack(x) if x else empty[name] for name, x in made.items()}


def selected(
    module: Module,
    q: Any,
    fields: Mapping[str, Any],
    first: int,
    pages: int = 0,
) -> Selected:
    """What :func:`indexed` selects in the first layer and head, with state as it begins."""
    return indexed(module, q, fields, first, pages)[0]


def indexed(
    module: Module,
    q: Any,
    fields: Mapping[str, Any],
    first: int,
    pages: int = 0,
    layer: int = 0,
    head: int = 0,
    parameters: Mapping[str, Any] | None = None,
    state: Mapping[str, Any] | None = None,
    budget: int = 2**31 - 1,
) -> tuple[Selected, dict[str, Any]]:
    """What is selected of the candidates ``first ..`` from ``q`` ``[group, D]`` and their fields, with their own rows
    ``[pages, page, D]`` by the names of the pools beside them where the flow reads these; and what each state field
    becomes. ``pages`` is their number, needed only where the flow has no fields. ``state`` is as it begins unless
    given; ``budget`` is the row's own, where rows have one.
    """
    index = module.functions["index"]
    pages = candidates_of(module, {name: len(x) for name, x in fields.items()}, pages)
    known = {**fields, **(state or {d.name: began(d, pages) for d in states_of(module)})}
    given = [known[a.name] for a in index.args[1:]]
    where: dict[str, Any] = {"layer": layer, "head": head, "parameters": parameters, "budget": budget}
    selection, *new = run_function(index, [q, *given], module, first=first, pages=pages, **where)
    assert isinstance(selection, Selected)
    end = index.ops[-1]
    assert isinstance(end, Return)
    return selection, dict(zip(end.names[1:], new, strict=True))


def states_of(module: Module) -> list[Decl]:
    """The state that a flow declares."""
    return [d for d in module.declared("field") if "state" in d.attrs]


class State:
    """The state of one request in one layer, for each of its KV heads, as flow IR makes it step by step."""

    def __init__(self, module: Module, heads: int) -> None:
        self._decls = states_of(module)
        self.kept = [{d.name: began(d, 0) for d in self._decls} for _ in range(heads)]
        """By head and name, ``[pages, *tile]`` or ``[*tile]``; later pages are as they begin."""

    def read(self, head: int, pages: slice) -> dict[str, Any]:
        """What @index sees of it over these candidates."""
        mine = self.kept[head]
        for d in self._decls:
            if d.attrs["state"] == "page" and len(mine[d.name]) < pages.stop:
                mine[d.name] = np.concatenate([mine[d.name], began(d, pages.stop - len(mine[d.name]))])
        return {d.name: mine[d.name][pages if d.attrs["state"] == "page" else ...] for d in self._decls}

    def write(self, head: int, new: Mapping[str, Any], pages: slice) -> None:
        """Keep what @index made of it, as it is stored."""
        for d in self._decls:
            assert isinstance(d.type, TensorType)
            x = widen(narrow(new[d.name], d.type.dtype))
            if d.attrs["state"] == "page":
                self.kept[head][d.name][pages] = x
            else:
                self.kept[head][d.name] = x
