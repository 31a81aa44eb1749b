"""``select`` on a CPU: a thread takes a row, sweeps over its candidates, then picks the best.

A row's pages are swept as many times as :mod:`vortex.codegen.sweep` says: values of the page at hand are in tiles,
values kept for a later sweep in the row's scratch, and folds over pages in accumulators. Rows do not meet, so the
result of a row depends on nothing but the row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from vortex.codegen.arguments import Arguments
from vortex.codegen.budgets import FIRST, KEPT, PAGES, SCORED
from vortex.codegen.cpu.share import emit_reaching
from vortex.codegen.cpu.topk import Choice, emit_keep_all, emit_shortlist, emit_topk
from vortex.codegen.emitting import computing, emitting
from vortex.codegen.scalar import convert, fold_of, number_type
from vortex.codegen.sweep import (
    Here,
    Row,
    RowReader,
    Workspace,
    key_of,
    key_slot,
    left_to,
    list_of_loads,
    lists_of,
    lists_read,
    mean_count,
    page_ops,
    parts_of,
    row_ops,
    selection_of,
    wanted,
)
from vortex.codegen.tiles import Shape, Tiles, require_emittable
from vortex.codegen.tir import (
    F32,
    I32,
    I64,
    Buffer,
    Expr,
    T,
    choose,
    flat,
    let,
    local,
    loop,
    parallel,
    prefetch,
    put,
    unflat,
)
from vortex.codegen.values import Index, Scratch, Values, pages_on, type_of
from vortex.ir.core import Function, Module, Op
from vortex.ir.dialects import flow, page
from vortex.ir.staging import Staging, loads_by_loop, stage
from vortex.ir.types import whole_pages
from vortex.schedules.cpu import CpuSelectKnobs
from vortex.schedules.knobs import read_knobs

LINE_BYTES = 64
"""Bytes that one prefetch asks for."""
UNROLLED_LINES = 256
"""Lines of a page's summary that are asked for one by one at most; more are in a loop, so that the text stays short."""


def emit_select(program: Module, f: Function) -> list[str]:
    """Write the kernel into the open TVM function; returns the names of its arguments in order."""
    args = Arguments(program, I64)
    args.of_select(f)
    heads = args.size("Hkv")
    with parallel("row", args.size("B") * heads) as row:
        r = let("r", T.floordiv(row, heads))
        h = let("h", T.floormod(row, heads))
        plan = args.buffers["plan"]
        pages = let("pages_of_row", plan[PAGES, r])
        first = let("first", plan[FIRST, r])
        scored = let("scored", plan[SCORED, r])
        kernel = _Kernel.of(args, f, Row(r, h, row, first, scored))
        selection = selection_of(f)
        with choose(scored > 0) as (then, other):
            with then():
                kernel.sweep()
                if selection is not None:
                    with emitting(selection):
                        kernel.pick(selection, let("kept", plan[KEPT, r] - (pages - scored)), pages)
            with other():
                if selection is not None:
                    with emitting(selection):
                        emit_keep_all(args.buffers["pages"], args.buffers["counts"], r, h, pages, args.size("K"))
                else:
                    T.evaluate(0)
    return args.names


