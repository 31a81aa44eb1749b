"""How a kernel's values are read: an element of any value as an expression, wherever the value lives.

A template subclasses nothing: it hands :class:`Values` a way to read each ``page.load`` and a place for
scratch, and asks for elements by logical index, page axis included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vortex.codegen.emitting import emitting
from vortex.codegen.narrow import widen
from vortex.codegen.scalar import convert, emit_scalar, number_type
from vortex.codegen.tir import F32, I32, I64, Buffer, Expr, T, cast, f32, flat, i32, local, put, tirx, unflat, word_of
from vortex.errors import NOT_EMITTABLE
from vortex.ir.core import Op, Value
from vortex.ir.dialects import flow, page
from vortex.ir.types import Dim, DType, Sym, TensorType

Index = list[Expr]


def type_of(v: Value) -> TensorType:
    assert isinstance(v.type, TensorType)
    return v.type


def without_page(index: Index, shape: tuple[Dim, ...]) -> Index:
    """The index into one page's tile."""
    return [i for i, d in zip(index, shape, strict=True) if not isinstance(d, Sym)]


@dataclass
class Scratch:
    """The row's words in the workspace: word ``slot`` of every page, then the next slot."""

    buffer: Buffer
    row: Expr
    pages: Expr
    """Pages a row may have, Pmax."""

    def at(self, slot: int, numel: int, position: Expr, inner: Expr) -> Expr:
        """Where element ``inner`` of a page's ``numel`` at this position among candidates is kept."""
        return self.pages * slot + cast(I64, position) * numel + inner


@dataclass
class Values:
    """The values of one kernel, element by element."""

    read_load: Callable[[page.Load, Index], Expr]
    """An element as it is stored; the index has the page axis first where the load has one."""
    scratch: Scratch | None = None
    constants: dict[str, Buffer] = field(default_factory=dict)
    leaves: dict[str, Expr] = field(default_factory=dict)
    """``layer``, ``head``, ``kv_head`` (counted in this step), ``page_count`` and ``first_page`` in kernels that have
    them.
    """
    parameters: dict[str, Buffer] = field(default_factory=dict)
    tiles: dict[Value, Buffer] = field(default_factory=dict)
    lists: dict[Value, Buffer] = field(default_factory=dict)
    """Where the positions that a shortlist has chosen are kept."""
    found: dict[Value, tuple[Expr, Expr]] = field(default_factory=dict)
    """Of the page at hand, by list: its position in the list, and the position that stands there."""

    # reading

    def read(self, v: Value, index: Index) -> Expr:
        """The element of ``v`` at a logical index, in its computing type."""
        t = type_of(v)
        if v in self.lists:
            return self.lists[v][index[0]]
        if v in self.tiles:
            return self._from_word(self.tiles[v][flat(without_page(index, t.shape), t.tile)], t.dtype)
        if v.owner is not None and v.owner.notes.get("in") == "scratch":
            return self._from_word(self._scratch_word(v, index), t.dtype, packed=True)
        return self.expression(v, index)

    def expression(self, v: Value, index: Index) -> Expr:
        """The element computed by its op from the operands, wherever ``v`` itself is kept."""
        t, o = type_of(v), v.owner
        assert o is not None
        if isinstance(o, page.Load):
            return widen(self.read_load(o, index), t.dtype)
        if o.role == "elementwise":
            return emit_scalar(o, [self.read(x, fit(index, t.shape, type_of(x).shape)) for x in o.operands])
        if isinstance(o, flow.Pick):
            axis = t.page_axis
            assert axis is not None
            return self.read(o.x, [*index[:axis], self.place(o.at, index[axis]), *index[axis + 1 :]])
        if isinstance(o, flow.BlocksOf):
            return self._block_of(o, index[0])
        if isinstance(o, flow.View):
            return self.read(o.x, view_index(o, index))
        return self._leaf(o, index)

    def _block_of(self, o: flow.BlocksOf, position: Expr) -> Expr:
        """The place among the candidates of a block of listed pages."""
        each = tirx.const(o.blocks, position.ty)
        listed = self.read(o.x, [T.truncdiv(position, each)])
        return listed * o.blocks + cast(I32, T.truncmod(position, each))

    def place(self, at: Value, position: Expr) -> Expr:
        """The position that a list of pages has at ``position``."""
        known = self.found.get(at)
        return known[1] if known is not None and known[0] is position else self.read(at, [position])

    def _leaf(self, o: Op, index: Index) -> Expr:
        read = LEAVES.get(type(o))
        if read is not None:
            return read(self, o, index)
        raise NOT_EMITTABLE.at(o.loc, why=f"{o.name} has no emitter here", hint="run the default page pipeline")

    # keeping

    def open_tile(self, v: Value, numel: int | None = None) -> Buffer:
        """A tile on chip for ``v``, from here on the place it is read from."""
        kind = number_type(type_of(v).dtype)
        size = type_of(v).numel if numel is None else numel
        with emitting(v.owner):
            self.tiles[v] = local(v.name, max(1, size), F32 if kind == F32 else I32)
        return self.tiles[v]

    def write(self, v: Value, index: Index, x: Expr) -> None:
        """Keep one element of ``v`` where its notes say."""
        t = type_of(v)
        if v in self.tiles:
            put(self.tiles[v], self._to_word(x, t.dtype), flat(without_page(index, t.shape), t.tile))
            return
        assert self.scratch is not None and v.owner is not None
        inner = flat(without_page(index, t.shape), t.tile)
        at = self.scratch.at(v.owner.notes["slot"], t.numel, page_position(index, t), inner)
        put(self.scratch.buffer, self._to_word(x, t.dtype, packed=True), self.scratch.row, at)

    def _scratch_word(self, v: Value, index: Index) -> Expr:
        assert self.scratch is not None and v.owner is not None
        t = type_of(v)
        inner = flat(without_page(index, t.shape), t.tile)
        at = self.scratch.at(v.owner.notes["slot"], t.numel, page_position(index, t), inner)
        return self.scratch.buffer[self.scratch.row, at]

    def _to_word(self, x: Expr, dtype: DType, *, packed: bool = False) -> Expr:
        """As kept: scratch holds fp32 words, so integers go there bit by bit."""
        kind = number_type(dtype)
        word = convert(convert(x, kind), I32) if kind != F32 else convert(x, F32)
        return word_of(word) if packed and kind != F32 else word

    def _from_word(self, word: Expr, dtype: DType, *, packed: bool = False) -> Expr:
        kind = number_type(dtype)
        if kind == F32:
            return word
        whole = T.reinterpret(I32, word) if packed else word
        return convert(whole, kind)


