"""Whether an artifact computes its flow: its selections, outputs and summaries against the flow IR, interpreted.

The kernels are judged apart, each on what it was given. K and V in the cache are compared with the tokens that were
appended, bit for bit. Summaries are compared with those of the K and V in the
cache; selections with the scores of the summaries in the cache; outputs with attention over the selected pages. So no
tolerance of one hides a mistake of another. A page that only one side selected must score as the last one kept, within
what rounding explains (design 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from vortex.budget import Budget
from vortex.check.choices import Bounds, differing
from vortex.check.reference import State, indexed, summarise
from vortex.check.synthetic_batch import Times, Trial, Varied
from vortex.flow import narrow
from vortex.flow.oracle import attend, round_to
from vortex.flow.oracle import kept as stored
from vortex.ir.core import Module
from vortex.ir.dialects.flow import cap_of, of_pages
from vortex.ir.ranking import Ranked, masses
from vortex.ir.types import DTYPES, DType, TensorType, uint1
from vortex.runtime.decoder import Decoder
from vortex.runtime.tensors import SHORT
from vortex.spec import Spec

LAYERS = 2
TOLERANCE = {"f32": 1e-4, "f16": 4e-3, "bf16": 2e-2}
"""How far an output may lie from the reference, relative to the largest of its request (at least 1), by its type."""
STEP = {"f32": 2.0**-16, "f16": 2.0**-10, "bf16": 2.0**-7, "fp8_e4m3": 2.0**-3}
"""One unit in the last place of a stored number, relative to it; for fp32 what the order of a sum may change."""
NOISE, SAMPLES, SPREAD = 2.0**-17, 3, 4.0
"""How much the inputs of a score are changed to see what rounding may do to it, how often, and the factor on that."""
OWN = 2.0**-18
"""What the rounding of a score itself may change, relative to it."""
DRIFT = 64.0
"""The same of state, which sums up what steps change, in multiples of that."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One request against its flow, over layers and steps: the worst of each."""

    length: int
    pages: int
    selected: int
    error: float
    """Largest difference of an output from attention over the selected pages, relative to the largest output there
    (at least 1); infinite where it is no number.
    """
    differing: int
    """Pages that only one of kernel and flow selected and whose score is not that of the last one kept; all heads,
    layers and steps together.
    """
    gap: float
    """The largest distance of such a page's score from that of the last one kept; infinite where it has none."""
    summaries: int
    """Pages, over heads and layers, with a summary that is not what the flow makes of the page's K and V, and those
    (and heads) with state that is not what the flow made of it step by step.
    """
    tokens: int
    """Tokens, over layers, whose K or V in the cache is not what was appended."""
    kept: float
    """Share of the dense attention mass on the selected pages, mean over heads."""

    def good(self, dtype: str) -> bool:
        """Whether artifact and flow agree, for outputs in ``dtype``."""
        return self.error <= TOLERANCE[dtype] and not (self.differing or self.summaries or self.tokens)

    def why(self) -> str:
        """What was found, in a sentence."""
        gap = f", their scores off by up to {self.gap:.1e}" if self.differing else ""
        told = f"error {self.error:.1e}, {self.differing} other pages{gap}, {self.summaries} other summaries"
        return f"{told}, {self.tokens} other tokens"

    def worst(self, other: Verdict) -> Verdict:
        """Of this and a later one."""
        return Verdict(
            other.length,
            other.pages,
            max(self.selected, other.selected),
            max(self.error, other.error),
            self.differing + other.differing,
            max(self.gap, other.gap),
            self.summaries + other.summaries,
            self.tokens + other.tokens,
            min(self.kept, other.kept),
        )


