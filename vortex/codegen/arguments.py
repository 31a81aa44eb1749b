"""The arguments of every kernel, by the names of the calling convention (docs/architecture.md)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field

from vortex.codegen.narrow import STORAGE, narrow, unpacked, widen
from vortex.codegen.tir import F32, I32, I64, U32, Buffer, Expr, T, cast, i32, let, tirx
from vortex.ir.core import Decl, Function, Module
from vortex.ir.dialects import flow, page
from vortex.ir.types import TensorType
from vortex.kinds.kind import Argument

SIZES = {"work_list": "N", "arrivals": "R", "partial_rows": "I", "partial_heads": "Hkv"}
"""What kernels call the sizes that declarations of scratch name."""
IN_TEXTS = {"T": "new_tokens"}
"""Sizes that TensorIR has other names for: there ``T`` is TVM itself, and a variable of that name becomes ``T_1``."""
ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "uint8": 1, "int8": 1, "int32": 4, "int64": 8}


def tensor_type(program: Module, name: str) -> TensorType:
    """The type of one tile of a declared buffer."""
    t = program.decls[name].type
    assert isinstance(t, TensorType)
    return t


@dataclass(frozen=True)
class Place:
    """Where a block that is selected or summarised lies."""

    page: Expr
    """The physical page, in 64 bits."""
    block: Expr | None
    """Which of the page's blocks it is; None where a page has one, or the whole page is meant."""


