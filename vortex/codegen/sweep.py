"""What ``select`` does on every target: which ops run once for the row and which in a sweep, and the row's workspace.

A *sweep* is one loop over the candidates of a row, or over the pages of a shortlist. :mod:`vortex.ir.staging` numbers
them: a value for the row is ready before the sweep of its level, and an op over pages runs in the sweep of its loop.

    before sweep 0: values of the row alone        q * scale, ..
    sweep 0:        for each page ..               scores; a sum over pages takes in this page
    before sweep 1: what sweep 0 completed         the sum over pages
    sweep 1:        for each page ..               scores / sum; keys
    ..
    before the choice: what the last sweep completed
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from vortex.budget import Cap
from vortex.codegen.arguments import Arguments, Place
from vortex.codegen.narrow import narrow, stored_constant, widen
from vortex.codegen.scalar import convert, number_type
from vortex.codegen.share import counted
from vortex.codegen.sort_key import sortable
from vortex.codegen.tiles import Tiles
from vortex.codegen.tir import F32, I32, Expr, T, cast, f32, flat, i32, let, put, when, word_of
from vortex.codegen.values import Index, page_position, pages_on, type_of, without_page
from vortex.ir import numerics
from vortex.ir.core import Decl, Function, Module, Op, Value
from vortex.ir.dialects import flow, page
from vortex.ir.staging import Staging, is_for_row, origin_of, over_pages
from vortex.ir.types import DType, Sym, TensorType, bool_, fp8_e4m3
from vortex.ir.types import i32 as i32_type


def selection_of(f: Function) -> flow.Selection | None:
    """The choice of pages, in kernels that make it; its parts come before it."""
    return next((o for o in reversed(f.ops) if isinstance(o, flow.Selection)), None)


def parts_of(f: Function) -> list[flow.Part]:
    """What the selection of a kernel is made of; a part that it names twice has its pages twice, and is chosen once."""
    selection = selection_of(f)
    return [] if selection is None else list(dict.fromkeys(selection.parts))


def key_slot(f: Function, o: flow.Ranking) -> int:
    """The words per page where the keys of a part of the selection, or of a shortlist, are."""
    return int(f.attrs["keys"]) + parts_of(f).index(o) if isinstance(o, flow.Part) else int(o.notes["slot"])


def key_of(o: flow.Ranking, score: Expr) -> Expr:
    """The key of a page, from its score; above 0 in a selection of a shortlist's, where 0 is for other candidates."""
    if not isinstance(o, flow.Part):
        return sortable(score)
    key = sortable(counted(score) if o.share else score)
    return key if o.near is None else T.max(key, T.uint32(1))


def left_to(o: flow.Part, cap: Cap, most: Expr, scored: Expr) -> Expr:
    """The pages that a part may take, where all parts together may take ``most``: its own number, or an equal share of
    what those with a number leave.
    """
    if o.most:
        return T.min(i32(o.most), listed_in(o, scored))
    rest = most - T.min(i32(cap.pages), scored) if cap.pages else most
    left = T.truncdiv(rest, i32(cap.budgets)) if cap.budgets > 1 else rest
    return left if o.near is None else let("left", T.min(left, listed_in(o, scored)))


def wanted(o: flow.Part, most: Expr, count: Expr | None, reaching: Callable[[], Expr] | None) -> Expr:
    """How many pages a part takes, of up to ``most``: as many as reach its share, or its ``count``, if that is less."""
    if o.share:
        assert reaching is not None
        most = T.min(most, reaching())
    if count is not None:
        most = T.max(i32(0), T.min(most, count))
    return let("wanted", most) if o.always_scores else most


def lists_of(f: Function, staging: Staging, level: int) -> list[flow.Shortlist]:
    """The shortlists that are complete before sweep ``level``."""
    return [o for o in f.ops if isinstance(o, flow.Shortlist) and staging.level[o.value] == level]


def lists_read(f: Function, axis: Sym) -> list[Value]:
    """The lists by which the pages of ``axis`` are found, each once."""
    found = [o.at for o in f.ops if isinstance(o, flow.Pick)]
    found += [o.near for o in f.ops if isinstance(o, flow.Part) and o.near is not None]
    return [v for v in dict.fromkeys(found) if type_of(v).pages == axis]


