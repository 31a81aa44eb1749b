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
from vortex.ir.core import Decl, Module, Op, Value, op
from vortex.ir.dialects.flow import one_page_axis, tensor
from vortex.ir.types import S, SelectionType, Sym, TensorType, Type, f32, fp8_e4m3, i32, uint1

LAYOUTS = ("batched", "ragged", "paged", "token", "slot", "entry", "request", "step")
ROLES = ("input", "pool", "field", "state", "output", "workspace", "plan", "scratch")
CANDIDATES = ("paged", "ragged", "entry")
"""Layouts of which a kernel that runs once for a row has the tiles of all candidates."""
STATE_LAYOUTS = {"page": "entry", "request": "slot"}
"""How buffers of role ``state`` are laid out, by what the state belongs to beside the slot; each has an ``init``."""


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
    return int(m.attrs["page_size"]) // block_size(m)


def pages_of(d: Decl) -> Sym:
    """The pages of which a paged or ragged buffer has a tile: the candidates, or the shortlist that ``pages`` names."""
    found = d.attrs.get("pages", S)
    assert isinstance(found, Sym)
    return found


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


@op("page.load_words")
class LoadWords(Load):
    """As ``page.load`` of a summary of bits (uint1), 32 of them a word: i32[.., n / 32], bit i % 32 of word i // 32."""


def is_paged(m: Module, o: Load) -> bool:
    """Whether a load reads a summary or rows of a pool, through the request's page table."""
    return bool(m.decls[o.buffer].attrs["layout"] == "paged")


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

    ``budgets``, ``pages`` and ``always`` are what bounds the selection (:class:`vortex.budget.Cap`).
    """

    buffer: str
    page_size: int
    budgets: int = 1
    pages: int = 0
    always: bool = False
    role = "effect"

    def infer(self) -> None:
        self.require(self.page_size > 0, "the page size must be positive")
        self.require(self.budgets >= 0 and self.pages >= 0, "a selection of fewer than no pages")

    @property
    def cap(self) -> Cap:
        """What bounds the pages that are selected: ``budgets``, ``pages`` and ``always``."""
        return Cap(self.budgets, self.pages, self.always)


def cap_of(program: Module) -> Cap:
    """What bounds the pages that a program selects."""
    return next((o.cap for f in program.functions.values() for o in f.ops if isinstance(o, Plan)), Cap())
