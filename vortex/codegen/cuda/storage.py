"""Where the values of a kernel lie on a GPU. Every storage holds 32-bit words; integers are kept bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from vortex.codegen.cuda.exponentials import below_largest, quick_power
from vortex.codegen.cuda.minmax import larger, once, smaller
from vortex.codegen.cuda.ptx import WARP, flat_view, wide
from vortex.codegen.scalar import convert, emit_scalar
from vortex.codegen.tir import F32, I32, I64, U32, Buffer, Expr, T, choose, equal, flat, i32, local, put
from vortex.codegen.values import Index, Values, fit, type_of, without_page
from vortex.errors import NOT_EMITTABLE, Loc
from vortex.ir.core import Value
from vortex.ir.dialects import flow
from vortex.schedules.shared_words import aligned
from vortex.targets.gpu import H200


class Storage(Protocol):
    """The words of one value. ``position`` is a page's place among the candidates, ``slot`` that in the page tile."""

    def load(self, position: Expr, slot: Expr, inner: Expr) -> Expr: ...

    def store(self, x: Expr, position: Expr, slot: Expr, inner: Expr) -> None: ...


@dataclass
class Arena:
    """The shared memory of a CTA: words handed out before it is opened."""

    words: int = 0
    limit: int = H200.cta_shared // 4

    def take(self, words: int) -> int:
        """The offset of ``words`` more, on a 16-byte boundary."""
        at = self.words
        self.words += aligned(words)
        return at

    def open(self, loc: Loc | None = None, hint: str = "") -> None:
        """Declare it; from here on the views can be used. ``loc`` and ``hint`` are for the error.

        Raises:
            VortexError: VX4006 when it is more than a CTA may have.
        """
        if self.words > self.limit:
            why = f"a CTA needs {self.words * 4} bytes of shared memory, and may have {self.limit * 4}"
            smaller = "smaller knobs in the kernel's schedule: 'vortex passes schedule'"
            raise NOT_EMITTABLE.at(loc, why=why, hint=f"{hint}, or {smaller}" if hint else smaller)
        from tvm.script.ir_builder import IRBuilder

        self.f32 = T.alloc_buffer((max(self.words, 4),), F32, scope="shared.dyn", align=128)
        IRBuilder.name("arena", self.f32)
        self.i32, self.u32 = self.f32.view(I32), self.f32.view(U32)

    def share(self, other: Arena) -> None:
        """Use the memory of ``other``, which is open and has room: for CTAs that do this instead of that."""
        self.f32, self.i32, self.u32 = other.f32, other.i32, other.u32


@dataclass(frozen=True)
class RowStorage:
    """One value of the row (or, in ``append``, of the page), in shared memory."""

    arena: Arena
    at: int

    def load(self, position: Expr, slot: Expr, inner: Expr) -> Expr:
        return self.arena.f32[inner + self.at]

    def store(self, x: Expr, position: Expr, slot: Expr, inner: Expr) -> None:
        put(self.arena.f32, x, inner + self.at)


@dataclass(frozen=True)
class ListStorage:
    """The list of a shortlist, in shared memory: a word for each of its pages."""

    arena: Arena
    at: int

    def load(self, position: Expr, slot: Expr, inner: Expr) -> Expr:
        return self.arena.f32[position + self.at]

    def store(self, x: Expr, position: Expr, slot: Expr, inner: Expr) -> None:
        put(self.arena.f32, x, position + self.at)

    def put(self, page: Expr, at: Expr) -> None:
        """Write the position of a page at its place ``at`` in the list."""
        put(self.arena.i32, page, at + self.at)


@dataclass(frozen=True)
class PageTileStorage:
    """A value of the ``pages`` that a warp has in hand, in the warp's shared memory: neighbours are pages."""

    arena: Arena
    base: Expr
    pages: int = WARP

    def load(self, position: Expr, slot: Expr, inner: Expr) -> Expr:
        return self.arena.f32[self.base + inner * self.pages + slot]

    def store(self, x: Expr, position: Expr, slot: Expr, inner: Expr) -> None:
        put(self.arena.f32, x, self.base + inner * self.pages + slot)


