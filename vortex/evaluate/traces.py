"""Recorded decoding steps: K and V of a prompt, then q, K and V of each step, to judge rules without the model.

A file of safetensors; layer ``n`` is the model's number of it, sizes as elsewhere (T tokens of all, S steps):

    k.n, v.n    [Hkv, T, D]        K after the rotary embedding
    q.n         [S, Hq, D]         of the last S tokens, as dense attention asked
    scale       f64 []             of the softmax
    evidence    i64 [E, 2]         places of the answer, (first, last + 1)
    about       u8 [..]            JSON: model, task, length, index, prompt

A rule sees what dense attention asked, not what its own mistakes would have led to: there are no answers, but recall,
mass, error and pages, in seconds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vortex.errors import BAD_TRACE, VortexError
from vortex.evaluate.attention import attending
from vortex.evaluate.lanes import Lanes, Measures, Tally
from vortex.evaluate.outcomes import Lane, Outcome
from vortex.evaluate.prefill import Prefilled, PromptCache, require_room, stored_type
from vortex.evaluate.prompts import Prompt
from vortex.evaluate.rules import Rule, Step, baseline
from vortex.evaluate.shared_pages import SharedPages
from vortex.runtime.safetensors import read_safetensors, write_safetensors

if TYPE_CHECKING:
    from vortex.evaluate.models import Model


@dataclass(frozen=True)
class Trace:
    """The steps of one prompt; tensors as in the file, by the model's number of a layer."""

    k: Mapping[int, torch.Tensor]
    v: Mapping[int, torch.Tensor]
    q: Mapping[int, torch.Tensor]
    scale: float
    evidence: tuple[tuple[int, int], ...]
    about: Mapping[str, object] = field(default_factory=dict)

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(self.q)

    @property
    def steps(self) -> int:
        return int(next(iter(self.q.values())).shape[0])

    @property
    def prompt(self) -> int:
        """Tokens before the first step's."""
        return int(next(iter(self.k.values())).shape[1]) - self.steps


def trace_bytes(model: Model, prompt: Prompt, layers: int, kv_heads: int) -> int:
    """What a trace of so many layers and KV heads takes on disk, but for its header."""
    steps, group = len(prompt.answer), model.group
    rows = 2 * (len(prompt.tokens) - 1 + steps) + steps * group
    return layers * kv_heads * rows * model.head_dim * stored_type(model.dtype).itemsize


@torch.inference_mode()
def capture(
    model: Model, prompt: Prompt, cache: PromptCache, layers: Sequence[int] = (), kv_heads: Sequence[int] = ()
) -> Trace:
    """Decode the right answer densely and record it; ``layers`` and ``kv_heads`` are all unless given.

    Raises:
        VortexError: VX9121 for a prompt longer than the context, VX9124 for a layer or head that there is not, a
            model with latent rows, or a prompt without an answer.
    """
    require_room(model, prompt)
    if model.kv_lora_rank:
        raise BAD_TRACE.at(what="a trace", why=f"'{model.name}' keeps latent rows (MLA), and traces hold K and V")
    layers = sorted(set(layers)) or model.sparse_layers
    heads = sorted(set(kv_heads)) or list(range(model.kv_heads))
    known = {"layer": list(model.sparse_layers), "KV head": list(range(model.kv_heads))}
    for what, wanted in (("layer", layers), ("KV head", heads)):
        if odd := [n for n in wanted if n not in known[what]]:
            why = f"pages are selected in no {what} {odd[0]} of '{model.name}'"
            raise BAD_TRACE.at(what="a trace", why=f"{why}; there are {', '.join(map(str, known[what]))}")
    if not prompt.answer:
        raise BAD_TRACE.at(what="a trace", why=f"prompts of '{prompt.task}' have no answer to decode")
    read = cache.read(model, prompt)
    answer = len(prompt.answer)
    pages = SharedPages(read, 1, answer, device=model.device, dtype=model.dtype)
    reading = Lanes(pages, [baseline("dense", 0, "")], model.sparse_layers)
    asked: dict[int, list[torch.Tensor]] = {n: [] for n in layers}
    scales: set[float] = set()

    def watched(
        layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, window: int
    ) -> torch.Tensor:
        if layer in asked:
            asked[layer].append(q[0, :, 0].cpu())
            scales.add(scale)
        return reading(layer, q, k, v, scale, window)

    for at, token in enumerate((prompt.tokens[-1], *prompt.answer[:-1])):
        reading.plan([0], Step(pages.prompt + at + 1, at == 0))
        ids = torch.tensor([[token]], device=model.device)
        with attending(model.hf, watched):
            model.hf(input_ids=ids, position_ids=torch.full_like(ids, pages.prompt + at), use_cache=False)
    small = stored_type(model.dtype)
    whole = pages.prompt + answer
    kept = {"k": pages.k, "v": pages.v}
    # one lane alone: its pages lie in logical order
    rows = {side: {n: x[n][heads, :whole].to(small).cpu() for n in layers} for side, x in kept.items()}
    queries = {
        n: torch.stack(x).view(answer, model.kv_heads, -1, model.head_dim)[:, heads].flatten(1, 2).to(small)
        for n, x in asked.items()
    }
    about = {"model": model.name, "task": prompt.task, "length": prompt.length, "index": prompt.index}
    about["heads"] = heads
    return Trace(rows["k"], rows["v"], queries, scales.pop(), prompt.evidence, about)


