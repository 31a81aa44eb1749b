"""Small ragged batches for ``attend`` over latent rows, what it should give, and its source for a shape."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from tests.cuda.attend_case import DTYPES, TOLERANCE, Knobs
from tests.cuda.harness import cuda_source
from vortex.codegen.emit import KernelSource, emit_kernel
from vortex.driver import compile_flow
from vortex.spec import Spec
from vortex.targets.target import TARGETS


@cache
def kernel(spec: Spec, knobs: Knobs = (), arch: str = "sm_90a") -> KernelSource:
    """``attend`` as TensorIR for a shape; ``knobs`` are written into the schedule."""
    program = compile_flow("latent_topk", spec=spec, targets=[TARGETS[arch]], to="page").programs[arch]
    f = program.functions["attend"]
    f.attrs["schedule"] = {**f.attrs.get("schedule", {}), **dict(knobs)}
    return emit_kernel(program, f, TARGETS[arch])


@cache
def source(spec: Spec, knobs: Knobs = ()) -> str:
    """The CUDA C++ of :func:`kernel`."""
    return cuda_source(kernel(spec, knobs))


@dataclass
class LatentCase:
    """Arguments of one call by the names of the calling convention; everything unused is NaN or out of range."""

    spec: Spec
    tensors: dict[str, torch.Tensor]
    scale: float
    unit: float = 1.0
    """What the numbers of a pool in fp8 are multiples of."""

    @classmethod
    def make(cls, spec: Spec, lengths: tuple[int, ...] | None = None, *, seed: int = 0, gap: int = 0) -> LatentCase:
        """``gap`` unused numbers lie between the rows of the pool."""
        g, page = torch.Generator().manual_seed(seed), spec.page_size
        lens = torch.tensor(lengths if lengths is not None else (page * 7 + 3, 1, page * 4, 0), dtype=torch.int32)
        n = (lens + page - 1) // page
        batch, columns, t = len(lens), max(1, int(n.max())), DTYPES[spec.dtype]
        held = int(n.sum()) + 3
        order = torch.randperm(held, generator=g).int()
        table = torch.full((batch, columns), 1 << 28, dtype=torch.int32)
        pool = torch.randn(held, 1, page, spec.head_dim + gap, generator=g)
        unit = float(torch.rand(1, generator=g)) * 0.1 + 0.004 if spec.scaled else 1.0
        pool = (pool / unit).to(torch.float8_e4m3fn if spec.scaled else t)
        pool[..., spec.head_dim :] = float("nan")
        used = torch.zeros(held, page, dtype=torch.bool)
        pages = torch.full((batch, 1, columns), 1 << 28, dtype=torch.int32)
        counts = torch.zeros(batch, 1, dtype=torch.int32)
        for r in range(batch):
            have, order = order[: n[r]], order[n[r] :]
            table[r, : n[r]] = have
            for i, physical in enumerate(have.tolist()):
                used[physical, : int(lens[r]) - i * page] = True
            if n[r]:
                keep = torch.randperm(int(n[r]), generator=g)[: max(1, int(n[r]) - 1)]
                listed = torch.unique(torch.cat([keep, n[r : r + 1] - 1])).int()
                counts[r], pages[r, 0, : len(listed)] = len(listed), listed
        pool = torch.where(used[:, None, :, None], pool.float(), float("nan")).to(pool.dtype)
        pool = pool.view(torch.uint8) if spec.scaled else pool
        q = torch.randn(batch, spec.group, spec.head_dim, generator=g).to(t)
        tensors = {"q": q, "latent": pool[..., : spec.head_dim], "lengths": lens, "page_table": table}
        return cls(spec, {**tensors, "pages": pages, "counts": counts}, 0.7 * spec.head_dim**-0.5, unit)

    def call_arguments(self, made: KernelSource, splits: int, arrivals: torch.Tensor | None = None) -> dict[str, Any]:
        """All arguments in order, outputs and scratch poisoned; a row has up to ``splits`` work items."""
        q, work = self.tensors["q"], self.work(splits)
        given: dict[str, Any] = {**self.tensors, "scale": self.scale, "latent_scale": self.unit, "work": work}
        given["out"] = torch.full((*q.shape[:2], self.spec.v_dim), float("nan"), dtype=q.dtype)
        given["lse"] = torch.full(q.shape[:2], float("nan"))
        given["partials"] = torch.full((work.shape[1] - 2, 1, int(made.schedule["partial_words"])), float("nan"))
        counters = len(q) * int(made.schedule["row_counters"])
        given["arrivals"] = torch.zeros(counters, dtype=torch.int32) if arrivals is None else arrivals
        return {name: given[name] for name in made.args}

    def work(self, splits: int) -> torch.Tensor:
        """A work list as ``plan`` writes one, with room that is not used."""
        counts = self.tensors["counts"].flatten().tolist()
        each = max(1, -(-max(counts) // splits))
        items = [r << 16 | part for r, c in enumerate(counts) for part in range(max(1, -(-c // each)))]
        unused = [0x7FFF0000 + splits] * 3
        return torch.tensor([[0, 0, *items, *unused], [len(items), each, *items, *unused]], dtype=torch.int32)

    def expected(self) -> tuple[torch.Tensor, torch.Tensor]:
        """softmax(q rows^T scale) values in fp32, and the log-sum-exp."""
        t, page = self.tensors, self.spec.page_size
        q = t["q"].float()
        out, lse = torch.zeros(*q.shape[:2], self.spec.v_dim), torch.full(q.shape[:2], float("-inf"))
        for r in range(len(q)):
            ids = t["pages"][r, 0, : t["counts"][r, 0]].tolist()
            if ids:
                left = [min(page, int(t["lengths"][r]) - i * page) for i in ids]
                rows = [t["latent"][t["page_table"][r, i], 0, :m] for i, m in zip(ids, left, strict=True)]
                keys = torch.cat(rows)
                keys = keys.view(torch.float8_e4m3fn).float() * self.unit if self.spec.scaled else keys.float()
                s = q[r] @ keys.T * self.scale
                out[r], lse[r] = s.softmax(-1) @ keys[:, : self.spec.v_dim], s.logsumexp(-1)
        return out, lse

    def check(self, given: dict[str, Any]) -> None:
        """What the call wrote is what is expected."""
        out, lse = self.expected()
        tolerance = TOLERANCE[self.tensors["q"].dtype]
        torch.testing.assert_close(given["out"].float(), out, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(given["lse"], lse, rtol=1e-3, atol=1e-3)