@dataclass(frozen=True)
class PageStorage:
    """The same where neighbours are elements of a page, and pages ``pitch`` words apart."""

    arena: Arena
    base: Expr
    pitch: int

    def load(self, position: Expr, slot: Expr, inner: Expr) -> Expr:
        return self.arena.f32[self.base + slot * self.pitch + inner]

    def store(self, x: Expr, position: Expr, slot: Expr, inner: Expr) -> None:
        put(self.arena.f32, x, self.base + slot * self.pitch + inner)


@dataclass(frozen=True)
class LaneStorage:
    """A value of one page in the registers of the lane that has the page."""

    buffer: Buffer

    def load(self, position: Expr, slot: Expr, inner: Expr) -> Expr:
        return self.buffer[inner]

    def store(self, x: Expr, position: Expr, slot: Expr, inner: Expr) -> None:
        put(self.buffer, x, inner)


@dataclass(frozen=True)
class PickedStorage:
    """The same, read at a place that differs from lane to lane: registers have no such index."""

    buffer: Buffer

    def load(self, position: Expr, slot: Expr, inner: Expr) -> Expr:
        numel = int(self.buffer.shape[0])
        found: Expr = self.buffer[numel - 1]
        for e in reversed(range(numel - 1)):
            found = T.Select(equal(inner, i32(e)), self.buffer[e], found)
        return found

    def store(self, x: Expr, position: Expr, slot: Expr, inner: Expr) -> None:
        raise AssertionError("nothing is written at such a place")


@dataclass(frozen=True)
class Opened:
    """Words of a row in the workspace, one after the other."""

    view: Buffer
    begin: Buffer
    """In a register: TVM writes a bound value out wherever it is used."""

    def get(self, at: Expr) -> Expr:
        return self.view[self.begin[0] + wide(at)]

    def set(self, x: Expr, at: Expr) -> None:
        put(self.view, x, self.begin[0] + wide(at))


