"""What a step must compute: the flow run eagerly on fp32 copies, one request, one KV head after another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from weakref import WeakKeyDictionary

import torch

from vortex.budget import Budget, Cap
from vortex.flow import narrow
from vortex.flow.arguments import Cache, Page
from vortex.flow.arithmetic import Fp32Arithmetic
from vortex.flow.files import at_home
from vortex.flow.flow import Field, vFlow
from vortex.flow.leaves import Place, eager
from vortex.flow.methods import (
    declared_fields,
    indexed,
    instantiate,
    of_pages,
    require_shape,
    summaries_of,
    weights_of,
)
from vortex.flow.selection import Part, Selection
from vortex.flow.shortlist import ByShortlist
from vortex.flow.surroundings import plain
from vortex.flow.trace import trace
from vortex.ir.core import Module
from vortex.ir.dialects.flow import Part as TracedPart
from vortex.ir.dialects.flow import Ranking, Shortlist, cap_of
from vortex.ir.dialects.flow import of_pages as fields_of_pages
from vortex.ir.dialects.flow import selected as selected_by
from vortex.ir.types import DTYPES, DType, TensorType, bf16, dtype, f16, f32, fp8_e4m3
from vortex.spec import Spec

Tensor = torch.Tensor
TORCH: dict[str, torch.dtype] = {
    f32.name: torch.float32,
    bf16.name: torch.bfloat16,
    f16.name: torch.float16,
    fp8_e4m3.name: torch.float8_e4m3fn,
}
FP8_MAX = 448.0


def round_to(x: Tensor, to: DType | str) -> Tensor:
    """``x`` as it is stored: to nearest even, fp8 clamped to +-448 first, codes to their range and packed."""
    name = str(to)
    if not DTYPES[name].is_float:
        return narrow.packed(narrow.codes(x, DTYPES[name]), DTYPES[name])
    x = x.float()
    return (x.clamp(-FP8_MAX, FP8_MAX) if name == "fp8_e4m3" else x).to(TORCH[name])


def kept(x: Tensor, spec: Spec, scale: float = 1.0) -> Tensor:
    """K or V as the cache gives it back, fp32: stored in ``spec.kv_dtype``, as multiples of ``scale`` in fp8.

    What the cache has given back once comes back unchanged.
    """
    if not spec.scaled:
        return round_to(x, spec.kv_dtype).float()
    step = torch.tensor(scale, dtype=torch.float32)
    return round_to(x.float() / step, spec.kv_dtype).float() * step


def summaries(
    flow: vFlow | type[vFlow],
    spec: Spec,
    k_pages: Tensor,
    v_pages: Tensor | None = None,
    layer: int = 0,
    head: int = 0,
    parameters: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The fields of full pages ``[P, page, D]`` of one KV head as they lie in memory: ``{name: [P, *shape]}`` in their
    storage dtype, codes packed along the last axis and their scales as ``<name>_scale``. Where pages have blocks
    ``[P, block, D]`` are those, and a field of whole pages has a row for each page that is full.

    ``head`` is the KV head of the model, ``parameters`` are all sets of the flow's parameters, as files have them.
    The pages are as :func:`kept` gives them. Under MLA ``k_pages`` are latent rows, and ``v_pages`` is not given.
    """
    parts = [x.detach().float().clone() for x in (k_pages, v_pages) if x is not None]
    with at_home(flow), plain():
        made = _accepted(flow, spec)
        fields = {name: f for name, f in declared_fields(made, spec).items() if not f.state}
        whole = of_pages(fields, spec)
        types = {k: t for name, f in fields.items() for k, t in narrow.kept(name, f, dtype(spec.dtype)).items()}
        rows: dict[str, list[Tensor]] = {name: [] for name in types}
        blocks = spec.page_blocks if whole else 1
        for p in range(k_pages.shape[0]):
            first, full = p - p % blocks, p - p % blocks + blocks <= k_pages.shape[0]
            block = page = Page(spec, [x[p].clone() for x in parts])
            if whole:
                # of a page that is not full there is no summary
                rows_of = [x[first : first + blocks].flatten(0, 1) if full else x.new_zeros(spec.page_size, x.shape[-1])
                           for x in parts]  # fmt: skip
                page = Page(spec, rows_of, block)
            with eager(Place(layer, head=head, parameters=parameters or {})), Fp32Arithmetic():
                written = summaries_of(made, fields, page)
            for name, f in fields.items():
                if name in whole and (p != first or not full):
                    continue
                x = torch.as_tensor(written[name])
                require_shape(made, name, f.shape, tuple(x.shape))
                with Fp32Arithmetic():
                    for kept, part in narrow.written(name, f, x.detach().clone()).items():
                        rows[kept].append(part)
        return {name: _stored(rows[name], t) for name, t in types.items()}


