"""Small ragged batches for ``attend``, what it should give, and its source for a shape."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import torch

from tests.cuda.harness import cuda_source
from vortex.codegen.emit import KernelSource, emit_kernel
from vortex.driver import compile_flow
from vortex.spec import Spec
from vortex.targets.target import TARGETS

Knobs = tuple[tuple[str, int], ...]
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 3e-3}


@cache
def kernel(page: int, dim: int, group: int, dtype: str = "bf16", knobs: Knobs = (), kv_dtype: str = "") -> KernelSource:
    """``attend`` as TensorIR for a shape; ``knobs`` are written into the schedule."""
    spec = Spec(page_size=page, head_dim=dim, group=group, dtype=dtype, kv_dtype=kv_dtype)
    program = compile_flow("quest", spec=spec, targets=[TARGETS["sm_90a"]], to="page").programs["sm_90a"]
    f = program.functions["attend"]
    f.attrs["schedule"] = {**f.attrs.get("schedule", {}), **dict(knobs)}
    return emit_kernel(program, f, TARGETS["sm_90a"])


@cache
def source(page: int, dim: int, group: int, dtype: str = "bf16", knobs: Knobs = (), kv_dtype: str = "") -> str:
    """The CUDA C++ of :func:`kernel`."""
    return cuda_source(kernel(page, dim, group, dtype, knobs, kv_dtype))


@dataclass
class Case:
    """Arguments of one call by the names of the calling convention; everything unused is NaN or out of range."""

    page: int
    group: int
    tensors: dict[str, torch.Tensor]
    scales: dict[str, float] = field(default_factory=dict)
    """Of K and V where they are in fp8, which the kernel sees as bytes."""

    @classmethod
    def make(
        cls,
        page: int,
        dim: int,
        group: int,
        dtype: str = "bf16",
        *,
        lengths: tuple[int, ...] | None = None,
        heads: int = 2,
        nhd: bool = False,
        seed: int = 0,
        fp8: bool = False,
    ) -> Case:
        g = torch.Generator().manual_seed(seed)
        lens = torch.tensor(lengths if lengths is not None else (page * 11 + 3, 1, page * 4, 0), dtype=torch.int32)
        n = (lens + page - 1) // page
        batch, columns, t = len(lens), max(1, int(n.max())), DTYPES[dtype]
        pool = int(n.sum()) + 3
        order = torch.randperm(pool, generator=g).int()
        table = torch.full((batch, columns), 1 << 28, dtype=torch.int32)
        shape = (pool, page, heads, dim) if nhd else (pool, heads, page, dim)
        k, v = (torch.randn(shape, generator=g).to(t) for _ in range(2))
        scales = {}
        if fp8:
            scales = dict(zip(("k_scale", "v_scale"), (torch.rand(2, generator=g) * 0.1 + 0.004).tolist(), strict=True))
            k, v = (
                (x.float() / s).clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
                for x, s in zip((k, v), scales.values(), strict=True)
            )
        if nhd:
            k, v = k.transpose(1, 2), v.transpose(1, 2)
        used = torch.zeros(pool, page, dtype=torch.bool)
        pages = torch.full((batch, heads, columns), 1 << 28, dtype=torch.int32)
        counts = torch.zeros(batch, heads, dtype=torch.int32)
        for r in range(batch):
            have, order = order[: n[r]], order[n[r] :]
            table[r, : n[r]] = have
            for i, physical in enumerate(have.tolist()):
                used[physical, : int(lens[r]) - i * page] = True
            for h in range(heads if n[r] else 0):
                keep = torch.randperm(int(n[r]), generator=g)[: max(1, int(n[r]) - h)]
                listed = torch.unique(torch.cat([keep, n[r : r + 1] - 1])).int()
                counts[r, h] = len(listed)
                pages[r, h, : len(listed)] = listed
        for pool_of in (k, v):
            pool_of.masked_fill_(~used[:, None, :, None], 0x7F if fp8 else float("nan"))
        q = torch.randn(batch, heads * group, dim, generator=g).to(t)
        tensors = {"q": q, "k": k, "v": v, "lengths": lens, "page_table": table, "pages": pages, "counts": counts}
        return cls(page, group, tensors, scales)

    def call_arguments(self, splits: int, arrivals: torch.Tensor | None = None) -> dict:
        """All arguments in order, outputs and scratch poisoned; ``splits`` of a row are what its capacity gives."""
        q, k = self.tensors["q"], self.tensors["k"]
        batch, heads = len(q), k.shape[1]
        words = self.group * q.shape[2] + (2 * self.group + 3) // 4 * 4
        made: dict[str, object] = dict(self.tensors)
        made["scale"] = q.shape[2] ** -0.5
        made |= self.scales
        made["out"] = torch.full_like(q, float("nan"))
        made["lse"] = torch.full(q.shape[:2], float("nan"))
        made["work"] = self.work(splits)
        shape = made["work"].shape[1] - 2, heads, words
        made["partials"] = torch.full(shape, float("nan"))
        made["arrivals"] = torch.zeros(batch * heads, dtype=torch.int32) if arrivals is None else arrivals
        return made

    def work(self, splits: int) -> torch.Tensor:
        """A work list as ``plan`` writes one, with room that is not used."""
        counts = self.tensors["counts"].amax(1).tolist()
        each = max(1, -(-max(counts) // splits))
        items = [r << 16 | part for r, c in enumerate(counts) for part in range(max(1, -(-c // each)))]
        unused = [0x7FFF0000 + splits] * 3
        return torch.tensor([[0, 0, *items, *unused], [len(items), each, *items, *unused]], dtype=torch.int32)

    def expected(self) -> tuple[torch.Tensor, torch.Tensor]:
        """softmax(q k^T scale) v in fp32, and the log-sum-exp."""
        t = self.tensors
        q = t["q"].float()
        out, lse = torch.zeros_like(q), torch.full(q.shape[:2], float("-inf"))
        for r in range(q.shape[0]):
            for h in range(t["k"].shape[1]):
                ids = t["pages"][r, h, : t["counts"][r, h]].tolist()
                if not ids:
                    continue
                left = [min(self.page, int(t["lengths"][r]) - i * self.page) for i in ids]
                k, v = (
                    self.numbers(n, [t[n][t["page_table"][r, i], h, :m] for i, m in zip(ids, left, strict=True)])
                    for n in ("k", "v")
                )
                heads = slice(h * self.group, (h + 1) * self.group)
                s = q[r, heads] @ k.T * q.shape[2] ** -0.5
                out[r, heads], lse[r, heads] = s.softmax(-1) @ v, s.logsumexp(-1)
        return out, lse

    def numbers(self, name: str, rows: list[torch.Tensor]) -> torch.Tensor:
        """Rows of K or V as fp32."""
        kept = torch.cat(rows)
        if not self.scales:
            return kept.float()
        return kept.view(torch.float8_e4m3fn).float() * torch.tensor(self.scales[f"{name}_scale"])

    def check(self, given: dict[str, object]) -> None:
        """What the call wrote is what is expected."""
        out, lse = self.expected()
        tolerance = TOLERANCE[self.tensors["q"].dtype]
        got_out, got_lse = given["out"], given["lse"]
        assert isinstance(got_out, torch.Tensor) and isinstance(got_lse, torch.Tensor)
        torch.testing.assert_close(got_out.float(), out, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(got_lse, lse, rtol=1e-3, atol=1e-3)
