"""The few pieces of SGLang that the backend touches, so that one batch of it can be run by hand and without SGLang."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from vortex.spec import Spec

SPEC = Spec(page_size=16, head_dim=64, group=4, dtype="f32")
KV_HEADS, LAYERS, PAGES = 2, 2, 48
QUERY_HEADS = SPEC.group * KV_HEADS


class Mode(Enum):
    """As SGLang's ForwardMode."""

    EXTEND = 1
    DECODE = 2

    def is_decode(self) -> bool:
        return self is Mode.DECODE

    def is_idle(self) -> bool:
        return False


class SharedReadEnds(Enum):
    PRE_REPLAY = 1
    UNKNOWN = 2


class MHATokenToKVPool:
    """K and V of all layers, ``[slots, Hkv, D]``, with a page 0 that nobody owns."""

    use_hnd, start_layer, layer_num = False, 0, LAYERS

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        shape = PAGES * SPEC.page_size, KV_HEADS, SPEC.head_dim
        self.dtype = dtype
        self.buffers = [(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)) for _ in range(LAYERS)]

    def get_key_buffer(self, layer: int) -> torch.Tensor:
        return self.buffers[layer][0]

    def get_value_buffer(self, layer: int) -> torch.Tensor:
        return self.buffers[layer][1]

    def set_kv_buffer(
        self,
        layer: Any,
        loc: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        k_scale: float | None = None,
        v_scale: float | None = None,
    ) -> None:
        for buffer, new, scale in zip(self.buffers[layer.layer_id], (k, v), (k_scale, v_scale), strict=True):
            if new.dtype != self.dtype and scale is not None:
                new.div_(scale)  # in place, as SGLang does
            buffer[loc] = new.to(self.dtype)


class DensePrefill:
    """Stores what it is given; what prompts attend to is not looked at."""

    needs_cpu_seq_lens = False

    def __init__(self, runner: Any) -> None:
        self._pool = runner.token_to_kv_pool

    def init_forward_metadata(self, batch: Any) -> None:
        pass

    def forward_extend(self, q: torch.Tensor, k: Any, v: Any, layer: Any, batch: Any, save_kv_cache: bool) -> Any:
        if save_kv_cache:
            self._pool.set_kv_buffer(layer, batch.out_cache_loc, k, v)
        return torch.zeros(len(q), q[0].numel(), dtype=q.dtype)


class RadixAttention(torch.nn.Module):
    """A layer of attention, with what the backend reads of it."""

    logit_cap, sliding_window_size, is_cross_attention, attn_type = 0.0, -1, False, "decoder"

    def __init__(self, number: int, scales: tuple[float, float] | None = None) -> None:
        super().__init__()
        self.layer_id, self.tp_q_head_num = number, QUERY_HEADS
        self.qk_head_dim = self.v_head_dim = SPEC.head_dim
        self.scaling = SPEC.head_dim**-0.5
        self.k_scale, self.v_scale = (None, None) if scales is None else map(torch.tensor, scales)
        self.k_scale_float = self.v_scale_float = None


def modules() -> dict[str, ModuleType]:
    """By the names under which the backend imports them."""

    contents: dict[str, dict[str, Any]] = {
        "configs.hybrid_arch": {"mambaish_config": lambda model: None},
        "layers.radix_attention": {"RadixAttention": RadixAttention, "AttentionType": SimpleNamespace(DECODER="d")},
        "layers.attention.attention_registry": {"ATTENTION_BACKENDS": {"torch_native": DensePrefill}},
        "layers.attention.base_attn_backend": {"AttentionBackend": object, "SharedReadEnds": SharedReadEnds},
        "runtime_context": {"get_parallel": lambda: SimpleNamespace(attn_tp_size=1, attn_tp_rank=0)},
    }
    made = {}
    for name, content in contents.items():
        made[f"sglang.srt.{name}"] = module = ModuleType(name)
        vars(module).update(content)
    return made


@contextmanager
def stood_in() -> Iterator[None]:
    """Within, the backend's modules import these; after it nothing is left of them."""
    mine = ("backend", "scales", "stats", "seam_0_5_16", "seam_0_5_23")
    names = [f"vortex.runtime.sglang.{name}" for name in mine]
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules().items():
            patch.setitem(sys.modules, name, module)
        for name in names:
            sys.modules.pop(name, None)
        try:
            yield
        finally:
            for name in names:
                sys.modules.pop(name, None)


