"""K and V of a prompt: read densely by the model once, and kept on disk for all flows that come later.

All tokens but the last one are read. The last one is the first decoding step, so that every token of an answer comes of
pages that a rule chose.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vortex.errors import EVAL_MEMORY, MODEL_REFUSED, PROMPT_TOO_LONG, VortexError, writing
from vortex.evaluate.attention import attending
from vortex.evaluate.prompts import Prompt
from vortex.install.cache import cache_root
from vortex.runtime.safetensors import read_safetensors, write_safetensors

if TYPE_CHECKING:
    from vortex.evaluate.models import Model

VERSION = "1"
"""Of what lies on disk."""
MOST_BYTES = 16 << 30
"""That prompts may take on disk; the ones that were read least recently go first."""


def default_folder() -> Path:
    """Where prompts and outcomes are kept unless said otherwise."""
    return cache_root() / "evaluate"


@dataclass(frozen=True)
class Prefilled:
    """K and V of the first ``tokens`` tokens of a prompt, of each layer ``[Hkv, tokens, D]``, K after the rotary
    embedding, in the type they are stored in. Under MLA ``k`` are latent rows, ``rank`` is how many numbers of each are
    the value, and ``v`` are views of those.
    """

    k: tuple[torch.Tensor, ...]
    v: tuple[torch.Tensor, ...]
    rank: int = 0

    @classmethod
    def of_latent(cls, rows: tuple[torch.Tensor, ...], rank: int) -> Prefilled:
        """Latent rows ``[1, tokens, D]`` of each layer."""
        return cls(rows, tuple(x[..., :rank] for x in rows), rank)

    @property
    def tokens(self) -> int:
        return int(self.k[0].shape[1])


def digest(prompt: Prompt) -> str:
    """16 hexadecimal digits over what a prompt asks and what it should answer."""
    told = repr((prompt.tokens, prompt.wanted, prompt.score, prompt.answer, prompt.evidence, prompt.new_tokens))
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def require_room(model: Model, prompt: Prompt) -> None:
    """VX9121 for a prompt that the model has no context for, its answer included."""
    need = len(prompt.tokens) + max(len(prompt.answer), prompt.new_tokens)
    if need > model.context:
        what = f"{prompt.task}, {len(prompt.tokens)} tokens and up to {need - len(prompt.tokens)} of an answer"
        raise PROMPT_TOO_LONG.at(what=what, model=model.name, context=model.context)


def stored_type(dtype: torch.dtype) -> torch.dtype:
    """The type in which K and V of a model are kept: f16 for f32, whose rounding (2^-11) is far below that of the bf16
    that engines keep; others as they are.
    """
    return torch.float16 if dtype == torch.float32 else dtype


def stored_bytes(model: Model, tokens: int) -> int:
    """What a prompt of so many tokens takes on disk."""
    return model.layers * model.token_elements * (tokens - 1) * stored_type(model.dtype).itemsize


@torch.inference_mode()
def prefill(model: Model, prompt: Prompt) -> Prefilled:
    """Read a prompt densely.

    Raises:
        VortexError: VX9121 for a prompt longer than the context, VX9122 when memory runs out,
            VX9103 for a model whose layers have several shapes.
    """
    require_room(model, prompt)
    kept: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {}

    def read(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, window: int) -> None:
        kept[layer] = _stored(k[0]), None if model.kv_lora_rank else _stored(v[0])

    tokens = torch.tensor([prompt.tokens[:-1]], device=model.device)
    with memory_for(f"reading a prompt of {tokens.shape[1]} tokens", model), attending(model.hf, read):
        model.hf(input_ids=tokens, use_cache=False, logits_to_keep=1)
    _require_shapes(model, kept, int(tokens.shape[1]))
    layers = [kept[n] for n in sorted(kept)]
    keys = tuple(k for k, _ in layers)
    if model.kv_lora_rank:
        return Prefilled.of_latent(keys, model.kv_lora_rank)
    return Prefilled(keys, tuple(v for _, v in layers if v is not None))


def _require_shapes(model: Model, kept: Mapping[int, tuple[torch.Tensor, torch.Tensor | None]], tokens: int) -> None:
    """VX9103 where a layer has no attention, or another shape than the config says of all."""
    why = f"of {model.layers} layers, {len(kept)} have attention" if len(kept) != model.layers else ""
    want = model.kv_heads, tokens, model.head_dim
    for layer, sides in kept.items():
        for name, x in zip("KV", sides, strict=True):
            if x is not None and tuple(x.shape) != want:
                have = f"{x.shape[0]} KV heads of {x.shape[2]}"
                why = why or f"layer {layer} has {name} of {have}, not of {want[0]} heads of {want[2]}"
    if why:
        hint = "models whose layers all have K and V of one shape are known to do"
        raise MODEL_REFUSED.at(name=model.name, why=why, hint=hint)


def _stored(x: torch.Tensor) -> torch.Tensor:
    small = x.to(stored_type(x.dtype))
    return (small if bool(small.isfinite().all()) else x).cpu().clone()


@contextmanager
def memory_for(what: str, model: Model) -> Iterator[None]:
    """VX9122 where the device has no memory left for ``what``; any other error as it is."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "not enough memory" not in str(error):
            raise
        raise _out_of_memory(model, what) from error


