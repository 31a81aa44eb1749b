"""Ragged batches for the page interpreter, all memory that must not be read poisoned with NaN."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vortex.budget import Budget
from vortex.ir.core import Module
from vortex.ir.dialects import page
from vortex.ir.dialects.flow import cap_of, of_pages
from vortex.ir.interpret import held_as, run_function
from vortex.ir.interpret_page import Batch, plan_row
from vortex.ir.numerics import narrow
from vortex.ir.ranking import Selected
from vortex.ir.types import DTYPES, TensorType

POISON = {"int8": -1, "int4": -1, "uint1": 1}
"""What fields of codes and bits are full of before they are written."""


def batch(
    flow: Module,
    lengths: Sequence[int],
    *,
    heads: int = 2,
    budget: Budget | None = None,
    new: Sequence[int] | None = None,
    stored: bool = False,
    integers: bool = True,
    seed: int = 0,
    scales: dict[str, float] | None = None,
) -> Batch:
    """A batch for ``flow`` whose last ``new`` tokens (all, when None) come with this step.

    K and V in fp8 are stored as multiples of ``scales``.
    """
    budget = budget or Budget(2)
    rng = np.random.default_rng(seed)
    size, dim, group = (int(flow.attrs[n]) for n in ("page_size", "head_dim", "group"))
    dtype = DTYPES[flow.attrs["dtype"]]
    kept = DTYPES[flow.attrs.get("kv_dtype", dtype.name)]
    scales = scales or {}
    block = page.block_size(flow)
    counts = [-(-n // size) for n in lengths]
    physical = rng.permutation(sum(counts) + 3)
    table = np.full((len(lengths), max([*counts, 1])), -(10**6), np.int32)
    at = 0
    for r, n in enumerate(counts):
        table[r, :n] = physical[at : at + n]
        at += n

    def numbers(*shape: int) -> Any:
        x = rng.integers(-4, 5, shape) if integers else rng.normal(size=shape)
        return narrow(x.astype(np.float32), dtype)

    pool = (len(physical), heads, size, dim)
    pools = ("latent",) if flow.attrs.get("kv_lora_rank") else ("k", "v")
    paged = {name: np.full(pool, np.nan, np.float32) for name in pools}
    new = list(lengths) if new is None else list(new)
    fresh: dict[str, list[Any]] = {f"{name}_new": [] for name in pools}
    loc: list[int] = []
    for r, n in enumerate(lengths):
        for t in range(n):
            slot = int(table[r, t // size]) * size + t % size
            for name in pools:
                token = numbers(heads, dim)
                if t < n - new[r] or stored:
                    token = narrow(token / np.float32(scales.get(name, 1)), kept)
                    paged[name][slot // size, :, slot % size] = token
                else:
                    fresh[f"{name}_new"].append(token)
            if t >= n - new[r] and not stored:
                loc.append(slot)
    state = {}
    for d in flow.declared("field"):
        assert isinstance(d.type, TensorType)
        if "state" in d.attrs:
            columns = (table.shape[1] * (size // block),) if d.attrs["state"] == "page" else ()
            state[d.name] = np.full((len(lengths), heads, *columns, *d.type.tile), np.nan, np.float32)
            continue
        blocks = () if block == size or "per" in d.attrs else (size // block,)
        held = held_as(d.type.dtype)
        paged[d.name] = np.full(
            (len(physical), heads, *blocks, *d.type.tile), POISON.get(d.type.dtype.name, np.nan), held
        )
    return Batch(
        state=state,
        slots=np.arange(len(lengths), dtype=np.int32)[::-1].copy() if state else (),
        head_offset=1,
        parameters=parameters(flow, layers=1, heads=heads + 1, integers=integers, seed=seed),
        q=numbers(len(lengths), heads * group, dim),
        paged=paged,
        lengths=np.array(lengths, np.int32),
        page_table=table,
        budget=budget.numbers(),
        capacity=max([min(cap_of(flow).total(budget, n), n) for n in (-(-n // block) for n in lengths)] + [1]),
        scale=0.125,
        scales=scales,
        tokens={n: np.array(x, np.float32).reshape(-1, heads, dim) for n, x in fresh.items()},
        loc=np.array(loc, np.int64),
        row_offsets=np.concatenate([[0], np.cumsum(new)]).astype(np.int32),
    )


def parameters(flow: Module, *, layers: int, heads: int, integers: bool, seed: int) -> dict[str, Any]:
    """Numbers for the parameters of ``flow``, which hold them exactly."""
    rng = np.random.default_rng(seed + 1)
    leading = {"model": (), "layer": (layers,), "head": (layers, heads)}
    made = {}
    for d in flow.declared("param"):
        assert isinstance(d.type, TensorType)
        shape = (*leading[d.attrs["per"]], *d.type.tile)
        x = rng.integers(-2, 3, shape) if integers else rng.normal(size=shape)
        made[d.name] = narrow(x.astype(np.float32), d.type.dtype)
    return made


def copy(b: Batch) -> Batch:
    """The same inputs in memory of their own."""
    return dataclasses.replace(
        b,
        paged={n: x.copy() for n, x in b.paged.items()},
        state={n: x.copy() for n, x in b.state.items()},
        workspace={},
    )


def place(b: Batch, h: int) -> dict[str, Any]:
    """Where head ``h`` of the batch is, as the flow interpreter takes it."""
    own = 2**31 - 1 if b.row_budget is None else int(b.row_budget[h])
    return {"layer": b.layer, "head": b.head_offset + h, "parameters": b.parameters, "budget": own}


def summarise(flow: Module, b: Batch) -> None:
    """What append must leave in the fields, by the flow interpreter."""
    cache = flow.functions["cache"]
    size, each, whole = page.block_size(flow), page.page_blocks(flow), of_pages(flow)
    names = cache.ops[-1].attrs["names"]
    for r, length in enumerate(b.lengths):
        for p in range(length // size):
            physical, at = b.page_table[r, p // each], p % each
            for h in range(b.heads):
                tokens = slice(at * size, (at + 1) * size)
                rows = [b.paged[n][physical, h] * b.scale_of(n) for n in ("latent", "k", "v") if n in b.paged]
                tiles = [x[tokens] for x in rows]
                made = run_function(cache, [*tiles, *rows] if whole else tiles, flow, **place(b, h))
                for name, x in zip(names, made, strict=True):
                    kind = flow.decls[name].type
                    assert isinstance(kind, TensorType)
                    where = (physical, h) if each == 1 or name in whole else (physical, h, at)
                    if name not in whole or (p // each + 1) * each * size <= length:
                        b.paged[name][where] = narrow(x, kind.dtype)


def candidates(flow: Module, b: Batch, r: int, h: int, first: int, scored: int) -> dict[str, Any]:
    """What a row's candidates hold, by name: fields as they are stored, rows of the pools times their scale."""
    each, blocks = page.page_blocks(flow), np.arange(first, first + scored)
    physical = b.page_table[r, blocks // each]
    where = (physical, h) if each == 1 else (physical, h, blocks % each)

    def rows(name: str) -> Any:
        of_pages = b.paged[name][physical, h] * b.scale_of(name)
        of_blocks = of_pages.reshape(scored, each, -1, of_pages.shape[-1])
        return of_blocks[np.arange(scored), blocks % each]

    pages, whole = b.page_table[r, np.arange(first // each, (first + scored) // each)], of_pages(flow)

    def seen(name: str) -> Any:
        if name in whole:
            return b.paged[name][pages, h]
        return rows(name) if name in ("k", "v", "latent") else b.paged[name][where]

    return {a.name: seen(a.name) for a in flow.functions["index"].args[1:]}


def oracle_selection(flow: Module, b: Batch, r: int, h: int) -> list[int]:
    """The pages of a row, by the flow interpreter on a filled cache."""
    index = flow.functions["index"]
    n, kept, first, scored = plan_row(int(b.lengths[r]), page.block_size(flow), b.budget_of(r), cap_of(flow))
    if not scored:
        return list(range(n))
    group = b.q.shape[1] // b.heads
    fields = candidates(flow, b, r, h, first, scored).values()
    (best,) = run_function(index, [b.q[r, h * group : (h + 1) * group], *fields], flow, first=first, **place(b, h))
    assert isinstance(best, Selected)
    chosen = {first + int(i) for i in best.best(kept - (n - scored))}
    return [p for p in range(n) if p in chosen or not first <= p < first + scored]


def require_selections(flow: Module, b: Batch, given: Mapping[str, Any], *about: object) -> None:
    """What kernels gave, ``pages`` and ``counts``, is in every row what the flow interpreter selects."""
    for r in range(b.requests):
        for h in range(b.heads):
            have = given["pages"][r, h, : given["counts"][r, h]].tolist()
            assert have == oracle_selection(flow, b, r, h), (*about, r, h)