def row_ops(f: Function, staging: Staging, level: int) -> list[Op]:
    """What is done once for the row before sweep ``level``: ops with a result for the row, and stores of them."""

    def is_store(o: Op) -> bool:
        return isinstance(o, page.Store) and not over_pages(o.x) and isinstance(o.x.type, TensorType)

    def ready(o: Op) -> int:
        return staging.level.get(o.value, 0) if o.result is not None else staging.loop[o]

    return [o for o in f.ops if (is_store(o) or is_for_row(o)) and ready(o) == level]


def page_ops(f: Function, staging: Staging, level: int) -> list[Op]:
    """What is done for each page in sweep ``level``."""

    def runs(o: Op) -> bool:
        if staging.loop.get(o) != level:
            return False
        spans = any(over_pages(v) for v in o.operands)
        if o.result is None or isinstance(o, flow.Part):
            return spans
        return (spans and o.crosses_pages()) or (over_pages(o.result) and o.notes.get("in") in ("tile", "scratch"))

    return [o for o in f.ops if runs(o)]


def list_of_loads(program: Module, f: Function, axis: Sym) -> Value | None:
    """The list by which a sweep over ``axis`` finds what it loads through the page table, if it does."""
    for o in f.ops:
        if isinstance(o, flow.Pick) and type_of(o.at).pages == axis:
            load = origin_of(o.x).owner
            if isinstance(load, page.Load) and page.is_paged(program, load):
                return o.at
    return None


def listed_in(o: flow.Part, candidates: Expr) -> Expr:
    """How many pages a part of a selection has to choose from: all candidates, or those of its shortlist."""
    axis = type_of(o.scored).pages
    assert axis is not None
    return pages_on(axis, candidates)


def mean_count(o: flow.ReduceMean, candidates: Expr) -> Expr:
    """How many elements a mean over the pages of a row of ``candidates`` is of, in fp32; NaN for none on a page."""
    pages = type_of(o.x).pages
    assert pages is not None
    if any(type_of(o.x).shape[axis] == 0 for axis in o.axes):
        return f32(math.nan)
    count = cast(F32, pages_on(pages, candidates))
    for axis in o.axes:
        if isinstance(d := type_of(o.x).shape[axis], int):
            count = count * T.float32(d)
    return count


@dataclass(frozen=True)
class Row:
    """One row of a batch, and its candidates."""

    request: Expr
    head: Expr
    """The KV head."""
    index: Expr
    """Its index among the rows of the batch."""
    first: Expr
    """The logical page that is candidate 0."""
    scored: Expr
    """How many candidates it has."""


@dataclass(frozen=True)
class Workspace:
    """The words of one row in the workspace: those of each page first, one slot after another, then those of the row.

    column   0 .. Pmax - 1    .. 2 Pmax - 1    ..    page_words * Pmax    ..
             slot 0           slot 1                 words of the row
    """

    args: Arguments
    page_words: int
    row: Expr
    """The index of the row."""

    def load(self, d: Decl, index: Index, t: TensorType) -> Expr:
        """An element of buffer ``d``, a value of type ``t``, bools as int32; the index has the page axis first where
        there is one.
        """
        word = self.args.buffers["workspace"][self.row, self._word(d, index, t)]
        if t.dtype == bool_:
            return cast(I32, word)
        return T.reinterpret(I32, word) if t.dtype == i32_type else word

    def store(self, o: page.Store, tiles: Tiles) -> None:
        """Write the value that ``o`` stores, of the page that the tiles are on."""
        d, t = self.args.program.decls[o.buffer], type_of(o.x)

        def keep(i: Index, x: Expr) -> None:
            whole = number_type(t.dtype) == F32
            word = convert(x, F32) if t.dtype == bool_ else x if whole else word_of(x)
            put(self.args.buffers["workspace"], word, self.row, self._word(d, tiles.full(o.x, i), t))

        tiles.copy(o.x, keep)

    def _word(self, d: Decl, index: Index, t: TensorType) -> Expr:
        inner = flat(without_page(index, t.shape), t.tile)
        columns = self.args.columns
        if d.attrs["layout"] == "ragged":
            return columns * d.attrs["offset"] + page_position(index, t) * t.numel + inner
        return columns * self.page_words + d.attrs["offset"] + inner