def _out_of_memory(model: Model, what: str) -> VortexError:
    weights = sum(w.numel() * w.element_size() for w in model.hf.parameters())
    row = model.layers * model.token_elements * model.dtype.itemsize
    have = _free_bytes(model.device)
    # attention scores of a lane and activations of a prompt take about as much again as K and V
    fits = max(0, have // (2 * row))
    return EVAL_MEMORY.at(what=what, device=model.device, weights=f"{weights / 2**30:.1f}", row=row, tokens=fits)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 0


class PromptCache:
    """Prompts on disk, one file each, in ``folder`` (by default ``evaluate`` in the cache of vortex).

    A file is written whole or not at all; one that is damaged is read anew by the model. ``most`` bounds their bytes.
    """

    def __init__(self, folder: Path | None = None, most: int = MOST_BYTES) -> None:
        self.folder = (folder or default_folder()) / "prompts"
        self.most = most

    def path(self, model: Model, prompt: Prompt) -> Path:
        read = hashlib.sha256(repr(prompt.tokens).encode()).hexdigest()[:16]
        return self.folder / f"{model.identity}-{read}-{VERSION}.safetensors"

    def has(self, model: Model, prompt: Prompt) -> bool:
        return self.path(model, prompt).is_file()

    def read(self, model: Model, prompt: Prompt) -> Prefilled:
        """What is kept of the prompt, else what :func:`prefill` makes of it, which is kept from then on.

        Raises:
            VortexError: as :func:`prefill`, VX7004 when the disk refuses.
        """
        require_room(model, prompt)
        path = self.path(model, prompt)
        if path.is_file():
            try:
                found = read_safetensors(path)
                layers = range(model.layers)
                keys = tuple(found[f"k.{n}"] for n in layers)
                if model.kv_lora_rank:
                    made = Prefilled.of_latent(keys, model.kv_lora_rank)
                else:
                    made = Prefilled(keys, tuple(found[f"v.{n}"] for n in layers))
                want = (model.kv_heads, len(prompt.tokens) - 1)
                dims = [(x.shape[-1], y.shape[-1]) for x, y in zip(made.k, made.v, strict=True)]
                same = all(tuple(x.shape[:2]) == want for x in (*made.k, *made.v))
                if same and set(dims) == {(model.head_dim, model.kv_lora_rank or model.head_dim)}:
                    os.utime(path)
                    return made
            except (VortexError, KeyError, OSError):
                pass  # damaged: made again below
        made = prefill(model, prompt)
        self._write(path, made)
        return made

    def _write(self, path: Path, made: Prefilled) -> None:
        tensors = {f"k.{n}": x for n, x in enumerate(made.k)}
        tensors |= {} if made.rank else {f"v.{n}": x for n, x in enumerate(made.v)}
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        with writing(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                write_safetensors(scratch, tensors)
                scratch.replace(path)
            finally:
                scratch.unlink(missing_ok=True)
        self._make_room(path)

    def _make_room(self, kept: Path) -> None:
        """Remove what was read least recently, but for ``kept``, until all fit."""
        found = sorted((p.stat().st_mtime, p.stat().st_size, p) for p in self.folder.glob("*.safetensors"))
        size = sum(s for _, s, _ in found)
        for _, bytes_, path in found:
            if size <= self.most:
                return
            if path != kept:
                path.unlink(missing_ok=True)
                size -= bytes_
