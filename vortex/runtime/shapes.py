"""What pools and queries must be to fit the shape that an artifact was compiled for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from numbers import Real

import torch

from vortex.artifact.manifest import StateEntry
from vortex.errors import SHAPE_MISMATCH, WRONG_DEVICE
from vortex.kinds.kind import KINDS
from vortex.runtime.device import architecture_of, name_of
from vortex.runtime.library import Library
from vortex.runtime.tensors import ALIGNMENT, TORCH, as_kernel_sees, as_stored, require, require_aligned, short, wrong
from vortex.spec import Spec


def compiled_for(spec: Spec, what: str, tensor: torch.Tensor, rank: int, dtype: str = "") -> None:
    """VX6001 when the head dim or type (``dtype`` for pools) of ``tensor`` is another than the artifact's."""
    if not isinstance(tensor, torch.Tensor) or tensor.dim() != rank:
        is_one = isinstance(tensor, torch.Tensor)
        got = f"has shape {list(tensor.shape)}" if is_one else f"is {type(tensor).__name__}"
        raise wrong(what, f"{got}; a tensor of {rank} axes is needed")
    want = dtype or spec.dtype
    if as_stored(tensor, TORCH[want]).dtype != TORCH[want]:
        got = short(tensor.dtype)
        flag = f"--kv-dtype {got}" if dtype and "fp8_e4m3" in (got, want) else f"--dtype {got}"
        raise SHAPE_MISMATCH.at(what=f"the type of {what}", got=got, want=want, flag=flag)
    if (dim := tensor.shape[-1]) != spec.head_dim:
        want = f"head dim {spec.head_dim}"
        flag = "--latent KV_LORA_RANK+ROPE" if spec.kv_lora_rank else f"--head-dim {dim}"
        raise SHAPE_MISMATCH.at(what=f"the head dim of {what}", got=dim, want=want, flag=flag)


