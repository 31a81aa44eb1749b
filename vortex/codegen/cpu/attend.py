"""``attend`` on a CPU: a thread takes a row and runs online softmax over the tokens of its selected pages."""

from __future__ import annotations

from vortex.codegen.arguments import Arguments, Place
from vortex.codegen.narrow import narrow, widen
from vortex.codegen.tiles import Shape
from vortex.codegen.tir import (
    I64,
    Buffer,
    Expr,
    T,
    equal,
    f32,
    is_nan,
    lanes,
    let,
    local,
    loop,
    parallel,
    put,
    when,
)
from vortex.ir.core import Function, Module
from vortex.ir.dialects import page
from vortex.ir.types import TensorType
from vortex.schedules.cpu import CpuKnobs
from vortex.schedules.knobs import read_knobs

NEG_INF = float("-inf")


def emit_attend(program: Module, f: Function) -> list[str]:
    """Write the kernel into the open TVM function; returns the names of its arguments in order."""
    attend = next(o for o in f.ops if isinstance(o, page.Attend))
    args = Arguments(program, I64)
    args.of_attend(attend)
    heads = args.size("Hkv")
    with parallel("row", args.size("B") * heads) as row:
        r = let("r", T.floordiv(row, heads))
        h = let("h", T.floormod(row, heads))
        _Row(args, program, f, attend, r, h).emit()
    return args.names


