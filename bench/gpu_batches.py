"""Batches for the attend kernels on a GPU: torch, apache-tvm-ffi and a prebuilt library only."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tvm_ffi

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}
SPREAD = 8.0
"""Of numbers in fp8, before their scale."""


def work_list(counts: torch.Tensor, slots: int) -> torch.Tensor:
    """What ``plan`` makes of ``counts`` ``[B, Hkv]`` for ``slots`` items beyond one a request."""
    most = counts.amax(1).tolist()
    each = max(1, -(-sum(most) // slots))
    items = [r << 16 | part for r, c in enumerate(most) for part in range(max(1, -(-c // each)))]
    work = torch.full((2, 2 + len(most) + slots), 0x7FFF0001, dtype=torch.int32)
    work[1, :2] = torch.tensor([len(items), each], dtype=torch.int32)
    work[1, 2 : 2 + len(items)] = torch.tensor(items, dtype=torch.int32)
    return work


@dataclass
class Kernels:
    """The staged library: ``about`` says what each function is."""

    about: dict[str, Any]
    module: Any

    @classmethod
    def load(cls, folder: Path) -> Kernels:
        about = json.loads((folder / "kernels.json").read_text())
        return cls(about, tvm_ffi.load_module(str(folder / about["library"])))


@dataclass
class Pools:
    """K and V pools ``[P, Hkv, page, D]`` of random numbers; ``nhd`` as a view of ``[P, page, Hkv, D]``; ``fp8`` as
    the bytes of fp8-e4m3, under queries in ``dtype``.
    """

    k: torch.Tensor
    v: torch.Tensor
    dtype: torch.dtype

    @classmethod
    def make(
        cls,
        gigabytes: float,
        heads: int,
        page: int,
        dim: int,
        dtype: torch.dtype,
        *,
        nhd: bool = False,
        fp8: bool = False,
    ) -> Pools:
        pages = int(gigabytes * 1e9 / 2 / (heads * page * dim * (1 if fp8 else 2)))
        shape = (pages, page, heads, dim) if nhd else (pages, heads, page, dim)
        pools = []
        for _ in range(2):
            pool = torch.empty(shape, dtype=torch.uint8 if fp8 else dtype, device="cuda")
            for part in pool.split(max(1, pages // 64)):
                if fp8:
                    numbers = torch.randn(part.shape, device="cuda") * SPREAD
                    part.copy_(numbers.to(torch.float8_e4m3fn).view(torch.uint8))
                else:
                    part.normal_()
            pools.append(pool.transpose(1, 2) if nhd else pool)
        return cls(*pools, dtype)

    @classmethod
    def of(cls, gigabytes: float, heads: int, about: dict[str, Any], *, nhd: bool = False) -> Pools:
        """For a staged kernel."""
        shape = about["page"], about["dim"], DTYPES[about["dtype"]]
        return cls.make(gigabytes, heads, *shape, nhd=nhd, fp8=about["kv_dtype"] == "fp8_e4m3")

    @classmethod
    def far(cls, heads: int, about: dict[str, Any], axis: str) -> Pools:
        """For a staged kernel, with 4 pages or the heads more than 2^31 elements apart, in one memory of 13 GB (7 GB of
        fp8).
        """
        page, dim, fp8 = about["page"], about["dim"], about["kv_dtype"] == "fp8_e4m3"
        pages = 64 if axis == "heads" else 4
        inner = page * dim * (pages if axis == "heads" else heads)
        apart, count = 2**31 + 2 * inner, heads if axis == "heads" else pages
        small = cls.make(2 * pages * heads * page * dim * (1 if fp8 else 2) / 1e9, heads, page, dim,
                         DTYPES[about["dtype"]], fp8=fp8)  # fmt: skip
        steps = (page * dim, apart, dim, 1) if axis == "heads" else (apart, page * dim, dim, 1)
        memory = torch.empty((count - 1) * apart + 2 * inner, dtype=small.k.dtype, device="cuda")
        pools = [memory.as_strided(x.shape, steps, at).copy_(x) for x, at in ((small.k, 0), (small.v, inner))]
        return cls(*pools, small.dtype)


@dataclass
class Batch:
    """Arguments of one call, by the names of the calling convention."""

    tensors: dict[str, Any]

    @classmethod
    def make(cls, pools: Pools, group: int, lengths: torch.Tensor, kept: int, *, seed: int) -> Batch:
        """Random physical pages, and of each row's pages ``kept`` random ones, the last among them."""
        g = torch.Generator(device="cuda").manual_seed(seed)
        pool, heads, page, dim = pools.k.shape
        batch = len(lengths)
        n = ((lengths + page - 1) // page).cuda()
        columns = int(n.max())
        table = torch.randint(pool, (batch, columns), device="cuda", dtype=torch.int32, generator=g)
        keys = torch.rand(batch, heads, columns, device="cuda", generator=g)
        logical = torch.arange(columns, device="cuda")
        keys.masked_fill_(logical >= n[:, None, None], -1.0)
        keys.masked_fill_(logical == (n[:, None, None] - 1), 2.0)
        capacity = min(kept, columns)
        order = keys.topk(capacity, -1).indices
        counts = torch.minimum(torch.full_like(n, capacity), n)[:, None].expand(batch, heads).int().contiguous()
        listed = torch.arange(capacity, device="cuda") < counts[..., None]
        pages = torch.where(listed, order, 1 << 28).sort(-1).values.int().contiguous()
        q = torch.randn(batch, heads * group, dim, device="cuda", generator=g).to(pools.dtype)
        made = {"q": q, "k": pools.k, "v": pools.v, "lengths": lengths.int().cuda(), "page_table": table}
        made |= {"pages": pages, "counts": counts, "scale": dim**-0.5, "out": torch.full_like(q, float("nan"))}
        made["lse"] = torch.full((batch, heads * group), float("nan"), device="cuda")
        if pools.k.dtype == torch.uint8:
            made |= {"k_scale": 0.7 / SPREAD, "v_scale": 1.1 / SPREAD}
        made["arrivals"] = torch.zeros(batch * heads, dtype=torch.int32, device="cuda")
        return cls(made)

    def split(self, about: dict[str, Any], splits: int) -> Batch:
        """With scratch for ``splits`` CTAs a row on average."""
        batch, heads = self.tensors["counts"].shape
        slots = batch * splits
        self.tensors["work"] = work_list(self.tensors["counts"], slots).cuda()
        self.tensors["partials"] = torch.full((batch + slots, heads, about["words"]), float("nan"), device="cuda")
        return self

    @property
    def bytes(self) -> int:
        """Of the K and V pages that are read."""
        _, _, page, dim = self.tensors["k"].shape
        return int(self.tensors["counts"].sum()) * page * dim * 2 * self.tensors["k"].element_size()

    def arguments(self, names: list[str]) -> list[Any]:
        return [self.tensors[n] for n in names]

    def expected(self, group: int) -> tuple[torch.Tensor, torch.Tensor]:
        """softmax(q k^T scale) v and its log-sum-exp in float64, row by row."""
        t = self.tensors
        out, lse = torch.zeros_like(t["q"], dtype=torch.float64), torch.full_like(t["lse"], float("-inf")).double()
        page = t["k"].shape[2]
        for r, length in enumerate(t["lengths"].tolist()):
            for h in range(t["k"].shape[1]):
                ids = t["pages"][r, h, : int(t["counts"][r, h])].long()
                if not len(ids):
                    continue
                token = (ids[:, None] * page + torch.arange(page, device="cuda")).flatten()
                physical = t["page_table"][r, ids].long()
                k, v = (self._numbers(n, t[n][physical, h].flatten(0, 1)[token < length]) for n in ("k", "v"))
                heads = slice(h * group, (h + 1) * group)
                s = t["q"][r, heads].double() @ k.T * t["scale"]
                out[r, heads], lse[r, heads] = s.softmax(-1) @ v, s.logsumexp(-1)
        return out, lse

    def _numbers(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """Rows of K or V as float64."""
        if rows.dtype != torch.uint8:
            return rows.double()
        return rows.view(torch.float8_e4m3fn).double() * self.tensors[f"{name}_scale"]