def parts(spec: Spec, call: str, k: torch.Tensor, v: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """K and V, or the latent rows alone, by the names that the kernels have for them; VX6002."""
    if (v is None) != bool(spec.kv_lora_rank):
        what = "V, but there is none under MLA: None" if v is not None else "no V; K and V"
        raise wrong(call, f"has {what} are needed")
    return dict(zip(spec.pools, (k,) if v is None else (k, v), strict=True))


def check_pools(
    library: Library, pools: Mapping[str, torch.Tensor], device: torch.device | None
) -> tuple[torch.device, int, int]:
    """Device, pages and KV heads of a layer's pools, on ``device`` if there are others on it.

    Raises:
        VortexError: VX6001 for a shape or type that the artifact lacks, VX6002 for another device than the other
            layers' or the library's, VX6009 for a GPU of another architecture than the library's.
    """
    spec = library.manifest.spec
    for part, pool in pools.items():
        name = f"{part}_pool"
        compiled_for(spec, name, pool, 4, spec.kv_dtype)
        if pool.shape[2] != spec.page_size:
            got, want = int(pool.shape[2]), f"page size {spec.page_size}"
            raise SHAPE_MISMATCH.at(what=f"the page size of {name}", got=got, want=want, flag=f"--page-size {got}")
    first, pool = next(iter(pools.items()))
    here, kind = pool.device, library.device
    if here.type != kind.kind:
        raise wrong(f"{first}_pool", f"is on {here}; {kind.kind} is needed, where the library of {library.name} runs")
    have = kind.architecture(here)
    if have and have != architecture_of(library.name):
        where = f"{first}_pool is on {name_of(here, kind)}"
        raise WRONG_DEVICE.at(what=f"the artifact's library of '{library.manifest.flow}'", target=library.name,
                              where=where)  # fmt: skip
    pages, heads = int(pool.shape[0]), int(pool.shape[1])
    if spec.kv_lora_rank and heads != 1:
        raise wrong("latent_pool", f"has {heads} rows a token; all query heads share one, so [P, 1, page, D]")
    shape = (pages, heads, spec.page_size, spec.head_dim)
    for name, pool in pools.items():
        kept = TORCH[spec.kv_dtype]
        require(f"{name}_pool", as_stored(pool, kept), kept, shape, device or here, strided=True)
        if library.name != "cpu":
            require_aligned(f"{name}_pool", pool)
    if library.name != "cpu" and pages * heads * spec.page_blocks >= 2**31:
        summaries = pages * heads * spec.page_blocks
        raise wrong(f"{first}_pool", f"has {summaries} pages (or blocks) and heads; a GPU counts fewer than 2^31")
    return here, pages, heads


def check_scales(spec: Spec, **scales: float) -> dict[str, float]:
    """The scales of a layer's pools as kernels take them; VX6002 for one that is not a positive number, or not 1 where
    pools have none.
    """
    for name, scale in scales.items():
        if not (isinstance(scale, Real) and not isinstance(scale, bool) and 0 < scale < 3e38):
            raise wrong(name, f"is {scale!r}; a positive number is needed")
        if scale != 1 and not spec.scaled:
            kept = "latent rows" if spec.kv_lora_rank else "K and V"
            raise wrong(name, f"is {scale}; {kept} in {spec.kv_dtype} have no scale, so 1 is needed")
        if scale != 1 and spec.kv_lora_rank and name != "k_scale":
            raise wrong(name, f"is {scale}; latent rows have one scale, k_scale, so 1 is needed")
    return {name: float(scale) for name, scale in scales.items()}


def check_fields(
    library: Library, given: Mapping[str, torch.Tensor], pages: int, heads: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """The summaries of a layer as kernels take them, by the names of their arguments; VX6002 for what is missing,
    unknown or of another shape or type.
    """
    fields = library.manifest.fields
    if odd := given.keys() ^ {f.name for f in fields}:
        known = [f.name for f in fields]
        raise wrong("fields", f"of the flow are {known}; missing or unknown: {sorted(odd)}")
    made: dict[str, torch.Tensor] = {}
    for f in fields:
        what, shape = f"field '{f.name}'", (pages, heads, *f.packed)
        if f.packed != f.tile:
            what += f", {f.dtype}{list(f.tile)} packed in bytes,"
        held = require(what, given[f.name], TORCH[f.dtype], shape, device)
        if library.name != "cpu" and held.data_ptr() % ALIGNMENT:
            require_aligned(what, held)
        made[f"field.{f.name}"] = as_kernel_sees(held)
    return made


def check_states(
    states: Sequence[StateEntry], given: Mapping[str, torch.Tensor], heads: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """The state of a layer as kernels take it, by the names of their arguments; VX6002 for what is missing, unknown or
    of another shape or type.
    """
    if odd := given.keys() ^ {s.name for s in states}:
        raise wrong("state", f"of the flow is {[s.name for s in states]}; missing or unknown: {sorted(odd)}")
    made: dict[str, torch.Tensor] = {}
    for s in states:
        shape: tuple[int | str, ...] = ("slots", heads, *(("columns",) if s.per == "page" else ()), *s.tile)
        held = require(f"state '{s.name}'", given[s.name], TORCH[s.dtype], shape, device)
        made[f"state.{s.name}"] = as_kernel_sees(held)
        if 0 in held.shape:
            raise wrong(f"state '{s.name}'", f"has shape {list(held.shape)}; at least one slot and page is needed")
    if len({x.shape[0] for x in made.values()}) > 1:
        raise wrong("state", f"has {sorted({int(x.shape[0]) for x in made.values()})} slots; all have the same number")
    return made


def check_queries(spec: Spec, q: torch.Tensor, batch: int, kv_heads: int, device: torch.device | None) -> None:
    """``q`` is ``[batch, kv_heads * group, D]``; VX6001, VX6002 otherwise."""
    compiled_for(spec, "q", q, 3)
    got, want = int(q.shape[1]), kv_heads * spec.group
    if got != want:
        heads = f"{spec.group} query heads to a KV head, so {want}"
        flag = f"--heads {got}/{kv_heads}" if got % kv_heads == 0 else "--heads QUERY/KV"
        what = f"the number of query heads over {kv_heads} KV heads"
        raise SHAPE_MISMATCH.at(what=what, got=got, want=heads, flag=flag)
    require("q", q, TORCH[spec.dtype], (batch, want, spec.head_dim), device)


def check_given(
    kind: str, taken: Set[str], given: Mapping[str, object], sizes: Mapping[str, int], device: torch.device | None
) -> None:
    """``given`` is what kernels of a kind that is launched by its name take of the caller, as the kind declares it;
    ``taken`` are all their arguments, ``sizes`` those of the step by name. VX6002 otherwise.
    """
    if kind not in KINDS or KINDS[kind].call:
        alone = [k.name for k in KINDS.values() if not k.call]
        raise wrong("kind", f"is {kind!r}; of the kinds that no other call launches there are {alone}")
    callers = {a.name: a for a in KINDS[kind].arguments if a.giver == "call"}
    if odd := (given.keys() - callers.keys()) | ((callers.keys() & taken) - given.keys()):
        raise wrong(f"'{kind}'", f"takes {sorted(callers)}; missing or unknown: {sorted(odd)}")
    for name, value in given.items():
        if shape := callers[name].shape:
            dims = tuple(d if isinstance(d, int) else sizes[d] for d in shape)
            require(name, value, TORCH[callers[name].dtype], dims, device)
