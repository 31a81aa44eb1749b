"""K and V of one prompt for many lanes: its full pages are shared, and each lane has pages of its own behind them.

memory of a layer  [Hkv, (F + lanes * tail) * page, D]

pages 0 .. F - 1          the full pages of the prompt, which all lanes read
page F + lane * tail + i  page F + i of a lane; the first one begins with the prompt's last tokens, copied
"""

from __future__ import annotations

import torch

from vortex.evaluate.prefill import Prefilled

PAGE = 16
"""Tokens of a page, unless said otherwise."""


class SharedPages:
    """The memory, and who has which page.

    Attributes:
        prompt: tokens of the prompt that were read.
        full: pages that are shared.
        tail: pages that a lane has of its own.
        page: tokens of a page.
        k, v: of each layer ``[Hkv, (full + lanes * tail) * page, D]``; under MLA latent rows and views of them.
    """

    def __init__(
        self,
        read: Prefilled,
        lanes: int,
        new_tokens: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
        page: int = PAGE,
    ) -> None:
        self.prompt, self.lanes, self.page = read.tokens, lanes, page
        self.full = self.prompt // page
        self.tail = -(-(self.prompt + new_tokens) // page) - self.full
        self.k = [self._laid_out(x, device, dtype) for x in read.k]
        if read.rank:
            self.v = [x[..., : read.rank] for x in self.k]
        else:
            self.v = [self._laid_out(x, device, dtype) for x in read.v]

    def _laid_out(self, x: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        heads, _, dim = x.shape
        made = torch.zeros(heads, self.pages * self.page, dim, dtype=dtype, device=device)
        shared = self.full * self.page
        made[:, :shared] = x[:, :shared]
        self.of_lanes(made)[:, :, : self.prompt - shared] = x[:, None, shared:]
        return made

    @property
    def pages(self) -> int:
        """Of all lanes together."""
        return self.full + self.lanes * self.tail

    @property
    def layers(self) -> int:
        return len(self.k)

    def shared(self, x: torch.Tensor) -> torch.Tensor:
        """The part of a layer's memory that all lanes read, ``[Hkv, full * page, D]``."""
        return x[:, : self.full * self.page]

    def of_lanes(self, x: torch.Tensor) -> torch.Tensor:
        """The part of a layer's memory that lanes have of their own, ``[Hkv, lanes, tail * page, D]``."""
        return x[:, self.full * self.page :].view(x.shape[0], self.lanes, self.tail * self.page, x.shape[-1])

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """A layer's memory as kernels take it, ``[pages, Hkv, page, D]``."""
        return x.view(x.shape[0], self.pages, self.page, x.shape[-1]).transpose(0, 1)

    def page_table(self, lanes: torch.Tensor) -> torch.Tensor:
        """Pages of ``lanes`` i64 ``[B]``: i32 ``[B, full + tail]``."""
        shared = torch.arange(self.full, device=lanes.device).expand(len(lanes), -1)
        own = self.full + lanes[:, None] * self.tail + torch.arange(self.tail, device=lanes.device)
        return torch.cat([shared, own], 1).int()

    def write(self, layer: int, lanes: torch.Tensor, length: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Store token ``length`` (counted from 0) of ``lanes``, ``k`` and ``v`` ``[B, Hkv, D]``."""
        at = length - self.full * self.page
        for memory, new in ((self.k[layer], k), (self.v[layer], v)):
            self.of_lanes(memory)[:, lanes, at] = new.transpose(0, 1).to(memory.dtype)
