"""``vortex.decode``: one decode step of a flow over plain tensors, for who wants to see what it selects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

import torch

from vortex.api.compile import compile
from vortex.budget import Budget
from vortex.flow import oracle
from vortex.flow.flow import check_class, find_flow, vFlow
from vortex.flow.trace import trace
from vortex.runtime.compiled import CUDA_TARGETS, ModelShape, artifact_for, identity_of, kept
from vortex.runtime.decoder import load
from vortex.runtime.paged_cache import PagedCache
from vortex.runtime.parameters import Parameters
from vortex.runtime.tensors import SHORT, require, require_integer, require_number, short, wrong
from vortex.spec import Spec

Tensor = torch.Tensor
Flow = str | Path | vFlow | type[vFlow]
Given = str | Path | Mapping[str, Tensor] | None

DTYPES = ("bf16", "f16", "f32")
"""What queries, keys and values may be."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A step of :func:`decode`: B requests, Hq query heads, Hkv KV heads, head dim D."""

    out: Tensor
    """Attention over the selected pages, ``[B, Hq, D]``, of the type and on the device of ``q``."""
    lse: Tensor
    """Natural log-sum-exp of its logits, f32 ``[B, Hq]``: how much the selected pages weigh."""
    pages: list[list[list[int]]]
    """For each request and KV head the logical pages that were read, ascending."""


@overload
def decode(
    flow: Flow,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    budget: Budget | int,
    lengths: Tensor | Sequence[int] | None = None,
    page_size: int = 16,
    scale: float | None = None,
    parameters: Given = None,
    compiled: bool = False,
    details: Literal[False] = False,
) -> Tensor: ...


@overload
def decode(
    flow: Flow,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    budget: Budget | int,
    lengths: Tensor | Sequence[int] | None = None,
    page_size: int = 16,
    scale: float | None = None,
    parameters: Given = None,
    compiled: bool = False,
    details: Literal[True],
) -> Decoded: ...


def decode(
    flow: str | Path | vFlow | type[vFlow],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    budget: Budget | int,
    lengths: Tensor | Sequence[int] | None = None,
    page_size: int = 16,
    scale: float | None = None,
    parameters: str | Path | Mapping[str, Tensor] | None = None,
    compiled: bool = False,
    details: bool = False,
) -> Tensor | Decoded:
    """One decode step of ``flow`` over whole contexts: what each request's newest token attends to, and what comes out.

    Every call summarises the whole context anew, so this is for trying a flow; programs that decode token after token
    use :func:`vortex.load` and a :class:`vortex.PagedCache`. The step is layer 0 of a model with Hkv KV heads, and
    state of a flow is as it begins.

    Args:
        flow: the name of a flow that comes with vortex, ``file.py``, ``file.py:name``, or a class or object; compiled,
            also an artifact.
        q: queries of the newest token, bf16, f16 or f32 ``[B, Hq, D]``.
        k: keys of all tokens, the newest included, ``[B, T, Hkv, D]``, of the type and on the device of ``q``.
        v: values, as ``k``.
        budget: how many pages a row may read; an integer n stands for ``vortex.Budget(pages=n)``.
        lengths: tokens of each request, at most T each; the rest of its row is padding. All have T unless given.
        page_size: tokens of a page.
        scale: what logits are multiplied by; 1/sqrt(D) unless given.
        parameters: the weights of a flow that has some: a file of safetensors, or tensors by name.
        compiled: run the flow's kernels instead of its own torch code: compiled when a shape is new (seconds), and then
            kept in vortex's cache. The torch code runs on the CPU, wherever the tensors are.
        details: return log-sum-exp and pages as well.

    Returns:
        ``[B, Hq, D]``, like ``q``; with ``details`` a :class:`Decoded`.

    Raises:
        VortexError: VX6002 for an argument of the wrong shape, type or device, which it names; VX1018 for a flow that
            is not there, VX1xxx where it cannot be traced; compiled, what compiling and loading raise.
    """
    require_integer("page_size", page_size, 1)
    budget = budget if isinstance(budget, Budget) else Budget(pages=require_integer("budget", budget))
    spec = _shape(q, k, v, page_size, budget)
    tokens = _lengths(lengths, k.shape[0], k.shape[1])
    q, k, v = (x.detach() for x in (q, k, v))
    if not isinstance(flow, str | Path):
        check_class(flow if isinstance(flow, type) else type(flow))
    if scale is not None:
        require_number("scale", scale)
    if parameters is not None and not isinstance(parameters, str | Path | Mapping):
        raise wrong("parameters", f"is {type(parameters).__name__}; a file, or tensors by name, are needed")
    step = _Step(str(flow) if isinstance(flow, Path) else flow, spec, q, k, v, tokens, budget, scale, parameters)
    done = _compiled(step) if compiled else _eager(step)
    return done if details else done.out


@dataclass(frozen=True, slots=True)
class _Step:
    """The arguments of a call, checked."""

    flow: str | vFlow | type[vFlow]
    spec: Spec
    q: Tensor
    k: Tensor
    v: Tensor
    tokens: list[int]
    budget: Budget
    scale: float | None
    parameters: Given