@dataclass(frozen=True)
class Held:
    """Words of all pages (or page tiles) of a row: in shared memory if the row is on chip, else in its workspace."""

    arena: Arena
    at: int
    pitch: int
    """Words on chip for each inner element; 0 when nothing is ever on chip."""
    workspace: Buffer
    row: Expr
    base: Expr
    room: Expr
    """Words in the workspace for each inner element."""
    on_chip: Expr
    """True or False where it is known: for what shared memory has room for, whatever the row is, and for what several
    CTAs write.
    """

    @property
    def never(self) -> bool:
        """Whether it is in the workspace, whatever the row is."""
        return not self.pitch or self.on_chip is False

    @property
    def is_on_chip(self) -> Expr:
        """``on_chip`` as an expression."""
        return T.bool(self.on_chip) if isinstance(self.on_chip, bool) else self.on_chip

    def near(self, at: Expr, inner: Expr = 0) -> Expr:
        """The word of a row that is on chip."""
        return self.arena.f32[inner * self.pitch + at + self.at]

    def far(self, at: Expr, inner: Expr = 0) -> Expr:
        """The word of a row that is not."""
        return self.workspace[wide(self.row), self.base + inner * self.room + at]

    def opened(self, dtype: str = F32) -> Opened:
        """The words of inner element 0 in the workspace; where they begin is worked out once, here."""
        begin = local("begin_of_words", 1, I64)
        put(begin, wide(self.row) * wide(self.workspace.shape[1]) + wide(self.base), 0)
        return Opened(flat_view(self.workspace, dtype, 4), begin)

    def get(self, at: Expr, inner: Expr = 0) -> Expr:
        if self.never:
            return self.far(at, inner)
        if self.on_chip is True:
            return self.near(at, inner)
        return T.if_then_else(self.on_chip, self.near(at, inner), self.far(at, inner))

    def set(self, x: Expr, at: Expr, inner: Expr = 0) -> None:
        self._store([(inner, x)], at)

    def write(self, words: Sequence[Expr], at: Expr, first: Expr = 0) -> None:
        """Write elements of ``at`` from the ``first`` on."""
        self._store([(first + e, x) for e, x in enumerate(words)], at)

    def _store(self, words: Sequence[tuple[Expr, Expr]], at: Expr) -> None:
        """Write some elements, each with what it becomes."""

        def near() -> None:
            for inner, x in words:
                put(self.arena.f32, x, inner * self.pitch + at + self.at)

        def far() -> None:
            for inner, x in words:
                put(self.workspace, x, wide(self.row), self.base + inner * self.room + at)

        self.where_it_lies(near, far)

    @staticmethod
    def read_all(copies: Sequence[tuple[Held, Buffer, Expr, Expr, int]]) -> None:
        """Copy elements of one row, each ``held.get(at, inner)`` into ``registers[e]``, all loads before any use."""

        def near() -> None:
            for held, registers, at, inner, e in copies:
                put(registers, held.near(at, inner), e)

        def far() -> None:
            for held, registers, at, inner, e in copies:
                put(registers, held.far(at, inner), e)

        copies[0][0].where_it_lies(near, far)

    def where_it_lies(self, near: Callable[[], None], far: Callable[[], None]) -> None:
        """Emit what to do where the row is on chip, and where it is not."""
        if self.never or self.on_chip is True:
            (far if self.never else near)()
            return
        with choose(self.on_chip) as (then, other):
            with then():
                near()
            with other():
                far()

    def load(self, position: Expr, slot: Expr, inner: Expr) -> Expr:
        return self.get(position, inner)

    def store(self, x: Expr, position: Expr, slot: Expr, inner: Expr) -> None:
        self.set(x, position, inner)


@dataclass
class StoredValues(Values):
    """Values read from their storages; what has none is computed where it is read."""

    storages: dict[Value, Storage] = field(default_factory=dict)
    slot: Expr = 0
    """The place of the page at hand in its page tile."""

    def at_slot(self, slot: Expr) -> StoredValues:
        """The same values, read and written for page ``slot`` of the page tile."""
        return replace(self, slot=slot)

    def read(self, v: Value, index: Index) -> Expr:
        if v not in self.storages:
            return self.expression(v, index)
        t = type_of(v)
        word = self.storages[v].load(_position(v, index), self.slot, flat(without_page(index, t.shape), t.tile))
        return self._from_word(word, t.dtype, packed=True)

    def expression(self, v: Value, index: Index) -> Expr:
        o, t = v.owner, type_of(v)
        if o is not None and below_largest(o):
            return quick_power(
                convert(self.read(o.operands[0], fit(index, t.shape, type_of(o.operands[0]).shape)), F32)
            )
        if o is None or (o.repeats == 1 and not o.branches):
            return super().expression(v, index)
        operands = [once(self.read(x, fit(index, t.shape, type_of(x).shape))) for x in o.operands]
        if isinstance(o, flow.Maximum | flow.Minimum) and t.dtype.is_float:
            a, b = (convert(x, F32) for x in operands)
            return larger(a, b) if isinstance(o, flow.Maximum) else smaller(a, b)
        return emit_scalar(o, operands)

    def write(self, v: Value, index: Index, x: Expr) -> None:
        t = type_of(v)
        word = self._to_word(x, t.dtype, packed=True)
        inner = flat(without_page(index, t.shape), t.tile)
        self.storages[v].store(word, _position(v, index), self.slot, inner)


def _position(v: Value, index: Index) -> Expr:
    axis = type_of(v).page_axis
    return i32(0) if axis is None else index[axis]