def write_trace(trace: Trace, path: Path) -> None:
    """VX7004 when the disk refuses."""
    tensors = {f"{side}.{n}": x for side in "kvq" for n, x in getattr(trace, side).items()}
    tensors["scale"] = torch.tensor(trace.scale, dtype=torch.float64)
    tensors["evidence"] = torch.tensor(trace.evidence, dtype=torch.int64).reshape(-1, 2)
    tensors["about"] = torch.tensor(list(json.dumps(trace.about).encode()), dtype=torch.uint8)
    write_safetensors(path, tensors)


def read_trace(path: Path) -> Trace:
    """What :func:`write_trace` wrote.

    Raises:
        VortexError: VX7002 for a file that cannot be read, VX6020 for no safetensors, VX9124 for other tensors.
    """
    found = read_safetensors(path)
    try:
        layers = sorted(int(name[2:]) for name in found if name.startswith("q."))
        sides = {side: {n: found[f"{side}.{n}"] for n in layers} for side in "kvq"}
        evidence = tuple((int(a), int(b)) for a, b in found["evidence"].tolist())
        about = json.loads(bytes(found["about"].tolist()))
        made = Trace(sides["k"], sides["v"], sides["q"], float(found["scale"]), evidence, about)
        _require_shapes(made)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        why = f"it lacks tensor {error}" if isinstance(error, KeyError) else str(error)
        raise BAD_TRACE.at(what=f"'{path}'", why=why) from None
    return made


def _require_shapes(trace: Trace) -> None:
    """ValueError for tensors that do not go together."""
    if not trace.q:
        raise ValueError("it has no layer")
    heads, tokens, dim = next(iter(trace.k.values())).shape
    for n in trace.layers:
        k, v, q = trace.k[n], trace.v[n], trace.q[n]
        if tuple(k.shape) != (heads, tokens, dim) or k.shape != v.shape:
            raise ValueError(f"K and V of layer {n} are {list(k.shape)} and {list(v.shape)}")
        if q.ndim != 3 or q.shape[1] % heads or q.shape[2] != dim or not 0 < q.shape[0] < tokens:
            raise ValueError(f"q of layer {n} is {list(q.shape)} beside K {list(k.shape)}")
    if any(not 0 <= a < b <= tokens for a, b in trace.evidence):
        raise ValueError(f"evidence {trace.evidence} is not within its {tokens} tokens")
    if not isinstance(trace.about, dict):
        raise ValueError("what it says of itself is no object")


def judge(
    trace: Trace, lanes: Sequence[Lane], rules: Callable[[SharedPages], Sequence[Rule]], dtype: torch.dtype
) -> tuple[list[Outcome], dict[str, VortexError]]:
    """What each lane read: outcomes without text, score and log-probability. ``rules`` makes those of ``lanes`` for
    the trace's pages; layers are numbered from 0 for them.
    """
    order = list(trace.layers)
    k = tuple(trace.k[n][:, : trace.prompt] for n in order)
    v = tuple(trace.v[n][:, : trace.prompt] for n in order)
    pages = SharedPages(Prefilled(k, v), len(lanes), trace.steps, device=torch.device("cpu"), dtype=dtype)
    reading = Lanes(pages, rules(pages), range(len(order)))
    reading.begin()
    heads = int(k[0].shape[0])
    tally = reading.tally = Tally(len(lanes), len(order), heads, trace.evidence)
    for step in range(trace.steps):
        at = trace.prompt + step
        reading.plan(list(range(len(lanes))), Step(at + 1, step == 0))
        for i, n in enumerate(order):
            q, new_k, new_v = (
                x[None, :, None].expand(len(lanes), -1, -1, -1).to(dtype)
                for x in (trace.q[n][step], trace.k[n][:, at], trace.v[n][:, at])
            )
            reading(i, q, new_k, new_v, trace.scale, 0)
        tally.steps += 1
    made = []
    for i, lane in enumerate(lanes):
        if i not in reading.failed:
            made.append(_outcome(trace, lane, tally.of(i)))
    failures = {lanes[i].rule: f.error for i, f in reading.failed.items() if f.error is not None}
    return made, failures


def _outcome(trace: Trace, lane: Lane, measures: Measures) -> Outcome:
    about = trace.about
    length, index = (int(str(about.get(n, 0))) for n in ("length", "index"))
    task = str(about.get("task", "trace"))
    return Outcome(task, length, index, lane, "", math.nan, math.nan, **measures)
