"""A library whose kernels are written in torch: the calling convention, without a compiler.

The flow is Quest's: summaries are the elementwise range of a page's keys, a page's score is the bound that
they give on q.k, the best over the group.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from vortex.artifact.manifest import FieldEntry, KernelEntry, Manifest, TargetEntry
from vortex.runtime.library import Library
from vortex.spec import Spec

Tensor = torch.Tensor

ARGS = {
    "plan": ("lengths", "budget", "plan"),
    "append": (
        *("k", "v", "field.lo", "field.hi", "k_new", "v_new", "loc", "row_offsets", "lengths", "page_table"),
        "layer",
    ),
    "select": ("q", "field.lo", "field.hi", "const.one", "plan", "page_table", "pages", "counts", "workspace"),
    "attend": ("q", "k", "v", "lengths", "page_table", "pages", "counts", "scale", "out", "lse"),
}


def fake_manifest(spec: Spec) -> Manifest:
    kernels = tuple(KernelEntry(kind, kind, f"{kind}0", args) for kind, args in ARGS.items())
    kernels = tuple(KernelEntry(k.name, k.kind, k.symbol, k.args, 1, 3) if k.kind == "select" else k for k in kernels)
    fields = tuple(FieldEntry(name, (spec.head_dim,), spec.dtype) for name in ("lo", "hi"))
    return Manifest("fake", "0" * 64, spec, fields, (), {"cpu": TargetEntry("lib.cpu.so", kernels)})


def fake_library(spec: Spec) -> Library:
    page = spec.page_size

    def plan(lengths: Tensor, budget: Tensor, plan: Tensor) -> None:
        pages, sink, recent, top, bottom, *_ = budget.tolist()
        for r, length in enumerate(lengths.tolist()):
            n = -(-length // page)
            total = max(pages + sink + recent, top * n // bottom)
            keep_all = n <= total
            scored = 0 if keep_all else n - sink - recent
            plan[:, r] = torch.tensor([n, min(n, total), sink, scored])

    def append(**a: Tensor) -> None:
        for t, slot in enumerate(a["loc"].tolist()):
            if slot >= 0 and a["k_new"].shape[0]:
                a["k"][slot // page, :, slot % page] = a["k_new"][t]
                a["v"][slot // page, :, slot % page] = a["v_new"][t]
        offsets = a["row_offsets"].tolist()
        for r, length in enumerate(a["lengths"].tolist()):
            before = (length - (offsets[r + 1] - offsets[r])) // page
            for p in range(before, length // page):
                physical = int(a["page_table"][r, p])
                a["field.lo"][physical] = a["k"][physical].amin(1)
                a["field.hi"][physical] = a["k"][physical].amax(1)

    def select(**a: Tensor) -> None:
        a["workspace"].fill_(float("nan"))
        assert a["workspace"].shape == (a["counts"].numel(), a["page_table"].shape[1] + 3)
        assert a["const.one"].item() == 1
        q, plan, table = a["q"].float(), a["plan"].tolist(), a["page_table"]
        for r in range(q.shape[0]):
            n, kept, first, scored = (row[r] for row in plan)
            for h in range(a["counts"].shape[1]):
                chosen = set(range(n))
                if scored:
                    at = table[r, first : first + scored].long()
                    lo, hi = a["field.lo"][at, h].float(), a["field.hi"][at, h].float()
                    mine = q[r, h * spec.group : (h + 1) * spec.group]
                    score = torch.maximum(mine * lo[:, None], mine * hi[:, None]).sum(-1).amax(-1)
                    ranked = torch.sort(score, descending=True, stable=True).indices.tolist()
                    chosen -= {first + i for i in ranked[kept - (n - scored) :]}
                a["counts"][r, h] = len(chosen)
                a["pages"][r, h, : len(chosen)] = torch.tensor(sorted(chosen), dtype=torch.int32)

    def attend(**a: Tensor) -> None:
        for r, length in enumerate(a["lengths"].tolist()):
            for h in range(a["counts"].shape[1]):
                tokens = [
                    (int(a["page_table"][r, p]), i)
                    for p in a["pages"][r, h, : int(a["counts"][r, h])].tolist()
                    for i in range(min(page, length - p * page))
                ]
                at, i = (torch.tensor(x) for x in zip(*tokens, strict=True))
                k, v = a["k"][at, h, i].float(), a["v"][at, h, i].float()
                rows = slice(h * spec.group, (h + 1) * spec.group)
                logits = a["q"][r, rows].float() @ k.T * a["scale"]
                a["out"][r, rows] = (logits.softmax(-1) @ v).to(a["out"].dtype)
                if a["lse"].shape[0]:
                    a["lse"][r, rows] = logits.logsumexp(-1)

    bodies: dict[str, Callable[..., None]] = {"plan": plan, "append": append, "select": select, "attend": attend}
    functions = {
        f"{kind}0": lambda *values, body=bodies[kind], names=names: body(**dict(zip(names, values, strict=True)))
        for kind, names in ARGS.items()
    }
    return Library(fake_manifest(spec), "cpu", functions, {"one": torch.ones(1)})
