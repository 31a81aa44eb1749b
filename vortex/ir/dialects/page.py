"""The ``page`` dialect: the same computation as a program of kernels, every memory access spelled out.

A ``page.program`` declares buffers and holds kernels; a kernel loads tiles, computes with flow ops and
stores. A buffer's type is one tile; its layout says how many tiles there are and how one is found:

============ ============================================== =====================================
layout       one tile for each                              found by
============ ============================================== =====================================
``batched``  (request, KV head) row                         row number
``ragged``   candidate page of a row, or page of the        row number, position among those pages
             shortlist that ``pages`` names
``paged``    physical page and KV head                      the request's page table
``token``    new token and KV head                          position in the step
``slot``     request slot and KV head                       the request's slot
``entry``    request slot, KV head and logical page         the request's slot, the page itself
``request``  request                                        request number
``step``     number of a buffer that all kernels share      its indices, whose sizes ``shape`` names
============ ============================================== =====================================

Buffers of role ``state`` outlast the step, and belong to requests: ``select`` reads them and writes what they become,
``append`` writes their ``init`` when the slot or the page is another one. A negative slot is a row without state: it
reads ``init`` and writes nothing.

Buffers of role ``scratch`` have layout ``step``: what kernels of the target share beyond the buffers of the flow, such
as work lists (:mod:`vortex.ir.scratch`). No op names them; each kernel says in ``scratch`` what it does to them.
"""

from __future__ import annotations

from vortex.budget import Cap
from vortex.ir.core import Decl, Function, Module, Op, Value, op
from vortex.ir.dialects.flow import Part, blocks_of_page, one_page_axis, tensor
from vortex.ir.rewrite import behind
from vortex.ir.types import DType, S, SelectionType, Sym, TensorType, Type, f32, fp8_e4m3, i32, uint1, whole_pages

LAYOUTS = ("batched", "ragged", "paged", "token", "slot", "entry", "request", "step")
CANDIDATES = ("paged", "ragged", "entry")
"""Layouts of which a kernel that runs once for a row has the tiles of all candidates."""
STATE_LAYOUTS = {"page": "entry", "request": "slot"}
"""How buffers of role ``state`` are laid out, by what the state belongs to beside the slot; each has an ``init``."""
ROLES: dict[str, tuple[str, ...]] = {
    "input": ("batched", "token"),
    "pool": ("paged",),
    "field": ("paged",),
    "state": tuple(STATE_LAYOUTS.values()),
    "output": ("batched", "request"),
    "workspace": ("batched", "ragged"),
    "plan": ("request",),
    "scratch": ("step",),
}
"""What a buffer is for, and how buffers of each role may be laid out."""


def scaled(d: Decl) -> bool:
    """Whether the buffer keeps numbers as multiples of a scale, which kernels are given as ``<name>_scale``: fp8 pools.

    Summaries in fp8 have no scale.
    """
    return d.attrs.get("role") == "pool" and isinstance(d.type, TensorType) and d.type.dtype == fp8_e4m3


def block_size(m: Module) -> int:
    """Tokens of what is summarised and selected: a page, or the part of one that the module says."""
    return int(m.attrs["block_size"] if "block_size" in m.attrs else m.attrs["page_size"])


def page_blocks(m: Module) -> int:
    """Blocks of a page. Where there are several, a *physical block* is ``physical page * blocks + block``, and a paged
    buffer has an axis of blocks before its tile: of a pool that and the tokens of a block are the tokens of the page.
    """
    return blocks_of_page(m)


def pages_of(d: Decl) -> Sym:
    """The pages of which a paged or ragged buffer has a tile: the candidates, or what ``pages`` names: a shortlist, or
    the candidates as whole pages.
    """
    found = d.attrs.get("pages", S)
    assert isinstance(found, Sym)
    return found


def of_whole_pages(d: Decl) -> bool:
    """Whether a paged or ragged buffer has a tile for a page of several blocks, and not for each block."""
    return pages_of(d).blocks > 1


def pages_axis(m: Module) -> Sym:
    """The candidates as pages of the module's blocks."""
    return whole_pages(page_blocks(m))


def whole_tile(m: Module, d: Decl) -> TensorType | None:
    """What ``page.load_page`` gives of a pool: the rows of all blocks of a page; None for another buffer."""
    tile = tile_of(d)
    if d.attrs.get("role") != "pool" or not isinstance(tile, TensorType):
        return None
    return TensorType(tile.dtype, (tile.tile[0] * page_blocks(m), *tile.tile[1:]))


def tile_of(d: Decl) -> Type:
    """What a tile of the buffer is once it is loaded: fp32 where it is scaled."""
    return d.type.with_dtype(f32) if scaled(d) and isinstance(d.type, TensorType) else d.type