def judge(
    decoder: Decoder, flow: Module, lengths: Sequence[int], *, kv_heads: int = 0, steps: int = 4, seed: int = 0
) -> tuple[dict[str, Verdict], list[Times]]:
    """Decode ``steps`` steps of requests of ``lengths`` tokens, on pages that others have used before, and compare
    each step of each layer with ``flow`` (flow IR), under another budget in each. Under MLA one KV head, else 2, unless
    given.
    """
    spec = decoder.spec
    kv_heads = kv_heads or (1 if spec.kv_lora_rank else 2)
    pages = sum(-(-(n + steps) // spec.page_size) for n in lengths)
    trial = Trial(decoder, kv_heads, pages, seed, layers=LAYERS, varied=True)
    trial.join("gone", max(lengths))
    trial.leave("gone")
    for i, n in enumerate(lengths):
        trial.join(f"r{i}", n)
    times, found, asked = [], dict[str, Verdict](), trial.budget
    states = {(name, layer): State(flow, kv_heads) for name in trial.requests for layer in trial.layers}
    for step in range(steps):
        decoder.budget = budgets(asked)[step % 4]
        times.append(trial.step())
        for name in trial.requests:
            for layer in trial.layers:
                now = compare(trial, name, flow, layer, cache=step == steps - 1, state=states[name, layer])
                found[name] = found[name].worst(now) if name in found else now
    decoder.budget = asked
    return found, times


def budgets(asked: Budget) -> list[Budget]:
    """The budget asked for and others near it, so that each of its numbers decides about some page."""
    if asked.table:
        more = tuple(tuple(n + 1 for n in row) for row in asked.table)
        larger, longer = replace(asked, pages=-1, table=more, sink=asked.sink + 2), asked
    else:
        larger = replace(asked, pages=asked.pages + 1, sink=asked.sink + 2)
        longer = replace(asked, ratio=max(Fraction(asked.ratio), Fraction(2, 5)))
    return [asked, longer, larger, replace(asked, sink=0, recent=asked.recent + 2)]


def compare(trial: Trial, name: str, flow: Module, layer: int, *, cache: bool, state: State | None = None) -> Verdict:
    """The last step of a request in one layer; what the cache holds of it too, where asked for. ``state`` is what the
    request kept before that step, and becomes what it keeps then; without it the step is the first that scores.
    """
    spec, budget, cap = trial.spec, trial.budget, cap_of(flow)
    row, heads = trial.requests.index(name), trial.cache.kv_heads
    k, v = (x.cpu() for x in trial.keys_and_values(name, layer))
    pages = -(-len(k) // spec.block_size)
    q = trial.q[layer][row].float().cpu().view(heads, spec.group, -1)
    out = trial.out[layer][row].float().cpu().view(heads, spec.group, -1)
    table = list(trial.cache.pages(name))
    types = {d.name: d.type.dtype for d in flow.declared("field") if isinstance(d.type, TensorType)}
    whole = dict.fromkeys(of_pages(flow), cap.whole)
    fields = {
        f: numbers(x[table].cpu() if f in whole else by_block(x[table].cpu(), spec), types[f])
        for f, x in trial.cache.fields[layer].items()
    }
    chosen, counts = trial.selected[layer]
    state = State(flow, heads) if state is None else state
    error, wrong, gap, kept, selected = 0.0, 0, 0.0, 0.0, 0
    for h in range(heads):
        mine = chosen[row, h, : int(counts[row, h])].tolist()
        selected = max(selected, len(mine))
        parts: list[Bounds] = []
        if cap.scored(budget, pages):
            candidates = cap.candidates(budget, pages)
            scored = slice(candidates.start, candidates.stop)
            of_head = {}
            for f, x in fields.items():
                each = whole.get(f, 1)
                of_head[f] = np.ascontiguousarray(x[scored.start // each : scored.stop // each, h])
            inside = slice(scored.start * spec.block_size, scored.stop * spec.block_size)
            shape = (scored.stop - scored.start, spec.block_size, -1)
            of_head |= {
                n: x[inside, h].reshape(shape).float().numpy() for n, x in zip(spec.pools, (k, v), strict=False)
            }
            left = budget.total(pages) - budget.sink - budget.recent
            own = budget.row(layer, trial.decoder.head_offset + h)
            place = {**at(trial, layer, h), "state": state.read(h, scored), "budget": own}
            parts, new = rounded(flow, q[h].numpy(), of_head, scored, left, place)
            state.write(h, new, scored)
        odd, far = differing(mine, parts, pages, budget, cap)
        wrong, gap = wrong + odd, max(gap, far)
        if not mine or not set(mine) <= set(range(pages)):
            error = float("inf")
            continue
        tokens = (torch.arange(len(k)) // spec.block_size)[:, None].eq(torch.tensor(mine)).any(-1)
        want = attend(q[h], k[tokens, h], v[tokens, h], trial.scale)[0]
        off = float((out[h] - want).abs().max() / max(1.0, float(want.abs().max())))
        error = max(error, off if off == off else float("inf"))
        kept += float(trial.mass(q[h], k[:, h], pages)[:, mine].sum(-1).mean()) / heads
    stale = unlike(trial, flow, layer, fields, k, v) + unkept(trial, name, layer, state) if cache else 0
    lost = misplaced(trial, name, layer, k, v) if cache else 0
    return Verdict(len(k), pages, selected, error, wrong, gap, stale, lost, kept)


def by_block(x: torch.Tensor, spec: Spec) -> torch.Tensor:
    """A field of pages as one of blocks, ``[blocks, Hkv, *tile]``."""
    return x if spec.page_blocks == 1 else x.transpose(1, 2).flatten(0, 1)


def at(trial: Trial, layer: int, head: int) -> dict[str, Any]:
    """Where a row of the trial is, as the interpreter takes it."""
    return {"layer": layer, "head": trial.decoder.head_offset + head, "parameters": trial.parameters}


def rounded(
    flow: Module, q: Any, fields: Mapping[str, Any], scored: slice, left: int, place: Mapping[str, Any]
) -> tuple[list[Bounds], dict[str, Any]]:
    """What each part of a row's selection may hold, where the budget leaves ``left`` pages to it: by how much rounding
    may change each score is measured on inputs changed a bit. And what state becomes.
    """

    def chosen(q: Any, fields: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[tuple[Ranked, ...], Any]:
        here = {**place, "state": state}
        found, new = indexed(flow, q, fields, scored.start, scored.stop - scored.start, **here)
        return found.parts, new

    def changed(x: Any) -> Any:
        if x.dtype.kind != "f":
            return x
        return (x * (1 + NOISE * random.choice([-1.0, 1.0], x.shape))).astype(np.float32)

    random = np.random.default_rng(0)
    given = fields, place["state"]
    right, new = chosen(q, *given)
    samples = [chosen(changed(q), *({f: changed(x) for f, x in g.items()} for g in given))[0] for _ in range(SAMPLES)]
    found = []
    for part, *others in zip(right, *samples, strict=True):
        score = np.asarray(part.over(), np.float32)
        with np.errstate(invalid="ignore"):
            slack = OWN * np.abs(score)
            for other in others:
                slack = np.fmax(slack, SPREAD * np.abs(other.over() - score))
        slack = np.where(np.isfinite(slack), slack, 0.0)
        # what rounding may bring onto a shortlist, or off it, may be selected or not
        for other in others:
            slack[listed(part) != listed(other)] = np.inf
        mass = float(masses(score).sum(dtype=np.float64))
        share = float(slack.sum()) / mass if 0 < mass < float("inf") else 0.0
        found.append(Bounds.of(part, slack, left, mass=share, others=others))
    return found, new


def listed(part: Ranked) -> Any:
    """Whether each candidate is scored: all of them, or those on a shortlist."""
    found = np.full(part.candidates, part.near is None)
    if part.near is not None:
        found[part.near] = True
    return found


def unlike(trial: Trial, flow: Module, layer: int, fields: Mapping[str, Any], k: torch.Tensor, v: torch.Tensor) -> int:
    """Pages with another summary than the flow makes of them, over all heads; a code with a scale may be the next."""
    spec = trial.spec
    full = len(k) // spec.block_size
    count = 0
    if not full or not fields:
        return count
    for h in range(k.shape[1]):
        parts = (k,) if spec.kv_lora_rank else (k, v)
        tiles = [x[: full * spec.block_size, h].reshape(full, spec.block_size, -1).numpy() for x in parts]
        mine = {name: x[:, h] for name, x in fields.items()}
        count += int(unlike_own(flow, mine, tiles, at(trial, layer, h)).sum())
    return count


def unlike_own(flow: Module, fields: Mapping[str, Any], tiles: Sequence[Any], where: Mapping[str, Any]) -> Any:
    """Which full pages ``[n, page, D]`` of a head have other ``fields`` than the flow makes of them, rounding aside;
    where pages have several blocks, which blocks, and of a field of pages the mistakes stand in the first ones.
    """
    types = {d.name: d.type.dtype for d in flow.declared("field") if isinstance(d.type, TensorType)}
    made = summarise(flow, *tiles, **where)
    wrong = np.zeros(len(tiles[0]), bool)
    for name, x in fields.items():
        want = made[name]
        mine = x[: len(want)]
        if types[name] == uint1:
            same = (mine == want) | near_zero(flow, name, want, tiles, where)
        elif want.dtype.kind != "f":
            same = np.abs(mine - want) <= (f"{name}_scale" in fields)
        else:
            far = STEP[types[name].name] * np.abs(want)
            if want.size and np.isfinite(want).any():
                far = far + OWN * np.abs(want[np.isfinite(want)]).max()
            with np.errstate(invalid="ignore"):
                same = (np.abs(mine - want) <= far) | (mine == want) | (np.isnan(mine) & np.isnan(want))
        of_page = same.reshape(len(want), -1).all(-1) if len(want) else np.ones(0, bool)
        wrong[: len(want)] |= ~of_page
    return wrong


def near_zero(flow: Module, name: str, bits: Any, tiles: Sequence[Any], where: Mapping[str, Any]) -> Any:
    """Which bits of a field rounding may turn: those that pages changed a bit have otherwise."""
    random, found = np.random.default_rng(0), np.zeros(bits.shape, bool)
    for _ in range(SAMPLES):
        changed = [(x * (1 + NOISE * random.choice([-1.0, 1.0], x.shape))).astype(np.float32) for x in tiles]
        found |= summarise(flow, *changed, **where)[name] != bits
    return found


def unkept(trial: Trial, name: str, layer: int, state: State) -> int:
    """Pages whose state, and heads whose request's state, is another than the flow makes of it."""
    slot = int(trial.cache.slots([name])[0])
    count = 0
    for h, mine in enumerate(state.kept):
        for field, want in mine.items():
            x, pages = trial.cache.state[layer][field][slot, h].cpu(), 1
            if trial.per_page(field):
                x, pages = x if trial.spec.page_blocks == 1 else x.flatten(0, 1), len(want)
                x = x[:pages]
            dtype = DTYPES[SHORT[x.dtype]]
            got = numbers(x, dtype)
            largest = np.abs(want[np.isfinite(want)]).max(initial=0.0)
            far = 4 * STEP[dtype.name] * np.abs(want) + DRIFT * OWN * largest
            with np.errstate(invalid="ignore"):
                same = (np.abs(got - want) <= far) | (got == want) | (np.isnan(got) & np.isnan(want))
            count += int((~same.reshape(pages, -1).all(-1)).sum()) if pages else 0
    return count


def misplaced(trial: Trial, name: str, layer: int, k: torch.Tensor, v: torch.Tensor) -> int:
    """Tokens whose K or V is not what was appended, rounded as it is stored; 0 where the data keeps no account."""
    if not isinstance(trial.data, Varied):
        return 0
    wrong = torch.zeros(len(k), dtype=torch.bool)
    given = [torch.cat(x) for x in zip(*trial.data.given[name, layer], strict=True)]
    if trial.spec.kv_lora_rank:
        given[1] = given[0][..., : trial.spec.v_dim]
    for mine, appended, scale in zip((k, v), given, trial.scales, strict=True):
        want = stored(round_to(appended, trial.spec.dtype).float(), trial.spec, scale)
        wrong |= ~(mine == want).flatten(1).all(1)
    return int(wrong.sum())


def numbers(x: torch.Tensor, dtype: DType) -> Any:
    """A field as the interpreter holds it: floats in fp32, codes and bits in int32."""
    return narrow.numbers(x, dtype).contiguous().numpy()
