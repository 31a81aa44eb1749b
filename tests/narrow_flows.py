"""Flows whose fields are codes and bits, of every element type, layout of scales and shape."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

import vortex
from vortex.spec import Spec


class Narrow(vortex.vFlow):
    """One field of keys, and the highest dot product with a query."""

    def declared(self, spec: Spec) -> vortex.Field:
        raise NotImplementedError

    def kept(self, page: Any) -> Any:
        return page.k

    def products(self, q: Any, keys: Any) -> Any:
        return torch.einsum("gd,std->sgt", q, keys)

    def create_cache(self, spec: Spec) -> dict[str, vortex.Field]:
        return {"keys": self.declared(spec)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"keys": self.kept(page)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        return vortex.topk(self.products(q, cache.keys).amax((1, 2)))


class PerToken(Narrow):
    """int4 keys, one scale a token."""

    def declared(self, spec: Spec) -> vortex.Field:
        return vortex.Field(spec.page_size, spec.head_dim, dtype="int4", scale=0)


class PerChannel(Narrow):
    """int8 keys, one scale a channel."""

    def declared(self, spec: Spec) -> vortex.Field:
        return vortex.Field(spec.page_size, spec.head_dim, dtype="int8", scale=1)


class PerPage(Narrow):
    """int4 keys, one scale a page."""

    def declared(self, spec: Spec) -> vortex.Field:
        return vortex.Field(spec.page_size, spec.head_dim, dtype="int4", scale=())


class PerGroup(Narrow):
    """int4 keys, a scale for every 16 channels of a token."""

    def declared(self, spec: Spec) -> vortex.Field:
        return vortex.Field(spec.page_size, spec.head_dim // 16, 16, dtype="int4", scale=(0, 1))

    def kept(self, page: Any) -> Any:
        return page.k.unflatten(-1, (-1, 16))

    def products(self, q: Any, keys: Any) -> Any:
        return torch.einsum("gnd,stnd->sgt", q.unflatten(-1, (-1, 16)), keys)


class Transposed(Narrow):
    """int8 keys, channels first."""

    def declared(self, spec: Spec) -> vortex.Field:
        return vortex.Field(spec.head_dim, spec.page_size, dtype="int8", scale=-1)

    def kept(self, page: Any) -> Any:
        return page.k.T

    def products(self, q: Any, keys: Any) -> Any:
        return q @ keys


class SubPage(Narrow):
    """A mean of every four tokens, in int4."""

    def declared(self, spec: Spec) -> vortex.Field:
        return vortex.Field(spec.page_size // 4, spec.head_dim, dtype="int4", scale=0)

    def kept(self, page: Any) -> Any:
        return page.k.unflatten(0, (-1, 4)).mean(1)


class Pruned(Narrow):
    """A few channels, not in their order, in int4."""

    channels = (5, 2, 30, 17, 8, 9, 1, 31)

    def declared(self, spec: Spec) -> vortex.Field:
        return vortex.Field(spec.page_size, len(self.channels), dtype="int4", scale=0)

    def kept(self, page: Any) -> Any:
        return page.k[:, list(self.channels)]

    def products(self, q: Any, keys: Any) -> Any:
        return torch.einsum("gd,std->sgt", q[:, list(self.channels)][:, 2:], keys[..., [2, 3, 4, 5, 6, 7]])


class Bounds(vortex.vFlow):
    """Quest's bounds in int8: products that no contraction sees, and scales that do not move."""

    def create_cache(self, spec: Spec) -> dict[str, vortex.Field]:
        of = {"dtype": "int8", "scale": ()}
        return {"lo": vortex.Field(spec.head_dim, **of), "hi": vortex.Field(spec.head_dim, **of)}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"lo": page.k.amin(0), "hi": page.k.amax(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        bound = torch.maximum(q * cache.lo[:, None], q * cache.hi[:, None]).sum(-1)
        return vortex.topk(bound.amax(-1))


class Codes(vortex.vFlow):
    """Codes that the flow makes itself, and a bf16 field beside them."""

    def create_cache(self, spec: Spec) -> dict[str, vortex.Field]:
        return {
            "rounded": vortex.Field(spec.head_dim, dtype="int4"),
            "signs": vortex.Field(2, spec.head_dim, dtype="int8"),
            "mean": vortex.Field(spec.head_dim),
        }

    def forward_cache(self, page: Any) -> dict[str, Any]:
        rounded = page.k.amax(0).round().int().clamp(-7, 7)
        signs = (page.k[:2] * 3).int().clamp(-9, 127)
        return {"rounded": rounded, "signs": signs, "mean": page.k.mean(0)}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        x = (cache.rounded * cache.signs.sum(1, dtype=torch.int32)).sum(-1, dtype=torch.int32)
        return vortex.topk(x.float() + (cache.mean * q.mean(0)).sum(-1))


class Bits(vortex.vFlow):
    """Signs of keys, compared with those of queries in words."""

    def create_cache(self, spec: Spec) -> dict[str, vortex.Field]:
        return {"bits": vortex.Field(spec.page_size, spec.head_dim, dtype="uint1")}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"bits": page.k > 0}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        same = vortex.same_bits(cache.bits[:, None], (q > 0)[:, None])
        return vortex.topk(same.amax(-1).sum(-1, dtype=torch.int32).float())


class BitsRead(vortex.vFlow):
    """Bits that are read one by one, of an axis that fills no words, in words as well."""

    def create_cache(self, spec: Spec) -> dict[str, vortex.Field]:
        return {"bits": vortex.Field(24, dtype="uint1")}

    def forward_cache(self, page: Any) -> dict[str, Any]:
        return {"bits": page.k.sum(0)[:24] > 0}

    def forward_indexer(self, q: Any, cache: Any) -> Any:
        signs = torch.where(cache.bits, 1.0, -1.0)
        near = vortex.same_bits(cache.bits, q[0, :24] >= 0)
        return vortex.topk((signs * q.sum(0)[:24]).sum(-1) + near)


class Nonlinear(Narrow):
    """Numbers that are made of codes one by one, in front of a contraction and on their own."""

    def declared(self, spec: Spec) -> vortex.Field:
        return vortex.Field(spec.page_size, spec.head_dim, dtype="int4", scale=0)

    def products(self, q: Any, keys: Any) -> Any:
        return torch.einsum("gd,std->sgt", q, F.relu(keys)) + keys.mean((1, 2))[:, None, None]


FLOWS: dict[str, type[vortex.vFlow]] = {
    c.__name__: c
    for c in (
        PerToken,
        PerChannel,
        PerPage,
        PerGroup,
        Transposed,
        SubPage,
        Pruned,
        Bounds,
        Codes,
        Bits,
        BitsRead,
        Nonlinear,
    )
}