@dataclass(frozen=True)
class State:
    """What one row has of a state buffer: ``[slots, Hkv, pages, *tile]``, or ``[slots, Hkv, *tile]`` where it is not of
    pages. A negative slot has none.
    """

    args: Arguments
    decl: Decl
    row: Row

    @property
    def slot(self) -> Expr:
        return self.args.buffers["slots"][self.row.request]

    @property
    def dtype(self) -> DType:
        assert isinstance(self.decl.type, TensorType)
        return self.decl.type.dtype

    def load(self, index: Index, t: TensorType) -> Expr:
        """An element as it is stored, or what :func:`widen` makes of it; the index has the page axis first where there
        is one.
        """
        kept = self.args.buffers[f"state.{self.decl.name}"][self._at(index, t)]
        if self.dtype == fp8_e4m3:
            return T.Select(self.slot >= 0, kept, stored_constant(self.decl.attrs["init"], self.dtype))
        # not a constant in bf16: TVM cannot make vectors of it
        init = numerics.narrow(self.decl.attrs["init"], self.dtype)
        return T.Select(self.slot >= 0, widen(kept, self.dtype), T.float32(float(init)))

    def store(self, o: page.Store, tiles: Tiles) -> None:
        """Write the value that ``o`` stores, of the page that the tiles are on."""
        t, kept = type_of(o.x), self.args.buffers[f"state.{self.decl.name}"]

        def keep(i: Index, x: Expr) -> None:
            put(kept, narrow(convert(x, F32), self.dtype), *self._at(tiles.full(o.x, i), t))

        with when(self.slot >= 0):
            tiles.copy(o.x, keep)

    def _at(self, index: Index, t: TensorType) -> Index:
        """The place in the buffer, in 64 bits: with all slots and pages it has more than 2^31 elements. Without a slot
        it is that of another row, whose number is not used.
        """
        first = [cast("int64", T.max(self.slot, T.int32(0))), self.row.head]
        if t.page_axis is None:
            return [*first, *index]
        entry = self.args.entry(self.row.first + page_position(index, t))
        return [*first, *entry, *without_page(index, t.shape)]


@dataclass(frozen=True)
class Here:
    """The page at hand in a sweep."""

    position: Expr
    """Its place among the candidates."""
    place: Place | None
    """Where it lies, where it was looked up."""


@dataclass(frozen=True)
class RowReader:
    """Reads what a ``select`` kernel loads for one row."""

    args: Arguments
    row: Row
    workspace: Workspace

    def load(self, o: page.Load, index: Index, here: Here | None = None) -> Expr:
        """An element as it is stored; the index has the page axis first where the load has one.

        ``here`` is the page at hand: it is not looked up again.
        """
        d, t = self.args.program.decls[o.buffer], type_of(o.value)
        if d.attrs["role"] == "workspace":
            return self.workspace.load(d, index, t)
        if d.attrs["role"] == "state":
            return self.state_of(d).load(index, t)
        if d.attrs["layout"] == "batched":
            return self.args.buffers[d.name][self.row.request, self.row.head * t.tile[0] + index[0], index[1]]
        position = page_position(index, t)
        known = here is not None and here.place is not None and position is here.position
        if here is not None and here.place is not None and known:
            at = here.place
        else:
            at = self.look_up(position, blocks=page.pages_of(d).blocks)
        inner = without_page(index, t.shape)
        if d.attrs["role"] == "pool":
            token, *dims = inner
            return self.args.from_pool(
                d.name, self.row_of(d, (at.page, self.row.head, self.args.token(at, token), *dims))
            )
        return self.args.from_field(o, self.args.of_field(at, self.row.head), inner)

    def store(self, o: page.Store, tiles: Tiles) -> None:
        """Write the value that ``o`` stores, of the page that the tiles are on: to the workspace, or to state."""
        d = self.args.program.decls[o.buffer]
        if d.attrs["role"] == "state":
            self.state_of(d).store(o, tiles)
        else:
            self.workspace.store(o, tiles)

    def row_of(self, pool: Decl, where: tuple[Expr, ...]) -> Expr:
        """A number of a pool as it is stored, at ``[page, KV head, token of the page, dim]``."""
        return self.args.buffers[pool.name][where]

    def state_of(self, d: Decl) -> State:
        """The row's part of state ``d``."""
        return State(self.args, d, self.row)

    def look_up(self, position: Expr, name: str = "", blocks: int = 1) -> Place:
        """Where a candidate lies, or a page of so many ``blocks``, bound to variables with a ``name`` for its page."""
        if blocks > 1:
            first = T.truncdiv(self.row.first, i32(blocks))
            return self.args.look_up_page(self.row.request, first + position, name)
        return self.args.look_up(self.row.request, self.row.first + position, name)
