"""What the engine must say, from transformers and plain torch. Runs in the engine's environment.

Prompts are read densely. A decoded token attends, in each layer and KV head, to the first page, the last two and the
pages that score best by a formula written out here: no code of vortex's takes part. ``pages`` of None keeps all.

Models are in f32 unless another type is asked for, which K, V and what attention makes are rounded to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel

PAGE, SINK, RECENT = 16, 1, 2

Pages = int | None | Sequence[int | Sequence[int]]


def block_topk(q: torch.Tensor, pages: torch.Tensor) -> torch.Tensor:
    """Scores ``[S]`` of pages of keys ``[S, page, D]`` for the queries ``[G, D]`` of a group."""
    return pages.mean(1) @ q.mean(0)


def quest(q: torch.Tensor, pages: torch.Tensor) -> torch.Tensor:
    """As :func:`block_topk`, by the largest product that a key between the page's extremes could have."""
    low, high = pages.amin(1), pages.amax(1)
    return torch.maximum(q[:, None] * low, q[:, None] * high).sum(-1).amax(0)


def quest_then_mass(q: torch.Tensor, pages: torch.Tensor) -> torch.Tensor:
    """As :func:`block_topk`, for ``examples/quest_then_mass.py``: of the 64 best by :func:`quest` each head's share of
    the mass, of the others less than any.
    """
    near = quest(q, pages).sort(descending=True, stable=True).indices[:64].sort().values
    mass = (pages[near] @ q.T * q.shape[-1] ** -0.5).logsumexp(1).softmax(0).sum(-1)
    return torch.full_like(pages[:, 0, 0], -1.0).index_put((near,), mass)


SCORES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "block_topk": block_topk,
    "quest": quest,
    "quest_then_mass": quest_then_mass,
    # all heads' keys side by side: an absorbed query times a latent row is the query times the key of its head
    "latent_topk": block_topk,
}