_ACCEPTED: WeakKeyDictionary[object, dict[Spec, Module]] = WeakKeyDictionary()


def _accepted(flow: vFlow | type[vFlow], spec: Spec) -> vFlow:
    """A flow that can be traced as well: the oracle runs what compiles, and refuses by the same errors."""
    _traced(flow, spec)
    return instantiate(flow)


def _traced(flow: vFlow | type[vFlow], spec: Spec) -> Module:
    made = _ACCEPTED.setdefault(flow, {})
    if spec not in made:
        made[spec] = trace(flow, spec)
    return made[spec]


def cap(flow: vFlow | type[vFlow], spec: Spec) -> Cap:
    """What bounds the pages that the flow selects."""
    return cap_of(_traced(flow, spec))


def _stored(rows: list[Tensor], t: TensorType) -> Tensor:
    whole = torch.stack([r.float() for r in rows]) if rows else torch.zeros((0, *t.tile))
    return round_to(whole, t.dtype)


def score(
    flow: vFlow | type[vFlow],
    spec: Spec,
    q: Tensor,
    fields: dict[str, Tensor],
    layer: int = 0,
    first_page: int = 0,
    pages: int | None = None,
    head: int = 0,
    parameters: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """The fp32 scores ``[S]`` of candidates ``first_page ..``, from ``q`` ``[group, D]`` and their fields; of a union,
    those of its first part.

    ``pages`` is their number, needed only where a flow has no fields; ``head`` and ``parameters`` as in
    :func:`summaries`. State is as it begins. Beside the fields go the candidates' own rows ``[S, page, D]``, as
    :func:`kept` gives them, by the names of the pools, where a flow reads ``cache.k`` or the like. A candidate that a
    shortlist left out has NaN.
    """
    return selection(flow, spec, q, fields, layer, first_page, pages, head, parameters).parts[0].over()


def selection(
    flow: vFlow | type[vFlow],
    spec: Spec,
    q: Tensor,
    fields: dict[str, Tensor],
    layer: int = 0,
    first_page: int = 0,
    pages: int | None = None,
    head: int = 0,
    parameters: Mapping[str, Tensor] | None = None,
) -> Selection:
    """What the flow selects of candidates ``first_page ..``; the arguments are those of :func:`score`."""
    return chosen_with(flow, spec, q, fields, None, layer, first_page, pages, head, parameters)[0]


def chosen_with(
    flow: vFlow | type[vFlow],
    spec: Spec,
    q: Tensor,
    fields: Mapping[str, Tensor],
    state: Mapping[str, Tensor] | None = None,
    layer: int = 0,
    first_page: int = 0,
    pages: int | None = None,
    head: int = 0,
    parameters: Mapping[str, Tensor] | None = None,
) -> tuple[Selection, dict[str, Tensor]]:
    """:func:`selection`, and what each state field becomes: ``[S, *shape]`` for state of pages, ``[*shape]`` for state
    of the request, in fp32. ``state`` is what they are now, ``init`` everywhere unless given.
    """
    with at_home(flow), plain():
        made, module = _accepted(flow, spec), _traced(flow, spec)
        index = module.functions["index"]
        declared = declared_fields(made, spec)  # a flow may keep what it works out here
        pages = candidates_of(module, {name: len(f) for name, f in fields.items()}, pages or 0)
        weights_of(made, declared)
        if state is None:
            state = {n: began(f, spec, pages) for n, f in declared.items() if f.state}
        # copies: what a flow writes by x += y is its own
        given = {**fields, **state}
        cache = Cache(
            spec,
            {n: _read(n, f, given, spec) for n, f in declared.items() if n in given},
            lambda name: given[name].detach().float().clone(),
        )
        lists = [o for o in index.ops if isinstance(o, Shortlist)]
        place = Place(
            layer, first_page, pages, head, parameters or {}, parents=tuple(_ranked(o, lists) for o in lists),
            units=tuple(o.listed.blocks for o in lists), blocks=cap_of(module).whole,
        )  # fmt: skip
        with eager(place), ByShortlist(), Fp32Arithmetic():
            selected, new = indexed(made, declared, q.detach().float().clone(), cache)
        placed = partial(_placed, place, lists)
        selected = replace(selected, parts=tuple(map(placed, selected.parts, selected_by(index).parts)))
        after = {}
        for name, x in new.items():
            after[name] = torch.as_tensor(x).detach().float()
            require_shape(made, name, tuple(state[name].shape), tuple(after[name].shape), "forward_indexer")
        return selected, after


def _ranked(o: Ranking, lists: Sequence[Shortlist]) -> int | None:
    """Which of the shortlists has the pages that an op ranks: real tensors do not tell, and traced ones do."""
    pages = o.pages_of(o.scored)
    return next((i for i, x in enumerate(lists) if pages in (x.listed, x.listed.in_blocks)), None)


def _placed(place: Place, lists: Sequence[Shortlist], part: Part, traced: TracedPart) -> Part:
    """A part of an eager selection that knows which candidates its pages are."""
    number = _ranked(traced, lists)
    if number is None:
        return part
    return replace(part, near=place.lists[number].candidates, row=place.pages)


def began(f: Field, spec: Spec, pages: int) -> Tensor:
    """A state field that nobody has written yet, of ``pages`` pages: in its storage type."""
    shape = (pages, *f.shape) if f.state == "page" else f.shape
    return round_to(torch.full(shape, f.init), f.dtype or spec.dtype)


class RequestState:
    """The state of one request in one layer, for each of its KV heads, from the request's first step on.

    ``kept[head][name]`` is ``[pages, *shape]`` or, for state of the request, ``[*shape]``, in its storage type. Pages
    that were no candidates yet hold ``init``; a request that begins anew has a new object.
    """

    def __init__(self, flow: vFlow | type[vFlow], spec: Spec, heads: int) -> None:
        self._spec = spec
        with at_home(flow), plain():
            declared = declared_fields(_accepted(flow, spec), spec)
        self._fields = {name: f for name, f in declared.items() if f.state}
        self.kept = [{name: began(f, spec, 0) for name, f in self._fields.items()} for _ in range(heads)]

    def read(self, head: int, first: int, last: int) -> dict[str, Tensor]:
        """What forward_indexer sees of it over candidates ``[first, last)``."""
        mine = self.kept[head]
        for name, f in self._fields.items():
            if f.state == "page" and len(mine[name]) < last:
                mine[name] = torch.cat([mine[name], began(f, self._spec, last - len(mine[name]))])
        return {name: mine[name][first:last] if f.state == "page" else mine[name] for name, f in self._fields.items()}

    def write(self, head: int, new: Mapping[str, Tensor], first: int, last: int) -> None:
        """Keep what forward_indexer made of it; pages outside ``[first, last)`` keep what they have."""
        for name, f in self._fields.items():
            x = round_to(new[name], f.dtype or self._spec.dtype)
            if f.state == "page":
                self.kept[head][name][first:last] = x
            else:
                self.kept[head][name] = x.clone()


def _read(name: str, f: Field, fields: dict[str, Tensor], spec: Spec) -> Tensor:
    """A declared field as a flow reads it, in memory of its own."""
    types = narrow.kept(name, f, dtype(spec.dtype))
    made: Tensor = narrow.read(name, f, {k: narrow.numbers(fields[k].detach(), t.dtype) for k, t in types.items()})
    return made.clone()


def select_pages(selected: Selection | Tensor, n: int, budget: Budget, whole: int = 1) -> list[int]:
    """The pages kept of ``n``, ascending; what is selected, or the scores for a plain top-k, is of the candidates
    ``[sink, n - recent)``, or of those that make whole pages of ``whole`` blocks among them.

    Order: +inf, finite, -inf, NaN; -0 equals +0; ties and NaNs go to the lower page.
    """
    if isinstance(selected, Tensor):
        selected = Selection((Part(selected),))
    of = replace(selected.cap, whole=whole)
    if not of.scored(budget, n):
        return list(range(n))
    candidates = of.candidates(budget, n)
    left = budget.total(n) - budget.sink - budget.recent
    best: set[int] = set()
    for part in selected.parts:
        assert part.candidates == len(candidates), f"{part.candidates} scores for {len(candidates)} candidates"
        best |= {candidates[i] for i in part.best(left)}
    return [*range(candidates.start), *sorted(best), *range(candidates.stop, n)]


def attend(q: Tensor, k_tokens: Tensor, v_tokens: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of ``q`` ``[G, D]`` over tokens ``[T, D]``: fp32 output ``[G, Dv]`` and log-sum-exp ``[G]``."""
    logits = q.float() @ k_tokens.float().T * scale
    return logits.softmax(-1) @ v_tokens.float(), logits.logsumexp(-1)


@dataclass(frozen=True, slots=True)
class StepResult:
    """One request's step; ``selected`` holds None where all pages were kept and nothing was scored."""

    pages: list[list[int]]
    selected: list[Selection | None]
    out: Tensor
    lse: Tensor

    @property
    def scores(self) -> list[Tensor | None]:
        """Of the candidates, NaN for those that a shortlist left out; of a union, those of its first part."""
        return [None if s is None else s.parts[0].over() for s in self.selected]


def step(
    flow: vFlow | type[vFlow],
    spec: Spec,
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    budget: Budget,
    scale: float | None = None,
    layer: int = 0,
    fields: Sequence[dict[str, Tensor]] | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    head_offset: int = 0,
    parameters: Mapping[str, Tensor] | None = None,
    state: RequestState | None = None,
) -> StepResult:
    """One decode step of one request: ``q`` ``[Hq, D]``, ``k`` and ``v`` ``[len, Hkv, D]``, the new token included.

    Under MLA ``q`` is absorbed, ``k`` are the latent rows ``[len, 1, D]``, of which ``k_scale`` is the scale, and ``v``
    is None.
    ``fields``, one dict a KV head over the full pages, spares making the summaries again. ``k`` and ``v`` may be the
    tokens themselves or what a cache of ``k_scale`` and ``v_scale`` gives back of them. The KV heads are
    ``head_offset`` and following of the model, whose rows each have their number of a budget's table. ``state`` is what
    the request kept so far, and is changed; without it this is the first step that scores.
    """
    if spec.scaled:
        k, v = kept(k, spec, k_scale), None if v is None else kept(v, spec, v_scale)
    length, heads, dim = k.shape
    scale = 1.0 / math.sqrt(dim) if scale is None else scale
    n = -(-length // spec.block_size)
    state = RequestState(flow, spec, heads) if state is None else state
    pages: list[list[int]] = []
    chosen_by: list[Selection | None] = []
    of = cap(flow, spec)
    blocks = dict.fromkeys(fields_of_pages(_traced(flow, spec)), of.whole)
    outs, lses = [], []
    for h in range(heads):
        group = q[h * spec.group : (h + 1) * spec.group]
        selected = None
        mine = budget.of(layer, head_offset + h)
        if of.scored(mine, n):
            candidates = of.candidates(mine, n)
            first, last = candidates.start, candidates.stop
            ours = k[:, h], None if v is None else v[:, h]
            if fields is None:
                seen = _candidates(flow, spec, *ours, first, last, layer, head_offset + h, parameters)
            else:
                seen = {name: _between(f, first, last, blocks.get(name, 1)) for name, f in fields[h].items()}
            seen |= _rows(spec, *ours, first, last)
            held, place = state.read(h, first, last), (layer, first, last - first, head_offset + h)
            selected, new = chosen_with(flow, spec, group, seen, held, *place, parameters)
            state.write(h, new, first, last)
        chosen = list(range(n)) if selected is None else select_pages(selected, n, mine, of.whole)
        tokens = torch.cat([torch.arange(p * spec.block_size, min((p + 1) * spec.block_size, length)) for p in chosen])
        values = k[tokens, h, : spec.v_dim] if v is None else v[tokens, h]
        out, lse = attend(group, k[tokens, h], values, scale)
        pages.append(chosen)
        chosen_by.append(selected)
        outs.append(out)
        lses.append(lse)
    return StepResult(pages, chosen_by, torch.cat(outs), torch.cat(lses))


def _between(field: Tensor, first: int, last: int, blocks: int) -> Tensor:
    """The rows of a field, one for so many candidates, of candidates ``[first, last)``."""
    return field[first // blocks : last // blocks]


def candidates_of(module: Module, rows: Mapping[str, int], otherwise: int) -> int:
    """How many candidates there are, from the rows of fields; ``otherwise`` where there are no fields."""
    whole, blocks = fields_of_pages(module), cap_of(module).whole
    return next((n * blocks if name in whole else n for name, n in rows.items()), otherwise)


def _candidates(
    flow: vFlow | type[vFlow],
    spec: Spec,
    k: Tensor,
    v: Tensor | None,
    first: int,
    last: int,
    layer: int,
    head: int,
    parameters: Mapping[str, Tensor] | None,
) -> dict[str, Tensor]:
    """The fields of candidate pages ``[first, last)``."""
    parts = list(_rows(spec, k, v, first, last).values())
    return summaries(flow, spec, parts[0], parts[1] if v is not None else None, layer, head, parameters)


def _rows(spec: Spec, k: Tensor, v: Tensor | None, first: int, last: int) -> dict[str, Tensor]:
    """The tokens of candidate pages ``[first, last)`` by the names of the pools, ``[S, page, D]``."""
    tokens = slice(first * spec.block_size, last * spec.block_size)
    given = [x for x in (k, v) if x is not None]
    shape = (last - first, spec.block_size, k.shape[-1])
    return {n: x[tokens].reshape(shape) for n, x in zip(spec.pools, given, strict=True)}
