"""The meaning and the cost of page programs: kernels run on a numpy batch, every byte counted.

What is counted is what the emitted kernels move. A paged or ragged load is read once in each page pass that uses it
(:mod:`vortex.ir.staging`), at the pages of the pass: all candidates, or those of a shortlist. A row's tile and its set
of a parameter are read once a kernel, ``attend`` reads tokens inside the request only, and rows that score nothing read
nothing. Values that a pass keeps for a later one, and lists of pages, are *scratch*, counted apart. Page tables,
lengths and offsets are not buffers of the program and not counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vortex.budget import Cap
from vortex.errors import IR_STRUCTURE
from vortex.ir.core import Decl, Function, Module, Op, Value
from vortex.ir.dialects import flow, page
from vortex.ir.interpret import Row, held_as
from vortex.ir.numerics import narrow, words_of_bits
from vortex.ir.ranking import Selected
from vortex.ir.staging import Staging, loads_by_loop, stage
from vortex.ir.types import TensorType

WORD = 4
"""Bytes of a number that is kept between passes."""


@dataclass
class Traffic:
    """Bytes that one kernel moves between itself and one buffer."""

    read: int = 0
    written: int = 0


@dataclass
class Counts:
    """What a run moved: per kernel and buffer; ``scratch`` is what each kernel kept between passes."""

    kernels: dict[str, dict[str, Traffic]] = field(default_factory=dict)
    scratch: dict[str, int] = field(default_factory=dict)

    def of(self, kernel: str, buffer: str) -> Traffic:
        """The traffic of that pair, zero when there was none."""
        return self.kernels.get(kernel, {}).get(buffer, Traffic())

    def buffer(self, name: str) -> Traffic:
        """A buffer's traffic over all kernels."""
        each = [per[name] for per in self.kernels.values() if name in per]
        return Traffic(sum(t.read for t in each), sum(t.written for t in each))

    @property
    def launches(self) -> int:
        return len(self.kernels)

    @property
    def read(self) -> int:
        return sum(t.read for per in self.kernels.values() for t in per.values())

    @property
    def written(self) -> int:
        return sum(t.written for per in self.kernels.values() for t in per.values())


@dataclass(kw_only=True)
class Batch:
    """A step's inputs and outputs, by the calling convention of docs/architecture.md.

    Floats are fp32 arrays that hold values of the buffer's type. ``paged`` has the pools of K, V (MLA: latent) and all
    fields, ``[P, Hkv, *tile]``; kernels write to them in place. ``scales`` are those of pools in fp8, 1 unless given.
    """

    q: Any
    paged: dict[str, Any]
    lengths: Any
    page_table: Any
    budget: tuple[int, int, int, int, int]
    capacity: int
    scale: float
    scales: dict[str, float] = field(default_factory=dict)
    layer: int = 0
    head_offset: int = 0
    """The KV heads of the model before the first of these."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """All sets of each parameter, ``[layers, *shape]`` or ``[layers, heads of the model, *shape]``."""
    request_budget: Any = None
    """Budgets of requests, ``[B, 5]``, a negative first number for those that have :attr:`budget`."""
    row_budget: Any = None
    """Pages for rows of each KV head, ``[Hkv]``, where the budget has a number for each."""
    tokens: dict[str, Any] = field(default_factory=dict)
    """``k_new`` and ``v_new`` or ``latent_new``, [T, Hkv, D]; empty where the engine has stored them."""
    loc: Any = ()
    row_offsets: Any = None
    plan: Any = None
    pages: Any = None
    counts: Any = None
    out: Any = None
    lse: Any = None
    workspace: dict[tuple[str, int, int], Any] = field(default_factory=dict)
    """Tiles of workspace buffers by name, request and head."""
    state: dict[str, Any] = field(default_factory=dict)
    """State by name: ``[slots, Hkv, pages, *tile]`` of pages, ``[slots, Hkv, *tile]`` of requests; kernels write to it
    in place."""
    slots: Any = ()
    """Of each request; negative for one without state. Needed where the program has state."""
    fresh: Any = ()
    """Whether the request's first append to its slot is this step's, though its first tokens are not; no unless given.
    """
    others: dict[str, Any] = field(default_factory=dict)
    """What kernels of other kinds than the four of a step are given and give, by name."""

    @property
    def requests(self) -> int:
        return len(self.lengths)

    @property
    def heads(self) -> int:
        """KV heads."""
        return int(self.paged["latent" if "latent" in self.paged else "k"].shape[1])

    def budget_of(self, r: int) -> tuple[int, int, int, int, int]:
        """The budget of a request, its own or that of all."""
        own = (-1,) if self.request_budget is None else tuple(map(int, self.request_budget[r]))
        return self.budget if own[0] < 0 else own  # type: ignore[return-value]

    def scale_of(self, name: str) -> Any:
        """What numbers of a pool are multiples of, in fp32."""
        return np.float32(self.scales.get(name, 1.0))

    def rows(self) -> Iterator[tuple[int, int]]:
        """All (request, KV head) pairs."""
        return ((r, h) for r in range(self.requests) for h in range(self.heads))


def run_program(program: Module, batch: Batch) -> Counts:
    """Run all kernels in order, filling the batch's outputs; VX2008 for a kernel whose kind has no meaning here."""
    counts = Counts()
    for f in program.functions.values():
        counts.kernels[f.name] = defaultdict(Traffic)
        counts.scratch[f.name] = 0
        meaning = MEANING.get(kind := str(f.attrs["kind"]))
        if meaning is None:
            raise IR_STRUCTURE.at(f.loc, why=f"the interpreter does not know what kernels of kind '{kind}' do")
        meaning(Launch(program, f, batch, counts))
    return counts