@dataclass
class Simulation:
    """``flow`` and ``pages`` are what the engine was given, ``pages`` for all or a list of layers, each with one number
    or a list of heads; ``gap`` is how near the last token came to another one.

    ``gap`` is the smaller of the margin between the two best logits and, over layers and heads, between the last
    page kept and the best one left out.
    """

    model: PreTrainedModel
    flow: str = "quest"
    pages: Pages = None
    dense_layers: Sequence[int] = ()
    gap: float = math.inf
    masses: bool = False
    """Whether :attr:`seen` is kept."""
    scales: Sequence[tuple[float, float]] = ()
    """Of K and V by layer, where they are kept in fp8."""
    narrow_rope: int = 0
    """Numbers of the rotary part of latent rows, where those are kept in fp8 without a scale."""
    triton: bool = False
    """Whether SGLang's triton reads prompts, which matters in fp8: tokens of a pass read each other's rows as they were
    made, and those of earlier ones from the pool, with queries and weights in fp8. Its torch_native reads all rows from
    the pool, and rounds neither."""
    triton_decodes: bool = False
    """Whether it decodes as well, as the dense backend: it reads all rows from the pool, with queries and weights in
    fp8."""
    cuts: Sequence[int] = ()
    """Where the reading of the prompt was cut into passes, in tokens: by chunks, or by what was in the cache."""
    said: Sequence[int] = ()
    """What an engine said; then each token follows what it said before."""
    seen: list[tuple[int, int, list[float], list[float]]] = field(default_factory=list, repr=False)
    """For each token and layer that chose: its number, the tokens there were, and by KV head the share of
    dense attention's mass on the pages that were kept, and on the best choice of as many."""
    _score_gap: float = field(default=math.inf, repr=False)
    _rows: dict[int, torch.Tensor] = field(default_factory=dict, repr=False)
    """The compressed part of latent rows by layer, as the cache gives it back, where it is kept in fp8."""
    _reads: bool = field(default=False, repr=False)
    """Whether the pass at hand reads a prompt."""

    def generate(self, prompt: Sequence[int], tokens: int, restarts: Sequence[int] = ()) -> list[int]:
        """Greedy tokens; at each of ``restarts``, counted in tokens said, all K and V are made anew, densely."""
        return [token for token, _ in self.steps(prompt, tokens, restarts)]

    def steps(self, prompt: Sequence[int], tokens: int, restarts: Sequence[int] = ()) -> list[tuple[int, float]]:
        """Each token with its gap; where the tokens that were :attr:`said` are followed, with how far the logit of the
        one that was said is behind it.
        """
        made: list[tuple[int, float]] = []
        cache = DynamicCache()
        current = _RUNNING
        for i in range(tokens):
            known = [*prompt, *(self.said[:i] or (t for t, _ in made))]
            self._reads = i == 0 or i in restarts
            if self._reads:
                ends = [*self.cuts, len(known)]
                cache, passes = DynamicCache(), [known[a:b] for a, b in zip([0, *ends], ends, strict=False)]
                self._rows.clear()
            else:
                passes = [known[-1:]]
            current.append(self)
            self._score_gap = math.inf
            try:
                with torch.no_grad():
                    for new in passes:
                        made_of = self.model(torch.tensor([new]), past_key_values=cache, use_cache=True)
            finally:
                current.pop()
            logits = made_of.logits[0, -1]
            best = logits.topk(2).values
            gap = min(float(best[0] - best[1]), self._score_gap)
            made.append((int(logits.argmax()), float(best[0] - logits[self.said[i]]) if self.said else gap))
        return made

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, layer: int) -> torch.Tensor:
        """One token: q ``[Hq, D]``, k ``[Hkv, L, D]`` and v ``[Hkv, L, Dv]`` -> ``[Hq, Dv]``."""
        kept, best = [], []
        group = q.shape[0] // k.shape[0]
        out = q.new_empty(len(q), v.shape[-1])
        shared = None
        if "latent" in self.flow:
            shared = self._tokens(q.reshape(1, -1), k.transpose(0, 1).flatten(1), layer, 0)
        for h in range(k.shape[0]):
            mine = q[h * group : (h + 1) * group]
            keep = self._tokens(mine, k[h], layer, h) if shared is None else shared
            out[h * group : (h + 1) * group] = ((mine @ k[h, keep].T) * scale).softmax(-1) @ v[h, keep]
            if self.masses:
                weights = ((mine @ k[h].T) * scale).softmax(-1).mean(0)
                pages = [float(page.sum()) for page in weights.split(PAGE)]
                chosen = sorted(pages[SINK:-RECENT], reverse=True)[
                    : len({int(i) // PAGE for i in keep}) - SINK - RECENT
                ]
                kept.append(float(weights[keep].sum()))
                best.append(sum(chosen) + sum(pages[:SINK]) + sum(pages[-RECENT:]))
        if self.masses:
            self.seen.append((layer, k.shape[1], kept, best))
        return out

    def _scored(self, layer: int, head: int) -> int | None:
        if self.pages is None or isinstance(self.pages, int):
            return self.pages
        row = self.pages[layer]
        return row if isinstance(row, int) else row[head]

    def _tokens(self, q: torch.Tensor, keys: torch.Tensor, layer: int, head: int) -> torch.Tensor:
        length = len(keys)
        n = -(-length // PAGE)
        scored = self._scored(layer, head)
        if scored is None or n <= scored + SINK + RECENT:
            return torch.arange(length)
        candidates = torch.arange(SINK, n - RECENT)
        # summaries are in the model's type, and extremes of rounded keys are rounded extremes
        whole = keys[: (n - 1) * PAGE].to(self.model.dtype).to(keys.dtype).view(-1, PAGE, keys.shape[-1])
        scores = SCORES[self.flow](q, whole[candidates])
        order = scores.sort(descending=True, stable=True)
        if 0 < scored < len(candidates):
            self._score_gap = min(self._score_gap, float(order.values[scored - 1] - order.values[scored]))
        chosen = {*range(SINK), *range(n - RECENT, n), *candidates[order.indices[:scored]].tolist()}
        positions = [p * PAGE + i for p in sorted(chosen) for i in range(PAGE) if p * PAGE + i < length]
        return torch.tensor(positions)


_RUNNING: list[Simulation] = []


def _attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, scaling: float, **rest: Any
) -> tuple[torch.Tensor, None]:
    simulation, dtype = _RUNNING[-1], query.dtype
    in_fp8 = bool(simulation.scales or simulation.narrow_rope)
    new = query.shape[2] if simulation._reads and simulation.triton and in_fp8 else 0
    own = _own_rows(module, key[:, :, -new:], value[:, :, -new:]) if new else None
    scales = simulation.scales[module.layer_idx] if simulation.scales else None
    key, value = (_kept(x, scales and scales[i]) for i, x in enumerate((key, value)))
    if rope := simulation.narrow_rope:
        key = torch.cat([key[..., :-rope], _kept(key[..., -rope:], 1.0)], -1)
    if own is not None:
        key, value = (torch.cat([x[:, :, :-new], o.float()], 2) for x, o in zip((key, value), own, strict=True))
    query = query.float()
    decodes = not simulation._reads and simulation.triton_decodes and in_fp8
    if not simulation._reads and not decodes and module.layer_idx not in simulation.dense_layers:
        out = simulation.attend(query[0, :, 0], key[0], value[0], scaling, module.layer_idx)
        return out[None, None].to(dtype), None
    group = query.shape[1] // key.shape[1]
    k, v = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = (query @ k.mT) * scaling
    past = k.shape[2] - query.shape[2]
    hidden = torch.ones(query.shape[2], k.shape[2], dtype=torch.bool).triu(past + 1)
    scores = scores.masked_fill(hidden, -math.inf)
    past += decodes
    if past and (decodes or own is not None):
        scores[..., :past] = _scores_in_fp8(module, query, k[:, :, :past]) * scaling
        weights = _weights_in_fp8(scores, past)
    else:
        weights = scores.softmax(-1)
    out = weights @ v
    return out.transpose(1, 2).contiguous().to(dtype), None


TILE = 64
"""Rows of the pool that triton's kernel takes at a time, on an H200 and where these tests run on a CPU."""


def _scores_in_fp8(module: Any, query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Products of queries in fp8 with rows of the pool; absorbed, with latent rows."""
    if not hasattr(module, "kv_a_layernorm"):
        return _kept(query, 1.0) @ keys.mT
    simulation, weight = _RUNNING[-1], module.kv_b_proj.weight
    whole = query.shape[-1] - simulation.narrow_rope
    up = weight.float().unflatten(0, (query.shape[1], -1))[:, :whole]
    absorbed = (query[..., :whole] @ up).to(weight.dtype)
    rows = simulation._rows[module.layer_idx][:, None, : keys.shape[2]]
    return _kept(absorbed, 1.0) @ rows.mT + _kept(query[..., whole:], 1.0) @ keys[..., whole:].mT


def _weights_in_fp8(scores: torch.Tensor, past: int) -> torch.Tensor:
    """Softmax, the weights of the first ``past`` rows in fp8: each as it is beside the largest score up to its tile."""
    largest = torch.stack([tile.amax(-1) for tile in scores[..., :past].split(TILE, -1)], -1).cummax(-1).values
    largest = largest.repeat_interleave(TILE, -1)[..., :past]
    most = scores.amax(-1, keepdim=True)
    pool = _kept((scores[..., :past] - largest).exp(), 1.0) * (largest - most).exp()
    exact = (scores - most).exp()
    return torch.cat([pool, exact[..., past:]], -1) / exact.sum(-1, keepdim=True)


def _kept(x: torch.Tensor, scale: float | None) -> torch.Tensor:
    """K or V as the cache gives it back, f32."""
    return x.float() if scale is None else (x / scale).to(torch.float8_e4m3fn).float() * scale


AttentionInterface.register("simulation", _attention)


def _narrow_latent(module: Any, given: Any, compressed: torch.Tensor) -> torch.Tensor:
    """The compressed part of latent rows, of which K and V of each head are made, as the cache gives it back."""
    module.made = compressed
    simulation = _RUNNING[-1]
    if not simulation.narrow_rope:
        return compressed
    kept = _kept(compressed, 1.0)
    rows = simulation._rows.get(module.layer)
    simulation._rows[module.layer] = kept if rows is None else torch.cat([rows, kept], 1)
    return kept.to(compressed.dtype)


def _own_rows(module: Any, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V of the tokens of this pass as they were made, before the cache has them; the rotary part of ``key`` and,
    where there are no latent rows, all of both are that.
    """
    if not hasattr(module, "kv_a_layernorm"):
        return key, value
    rows = module.kv_b_proj(module.kv_a_layernorm.made).unflatten(-1, (key.shape[1], -1)).transpose(1, 2)
    whole, value = rows.split([rows.shape[-1] - value.shape[-1], value.shape[-1]], -1)
    return torch.cat([whole, key[..., whole.shape[-1] :]], -1), value


def load(path: str, dtype: str = "float32") -> PreTrainedModel:
    """The model with attention that :class:`Simulation` decides."""
    config = AutoConfig.from_pretrained(path)
    if hasattr(config, "quantization_config"):  # that of K and V is what a Simulation is told
        del config.quantization_config
    model = AutoModelForCausalLM.from_pretrained(path, config=config, dtype=getattr(torch, dtype)).eval()
    model.set_attn_implementation("simulation")
    for name, module in model.named_modules():
        if name.endswith("kv_a_layernorm"):
            module.layer = int(name.split(".")[2])
            module.register_forward_hook(_narrow_latent)
    return model


def greedy(path: str, prompt: Sequence[int], tokens: int) -> list[int]:
    """What transformers itself says, with attention of its own.

    The token that ends an answer is one like any other, as engines are asked to take it: with ``min_new_tokens`` it
    would never be said.
    """
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    assert model.generation_config is not None
    model.generation_config.eos_token_id = None
    said = model.generate(torch.tensor([prompt]), max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return said[0, len(prompt) :].tolist()
