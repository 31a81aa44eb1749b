"""Element types, dimensions and value types of both dialects."""

from __future__ import annotations

from dataclasses import dataclass

from vortex.errors import BAD_SPEC


@dataclass(frozen=True, slots=True)
class DType:
    """An element type; ``bits`` is its size in memory.

    Elements of less than a byte are packed along the last axis, the first in the lowest bits of its byte: of ``int4``
    the first of two in bits 0 to 3, of ``uint1`` the first of eight in bit 0.
    """

    name: str
    bits: int
    is_float: bool

    def __str__(self) -> str:
        return self.name

    @property
    def bytes(self) -> int:
        """Its size in bytes; of a packed type, those of what is read and written at once."""
        return max(1, self.bits // 8)

    @property
    def per_byte(self) -> int:
        """How many elements share a byte."""
        return max(1, 8 // self.bits)


f32 = DType("f32", 32, True)
f16 = DType("f16", 16, True)
bf16 = DType("bf16", 16, True)
fp8_e4m3 = DType("fp8_e4m3", 8, True)
i32 = DType("i32", 32, False)
i64 = DType("i64", 64, False)
bool_ = DType("bool", 8, False)
int8 = DType("int8", 8, False)
int4 = DType("int4", 4, False)
uint1 = DType("uint1", 1, False)

DTYPES: dict[str, DType] = {d.name: d for d in (f32, f16, bf16, fp8_e4m3, i32, i64, bool_, int8, int4, uint1)}

MOST_CODE: dict[DType, int] = {int8: 127, int4: 7}
"""The largest code of the types whose elements are codes, symmetric around zero; the least is its negative."""

KEY_PADDING = 16
"""Words of a row behind its keys, which are counted in whole vectors: the last one may reach past the row's pages."""


def dtype(name: str | DType) -> DType:
    """The element type called ``name``.

    Raises:
        VortexError: VX1021 when there is none.
    """
    if isinstance(name, DType):
        return name
    if name not in DTYPES:
        raise BAD_SPEC.at(why=f"no element type '{name}'; there are {', '.join(DTYPES)}")
    return DTYPES[name]


@dataclass(frozen=True, slots=True)
class Sym:
    """A dimension whose size is known only when the kernel runs: a page axis.

    That of a shortlist, ``S1<=64``, has as many pages as there are candidates, but at most ``limit``.

    Candidates are what is selected, blocks of pages where pages have several. An axis of whole pages, ``S/4`` of the
    candidates or ``S1/4<=64`` of a shortlist, has one element for so many of them; ``S1<=256`` are the blocks of that
    shortlist.
    """

    name: str
    limit: int = 0
    """The most elements it has; 0 for all candidates, :data:`S`."""
    blocks: int = 1
    """How many candidates an element stands for."""

    def __str__(self) -> str:
        name = self.name if self.blocks == 1 else f"{self.name}/{self.blocks}"
        return f"{name}<={self.limit}" if self.limit else name

    def pages(self, candidates: int) -> int:
        """How many elements it has in a row of that many candidates."""
        most = candidates // self.blocks
        return min(most, self.limit) if self.limit else most

    @property
    def listed(self) -> bool:
        """Whether it is that of a shortlist, and not that of all candidates."""
        return self.limit > 0

    @property
    def in_blocks(self) -> Sym:
        """The axis of the blocks of its pages."""
        return Sym(self.name, self.limit * self.blocks)


Dim = int | Sym
Shape = tuple[Dim, ...]

S = Sym("S")
"""The page axis: the candidate pages of one (request, KV head) row, in logical order."""


def whole_pages(blocks: int) -> Sym:
    """The candidates as pages of so many blocks, ``S/4``; :data:`S` where a page has one."""
    return Sym("S", 0, blocks)


MOST_LISTED = 4096
"""The longest shortlist: its pages are listed on chip."""
MOST_BLOCKS = 1 << 16
"""Of a page."""


@dataclass(frozen=True, slots=True)
class TensorType:
    """``f32[S, 4]``: element type and dimensions, at most one of which is a page axis."""

    dtype: DType
    shape: Shape = ()

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"

    @property
    def page_axis(self) -> int | None:
        """Which axis runs over pages, or None for a value that is one per row."""
        return next((i for i, d in enumerate(self.shape) if isinstance(d, Sym)), None)

    @property
    def pages(self) -> Sym | None:
        """The page axis itself, or None for a value that is one per row."""
        return next((d for d in self.shape if isinstance(d, Sym)), None)

    @property
    def tile(self) -> tuple[int, ...]:
        """The dimensions of one page's share: the shape without its page axis."""
        return tuple(d for d in self.shape if isinstance(d, int))

    @property
    def numel(self) -> int:
        """Elements of one page's share (of the whole value when it has no page axis)."""
        n = 1
        for d in self.tile:
            n *= d
        return n

    @property
    def packed(self) -> tuple[int, ...]:
        """The dimensions of a tile in memory: the last one in bytes where elements share bytes."""
        per = self.dtype.per_byte
        return self.tile if per == 1 else (*self.tile[:-1], self.tile[-1] // per)

    @property
    def tile_bytes(self) -> int:
        """Bytes of one page's share in memory."""
        return self.numel * self.dtype.bits // 8

    def with_dtype(self, dtype: DType) -> TensorType:
        return TensorType(dtype, self.shape)


@dataclass(frozen=True, slots=True)
class SelectionType:
    """The pages a row attends to."""

    def __str__(self) -> str:
        return "selection"


selection = SelectionType()

Type = TensorType | SelectionType
