"""FlashInfer as it is strongest for pages chosen per KV head: the HND view, one plan, fresh page ids at every call.

Only where ``flashinfer`` can be imported: 0.7.4 with the modules that ``bench/flashinfer_prebuild.py`` built carried
along and on PYTHONPATH.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from .cases import Tensors

Launch = Callable[[Tensors], object]


@cache
def workspace(name: str) -> torch.Tensor:
    """Scratch of the kind ``name``, zeros to begin with; kernels run one after another, so all launches share it."""
    return torch.zeros(384 << 20, dtype=torch.uint8, device="cuda")


def load() -> Any:
    """The module, or None with a line that says why."""
    os.environ.setdefault("FLASHINFER_DISABLE_JIT", "1")
    os.environ.setdefault("FLASHINFER_WORKSPACE_BASE", tempfile.mkdtemp(prefix="flashinfer-"))
    try:
        import flashinfer
    except Exception as error:  # a part of it may be missing
        print(f"FlashInfer is skipped: {type(error).__name__}: {str(error)[:200]}")
        return None
    return flashinfer


def flat_ids(t: Tensors) -> torch.Tensor:
    """Physical ids of (page, head) in the view ``[P * Hkv, 1, page, D]``, rows one after the other; equal counts."""
    heads = t["k"].shape[1]
    physical = torch.stack([t["page_table"][b][t["pages"][b].long()] for b in range(len(t["pages"]))])
    return (physical * heads + torch.arange(heads, device=physical.device)[:, None]).int().flatten().contiguous()


def prepare(t: Tensors) -> None:
    """What its calls need beside our tensors, made once and outside the timing; requests of one length.

    Where all pages are selected it gets the dense call, all KV heads of a request together.
    """
    _, heads, page, dim = t["k"].shape
    tail = ((t["lengths"] - 1) % page + 1).int()
    if t["pages"].shape[-1] == t["page_table"].shape[-1]:
        t["fi.k"], t["fi.v"], t["fi.q"], t["fi.out"] = (t[n] for n in ("k", "v", "q", "out"))
        t["fi.ids"], t["fi.last"], t["fi.counts"] = t["page_table"].flatten(), tail, t["counts"][:, 0]
    else:
        t["fi.k"], t["fi.v"] = (t[n].view(-1, 1, page, dim) for n in ("k", "v"))
        t["fi.q"], t["fi.out"] = (t[n].view(t["counts"].numel(), -1, dim) for n in ("q", "out"))
        t["fi.ids"], t["fi.last"] = flat_ids(t), tail.repeat_interleave(heads)
        t["fi.counts"] = t["counts"].flatten()
    t["fi.lengths"] = ((t["fi.counts"] - 1) * page + t["fi.last"]).int()


def wrapper_launch(fi: Any, t: Tensors, tensor_cores: str = "") -> Launch:
    """``BatchDecodeWithPagedKVCacheWrapper`` planned on the shape of ``t``; its index buffer is exchanged each call.
    ``tensor_cores`` names its backend that uses them.
    """
    _, kv_heads, page, dim = t["fi.k"].shape
    rows, heads, _ = t["fi.q"].shape
    indptr = torch.zeros(rows + 1, dtype=torch.int32)
    indptr[1:] = t["fi.counts"].cumsum(0).cpu()
    how = {"use_tensor_cores": True, "backend": tensor_cores} if tensor_cores else {}
    made = fi.BatchDecodeWithPagedKVCacheWrapper(workspace("planned"), "HND", **how)
    made.plan(
        indptr, t["fi.ids"], t["fi.last"].cpu(), heads, kv_heads, dim, page, q_data_type=t["q"].dtype,
        kv_data_type=t["k"].dtype, sm_scale=t["scale"],
    )  # fmt: skip

    def launch(one: Tensors) -> None:
        made._paged_kv_indices_buf = one["fi.ids"]
        made.run(one["fi.q"], (one["fi.k"], one["fi.v"]), out=one["fi.out"])

    return launch


def xqa_launch(fi: Any, t: Tensors) -> Launch:
    """Hopper's XQA kernel: block tables and lengths as they are, no plan."""
    page, rows = t["k"].shape[2], t["fi.counts"].numel()
    longest = t["pages"].shape[-1] * page

    def launch(one: Tensors) -> None:
        fi.decode.trtllm_batch_decode_with_kv_cache(
            one["fi.q"], (one["fi.k"], one["fi.v"]), workspace("xqa"), one["fi.ids"].view(rows, -1),
            one["fi.lengths"], longest, bmm1_scale=t["scale"], bmm2_scale=1.0, out=one["fi.out"], kv_layout="HND",
            backend="xqa",
        )  # fmt: skip

    return launch