class World:
    """A pool, its requests and the backend of one version, batch by batch."""

    def __init__(
        self,
        artifact: Path,
        version: str = "0_5_23",
        pages: int = 2,
        args: dict[str, Any] | None = None,
        dtype: torch.dtype = torch.float32,
        scales: tuple[tuple[float, float], ...] = (),
        **more: object,
    ) -> None:
        config = {"flow": str(artifact), "budget": {"pages": pages}, "dense_layers": [1], **more}
        kept = torch.float8_e4m3fn if scales else dtype
        self.pool, self.dtype = MHATokenToKVPool(kept), dtype
        self.req_to_token = torch.zeros(9, 512, dtype=torch.int32)
        self.lengths: dict[int, int] = {}
        self.layers = [RadixAttention(n, scales[n] if scales else None) for n in range(LAYERS)]
        model = SimpleNamespace(dtype=dtype, head_dim=SPEC.head_dim, num_attention_heads=QUERY_HEADS)
        model.get_num_kv_heads = lambda ranks: KV_HEADS
        self.runner = SimpleNamespace(
            server_args=SimpleNamespace(**{"attention_backend": "vortex", **(args or {})}),
            model_config=model,
            token_to_kv_pool=self.pool,
            req_to_token_pool=SimpleNamespace(req_to_token=self.req_to_token),
            kv_cache_dtype=kept,
            page_size=SPEC.page_size,
            device="cpu",
            use_mla_backend=False,
            is_hybrid_swa=False,
            sliding_window_size=None,
            model=torch.nn.Sequential(*self.layers),
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VORTEX_CONFIG", json.dumps(config))
            seam = importlib.import_module(f"vortex.runtime.sglang.seam_{version}")
            self.backend = seam.Backend(self.runner)
        self.fields = self.backend._layers[0].fields
        for field in self.fields.values():
            field.fill_(1e4)  # of whoever had the memory before

    def give(self, request: int, pages: list[int]) -> None:
        """``request`` owns these pages, in this order."""
        first = torch.tensor(pages)[:, None] * SPEC.page_size
        slots = (first + torch.arange(SPEC.page_size)).flatten()
        self.req_to_token[request, : len(slots)] = slots.int()
        self.lengths[request] = 0

    def batch(self, mode: Mode, requests: list[int], new: int) -> SimpleNamespace:
        """The next ``new`` tokens of each request."""
        before = [self.lengths[r] for r in requests]
        for r in requests:
            self.lengths[r] += new
        rows = [self.req_to_token[r, n : n + new] for r, n in zip(requests, before, strict=True)]
        return SimpleNamespace(
            forward_mode=mode,
            batch_size=len(requests),
            req_pool_indices=torch.tensor(requests),
            seq_lens=torch.tensor([self.lengths[r] for r in requests]),
            extend_seq_lens=torch.full((len(requests),), new),
            out_cache_loc=torch.cat(rows).long(),
        )

    def forward(self, batch: Any, draw: torch.Generator, fused: bool = False) -> list[torch.Tensor]:
        """All layers over tokens that ``draw`` says; ``fused``: RoPE has stored K and V, the backend gets neither."""
        call = self.backend.forward_decode if batch.forward_mode.is_decode() else self.backend.forward_extend
        tokens, made = len(batch.out_cache_loc), []
        for layer in self.layers:
            # one projection makes q, k and v, as in SGLang: a row of q is not beside the next
            both = torch.randn(tokens, QUERY_HEADS + 2 * KV_HEADS, SPEC.head_dim, generator=draw).to(self.dtype)
            q, k, v = both.split((QUERY_HEADS, KV_HEADS, KV_HEADS), dim=1)
            if fused:
                self.pool.set_kv_buffer(layer, batch.out_cache_loc, k, v)
                made.append(call(q.flatten(1), None, None, layer, batch, save_kv_cache=False))
            else:
                made.append(call(q.flatten(1), k, v, layer, batch))
        return made

    def read(self, requests: list[int], new: int, draw: torch.Generator, fused: bool = False) -> None:
        """Prompt tokens of each request."""
        batch = self.batch(Mode.EXTEND, requests, new)
        self.backend.init_forward_metadata(batch)
        self.forward(batch, draw, fused)

    def say(self, requests: list[int], draw: torch.Generator, fused: bool = False) -> list[torch.Tensor]:
        """One token of each request, without graphs; what each layer attends to."""
        batch = self.batch(Mode.DECODE, requests, 1)
        self.backend.init_forward_metadata(batch)
        return self.forward(batch, draw, fused)

    def summaries(self) -> dict[str, torch.Tensor]:
        """Copies of them, without page 0's."""
        return {name: field[1:].clone() for name, field in self.fields.items()}
