"""``append`` on a CPU: store the step's keys and values, then summarise each page that just became full."""

from __future__ import annotations

from vortex.codegen.arguments import Arguments, Place
from vortex.codegen.narrow import narrow
from vortex.codegen.resets import Begun, ResetTo
from vortex.codegen.tiles import Shape, Tiles, require_emittable
from vortex.codegen.tir import I64, Buffer, Expr, T, cast, equal, let, loop, parallel, put, when
from vortex.codegen.values import Index, Values, type_of
from vortex.ir.core import Function, Module, Op
from vortex.ir.dialects import page
from vortex.ir.types import TensorType
from vortex.schedules.cpu import CpuKnobs
from vortex.schedules.knobs import read_knobs


def emit_append(program: Module, f: Function) -> list[str]:
    """Write the kernel into the open TVM function; returns the names of its arguments in order."""
    args = Arguments(program, I64)
    scattered = [o for o in f.ops if isinstance(o, page.Scatter)]
    args.of_append(f, loc=bool(scattered))
    if scattered:
        _emit_scatter(args, scattered)
    for body, blocks in zip(page.summaries_of(program, f), (1, args.page_blocks), strict=True):
        if any(isinstance(o, page.Store) for o in body):
            _emit_summaries(args, f, body, blocks)
    if resets := [o for o in f.ops if isinstance(o, page.Reset)]:
        _emit_resets(args, resets)
    return args.names


def _emit_scatter(args: Arguments, scattered: list[page.Scatter]) -> None:
    """Write each new token's rows to its slot; a negative slot is a padded token and goes nowhere."""
    tiles = Tiles(Values(lambda o, i: 0), Shape())
    with parallel("t", args.size("tokens")) as t:
        slot = let("slot", args.buffers["loc"][t])
        with when(slot >= 0):
            for o in scattered:
                source, pool = args.buffers[o.source], args.buffers[o.buffer]
                size, dim = int(args.program.attrs["page_size"]), args.type_of(o.buffer).tile[1]
                to = let("to_page", T.floordiv(slot, T.int64(size)))
                at = let("to_token", T.floormod(slot, T.int64(size)))

                def store(
                    i: Index,
                    o: page.Scatter = o,
                    source: Buffer = source,
                    pool: Buffer = pool,
                    to: Expr = to,
                    at: Expr = at,
                ) -> None:
                    put(pool, args.to_pool(o, source[t, h, i[0]]), to, h, at, i[0])

                with loop("h", args.size("Hkv")) as h:
                    tiles.each([dim], store)


def _emit_summaries(args: Arguments, f: Function, body: list[Op], blocks: int) -> None:
    """Summarise what the new tokens fill: each block, or each page of so many ``blocks``."""
    size = args.block_size * blocks
    heads = args.size("Hkv")
    knobs = read_knobs(CpuKnobs, f.attrs.get("schedule", {}))
    with parallel("row", args.size("B") * heads) as row:
        r = let("r", T.floordiv(row, heads))
        h = let("h", T.floormod(row, heads))
        now = let("now", args.buffers["lengths"][r])
        new = let("new", args.buffers["row_offsets"][r + 1] - args.buffers["row_offsets"][r])
        # a padded request has length 0, whatever tokens are counted as its own
        before = let("full_before", T.max(T.int32(0), T.floordiv(now - new, T.int32(size))))
        with loop("p", T.floordiv(now, T.int32(size)), start=before) as p:
            at = args.look_up(r, p, "page") if blocks == 1 else args.look_up_page(r, p, "page")

            def load(o: page.Load, index: Index, at: Place = at, h: Expr = h) -> Expr:
                token, *dims = index
                return args.from_pool(o.buffer, args.buffers[o.buffer][(at.page, h, args.token(at, token), *dims)])

            constants = args.constants
            values = Values(load, None, constants, args.place(h), parameters=args.parameters)
            tiles = Tiles(values, Shape(knobs.lanes, knobs.unroll))
            for o in body:
                require_emittable(o)
                if isinstance(o, page.Store):
                    _emit_store(args, tiles, o, at, h)
                elif o.result is not None and o.notes.get("in") == "tile":
                    values.open_tile(o.value)
                    tiles.compute(o)


def _emit_resets(args: Arguments, resets: list[page.Reset]) -> None:
    """Write ``init`` to state whose slot or page is another request's or another page from this step on."""
    size, heads = T.int32(args.block_size), args.size("Hkv")
    tiles = Tiles(Values(lambda o, i: 0), Shape(1, 1))
    with parallel("row", args.size("B") * heads) as row:
        r = let("r", T.floordiv(row, heads))
        h = let("h", T.floormod(row, heads))
        begun = Begun.of(args, r)
        with when(T.And(begun.slot >= 0, begun.now > 0)):
            slot = let("slot", cast(I64, begun.slot))
            for o in resets:
                kept = begun.reset(o)

                def clear(*at: Expr, kept: ResetTo = kept) -> None:
                    tiles.each(kept.tile, lambda i: put(kept.buffer, kept.value, *at, *i))

                if kept.of_pages:
                    with loop("p", T.floordiv(begun.now, size), start=T.floordiv(begun.known, size)) as p:
                        clear(slot, h, *args.entry(p))
                else:
                    with when(equal(begun.known, T.int32(0))):
                        clear(slot, h)


def _emit_store(args: Arguments, tiles: Tiles, o: page.Store, at: Place, h: Expr) -> None:
    dtype = args.type_of(o.buffer).dtype
    target = args.buffers[f"field.{o.buffer}"]
    assert isinstance(type_of(o.x), TensorType)
    if dtype.per_byte == 1:
        tiles.copy(o.x, lambda i, x: put(target, narrow(x, dtype), *args.of_field(at, h), *i))
    else:
        tiles.copy_packed(o.x, dtype, lambda i, byte: put(target, byte, *args.of_field(at, h), *i))
