"""``select`` on a CPU: a thread takes a row, walks its candidate pages once per pass, then picks the best.

A row's pages are walked as many times as the kernel has passes (vortex.ir.staging): values of the
current page are in tiles, values kept for a later pass in the row's scratch, and folds over pages in
accumulators. Rows do not meet, so the result of a row depends on nothing but the row.
"""

from __future__ import annotations

from dataclasses import dataclass

from vortex.codegen.arguments import Arguments
from vortex.codegen.cpu.topk import emit_keep_all, emit_topk, sortable
from vortex.codegen.scalar import convert, fold_of, number_type
from vortex.codegen.tiles import Shape, Tiles, require_emittable
from vortex.codegen.tir import (
    F32,
    I64,
    Buffer,
    Expr,
    T,
    cast,
    choose,
    differ,
    let,
    local,
    loop,
    parallel,
    prefetch,
    put,
    unflat,
)
from vortex.codegen.values import Index, Scratch, Values, page_position, type_of, without_page
from vortex.ir.core import Function, Module, Op
from vortex.ir.dialects import flow, page
from vortex.ir.staging import loads_by_loop, over_pages, stage
from vortex.ir.types import TensorType, bool_, i32

LINE_BYTES = 64


def emit_select(program: Module, f: Function) -> list[str]:
    """Write the kernel into the open TVM function; returns the names of its arguments in order."""
    args = Arguments(program, I64)
    _declare(args, f)
    heads = args.size("Hkv")
    with parallel("row", args.size("B") * heads) as row:
        r = let("r", T.floordiv(row, heads))
        h = let("h", T.floormod(row, heads))
        plan = args.buffers["plan"]
        pages = let("pages_of_row", plan[0, r])
        first = let("first", plan[2, r])
        scored = let("scored", plan[3, r])
        kernel = _Row(args, f, row, r, h, first, scored)
        topk = next((o for o in f.ops if isinstance(o, flow.TopK)), None)
        with choose(scored > 0) as (then, other):
            with then():
                kernel.passes()
                if topk is not None:
                    kernel.pick(let("kept", plan[1, r] - (pages - scored)), pages)
            with other():
                if topk is not None:
                    emit_keep_all(args.buffers["pages"], args.buffers["counts"], r, h, pages, args.size("K"))
                else:
                    T.evaluate(0)
    return args.names


def _declare(args: Arguments, f: Function) -> None:
    args.inputs_of_select(f)
    args.tensor("plan", (4, "B"), "int32")
    args.tensor("page_table", ("B", "Pmax"), "int32")
    if any(isinstance(o, flow.Layer) for o in f.ops):
        args.scalar("layer", "int32")
    args.tensor("workspace", ("rows", "words"), F32)
    args.tensor("pages", ("B", "Hkv", "K"), "int32")
    args.tensor("counts", ("B", "Hkv"), "int32")