@dataclass
class Arguments:
    """Declares a kernel's arguments in the order they are asked for, and remembers their names."""

    program: Module
    sizes_are: str = I32
    """The type of sizes that a kernel reads from the caller's tensors. On a CPU it is int64, so that every product of
    an index and a size is. On a GPU it is int32, which saves registers, and templates widen before they multiply.
    Strides of pools are int64 everywhere.
    """
    names: list[str] = field(default_factory=list)
    buffers: dict[str, Buffer] = field(default_factory=dict)
    scalars: dict[str, Expr] = field(default_factory=dict)
    sizes: dict[str, Expr] = field(default_factory=dict)
    """Sizes known only at run time: B, Hq, Hkv, P (pages of the pool), Pmax (columns of the table), K, T."""

    def size(self, name: str, dtype: str = "") -> Expr:
        if name not in self.sizes:
            self.sizes[name] = tirx.Var(IN_TEXTS.get(name, name), dtype or self.sizes_are)
        return self.sizes[name]

    def tensor(
        self,
        name: str,
        shape: tuple[str | int, ...],
        dtype: str,
        strides: tuple[str | int, ...] = (),
        *,
        align: int = 0,
        sizes_are: str = "",
    ) -> Buffer:
        """Declare a tensor argument, once; sizes and strides given by name are read from the caller's tensor.

        ``align`` is what the kernel takes for granted of its address, in bytes; one element unless given.
        ``sizes_are`` is the type of these sizes and strides, where it is another than that of the kernel's.
        """
        if name in self.buffers:
            return self.buffers[name]
        kept = sizes_are or self.sizes_are
        dims, steps = (
            [self.size(d, kept) if isinstance(d, str) else tirx.const(d, kept) for d in given]
            for given in (shape, strides)
        )
        # TVM takes 64-byte alignment for granted otherwise; a caller's view may start at any element
        made = T.Buffer(dims, dtype, strides=steps or None, align=align or ELEMENT_BYTES[dtype])
        self.buffers[name] = T.arg(name.replace(".", "_"), made)
        self.names.append(name)
        return self.buffers[name]

    def scalar(self, name: str, dtype: str) -> Expr:
        """Declare a number, once."""
        if name in self.scalars:
            return self.scalars[name]
        self.scalars[name] = T.arg(name, tirx.Var(name, dtype))
        self.names.append(name)
        return self.scalars[name]

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        return page.block_size(self.program)

    @property
    def page_blocks(self) -> int:
        """Blocks of a page."""
        return page.page_blocks(self.program)

    @property
    def columns(self) -> Expr:
        """Blocks that a request may have by the width of the page table."""
        columns = self.size("Pmax")
        return columns if self.page_blocks == 1 else columns * self.page_blocks

    def look_up(self, request: Expr, logical: Expr, name: str = "") -> Place:
        """Where a logical block of a request lies; with a ``name`` it is bound to variables, the page to one of it."""
        table, each = self.buffers["page_table"], self.page_blocks
        bound = let if name else lambda _, x: x
        if each == 1:
            return Place(bound(name, cast(I64, table[cast(I64, request), logical])), None)
        logical = bound("logical_block", logical)
        one = tirx.const(each, logical.ty)
        physical = bound(name, cast(I64, table[cast(I64, request), T.truncdiv(logical, one)]))
        return Place(physical, bound("block", cast(I64, T.truncmod(logical, one))))

    def look_up_page(self, request: Expr, logical: Expr, name: str = "") -> Place:
        """Where a logical page of a request lies, as one; with a ``name`` it is bound to a variable."""
        physical = cast(I64, self.buffers["page_table"][cast(I64, request), logical])
        return Place(let(name, physical) if name else physical, None)

    def of_block(self, block: Expr) -> Place:
        """Where a *physical block* lies: ``physical page * blocks of a page + block``."""
        each = self.page_blocks
        if each == 1:
            return Place(cast(I64, block), None)
        one = tirx.const(each, block.ty)
        return Place(cast(I64, T.truncdiv(block, one)), cast(I64, T.truncmod(block, one)))

    def token(self, at: Place, token: Expr) -> Expr:
        """The place in its page of a token of a block, or of the whole page."""
        return token if at.block is None else at.block * self.block_size + cast(I64, token)

    def of_field(self, at: Place, head: Expr) -> tuple[Expr, ...]:
        """The index of a block's tile in a field, or of a page's in a field of pages."""
        return (at.page, head) if at.block is None else (at.page, head, at.block)

    def pool(self, d: Decl, *, align: int = 0) -> Buffer:
        """K or V, ``[P, Hkv, page, D]`` with any strides but the last: NHD and HND are views of one shape.

        Its strides are int64 on a GPU too. TVM wants one type for a buffer's sizes and strides, so a pool's sizes have
        names of their own where the kernel's other sizes are int32.
        """
        assert isinstance(d.type, TensorType)
        steps = (f"{d.name}_page_step", f"{d.name}_head_step", f"{d.name}_token_step", 1)
        sizes = ("P", "Hkv") if self.sizes_are == I64 else ("pool_pages", "pool_heads")
        shape: tuple[str | int, ...] = (*sizes, self.page_blocks * d.type.tile[0], *d.type.tile[1:])
        return self.tensor(d.name, shape, STORAGE[d.type.dtype.name], steps, align=align, sizes_are=I64)

    def scales(self, *pools: Decl) -> None:
        """Declare what the numbers of these pools are multiples of, where they have a scale."""
        for d in pools:
            if page.scaled(d):
                self.scalar(f"{d.name}_scale", F32)

    def scale_of(self, pool: str) -> Expr:
        """The scale of a pool, the constant 1 where it has none."""
        return self.scalars.get(f"{pool}_scale", T.float32(1))

    def from_pool(self, name: str, stored: Expr) -> Expr:
        """A stored number of a pool as ``page.load`` gives it."""
        d = self.program.decls[name]
        assert isinstance(d.type, TensorType)
        return widen(stored, d.type.dtype) * self.scale_of(name) if page.scaled(d) else stored

    def to_pool(self, o: page.Scatter, x: Expr) -> Expr:
        """A number of a new token as the pool keeps it."""
        given, kept = (self.program.decls[name].type for name in (o.source, o.buffer))
        assert isinstance(given, TensorType) and isinstance(kept, TensorType)
        if not page.scaled(self.program.decls[o.buffer]):
            return x
        return narrow(widen(x, given.dtype) / self.scale_of(o.buffer), kept.dtype)

    def field(self, d: Decl) -> Buffer:
        """The summaries called ``d.name`` of all physical pages."""
        assert isinstance(d.type, TensorType)
        blocks = () if self.page_blocks == 1 or page.of_whole_pages(d) else (self.page_blocks,)
        return self.tensor(f"field.{d.name}", ("P", "Hkv", *blocks, *d.type.packed), STORAGE[d.type.dtype.name])

    def from_field(self, o: page.Load, at: Sequence[Expr], index: Sequence[Expr]) -> Expr:
        """An element of what ``o`` loads, at ``index`` of the tile at ``at`` (:meth:`of_field`): as it is stored,
        but for elements that share a byte, which are unpacked.
        """
        t, buffer = self.type_of(o.buffer), self.buffers[f"field.{o.buffer}"]
        if t.dtype.per_byte == 1:
            return buffer[(*at, *index)]
        rest, last = index[:-1], index[-1]
        if isinstance(o, page.LoadWords):
            each = [cast(U32, buffer[(*at, *rest, last * 4 + k)]) for k in range(4)]
            low, high = (T.bitwise_or(a, T.shift_left(b, T.uint32(8))) for a, b in (each[:2], each[2:]))
            return T.reinterpret(I32, T.bitwise_or(low, T.shift_left(high, T.uint32(16))))
        per = i32(t.dtype.per_byte)
        return unpacked(buffer[(*at, *rest, T.floordiv(last, per))], T.floormod(last, per), t.dtype)

    def state(self, d: Decl) -> Buffer:
        """The state called ``d.name`` of all slots."""
        assert isinstance(d.type, TensorType)
        entries: tuple[str | int, ...] = ("Entries",) if d.attrs["layout"] == "entry" else ()
        if entries and self.page_blocks > 1:
            entries = (*entries, self.page_blocks)
        return self.tensor(f"state.{d.name}", ("Slots", "Hkv", *entries, *d.type.tile), STORAGE[d.type.dtype.name])

    def entry(self, logical: Expr) -> tuple[Expr, ...]:
        """The index of a logical page's (or block's) tile in state of pages."""
        if self.page_blocks == 1:
            return (logical,)
        one = tirx.const(self.page_blocks, logical.ty)
        return T.truncdiv(logical, one), T.truncmod(logical, one)

    def _states(self, touched: Set[str], *names: str) -> None:
        """Declare the state among these buffers, and what finds a request's; nothing where there is none."""
        mine = [d for d in self.program.declared("buffer") if d.name in touched and d.attrs["role"] == "state"]
        for d in mine:
            self.state(d)
        for name in names if mine else ():
            self.tensor(name, ("B",), I32)

    def constant(self, d: Decl) -> Buffer:
        assert isinstance(d.type, TensorType)
        return self.tensor(f"const.{d.name}", d.type.tile, STORAGE[d.type.dtype.name])

    def queries(self, d: Decl, *, align: int = 0) -> Buffer:
        assert isinstance(d.type, TensorType)
        return self.tensor(d.name, ("B", "Hq", d.type.tile[1]), STORAGE[d.type.dtype.name], align=align)

    def constants_of(self, f: Function) -> None:
        """Declare the captured tensors that ``f`` uses."""
        used = {o.symbol for o in f.ops if isinstance(o, flow.Resource)}
        for d in self.program.declared("resource"):
            if d.name in used:
                self.constant(d)

    def parameters_of(self, f: Function) -> None:
        """Declare the parameters that ``f`` reads: the set of the layer, or one for each KV head."""
        used = {o.symbol for o in f.ops if isinstance(o, flow.Param)}
        for d in self.program.declared("param"):
            if d.name in used:
                assert isinstance(d.type, TensorType)
                heads = ("Hkv",) if d.attrs["per"] == "head" else ()
                self.tensor(f"param.{d.name}", (*heads, *d.type.tile), STORAGE[d.type.dtype.name])

    def _place_of(self, f: Function) -> None:
        """Declare the number of the layer, and the heads before those of the step, where ``f`` asks for them."""
        if any(isinstance(o, flow.Layer) for o in f.ops):
            self.scalar("layer", I32)
        if any(isinstance(o, flow.Head) for o in f.ops):
            self.scalar("head_offset", I32)
        if any(isinstance(o, flow.RowBudget) for o in f.ops):
            self.tensor("row_budget", ("Hkv",), I32)

    def place(self, head: Expr) -> dict[str, Expr]:
        """What the leaves ``layer`` and ``head`` read in a row of KV head ``head`` of the step."""
        offset = self.scalars.get("head_offset")
        found = {"layer": self.scalars.get("layer"), "kv_head": cast(I64, head)}
        if "row_budget" in self.buffers:
            found["row_budget"] = self.buffers["row_budget"][head]
        return found if offset is None else {**found, "head": offset + cast(I32, head)}

    def _inputs_of_select(self, f: Function) -> None:
        """Declare the queries, summaries, rows of the pools and captured tensors that ``f`` loads."""
        loaded = {o.buffer for o in f.ops if isinstance(o, page.Load)}
        for d in self.program.declared("buffer"):
            if d.name in loaded and d.attrs["role"] == "input":
                self.queries(d)
            elif d.name in loaded and d.attrs["role"] == "field":
                self.field(d)
            elif d.name in loaded and d.attrs["role"] == "pool":
                self.pool(d)
                self.scales(d)
        self._states(loaded | {o.buffer for o in f.ops if isinstance(o, page.Store)}, "slots")
        self.constants_of(f)
        self.parameters_of(f)

    def scratch(self, taken: Iterable[Argument], *, align: int = 0, **sizes: int) -> None:
        """Declare the scratch that a template takes; ``sizes`` are those that the kernel is built for, ``align`` what
        is taken for granted of the addresses of fp32 numbers, in bytes.
        """
        for a in taken:
            shape = tuple(d if isinstance(d, int) else sizes.get(d, SIZES.get(d, d)) for d in a.shape)
            if a.dtype == "i32":
                self.tensor(a.name, shape, I32)
            else:
                self.tensor(a.name, shape, F32, align=align)

    def of_plan(self, taken: Iterable[Argument] = ()) -> None:
        """Declare what ``plan`` reads and writes; ``taken`` is the scratch for the work lists of the others."""
        self.tensor("lengths", ("B",), I32)
        self.tensor("budget", (7,), I32)
        if self.program.attrs.get("request_budgets"):
            self.tensor("request_budget", ("B", 5), I32)
        self.tensor("plan", (4, "B"), I32)
        self.scratch(taken)

    def of_append(self, f: Function, *, loc: bool) -> None:
        """Declare what ``append`` reads and writes; ``loc`` tells whether it takes the slots of the new tokens."""
        touched = {o.buffer for o in f.ops if isinstance(o, page.Load | page.Scatter)}
        stored = {o.buffer for o in f.ops if isinstance(o, page.Store)}
        buffers = list(self.program.declared("buffer"))
        for d in buffers:
            if d.name in touched and d.attrs["role"] == "pool":
                self.pool(d)
        for d in buffers:
            if d.name in stored:
                self.field(d)
        self._states({o.buffer for o in f.ops if isinstance(o, page.Reset)}, "slots", "fresh")
        self.constants_of(f)
        self.parameters_of(f)
        for o in f.ops:
            if isinstance(o, page.Scatter):
                t = self.type_of(o.source)
                self.tensor(o.source, ("tokens", "Hkv", *t.tile), STORAGE[t.dtype.name])
        if loc:
            self.tensor("loc", ("T",), "int64")
        self.tensor("row_offsets", ("B1",), I32)
        self.tensor("lengths", ("B",), I32)
        self.tensor("page_table", ("B", "Pmax"), I32)
        self.scales(*(d for d in buffers if d.name in touched))
        self._place_of(f)

    def of_select(self, f: Function, taken: Iterable[Argument] = ()) -> None:
        """Declare what ``select`` reads and writes; ``taken`` is the scratch of one that walks the list of ``plan``."""
        self._inputs_of_select(f)
        self.tensor("plan", (4, "B"), I32)
        self.scratch(taken)
        self.tensor("page_table", ("B", "Pmax"), I32)
        self._place_of(f)
        self.tensor("workspace", ("rows", "words"), F32)
        self.tensor("pages", ("B", "Hkv", "K"), I32)
        self.tensor("counts", ("B", "Hkv"), I32)

    def of_attend(self, o: page.Attend, *, heads: str | int = "Hkv", align: int = 0) -> None:
        """Declare what ``attend`` reads and writes.

        ``heads`` is how many lists of pages a request has, ``align`` what is taken for granted of the addresses of
        queries, pools and output, in bytes.
        """
        pools = [self.program.decls[name] for name in dict.fromkeys((o.keys, o.values))]
        self.queries(self.program.decls["q"], align=align)
        for d in pools:
            self.pool(d, align=align)
        self.tensor("lengths", ("B",), I32)
        self.tensor("page_table", ("B", "Pmax"), I32)
        self.tensor("pages", ("B", heads, "K"), I32)
        self.tensor("counts", ("B", heads), I32)
        self.scalar("scale", F32)
        self.scales(*pools)
        out = self.type_of("out")
        self.tensor("out", ("B", "Hq", out.tile[1]), STORAGE[out.dtype.name], align=align)
        self.tensor("lse", ("L", "Hq"), F32)

    def type_of(self, name: str) -> TensorType:
        """The type of a declared buffer."""
        return tensor_type(self.program, name)

    @property
    def parameters(self) -> dict[str, Buffer]:
        """The declared parameters by their own names."""
        return {n.removeprefix("param."): b for n, b in self.buffers.items() if n.startswith("param.")}

    @property
    def constants(self) -> dict[str, Buffer]:
        """The declared captured tensors by their own names."""
        return {n.removeprefix("const."): b for n, b in self.buffers.items() if n.startswith("const.")}