def words_of(t: Type) -> TensorType | None:
    """The type of bits (uint1) as words of 32; None for what is not read in whole words."""
    if not isinstance(t, TensorType) or t.dtype != uint1 or not t.tile or t.tile[-1] % 32:
        return None
    return TensorType(i32, (*t.shape[:-1], t.tile[-1] // 32))


@op("page.load")
class Load(Op):
    """The tile of the current row or page. In a kernel that runs once for a row with all its candidates, such as
    ``select``, a paged or ragged buffer gives those of all candidates.

    Of a pool in fp8 it gives stored number * scale, in fp32.
    """

    buffer: str
    type: TensorType
    role = "leaf"

    def infer(self) -> TensorType:
        return one_page_axis(self, self.type.dtype, self.type.shape)


@op("page.load_page")
class LoadPage(Load):
    """As ``page.load`` of a pool, in a kernel that runs once for a page: the rows of the whole page, not of a block."""


@op("page.load_words")
class LoadWords(Load):
    """As ``page.load`` of a summary of bits (uint1), 32 of them a word: i32[.., n / 32], bit i % 32 of word i // 32."""


def is_paged(m: Module, o: Load) -> bool:
    """Whether a load reads a summary or rows of a pool, through the request's page table."""
    return bool(m.decls[o.buffer].attrs["layout"] == "paged")


def stored_dtype(m: Module, o: Load) -> DType:
    """The type in which a load reads numbers: that of its value, but for a pool with a scale."""
    d = m.decls[o.buffer]
    t = d.type if scaled(d) else o.value.type
    assert isinstance(t, TensorType)
    return t.dtype


def is_summary(m: Module, o: Load) -> bool:
    """Whether a load reads a summary, which lies contiguous in memory; rows of a pool have strides of their own."""
    return is_paged(m, o) and m.decls[o.buffer].attrs["role"] == "field"


@op("page.load_selection")
class LoadSelection(Op):
    """The pages that ``select`` kept for the current row."""

    buffer: str
    role = "leaf"

    def infer(self) -> SelectionType:
        return SelectionType()


@op("page.store")
class Store(Op):
    """Writes a tile, rounded to the buffer's element type, or a selection (ascending pages and their count)."""

    x: Value
    buffer: str
    role = "effect"

    def infer(self) -> None:
        self.require(isinstance(self.x.type, TensorType | SelectionType), "nothing to store")


@op("page.reset")
class Reset(Op):
    """Writes ``init`` to state where something else begins: to the slot's tile at its request's first append, to the
    tiles of the pages that fill, and at a first append to those of all pages that are full, which others may have
    filled.
    """

    buffer: str
    role = "effect"

    def infer(self) -> None:
        return None


@op("page.scatter")
class Scatter(Op):
    """Copies each new token's rows from ``source`` (layout ``token``) to its slot in ``buffer`` (layout ``paged``).

    Into a pool in fp8 goes number / scale, clamped to +-448 and rounded to nearest even.
    """

    source: str
    buffer: str
    role = "effect"

    def infer(self) -> None:
        return None


@op("page.attend")
class Attend(Op):
    """softmax(q k^T * scale) v over the tokens of the selected pages, fp32; ``lse`` names where log-sum-exp goes.

    Tokens at or beyond the request's length take no part, whatever their memory holds. Values may be narrower than
    the rows of their buffer, whose first numbers they then are; where keys and values are one buffer (MLA) its rows
    are read once.
    """

    q: Value
    pages: Value
    keys: str
    values: str
    lse: str
    type: TensorType
    role = "effect"

    def infer(self) -> Type:
        q = tensor(self, self.q)
        self.require(isinstance(self.pages.type, SelectionType), f"%{self.pages.name} is not a selection")
        ok = q.page_axis is None and len(q.shape) == 2 and len(self.type.shape) == 2 and self.type.dtype == f32
        self.require(ok and self.type.shape[0] == q.shape[0], f"[G, D] queries give f32[G, Dv], not {self.type}")
        return self.type


@op("page.plan")
class Plan(Op):
    """Page counts, budgets and work lists from the lengths, written to ``buffer``.

    ``budgets``, ``pages``, ``always`` and ``whole`` are what bounds the selection (:class:`vortex.budget.Cap`).
    """

    buffer: str
    page_size: int
    budgets: int = 1
    pages: int = 0
    always: bool = False
    whole: int = 1
    role = "effect"

    def infer(self) -> None:
        self.require(self.page_size > 0, "the page size must be positive")
        self.require(self.budgets >= 0 and self.pages >= 0, "a selection of fewer than no pages")
        self.require(self.whole > 0, "candidates of less than a block")

    @property
    def cap(self) -> Cap:
        """What bounds the pages that are selected: ``budgets``, ``pages``, ``always`` and ``whole``."""
        return Cap(self.budgets, self.pages, self.always, self.whole)


def summaries_of(program: Module, f: Function) -> tuple[list[Op], list[Op]]:
    """The ops of an ``append`` kernel that run for each block that fills, and those for each page of several blocks;
    a number that both need is in both.
    """
    body = [o for o in f.ops if not isinstance(o, Scatter | Reset)]
    of_page = [o for o in body if isinstance(o, Store) and of_whole_pages(program.decls[o.buffer])]
    if not of_page:
        return body, []

    def made_for(stores: list[Store]) -> list[Op]:
        needed = behind(*(o.x for o in stores))
        return [o for o in body if o in stores or (o.result is not None and o.result in needed)]

    of_block = [o for o in body if isinstance(o, Store) and o not in of_page]
    return made_for(of_block), made_for(of_page)


def cap_of(program: Module) -> Cap:
    """What bounds the pages that a program selects."""
    return next((o.cap for f in program.functions.values() for o in f.ops if isinstance(o, Plan)), Cap())


def shortlist_of(program: Module) -> int:
    """The fewest pages among which the budget chooses, those of a shortlist; 0 where it chooses among all."""
    parts = [o for f in program.functions.values() for o in f.ops if isinstance(o, Part) and not o.most]
    axes = [o.pages_of(o.scored) for o in parts]
    return min((axis.limit for axis in axes if axis.listed), default=0)