@dataclass
class _Row:
    """The body of one row."""

    args: Arguments
    f: Function
    row: Expr
    r: Expr
    h: Expr
    first: Expr
    scored: Expr

    def __post_init__(self) -> None:
        a = self.args
        schedule = self.f.attrs.get("schedule", {})
        self.staging = stage(self.f)
        self.scratch = Scratch(a.buffers["workspace"], self.row, a.size("Pmax"))
        self.values = Values(
            self._load,
            self.scratch,
            a.constants,
            {"layer": a.scalars.get("layer"), "page_count": self.scored, "first_page": self.first},
        )
        self.tiles = Tiles(self.values, Shape(schedule.get("lanes", 16), schedule.get("unroll", 8)))
        self.table: dict[str, Expr] = {}
        self.accumulators: dict[Op, Buffer] = {}
        for o in self.f.ops:
            require_emittable(o)

    # memory

    def _load(self, o: page.Load, index: Index) -> Expr:
        d = self.args.program.decls[o.buffer]
        t = type_of(o.value)
        if d.attrs["role"] == "workspace":
            return self._workspace(d.name, d.attrs["layout"] == "ragged", index, t)
        if d.attrs["layout"] == "batched":
            group = t.tile[0]
            return self.args.buffers[d.name][self.r, self.h * group + index[0], index[1]]
        physical = self._physical(page_position(index, t))
        return self.args.buffers[f"field.{d.name}"][(physical, self.h, *without_page(index, t.shape))]

    def _physical(self, position: Expr) -> Expr:
        """The page of the pool; 64 bits, because pools have more than 2^31 elements."""
        if position is self.tiles.position and "page" in self.table:
            return self.table["page"]
        return cast(I64, self.args.buffers["page_table"][self.r, self.first + position])

    def _workspace(self, name: str, ragged: bool, index: Index, t: TensorType) -> Expr:
        word = self.args.buffers["workspace"][self.row, self._word_of(name, ragged, index, t)]
        if t.dtype == bool_:
            return differ(word, T.float32(0))
        return T.reinterpret("int32", word) if t.dtype == i32 else word

    def _word_of(self, name: str, ragged: bool, index: Index, t: TensorType) -> Expr:
        d = self.args.program.decls[name]
        inner: Expr = 0
        for i, extent in zip(without_page(index, t.shape), t.tile, strict=True):
            inner = inner * extent + i
        if ragged:
            return self.scratch.at(d.attrs["offset"], t.numel, page_position(index, t), inner)
        return self.scratch.pages * int(self.f.attrs["page_words"]) + d.attrs["offset"] + inner

    def _store(self, o: page.Store) -> None:
        d = self.args.program.decls[o.buffer]
        t = type_of(o.x)
        ragged = d.attrs["layout"] == "ragged"

        def keep(i: Index, x: Expr) -> None:
            at = self._word_of(d.name, ragged, self.tiles.full(o.x, i), t)
            kind = number_type(t.dtype)
            word = convert(x, F32) if t.dtype == bool_ else x if kind == F32 else T.reinterpret(F32, x)
            put(self.args.buffers["workspace"], word, self.row, at)

        self.tiles.copy(o.x, keep)

    # control

    def passes(self) -> None:
        """Everything up to the scores, which are left as sortable keys in the scratch."""
        for level in range(self.staging.loops + 1):
            self._per_row(level)
            if level < self.staging.loops:
                self._per_page(level)

    def _per_row(self, level: int) -> None:
        """What is computed once per row before pass ``level``."""
        for o in self.f.ops:
            ready = self.staging.level.get(o.value, 0) if o.result is not None else self.staging.loop[o]
            if isinstance(o, page.Store):
                if not over_pages(o.x) and isinstance(o.x.type, TensorType) and self.staging.loop[o] == level:
                    self._store(o)
                continue
            if o.result is None or isinstance(o, flow.TopK) or over_pages(o.result) or ready != level:
                continue
            if o in self.accumulators:
                self._finish(o)
            elif o.notes.get("in") == "tile":
                self._materialize(o)

    def _materialize(self, o: Op) -> None:
        self.values.open_tile(o.value)
        self.tiles.compute(o)

    def _per_page(self, level: int) -> None:
        ops = [o for o in self.f.ops if self._runs(o, level)]
        carries = {o: self._accumulator(o) for o in ops if o.crosses_pages() and not isinstance(o, flow.Conv)}
        with loop("s", self.scored) as s:
            self.tiles.position = s
            if any(isinstance(o, page.Load) and self._paged(o) for o in self.f.ops):
                self.table["page"] = let("page", cast(I64, self.args.buffers["page_table"][self.r, self.first + s]))
            for stream in self._streams(level):
                self._prefetch(stream, s)
            for o in ops:
                self._on_page(o, carries.get(o))
        self.table.clear()

    def _streams(self, level: int) -> list[page.Load]:
        """The summaries read from memory in this pass."""
        passes = loads_by_loop(self.f, self.staging)
        return [o for o, where in passes.items() if isinstance(o, page.Load) and self._paged(o) and level in where]

    def _prefetch(self, o: page.Load, s: Expr) -> None:
        """Ask for a later page's summary now: pages lie anywhere, and the processor guesses within one only."""
        ahead = int(self.f.attrs.get("schedule", {}).get("prefetch", 0))
        if not ahead:
            return
        t = type_of(o.value)
        later = T.min(s + ahead, self.scored - 1)
        physical = let("later", cast(I64, self.args.buffers["page_table"][self.r, self.first + later]))
        for first in range(0, t.numel, LINE_BYTES // t.dtype.bytes):
            index = unflat(T.int32(first), t.tile)
            prefetch(self.args.buffers[f"field.{o.buffer}"], physical, self.h, *index)

    def _paged(self, o: page.Load) -> bool:
        return self.args.program.decls[o.buffer].attrs["layout"] == "paged"

    def _runs(self, o: Op, level: int) -> bool:
        if self.staging.loop.get(o) != level:
            return False
        if o.result is None or isinstance(o, flow.TopK):
            return any(over_pages(v) for v in o.operands)
        spans = any(over_pages(v) for v in o.operands)
        return (spans and o.crosses_pages()) or (over_pages(o.result) and o.notes.get("in") in ("tile", "scratch"))

    def _on_page(self, o: Op, carry: Buffer | None) -> None:
        if isinstance(o, page.Store):
            self._store(o)
        elif isinstance(o, flow.TopK):
            self._write_key(o)
        elif carry is None:
            if o.notes.get("in") == "tile":
                self.values.open_tile(o.value)
            self.tiles.compute(o)
        elif isinstance(o, flow.Scan):
            self._carry_scan(o, carry)
        else:
            self._accumulate(o, carry)

    # folds over pages

    def _accumulator(self, o: Op) -> Buffer:
        kind = number_type(type_of(o.value).dtype)
        start, _ = fold_of(o, kind)
        acc = local(f"{o.value.name}_acc", max(1, type_of(o.value).numel), kind)
        self.tiles.each([max(1, type_of(o.value).numel)], lambda i: put(acc, start, *i))
        if not isinstance(o, flow.Scan):
            self.accumulators[o] = acc
        return acc

    def _accumulate(self, o: Op, acc: Buffer) -> None:
        t = type_of(o.value)
        kind = number_type(t.dtype)
        _, take = fold_of(o, kind)

        def keep(i: Index, x: Expr) -> None:
            at: Expr = 0
            for j, extent in zip(i, t.tile, strict=True):
                at = at * extent + j
            put(acc, take(acc[at], x), at)

        self.tiles.compute(o, keep)

    def _carry_scan(self, o: flow.Scan, carry: Buffer) -> None:
        """A running fold along the pages: the carry takes in this page, then is this page's result."""
        t, kind = type_of(o.value), number_type(type_of(o.value).dtype)
        _, take = fold_of(o, kind)
        if o.notes.get("in") == "tile":
            self.values.open_tile(o.value)

        def one(i: Index) -> None:
            at: Expr = 0
            for j, extent in zip(i, t.tile, strict=True):
                at = at * extent + j
            x = convert(self.values.read(o.x, self.tiles.full(o.x, i)), kind)
            put(carry, take(carry[at], x), at)
            self.values.write(o.value, self.tiles.full(o.value, i), carry[at])

        self.tiles.each(t.tile, one)

    def _finish(self, o: Op) -> None:
        """The fold is complete: its accumulator is the value from here on."""
        acc = self.accumulators[o]
        self.values.tiles[o.value] = acc
        if isinstance(o, flow.ReduceMean):
            t = type_of(o.x)
            count = cast(F32, self.scored)
            for axis in o.axes:
                if isinstance(d := t.shape[axis], int):
                    count = count * T.float32(d)
            self.tiles.each([type_of(o.value).numel], lambda i: put(acc, acc[i[0]] / count, *i))

    # selection

    def _write_key(self, o: flow.TopK) -> None:
        score = convert(self.values.read(o.score, [self.tiles.position]), F32)
        key = T.reinterpret(F32, sortable(score))
        put(self.args.buffers["workspace"], key, self.row, self._key_at(self.tiles.position))

    def _key_at(self, position: Expr) -> Expr:
        return self.scratch.pages * int(self.f.attrs["keys"]) + position

    def pick(self, kept: Expr, pages: Expr) -> None:
        """The best candidates and the reserved pages, ascending."""
        a = self.args

        def key(position: Expr) -> Expr:
            return T.reinterpret("uint32", a.buffers["workspace"][self.row, self._key_at(position)])

        def clear(position: Expr) -> None:
            put(a.buffers["workspace"], T.float32(0), self.row, self._key_at(position))  # the bits of key 0

        emit_topk(key, clear, a.buffers["pages"], a.buffers["counts"], self.r, self.h,
                  kept, self.first, self.scored, pages, a.size("K"))  # fmt: skip