def _parameter(values: Values, o: flow.Param, index: Index) -> Expr:
    sets = [values.leaves["kv_head"]] if o.per == "head" else []
    return widen(values.parameters[o.symbol][tuple([*sets, *index])], o.type.dtype)


def _constant(values: Values, o: flow.Constant, index: Index) -> Expr:
    kind = number_type(o.type.dtype)
    if kind == "bool":
        return T.bool(bool(o.number))
    return f32(o.number) if kind == F32 else i32(int(o.number))


def first_of(o: flow.PageIndex, first: Expr) -> Expr:
    """The index of the first candidate, or of the page that it begins."""
    return first if o.blocks == 1 else T.truncdiv(first, i32(o.blocks))


LEAVES: dict[type[Op], Callable[[Values, Any, Index], Expr]] = {
    flow.Constant: _constant,
    flow.Resource: lambda values, o, index: widen(values.constants[o.symbol][tuple(index)], o.type.dtype),
    flow.Param: _parameter,
    flow.RowBudget: lambda values, o, index: values.leaves["row_budget"],
    flow.Head: lambda values, o, index: values.leaves["head"],
    flow.Layer: lambda values, o, index: values.leaves["layer"],
    flow.PageCount: lambda values, o, index: values.leaves["page_count"],
    flow.PageIndex: lambda values, o, index: first_of(o, values.leaves["first_page"]) + index[0],
}
"""How an element of each op whose role is ``leaf`` is read; ``page.load`` goes by the template."""


def pages_on(axis: Sym, candidates: Expr) -> Expr:
    """How many pages an axis has in a row of that many candidates."""
    most = T.truncdiv(candidates, i32(axis.blocks)) if axis.blocks > 1 else candidates
    return T.min(most, i32(axis.limit)) if axis.limit else most


def page_position(index: Index, t: TensorType) -> Expr:
    assert t.page_axis is not None
    return index[t.page_axis]


def fit(index: Index, shape: tuple[Dim, ...], to: tuple[Dim, ...]) -> Index:
    """The index of the element of a broadcast operand of shape ``to``."""
    tail = index[len(shape) - len(to) :]
    return [i32(0) if d == 1 else i for i, d in zip(tail, to, strict=True)]


def view_index(o: flow.View, index: Index) -> Index:
    """Which element of the operand a view shows at ``index``."""
    source = type_of(o.x)
    if isinstance(o, flow.Transpose):
        back: Index = [i32(0)] * len(index)
        for i, p in zip(index, o.perm, strict=True):
            back[p] = i
        return back
    if isinstance(o, flow.Broadcast):
        return fit(index, o.shape, source.shape)
    if isinstance(o, flow.Slice):
        moved = index[o.axis] * o.step + o.start
        return [*index[: o.axis], moved, *index[o.axis + 1 :]]
    assert isinstance(o, flow.Reshape), f"{o.name} has no index"
    axis, out_axis = source.page_axis, type_of(o.value).page_axis
    if axis is None or out_axis is None:
        return _reshaped(index, o.shape, source.shape)
    before = _reshaped(index[:out_axis], o.shape[:out_axis], source.shape[:axis])
    after = _reshaped(index[out_axis + 1 :], o.shape[out_axis + 1 :], source.shape[axis + 1 :])
    return [*before, index[out_axis], *after]


def _reshaped(index: Index, shape: tuple[Dim, ...], to: tuple[Dim, ...]) -> Index:
    dims, wanted = [int(d) for d in shape if isinstance(d, int)], [int(d) for d in to if isinstance(d, int)]
    real = [(i, d) for i, d in zip(index, dims, strict=True) if d != 1]
    if [d for _, d in real] == [d for d in wanted if d != 1]:
        # only axes of size 1 come and go: no division needed
        rest = iter(real)
        return [i32(0) if d == 1 else next(rest)[0] for d in wanted]
    return unflat(flat(index, dims), wanted)