@cache
def skipped(name: str, why: str) -> None:
    """Says so, once for each reason."""
    print(f"{name} is skipped: {why}", flush=True)


def attend_launches(fi: Any, t: Tensors) -> dict[str, Launch]:
    """Those of its kernels that take this shape and give what we know to be right, ``t['wanted']`` if there."""
    makers: dict[str, Callable[[], Launch]] = {
        "flashinfer": lambda: wrapper_launch(fi, t),
        "flashinfer_tc": lambda: wrapper_launch(fi, t, "fa2"),
        "flashinfer_fa3": lambda: wrapper_launch(fi, t, "fa3"),
        "flashinfer_xqa": lambda: xqa_launch(fi, t),
    }
    found = {}
    for name, make in makers.items():
        try:
            launch = make()
            t["out"].fill_(float("nan"))
            launch(t)
            torch.cuda.synchronize()
        except Exception as error:  # a shape it lacks
            skipped(name, f"{type(error).__name__}: {str(error)[:200]}")
            continue
        if "wanted" in t:
            got = t["out"][t["sample"]] if "sample" in t else t["out"]
            gap = ((got.double() - t["wanted"]).norm() / t["wanted"].norm()).item()
            if not gap < 1e-2:
                print(f"{name} is skipped: off by {gap:.1e}")
                continue
        found[name] = launch
    return found


def topk_wrong(launch: Launch, t: Tensors, taken: int) -> str:
    """What is wrong with a launch of :func:`topk_launches`, if anything: scores are taken as a set, ties are free."""
    try:
        found = launch(t)
        torch.cuda.synchronize()
    except Exception as error:  # a shape it lacks
        return f"{type(error).__name__}: {str(error)[:200]}"
    scores, best = t["fi.scores"], t["fi.scores"].topk(taken).values.sort(-1).values
    if isinstance(found, tuple):
        at = found[1].long()
    else:  # physical pages: where each stands in its row's table
        table = t["fi.table"]
        at = torch.searchsorted(table, found.contiguous()) if bool((table.diff(dim=1) > 0).all()) else None
        if at is None:
            return ""
        at = at.clamp(max=scores.shape[1] - 1)
        if not torch.equal(table.gather(1, at), found):
            return "pages that are not in the table"
    return "" if torch.equal(scores.gather(1, at).sort(-1).values, best) else "other scores than the best"


def topk_launches(fi: Any, scored: int, first: int, taken: int) -> dict[str, Launch]:
    """Its top-k of candidate scores, alone and with the page table applied."""

    def rows_of(t: Tensors) -> torch.Tensor:
        if "fi.scores" not in t:
            t["fi.scores"] = t["scores"].flatten(0, 1)[:, first : first + scored].contiguous()
            rows, heads = t["fi.scores"].shape[0], t["scores"].shape[1]
            table = t["page_table"][:, first : first + scored]
            t["fi.table"] = table.repeat_interleave(heads, 0).contiguous()
            t["fi.rows"] = torch.full((rows,), scored, dtype=torch.int32, device=table.device)
        return t["fi.scores"]

    return {
        "flashinfer top_k": lambda t: fi.top_k(rows_of(t), taken),
        "flashinfer top_k_page_table": lambda t: fi.top_k_page_table_transform(
            rows_of(t), t["fi.table"], t["fi.rows"], taken
        ),
    }