class _Row:
    """The body of one row: G queries against the tokens of its pages."""

    def __init__(self, args: Arguments, program: Module, f: Function, o: page.Attend, r: Expr, h: Expr) -> None:
        self.args, self.o, self.r, self.h = args, o, r, h
        q, k, v = (program.decls[n].type for n in ("q", o.keys, o.values))
        out = program.decls["out"].type
        assert isinstance(q, TensorType) and isinstance(k, TensorType) and isinstance(v, TensorType)
        assert isinstance(out, TensorType)
        self.q_type, self.k_type, self.v_type, self.out_type = q, k, v, out
        self.group, self.dim = q.tile
        self.page, self.v_dim = v.tile[0], out.tile[1]
        knobs = read_knobs(CpuKnobs, f.attrs.get("schedule", {}))
        self.shape = Shape(knobs.lanes, knobs.unroll)
        self.q = local("q_row", self.group * self.dim)
        self.acc = local("acc", self.group * self.v_dim)
        self.top = local("top", self.group)
        self.total = local("total", self.group)
        self.weights = local("weights", self.group * self.page)

    def emit(self) -> None:
        self._start()
        count = let("count", self.args.buffers["counts"][self.r, self.h])
        length = let("length", self.args.buffers["lengths"][self.r])
        with loop("i", count) as i:
            logical = let("logical", self.args.buffers["pages"][self.r, self.h, i])
            at = self.args.look_up(self.r, logical, "page")
            # tokens at or beyond the length may be anything, NaN included: they are not read
            tokens = let("tokens", T.min(T.int32(self.page), length - logical * self.page))
            self._scores(at, tokens)
            self._rescale(tokens)
            self._accumulate(at, tokens)
        self._finish()

    def _vectors(self, dim: int) -> tuple[int, int]:
        """Vector width along a head's dimension, and how many there are."""
        width = self.shape.vector(dim)
        return width, dim // width

    def _blocks(self) -> list[range]:
        """Queries in blocks that share what is loaded of a key or value."""
        step = max(1, self.shape.unroll)
        return [range(g, min(g + step, self.group)) for g in range(0, self.group, step)]

    def _start(self) -> None:
        source = self.args.buffers["q"]
        width, chunks = self._vectors(self.dim)
        with loop("g", self.group) as g:
            # what a number of the keys is a multiple of comes into the queries once
            scale = self.args.scalars["scale"] * self.args.scale_of(self.o.keys)
            with loop("c", chunks) as c, lanes(width) as lane:
                d = c * width + lane
                x = widen(source[self.r, self.h * self.group + g, d], self.q_type.dtype)
                put(self.q, x * scale, g * self.dim + d)
            width_v, chunks_v = self._vectors(self.v_dim)
            with loop("c", chunks_v) as c, lanes(width_v) as lane:
                put(self.acc, f32(0), g * self.v_dim + c * width_v + lane)
            put(self.top, f32(NEG_INF), g)
            put(self.total, f32(0), g)

    def _scores(self, at: Place, tokens: Expr) -> None:
        """Set ``weights[g, t]`` to scale * q_g . k_t."""
        keys = self.args.buffers[self.o.keys]
        width, chunks = self._vectors(self.dim)
        dots = local("dots", max(len(b) for b in self._blocks()) * width)
        with loop("t", tokens) as t:
            for block in self._blocks():
                for u in range(len(block)):
                    with lanes(width) as lane:
                        put(dots, f32(0), u * width + lane)
                with loop("c", chunks) as c:
                    for u, g in enumerate(block):
                        with lanes(width) as lane:
                            d = c * width + lane
                            k = widen(keys[at.page, self.h, self.args.token(at, t), d], self.k_type.dtype)
                            put(dots, dots[u * width + lane] + self.q[g * self.dim + d] * k, u * width + lane)
                for u, g in enumerate(block):
                    self._add_up(dots, u * width, width)
                    put(self.weights, dots[u * width], g * self.page + t)

    def _add_up(self, x: Buffer, at: int, width: int) -> None:
        half = width // 2
        while half:
            with lanes(half) as lane:
                put(x, x[at + lane] + x[at + half + lane], at + lane)
            half //= 2

    def _rescale(self, tokens: Expr) -> None:
        """Move the running maximum, and turn scores into weights relative to it."""
        now = local("now", 1)
        width, chunks = self._vectors(self.v_dim)
        with loop("g", self.group) as g:
            put(now, self.top[g], 0)
            with loop("t", tokens) as t:
                put(now, T.max(now[0], self.weights[g * self.page + t]), 0)
            # all scores -inf so far: any finite reference gives weights of 0 instead of NaN
            base = let("base", T.Select(equal(now[0], f32(NEG_INF)), f32(0), now[0]))
            shrink = let("shrink", T.exp(self.top[g] - base))
            put(self.top, now[0], g)
            put(self.total, self.total[g] * shrink, g)
            with loop("c", chunks) as c, lanes(width) as lane:
                at = g * self.v_dim + c * width + lane
                put(self.acc, self.acc[at] * shrink, at)
            with loop("t", tokens) as t:
                w = let("w", T.exp(self.weights[g * self.page + t] - base))
                put(self.weights, w, g * self.page + t)
                put(self.total, self.total[g] + w, g)

    def _accumulate(self, place: Place, tokens: Expr) -> None:
        """Add the sum over t of ``weights[g, t] * v_t`` to ``acc_g``."""
        values = self.args.buffers[self.o.values]
        width, chunks = self._vectors(self.v_dim)
        with loop("t", tokens) as t, loop("c", chunks) as c:
            for block in self._blocks():
                for g in block:
                    with lanes(width) as lane:
                        d = c * width + lane
                        v = widen(values[place.page, self.h, self.args.token(place, t), d], self.v_type.dtype)
                        at = g * self.v_dim + d
                        put(self.acc, self.acc[at] + self.weights[g * self.page + t] * v, at)

    def _finish(self) -> None:
        out, lse = self.args.buffers["out"], self.args.buffers["lse"]
        width, chunks = self._vectors(self.v_dim)
        with loop("g", self.group) as g:
            head = let("head", self.h * self.group + g)
            total = let("sum", self.total[g])
            # a padded row has no tokens: zeros, and a log-sum-exp of -inf
            one = self.args.scale_of(self.o.values)
            share = let("share", T.Select(total > f32(0), one / total, f32(0)))
            with loop("c", chunks) as c, lanes(width) as lane:
                d = c * width + lane
                x = self.acc[g * self.v_dim + d] * share
                x = T.Select(is_nan(total), total, x)
                put(out, narrow(x, self.out_type.dtype), self.r, head, d)
            with when(self.args.size("L") > 0):
                put(lse, self.top[g] + T.log(total), self.r, head)
