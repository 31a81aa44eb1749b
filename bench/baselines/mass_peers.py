"""One layer of AMASS or LOCKS: their own calls in the order of their own attention, on tensors of ours.

Both are made alike: a state with the summaries of a pool of pages and the scratch of a step, a function that selects
pages by them, and one that attends to what was selected. Which kernels that takes they decide themselves.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

SPLIT = 128
"""The most parts that attention to a row is split into, as their metadata builders have it."""


@dataclass(frozen=True)
class Peer:
    """A package and how it scores. ``tag``: switches of its own that the process was started with."""

    package: str
    score: str = ""
    tag: str = ""

    @property
    def name(self) -> str:
        return "_".join(x for x in (self.package, self.score, self.tag) if x)


PEERS = {p.name: p for p in (Peer("amass", "clse"), Peer("amass", "quad"), Peer("amass", "r8"), Peer("locks"))}


class Plugged:
    """``kv`` is [pool, 2, page, heads, dim] as vLLM keeps it; ``tables`` are int32 [requests, pages], one for each
    step of a graph, of requests that have ``tokens`` tokens each; ``kept`` counts the first and the last page.
    """

    def __init__(
        self, peer: Peer, kv: torch.Tensor, group: int, tables: Sequence[torch.Tensor], tokens: int, kept: int
    ) -> None:
        self.peer, self.kv, self.tables = peer, kv, tables
        pool, _, page, heads, dim = kv.shape
        self.requests, pages = tables[0].shape
        self.lengths = torch.full((self.requests,), tokens, dtype=torch.int32, device=kv.device)
        self.scale = dim**-0.5
        self.runtime = importlib.import_module(f"{peer.package}.backend._runtime")
        self.attention = importlib.import_module(f"{peer.package}.attention.decode")
        self.keys, _ = self.attention._split_kv(kv)
        self.source = self.attention.ResidentVSource(kv)
        middle = pages - 2
        self.config = configured(peer, kept, middle)
        self.runtime.set_config(self.config)
        kind, self.derive_params, self.select_pages, _ = self.runtime.resolve_selection()
        self.state = kind(
            kv.device, num_layers=1, num_blocks=pool, n_kv=heads, G=group, head_dim=dim, page=page,
            max_reqs=self.requests, max_pages=pages, sink_pages=1, window_pages=1, **stated(peer, self.config, middle),
        )  # fmt: skip
        self.state.D, self.state.scale = self.state.d, None
        self.attention.ensure_stage_b_buffers(self.state, kv.device, SPLIT)
        self.state._layer_of = {kv.data_ptr(): 0}
        kind_of_build = {"amass": "build" if peer.score == "r8" else "quad_build", "locks": "rki4_build"}
        self.build = importlib.import_module(f"{peer.package}.selection.{kind_of_build[peer.package]}")
        self.prefix = {"amass": "r8" if peer.score == "r8" else "quad", "locks": "rki4"}[peer.package]

    def summarise(self, other: Plugged | None) -> None:
        """Summaries of all pages of the pool; those of ``other``, whose pool is the same, where there is one."""
        pool = self.kv.shape[0]
        if other is None:
            every = torch.arange(pool, dtype=torch.int32, device=self.kv.device)[None]
            tokens = torch.tensor([pool * self.kv.shape[2]], dtype=torch.int32, device=self.kv.device)
            getattr(self.build, f"{self.prefix}_build_bulk")(self.state, [self.keys], every, tokens, 1, pool)
            return
        for name, made in vars(other.state).items():
            if isinstance(made, torch.Tensor) and made.shape[:2] == (1, pool):
                setattr(self.state, name, made)

    def plan(self) -> None:
        """Once for all layers of a step."""
        self.runtime.set_config(self.config)
        self.derive_params(self.state, self.lengths, self.requests)

    def update(self, i: int) -> None:
        """What summarises the last whole page of each request: once in as many steps as a page has tokens."""
        build = getattr(self.build, f"{self.prefix}_build_tail")
        build(self.state, [self.keys], self.tables[i], self.lengths, self.requests)

    def select(self, i: int, q: torch.Tensor) -> None:
        state, config = self.state, self.config
        self.select_pages(q, self.kv, self.tables[i], self.lengths, state, self.requests, self.scale, config)

    def attend(self, i: int, q: torch.Tensor, out: torch.Tensor) -> None:
        dispatch, lengths, source = self.runtime.decode_dispatch, self.lengths, self.source
        dispatch(q, self.kv, self.tables[i], lengths, self.state, out, source, self.scale, self.config)

    def selected(self, r: int, h: int) -> list[int]:
        """The pages of a row, of the step that ran last."""
        return self.state.page_table[r, h, : int(self.state.page_cnt[r, h])].tolist()

    def kernels(self) -> dict[str, str]:
        """Which of their kernels ran: their latches say so."""
        if self.peer.package == "locks":
            return {"select": "CUDA", "attend": "Triton" if self.runtime._DEC_CUDA is None else "CUDA"}
        latch = {"clse": "_CSEL_CUDA", "quad": "_QSEL_CUDA", "r8": "_SEL_CUDA"}[self.peer.score]
        ran = {"select": getattr(self.runtime, latch), "attend": self.runtime._DEC_CUDA}
        return {step: "CUDA" if cuda else "Triton" for step, cuda in ran.items()}

    def score_bytes(self) -> int:
        """Summaries that scoring reads; the tags beside them tell stale pages and are not read."""
        heads, pages = self.kv.shape[3], self.tables[0].shape[1] - 1
        return self.requests * heads * pages * self.page_bytes()

    def page_bytes(self) -> int:
        """Of one page and KV head."""
        pool, heads = self.kv.shape[0], self.kv.shape[3]
        tag = self.state.tagw * 2
        return self.state.bytes_per_layer() // (pool * heads) - tag


def configured(peer: Peer, kept: int, middle: int) -> Any:
    """Their configuration in which ``kept`` of ``middle`` + 2 pages are attended to."""
    module = importlib.import_module(f"{peer.package}.config")
    if peer.package == "locks":
        return module.LocksConfig(variant="fast", budget_pages=kept - 2)
    # a share of the pages between the first and the last, rounded up
    return module.AmassConfig(variant="fast", budget=(kept - 2.5) / middle, score=peer.score)


def stated(peer: Peer, config: Any, middle: int) -> dict[str, Any]:
    """The arguments that their metadata builders take from the configuration."""
    if peer.package == "locks":
        share = math.ceil(config.budget_pages) / middle
        return {
            "budget": share, "budget_pages": config.budget_pages, "combine": config.quad_combine,
            "zsplit": config.rki4_zsplit,
        }  # fmt: skip
    if peer.score == "r8":
        return {"rank": config.r8_rank, "budget": config.budget}
    made = {
        "rank": config.quad_rank, "budget": config.budget, "v_bits": config.quad_v_bits,
        "combine": config.quad_combine,
    }  # fmt: skip
    if peer.score == "clse":
        made |= {"coords": "lse", "c_bits": config.quad_c_bits, "c_grain": config.quad_c_grain}
    return made


def switched() -> str:
    """The name of the switches that this process was started with."""
    return "tensor_cores" if os.environ.get("RKI4_MMA_ALLG") else ""