@dataclass(frozen=True)
class _Kernel:
    """The body of one row."""

    args: Arguments
    f: Function
    row: Row
    knobs: CpuSelectKnobs
    staging: Staging
    reader: RowReader
    tiles: Tiles
    """Of the row; those of a page are on top of the same values."""
    accumulators: dict[Op, Buffer]
    """Of each fold over pages, from the sweep that it is folded in."""

    @classmethod
    def of(cls, args: Arguments, f: Function, row: Row) -> _Kernel:
        for o in f.ops:
            require_emittable(o)
        knobs = read_knobs(CpuSelectKnobs, f.attrs.get("schedule", {}))
        reader = RowReader(args, row, Workspace(args, int(f.attrs.get("page_words", 0)), row.index))
        scratch = Scratch(args.buffers["workspace"], row.index, args.columns)
        leaves = {**args.place(row.head), "page_count": row.scored, "first_page": row.first}
        values = Values(reader.load, scratch, args.constants, leaves, parameters=args.parameters)
        tiles = Tiles(values, Shape(knobs.lanes, knobs.unroll))
        return cls(args, f, row, knobs, stage(f), reader, tiles, {})

    # the sweeps

    def sweep(self) -> None:
        """Compute everything up to the scores, which are left as sortable keys in the scratch."""
        for level in range(self.staging.loops + 1):
            for o in lists_of(self.f, self.staging, level):
                with emitting(o):
                    self._list(o)
            self._per_row(level)
            if level < self.staging.loops:
                self._per_page(level)

    def _per_row(self, level: int) -> None:
        """Compute what is ready once for the row before sweep ``level``."""
        for o in row_ops(self.f, self.staging, level):
            if isinstance(o, page.Store):
                self.reader.store(o, self.tiles)
            elif o in self.accumulators:
                with emitting(o):
                    self._finish(o)
            else:
                self.tiles.values.open_tile(o.value)
                self.tiles.compute(o)

    def _per_page(self, level: int) -> None:
        """Sweep over the candidates, or the pages of a shortlist, once."""
        ops = page_ops(self.f, self.staging, level)
        axis = self.staging.axes[level]
        carries = {o: self._accumulator(o) for o in ops if o.carries()}
        reads = any(isinstance(o, page.Load) and page.is_paged(self.args.program, o) for o in self.f.ops)
        listed = axis.listed
        if listed:
            for o in ops:
                if isinstance(o, flow.Part):
                    with loop("s", self.row.scored) as s:
                        self._clear_key(key_slot(self.f, o), s)
        with loop("s", pages_on(axis, self.row.scored)) as s:
            found = {v: (s, let("near", self.tiles.values.read(v, [s]))) for v in lists_read(self.f, axis)}
            candidate = s
            if listed:
                by = list_of_loads(self.args.program, self.f, axis)
                reads, candidate = by is not None, found[by][1] if by is not None else s
            place = self.reader.look_up(candidate, "page", axis.blocks) if reads else None
            here = Here(candidate, place)
            values = replace(self.tiles.values, read_load=lambda o, i: self.reader.load(o, i, here), found=found)
            tiles = replace(self.tiles, values=values, position=s)
            for stream in self._streams(level):
                self._prefetch(stream, s)
            for o in ops:
                with emitting(o):
                    self._on_page(o, tiles, carries.get(o))

    def _streams(self, level: int) -> list[page.Load]:
        """The summaries read from memory in this sweep; those of a shortlist are few and lie apart."""
        axis = self.staging.axes[level]
        if axis.listed:
            return []
        sweeps = loads_by_loop(self.f, self.staging)
        loads = [o for o, where in sweeps.items() if isinstance(o, page.Load) and level in where]
        return [o for o in loads if page.is_summary(self.args.program, o)]

    def _prefetch(self, o: page.Load, s: Expr) -> None:
        """Ask for a later page's summary now: pages lie anywhere, and the processor guesses within one only."""
        ahead = self.knobs.prefetch
        if not ahead:
            return
        t = self.args.type_of(o.buffer)
        blocks = page.pages_of(self.args.program.decls[o.buffer]).blocks
        last = pages_on(whole_pages(blocks), self.row.scored) - 1
        later = self.reader.look_up(T.min(s + ahead, last), "later", blocks)
        place, each = self.args.of_field(later, self.row.head), LINE_BYTES // t.dtype.bytes

        def line(first: Expr) -> None:
            prefetch(self.args.buffers[f"field.{o.buffer}"], *place, *unflat(first, t.packed))

        lines = -(-math.prod(t.packed) // each)
        if lines > UNROLLED_LINES:
            with loop("line", lines) as n:
                line(n * each)
            return
        for n in range(lines):
            line(T.int32(n * each))

    def _on_page(self, o: Op, tiles: Tiles, carry: Buffer | None) -> None:
        """Do one op for the page that the tiles are on."""
        if isinstance(o, page.Store):
            self.reader.store(o, tiles)
        elif isinstance(o, flow.Ranking):
            self._write_key(o, tiles)
        elif carry is None:
            if o.notes.get("in") == "tile":
                tiles.values.open_tile(o.value)
            tiles.compute(o)
        elif isinstance(o, flow.Scan):
            self._carry_scan(o, tiles, carry)
        else:
            self._accumulate(o, tiles, carry)

    # folds over pages

    def _accumulator(self, o: Op) -> Buffer:
        """Declare the accumulator of a fold over pages, and put what the fold starts from there."""
        kind = number_type(type_of(o.value).dtype)
        start, _ = fold_of(o, kind)
        with emitting(o):
            acc = local(f"{o.value.name}_acc", max(1, type_of(o.value).numel), kind)
            self.tiles.each([max(1, type_of(o.value).numel)], lambda i: put(acc, start, *i))
        if not isinstance(o, flow.Scan):
            self.accumulators[o] = acc
        return acc

    def _accumulate(self, o: Op, tiles: Tiles, acc: Buffer) -> None:
        """Take this page into a fold over pages."""
        t = type_of(o.value)
        _, take = fold_of(o, number_type(t.dtype))

        def keep(i: Index, x: Expr) -> None:
            at = flat(i, t.tile)
            put(acc, take(acc[at], x), at)

        tiles.compute(o, keep)

    def _carry_scan(self, o: flow.Scan, tiles: Tiles, carry: Buffer) -> None:
        """Take this page into a scan: what is carried then is this page's result."""
        t, kind = type_of(o.value), number_type(type_of(o.value).dtype)
        _, take = fold_of(o, kind)
        if o.notes.get("in") == "tile":
            tiles.values.open_tile(o.value)

        def one(i: Index) -> None:
            at = flat(i, t.tile)
            x = convert(tiles.values.read(o.x, tiles.full(o.x, i)), kind)
            put(carry, take(carry[at], x), at)
            tiles.values.write(o.value, tiles.full(o.value, i), carry[at])

        tiles.each(t.tile, one)

    def _finish(self, o: Op) -> None:
        """Make the accumulator of a fold that is complete the place where its value is read from."""
        acc = self.accumulators[o]
        self.tiles.values.tiles[o.value] = acc
        if isinstance(o, flow.ReduceMean):
            count = mean_count(o, self.row.scored)
            self.tiles.each([type_of(o.value).numel], lambda i: put(acc, acc[i[0]] / count, *i))

    # selection

    def _write_key(self, o: flow.Ranking, tiles: Tiles) -> None:
        """Keep the key of the page that the tiles are on; in the selection, at the place of its candidate."""
        score = convert(tiles.values.read(o.scored, [tiles.position]), F32)
        key, position = T.reinterpret(F32, key_of(o, score)), tiles.position
        if isinstance(o, flow.Part) and o.near is not None:
            position = tiles.values.place(o.near, position)
        with computing(o):
            put(self.args.buffers["workspace"], key, self.row.index, self._key_at(key_slot(self.f, o), position))

    def _clear_key(self, slot: int, position: Expr) -> None:
        """Leave the least key, 0, whose bits are those of 0.0."""
        put(self.args.buffers["workspace"], T.float32(0), self.row.index, self._key_at(slot, position))

    def _key_at(self, slot: int, position: Expr) -> Expr:
        return self.args.columns * slot + position

    def _key(self, slot: int, position: Expr) -> Expr:
        return T.reinterpret("uint32", self.args.buffers["workspace"][self.row.index, self._key_at(slot, position)])

    def _list(self, o: flow.Shortlist) -> None:
        """Choose the pages of a shortlist, whose keys the sweep before has left."""
        ranked, slot = type_of(o.score).pages, key_slot(self.f, o)
        assert ranked is not None
        scored = let("ranked", pages_on(ranked, self.row.scored))
        listed = local(o.value.name, o.listed.limit, I32)
        emit_shortlist(lambda s: self._key(slot, s), scored, pages_on(o.listed, self.row.scored), listed)
        self.tiles.values.lists[o.value] = listed

    def pick(self, selection: flow.Selection, most: Expr, pages: Expr) -> None:
        """Write the selected candidates, at most ``most``, and the reserved of the ``pages`` pages, ascending."""
        a, row, parts = self.args, self.row, parts_of(self.f)

        def choice(o: flow.Part) -> Choice:
            slot = key_slot(self.f, o)

            def key(position: Expr) -> Expr:
                return self._key(slot, position)

            def clear(position: Expr) -> None:
                self._clear_key(slot, position)

            count = None if o.counted is None else let("count", convert(self.tiles.values.read(o.counted, []), I32))
            left = left_to(o, selection.cap, most, row.scored)
            # behind the last keys is padding, behind the others lie those of the next part
            last = o is parts[-1]
            return Choice(
                key, clear if last else None, wanted(o, left, count, lambda: emit_reaching(key, row.scored, o.share))
            )

        choices = [choice(o) for o in parts]
        emit_topk(choices, a.buffers["pages"], a.buffers["counts"], row, pages, a.size("K"))