def _shape(q: Tensor, k: Tensor, v: Tensor, page_size: int, budget: Budget) -> Spec:
    """The model's shape that the tensors have; VX6002 naming the one that does not fit."""
    for name, x, axes in (("q", q, "[B, Hq, D]"), ("k", k, "[B, T, Hkv, D]"), ("v", v, "[B, T, Hkv, D]")):
        if not isinstance(x, Tensor):
            raise wrong(name, f"is {type(x).__name__}; a torch tensor {axes} is needed")
        if x.dim() != axes.count(",") + 1 or 0 in x.shape:
            raise wrong(name, f"has shape {list(x.shape)}; {axes} is needed, no size of which is 0")
    if q.is_meta:
        raise wrong("q", "is on meta, where tensors have no numbers")
    if SHORT.get(q.dtype) not in DTYPES:
        raise wrong("q", f"is {short(q.dtype)}; {', '.join(DTYPES)} can be decoded")
    batch, heads, dim = q.shape
    require("k", k, q.dtype, (batch, "T", "Hkv", dim), q.device, strided=True)
    require("v", v, q.dtype, tuple(k.shape), q.device, strided=True)
    kv_heads = k.shape[2]
    if heads % kv_heads:
        way = "[B, T, Hkv, D] is needed"
        if heads % k.shape[1] == 0:
            way += ", and this looks like [B, Hkv, T, D]: give k.transpose(1, 2) and v.transpose(1, 2)"
        raise wrong("k", f"has {kv_heads} KV heads, into which the {heads} query heads of q do not divide; {way}")
    table = bool(budget.table)
    return Spec(page_size=page_size, head_dim=dim, group=heads // kv_heads, dtype=SHORT[q.dtype], budget_table=table)


def _lengths(given: Tensor | Sequence[int] | None, batch: int, longest: int) -> list[int]:
    """The tokens of each request; VX6002."""
    if given is None:
        return [longest] * batch
    if isinstance(given, Tensor) and given.dim() != 1:
        raise wrong("lengths", f"has shape {list(given.shape)}; [B] is needed")
    if not isinstance(given, Tensor | Sequence):
        raise wrong("lengths", f"is {type(given).__name__}; a number for each request is needed")
    listed = given.tolist() if isinstance(given, Tensor) else list(given)
    if len(listed) != batch:
        raise wrong("lengths", f"has {len(listed)} numbers; q has {batch} requests")
    found = [require_integer(f"lengths[{row}]", n, 1) for row, n in enumerate(listed)]
    for row, n in enumerate(found):
        if n > longest:
            raise wrong(f"lengths[{row}]", f"is {n}; k has {longest} tokens")
    return found


def _eager(s: _Step) -> Decoded:
    """By the flow's own torch code, one request after another."""
    flow = find_flow(s.flow) if isinstance(s.flow, str) else s.flow
    weights = None if s.parameters is None else Parameters.of_program(trace(flow, s.spec), s.parameters).tensors
    q, k, v = (x.cpu() for x in (s.q, s.k, s.v))
    rows = [
        oracle.step(flow, s.spec, q[row], k[row, :n], v[row, :n], s.budget, s.scale, parameters=weights)
        for row, n in enumerate(s.tokens)
    ]
    out, lse = torch.stack([x.out for x in rows]), torch.stack([x.lse for x in rows])
    return Decoded(out.to(s.q), lse.to(s.q.device), [x.pages for x in rows])


def _compiled(s: _Step) -> Decoded:
    """By its kernels, over a cache of the call's own."""
    device, kv_heads, target = s.q.device, s.k.shape[2], _target(s.q.device)
    decoder = load(_artifact(s.flow, s.spec, kv_heads, target), target=target, budget=s.budget, parameters=s.parameters)
    each = [-(-n // s.spec.page_size) for n in s.tokens]
    cache = PagedCache(
        sum(each),
        kv_heads,
        s.spec,
        decoder.fields,
        device=device,
        states=decoder.states,
        slots=len(each),
        columns=max(each),
    )
    requests = range(len(each))
    for request in requests:
        cache.add(request)
    loc, row_offsets = cache.extend_batch(requests, s.tokens)
    k, v = (torch.cat([x[row, :n] for row, n in enumerate(s.tokens)]) for x in (s.k, s.v))
    q = s.q.contiguous()
    out, lse = torch.empty_like(q), torch.empty(q.shape[:2], dtype=torch.float32, device=device)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        decoder.bind(0, cache.k[0], cache.v[0], cache.fields[0], state=cache.state[0])
        decoder.plan(cache.lengths(requests), cache.page_table(requests), cache.slots(requests))
        decoder.append(0, k, v, loc, row_offsets)
        decoder.decode(0, q, out=out, lse=lse, scale=s.scale)
    assert decoder.pages is not None
    assert decoder.counts is not None
    listed, counts = decoder.pages.tolist(), decoder.counts.tolist()
    pages = [[row[:n] for row, n in zip(*rows, strict=True)] for rows in zip(listed, counts, strict=True)]
    return Decoded(out, lse, pages)


def _target(device: torch.device) -> str:
    """The target whose kernels run there; VX6002 where none do."""
    if device.type == "cpu":
        return "cpu"
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    if capability not in CUDA_TARGETS:
        kernels = f"kernels are made for cpu, {', '.join(CUDA_TARGETS.values())}"
        raise wrong("q", f"is on {device}; {kernels}, and the flow's torch code runs without compiled=True")
    return CUDA_TARGETS[capability]


def _artifact(flow: str | vFlow | type[vFlow], spec: Spec, kv_heads: int, target: str) -> Path:
    """From the cache, or compiled now: by name as engines do, and a class or object, which another interpreter could
    not find, in this one.
    """
    if isinstance(flow, str):
        return artifact_for(flow, ModelShape(spec, kv_heads), target)
    name = flow.flow_name or (flow if isinstance(flow, type) else type(flow)).__name__

    def make(path: Path) -> None:
        compile(flow, path, spec=spec, targets=target)

    return kept(name, identity_of(flow, spec, target), make)