class Launch:
    """One kernel on one batch: what its ops mean by, and what it counts with."""

    def __init__(self, program: Module, f: Function, batch: Batch, counts: Counts) -> None:
        self.program, self.f, self.batch = program, f, batch
        self.counts, self.traffic = counts, counts.kernels[f.name]

    def decl(self, name: str) -> Decl:
        return self.program.decls[name]

    def tile_bytes(self, name: str) -> int:
        t = self.decl(name).type
        assert isinstance(t, TensorType)
        return t.tile_bytes

    def read(self, name: str, tiles: int) -> None:
        self.traffic[name].read += tiles * self.tile_bytes(name)

    def write(self, name: str, tiles: int) -> None:
        self.traffic[name].written += tiles * self.tile_bytes(name)

    def look_up(self, r: int, logical: Any) -> Any:
        """The physical blocks of logical ones of a request; a block is a page where a page has one."""
        each = page.page_blocks(self.program)
        return self.batch.page_table[r, logical // each] * each + logical % each

    def look_up_page(self, r: int, logical: Any) -> Any:
        """The physical pages of logical ones of a request."""
        return self.batch.page_table[r, logical]

    def whole_pages(self, name: str, pages: Any, h: int) -> Any:
        """What a paged buffer has of physical pages: the tiles of a field of pages, or the rows of a pool."""
        return self.batch.paged[name][pages, h]

    def tiles(self, name: str, blocks: Any, h: int) -> Any:
        """The tiles of physical blocks in a paged buffer."""
        x, at = self._where(name, blocks, h)
        return x[at]

    def put(self, name: str, block: int, h: int, x: Any) -> None:
        """Write the tile of a physical block, or of a physical page where the buffer has one for each."""
        memory, at = self._where(name, block, h)
        memory[at] = x

    def _where(self, name: str, blocks: Any, h: int) -> tuple[Any, tuple[Any, ...]]:
        """The memory of a paged buffer, and the index of the tiles of blocks in it."""
        x, each = self.batch.paged[name], page.page_blocks(self.program)
        if each == 1 or page.of_whole_pages(self.decl(name)):
            return x, (blocks, h)
        if self.decl(name).attrs["role"] == "pool":
            x = x.reshape(*x.shape[:2], each, -1, x.shape[-1])
        return x, (blocks // each, h, blocks % each)

    def row(self, head: int, pages: int = 0, first: int = 0) -> Row:
        """What ops read of their surroundings in the row of a KV head with ``pages`` candidates."""
        b = self.batch
        mine = 2**31 - 1 if b.row_budget is None else int(b.row_budget[head])
        return Row(self.program, pages, b.layer, first, head=b.head_offset + head, parameters=b.parameters, budget=mine)

    def parameters(self) -> set[str]:
        """The parameters that the kernel reads."""
        return {o.symbol for o in self.f.ops if isinstance(o, flow.Param)}

    def used(self) -> set[Op]:
        """The loads whose values something uses."""
        return {v.owner for o in self.f.ops for v in o.operands if isinstance(v.owner, page.Load)}

    def stored(self, name: str, x: Any) -> Any:
        """``x`` as a buffer keeps it."""
        t = self.decl(name).type
        assert isinstance(t, TensorType)
        with np.errstate(all="ignore"):
            return np.array(narrow(x, t.dtype), held_as(t.dtype))


# plan -------------------------------------------------------------------------------------------------


TOP_K = Cap()
"""Of a selection of one part, by rank, as many as the budget says."""


def _plan(k: Launch) -> None:
    b = k.batch
    op = next(o for o in k.f.ops if isinstance(o, page.Plan))
    rows = [plan_row(int(n), op.page_size, b.budget_of(r), op.cap) for r, n in enumerate(b.lengths)]
    b.plan = np.array(rows, np.int32).reshape(-1, 4).T
    k.write(op.buffer, b.requests)


def plan_row(
    length: int, page_size: int, budget: tuple[int, int, int, int, int], cap: Cap = TOP_K
) -> tuple[int, int, int, int]:
    """Pages; pages kept; first candidate; candidates scored, 0 where all pages are kept.

    Pages kept are as many as the parts of the selection may take together, which in a union may be more than there are.
    """
    pages, sink, recent, numerator, denominator = budget
    n = -(-length // page_size)
    left = max(pages, numerator * n // denominator - sink - recent)
    first, end = -(-sink // cap.whole) * cap.whole, max(0, n - recent) // cap.whole * cap.whole
    candidates = end - first
    if candidates <= (0 if cap.always else cap.budgets * left + cap.pages):
        return n, n, first, 0
    return n, n - candidates + cap.budgets * min(left, candidates) + min(cap.pages, candidates), first, candidates


# append -----------------------------------------------------------------------------------------------


def _append(k: Launch) -> None:
    for o in k.f.ops:
        if isinstance(o, page.Scatter):
            _scatter(k, o)
        elif isinstance(o, page.Reset):
            _reset(k, o)
    of_block, of_page = page.summaries_of(k.program, k.f)
    blocks = page.page_blocks(k.program)
    for body, whole in ((of_block, False), (of_page, True)):
        used = {v for o in body for v in o.operands}
        loads = {o.buffer for o in body if isinstance(o, page.Load) and o.value in used}
        parameters = {o.symbol for o in body if isinstance(o, flow.Param)}
        for place, h in _filled(k, whole=whole) if body else ():
            env: dict[Value, Any] = {}
            row = k.row(h)
            for o in body:
                if isinstance(o, page.Load):
                    env[o.value] = k.whole_pages(o.buffer, place, h) if whole else k.tiles(o.buffer, place, h)
                    if page.scaled(k.decl(o.buffer)):
                        env[o.value] = env[o.value] * k.batch.scale_of(o.buffer)
                elif isinstance(o, page.Store):
                    k.put(o.buffer, place, h, k.stored(o.buffer, env[o.x]))
                    k.write(o.buffer, 1)
                else:
                    row.run([o], env)
            for name in loads:
                k.read(name, blocks if whole else 1)
            for name in parameters:
                k.read(name, 1)


def _filled(k: Launch, *, whole: bool) -> Iterator[tuple[int, int]]:
    """Physical block, or whole page, and head of every one that the step's tokens complete."""
    b = k.batch
    size = page.block_size(k.program) * (page.page_blocks(k.program) if whole else 1)
    for r in range(b.requests):
        new = 0 if b.row_offsets is None else int(b.row_offsets[r + 1] - b.row_offsets[r])
        now = int(b.lengths[r])
        for p in range((now - new) // size, now // size):
            for h in range(b.heads):
                yield int(k.look_up_page(r, p) if whole else k.look_up(r, p)), h


def _reset(k: Launch, o: page.Reset) -> None:
    b, d = k.batch, k.decl(o.buffer)
    size = page.block_size(k.program)
    init = k.stored(o.buffer, np.float32(d.attrs["init"]))
    for r in range(b.requests):
        slot, now = int(b.slots[r]), int(b.lengths[r])
        before = now - (0 if b.row_offsets is None else int(b.row_offsets[r + 1] - b.row_offsets[r]))
        known = 0 if len(b.fresh) and b.fresh[r] else max(0, before)
        if slot < 0 or not now:
            continue
        if d.attrs["layout"] == "entry":
            b.state[o.buffer][slot, :, known // size : now // size] = init
            k.write(o.buffer, b.heads * max(0, now // size - known // size))
        elif known == 0:
            b.state[o.buffer][slot] = init
            k.write(o.buffer, b.heads)


def _scatter(k: Launch, o: page.Scatter) -> None:
    source = k.batch.tokens.get(o.source)
    if source is None:
        return
    pool = k.batch.paged[o.buffer]
    if page.scaled(k.decl(o.buffer)):
        source = k.stored(o.buffer, source / k.batch.scale_of(o.buffer))
    for token, slot in zip(source, k.batch.loc, strict=True):
        pool[slot // pool.shape[2], :, slot % pool.shape[2]] = token
        k.read(o.source, k.batch.heads)
        k.traffic[o.buffer].written += k.batch.heads * k.tile_bytes(o.buffer) // page.block_size(k.program)


# select -----------------------------------------------------------------------------------------------


def _select(k: Launch) -> None:
    b = k.batch
    if b.pages is None:
        b.pages = np.full((b.requests, b.heads, b.capacity), -1, np.int32)
        b.counts = np.zeros((b.requests, b.heads), np.int32)
    plan = stage(k.f)
    passes = {o: n for o, n in loads_by_loop(k.f, plan).items() if isinstance(o, page.Load)}
    for r, h in b.rows():
        k.read("plan", 1)
        n, kept, first, scored = (int(x) for x in b.plan[:, r])
        if scored:
            _score(k, (r, h), k.row(h, scored, first), plan, passes, n, kept)
        else:
            for o in k.f.ops:
                if isinstance(o, page.Store) and isinstance(o.x.owner, flow.Selection):
                    _keep(k, r, h, np.arange(n))


def _score(
    k: Launch, at: tuple[int, int], row: Row, plan: Staging, passes: dict[page.Load, set[int]], n: int, kept: int
) -> None:
    env: dict[Value, Any] = {}
    read: set[tuple[str, int]] = set()
    for o in k.f.ops:
        if isinstance(o, page.Load):
            env[o.value] = _load(k, o, at, row)
            read |= {(o.buffer, p) for p in passes.get(o, ())}
        elif isinstance(o, page.Store):
            x = env[o.x]
            if isinstance(x, Selected):
                best = row.first + x.best(kept - (n - row.pages))
                _keep(k, *at, np.concatenate([np.arange(row.first), best, np.arange(row.first + row.pages, n)]))
            elif k.decl(o.buffer).attrs["role"] == "state":
                _keep_state(k, o, at, row, x)
            else:
                k.batch.workspace[(o.buffer, *at)] = k.stored(o.buffer, x)
                d = k.decl(o.buffer)
                k.write(o.buffer, page.pages_of(d).pages(row.pages) if d.attrs["layout"] == "ragged" else 1)
        else:
            row.run([o], env)
    for name, p in read:
        if k.decl(name).attrs["role"] != "state" or k.batch.slots[at[0]] >= 0:
            over_pages = k.decl(name).attrs["layout"] in page.CANDIDATES
            k.read(name, plan.axes[p].pages(row.pages) if over_pages else 1)
    for name in k.parameters():
        k.read(name, 1)
    lists = [o.value for o in k.f.ops if isinstance(o, flow.Shortlist)]
    for v in (*plan.kept, *lists):
        assert isinstance(v.type, TensorType) and v.type.pages is not None
        k.counts.scratch[k.f.name] += v.type.numel * WORD * v.type.pages.pages(row.pages)


def _load(k: Launch, o: page.Load, at: tuple[int, int], row: Row) -> Any:
    r, h = at
    role, layout = k.decl(o.buffer).attrs["role"], k.decl(o.buffer).attrs["layout"]
    if role == "workspace":
        return k.batch.workspace[(o.buffer, r, h)]
    if layout == "paged":
        if (each := page.pages_of(k.decl(o.buffer)).blocks) > 1:
            pages = k.look_up_page(r, np.arange(row.first // each, (row.first + row.pages) // each))
            found = np.ascontiguousarray(k.whole_pages(o.buffer, pages, h))
        else:
            blocks = k.look_up(r, np.arange(row.first, row.first + row.pages))
            found = np.ascontiguousarray(k.tiles(o.buffer, blocks, h))
        if page.scaled(k.decl(o.buffer)):
            return found * k.batch.scale_of(o.buffer)
        return words_of_bits(found) if isinstance(o, page.LoadWords) else found
    if role == "state":
        return _state(k, o, at, row)
    assert o.buffer == "q", f"no input @{o.buffer} for rows"
    return _queries(k.batch, r, h)


def _state(k: Launch, o: page.Load, at: tuple[int, int], row: Row) -> Any:
    """A copy of what the row's slot has; ``init`` where it has no slot."""
    (r, h), d = at, k.decl(o.buffer)
    slot = int(k.batch.slots[r])
    shape = tuple(x if isinstance(x, int) else row.pages for x in o.type.shape)
    if slot < 0:
        return np.broadcast_to(k.stored(o.buffer, np.float32(d.attrs["init"])), shape).copy()
    kept = k.batch.state[o.buffer][slot, h]
    return np.array(kept[row.first : row.first + row.pages] if d.attrs["layout"] == "entry" else kept, order="C")


def _keep_state(k: Launch, o: page.Store, at: tuple[int, int], row: Row, x: Any) -> None:
    (r, h), d = at, k.decl(o.buffer)
    slot = int(k.batch.slots[r])
    if slot < 0:
        return
    if d.attrs["layout"] == "entry":
        k.batch.state[o.buffer][slot, h, row.first : row.first + row.pages] = k.stored(o.buffer, x)
        k.write(o.buffer, row.pages)
    else:
        k.batch.state[o.buffer][slot, h] = k.stored(o.buffer, x)
        k.write(o.buffer, 1)


def _queries(b: Batch, r: int, h: int) -> Any:
    group = b.q.shape[1] // b.heads
    return np.ascontiguousarray(b.q[r, h * group : (h + 1) * group])


def _keep(k: Launch, r: int, h: int, pages: Any) -> None:
    b = k.batch
    assert len(pages) <= b.capacity, f"{len(pages)} pages are kept, {b.capacity} fit"
    b.pages[r, h, : len(pages)] = pages
    b.counts[r, h] = len(pages)
    k.traffic["pages"].written += WORD * (len(pages) + 1)


# attend -----------------------------------------------------------------------------------------------


def _attend(k: Launch) -> None:
    b = k.batch
    if b.out is None:
        out = k.decl("out").type
        assert isinstance(out, TensorType)
        b.out = np.zeros((*b.q.shape[:2], out.tile[1]), np.float32)
        b.lse = np.zeros(b.q.shape[:2], np.float32)
    group = b.q.shape[1] // b.heads
    for r, h in b.rows():
        env: dict[Value, Any] = {}
        heads = slice(h * group, (h + 1) * group)
        for o in k.f.ops:
            if isinstance(o, page.Load):
                env[o.value] = _queries(b, r, h)
                k.read(o.buffer, 1)
            elif isinstance(o, page.LoadSelection):
                env[o.value] = b.pages[r, h, : b.counts[r, h]]
                k.traffic[o.buffer].read += WORD * (len(env[o.value]) + 1)
            elif isinstance(o, page.Attend):
                keys = _tokens(k, o.keys, r, h)
                values = keys if o.values == o.keys else _tokens(k, o.values, r, h)
                env[o.value], lse = attention(env[o.q], keys, values[:, : o.type.tile[1]], b.scale)
                b.lse[r, heads] = lse
                k.write(o.lse, 1)
            elif isinstance(o, page.Store):
                b.out[r, heads] = k.stored(o.buffer, env[o.x])
                k.write(o.buffer, 1)
            else:
                k.row(h).run([o], env)


def _tokens(k: Launch, name: str, r: int, h: int) -> Any:
    """The rows of the selected pages that are tokens of the request."""
    b, size = k.batch, page.block_size(k.program)
    rows = [
        k.tiles(name, k.look_up(r, p), h)[: min(size, int(b.lengths[r]) - p * size)]
        for p in b.pages[r, h, : b.counts[r, h]]
    ]
    found = np.concatenate(rows) if rows else np.zeros((0, b.paged[name].shape[-1]), np.float32)
    k.traffic[name].read += len(found) * k.tile_bytes(name) // size
    return found * b.scale_of(name) if page.scaled(k.decl(name)) else found


def attention(q: Any, keys: Any, values: Any, scale: float) -> tuple[Any, Any]:
    """softmax(q k^T * scale) v and the log-sum-exp; zeros and -inf over no tokens."""
    if not len(keys):
        return np.zeros((len(q), values.shape[1]), np.float32), np.full(len(q), -np.inf, np.float32)
    with np.errstate(all="ignore"):
        s = np.einsum("gd,td->gt", q, keys) * np.float32(scale)
        top = s.max(1, keepdims=True)
        e = np.exp(s - top)
        total = e.sum(1, keepdims=True)
        out = np.einsum("gt,td->gd", e, values) / total
        return out.astype(np.float32), (np.log(total) + top)[:, 0].astype(np.float32)


MEANING: dict[str, Callable[[Launch], None]] = {"plan": _plan, "append": _append, "select": _select, "attend": _attend}
"""What a kernel of each kind does; the meaning of a kind that is declared elsewhere is added there."""
