"""Which contractions of ``select`` tensor cores do, told from the IR alone, and what they multiply their results by.

A contraction of one field, as it is stored, with numbers of the row goes to tensor cores where its sizes and types
allow it. Fields in bf16 and f16 are multiplied as they lie; those in fp8 and codes of integers become f16 in
registers, which is exact.

    %d = flow.dot(%q, %c) {spec = "gd,sd->sg"}      %c : bf16[S, 128] is loaded, %q belongs to the row
      -> Matrix(extent = 128, columns = (("g", 4),))

Where pages have many rows, such as one for each of their tokens, 16 rows of a page are on M instead of 16 pages, and
the scales of codes and constants that the result is multiplied by are done before it is written (:class:`Scaled`):

    %d = flow.dot(%q, %k) {spec = "gd,std->sgt"}    %k : int4[S, 16, 128]
    %e = flow.mul(%d, %s)                           %s : f16[S, 1, 16], a field
    %f = flow.mul(%e, %c)                           %c : f32[], a constant
      -> Matrix(extent = 128, columns = (("g", 4),), tiles = (("t", 16),)), which writes %f

Both the default schedule and the emitters ask here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from vortex.ir.core import Function, Module, Op, Value
from vortex.ir.dialects import flow, page
from vortex.ir.rewrite import behind
from vortex.ir.staging import origin_of, over_pages
from vortex.ir.types import DType, bf16, f16, fp8_e4m3, int4, int8
from vortex.schedules.contractions import Axis, LaneGroupLoad, Paged, lane_group_of, loads_of, type_of
from vortex.targets.gpu import WARP

MULTIPLIED = (bf16, f16, fp8_e4m3, int8, int4)
"""The types of fields that tensor cores take, some after a conversion in registers."""
ROWS = 16
"""On M of one product."""
COLUMNS = 8
"""Of one tensor core tile."""
UNIT_WORDS = 32
"""Registers of summaries that are loaded together."""
PIECES = {bf16: 3, f16: 2}
"""Numbers of a type that any fp32 number is split into: exactly in bf16, with 22 bits of its own in f16."""


@dataclass(frozen=True)
class Scaled:
    """What the result of a contraction is multiplied by before it is written."""

    op: flow.Mul
    """The product that is so computed."""
    by: Value | None
    """A constant; None where it is ``load``."""
    load: page.Load | None
    """A field with an f16 number for each row of a page, in the order of the rows."""


@dataclass(frozen=True)
class Matrix:
    """How one ``flow.dot`` goes to tensor cores; axes are (key, extent), the key the axis' letter."""

    op: flow.Dot
    load: LaneGroupLoad
    extent: int
    """Of the axis that is summed."""
    row: Value
    letters: str
    """Of the row's operand."""
    columns: tuple[tuple[int, int], ...]
    tiles: tuple[tuple[int, int], ...]
    """Axes of the result that the summary has, beside its pages."""
    axis: int
    exact: bool
    """The row's operand is exact in the type that is multiplied."""
    raised: bool
    """Columns are multiplied by powers of two, so that f16 has room for them."""
    scaled: tuple[Scaled, ...] = ()
    """What the result is multiplied by, in order."""

    @property
    def ops(self) -> list[Op]:
        """All ops that are done together, the one whose value is written last."""
        return [self.op, *(s.op for s in self.scaled)]

    @property
    def result(self) -> Value:
        """What is written."""
        return self.ops[-1].value

    @property
    def scale(self) -> page.Load | None:
        """The field of those that the result is multiplied by."""
        return next((s.load for s in self.scaled if s.load is not None), None)

    @property
    def core(self) -> DType:
        """The type that is multiplied."""
        return bf16 if self.load.dtype == bf16 else f16

    @property
    def count(self) -> int:
        return math.prod(d for _, d in self.columns)

    @property
    def piece_step(self) -> int:
        """Columns from one piece to the next, where pieces take columns of their own."""
        return COLUMNS // 4 if self.core == bf16 else COLUMNS // 2

    @property
    def side_by_side(self) -> bool:
        """Whether the pieces of each number take columns of their own: three in bf16, two in f16."""
        return not self.exact and self.count <= self.piece_step

    @property
    def spread(self) -> bool:
        """Whether the two columns of a member are half of all columns apart, and not neighbours: where neighbours in
        memory are rows, 16 for each column, members then write to banks of their own.
        """
        _, _, lo = self.op.letters()
        rows_last = bool(self.tiles) and self.tiles[-1][0] == ord(lo[-1])
        narrow = self.load.dtype.bits < 16
        return narrow and self.stacked > 1 and rows_last and self.count % 2 == 0 and self.count <= COLUMNS

    @property
    def shifted(self) -> bool:
        """Whether an offset of the codes is multiplied as well, and taken off the sums."""
        return self.load.dtype == int4

    @property
    def column_tiles(self) -> int:
        return 1 if self.side_by_side else -(-self.count // COLUMNS)

    @property
    def fragments_b(self) -> int:
        """Fragments B for the same columns."""
        return 1 if self.exact or self.side_by_side else PIECES[self.core]

    @property
    def accumulators(self) -> int:
        """Accumulators for the same columns: what the first piece gives is kept apart where the field may be infinite,
        or else where the other pieces are two.
        """
        return 1 if self.fragments_b == 1 or self.load.dtype in (fp8_e4m3, int8, int4) else 2

    @property
    def packed(self) -> int:
        """Elements of the field in 32 bits."""
        return 32 // self.load.dtype.bits

    @property
    def words(self) -> int:
        """32-bit words of one load."""
        return next(w for w in (4, 2, 1) if self.extent % (4 * w * self.packed) == 0)

    @property
    def chunk(self) -> int:
        """Elements that the four lanes of a page load at once."""
        return 4 * self.words * self.packed

    @property
    def chunks(self) -> int:
        return self.extent // self.chunk

    @property
    def unit_chunks(self) -> int:
        """Chunks that are loaded together."""
        most = max(1, UNIT_WORDS // (2 * self.words))
        return max(n for n in range(1, min(most, self.chunks) + 1) if self.chunks % n == 0)

    @property
    def stacked(self) -> int:
        """Rows of a page that are on M beside each other; 1 where those of 16 pages are."""
        rows = math.prod(d for _, d in self.tiles)
        return rows if not self.row_tiles and (rows == ROWS // 2 or (rows and rows % ROWS == 0)) else 1

    @property
    def row_tiles(self) -> tuple[tuple[int, int], ...]:
        """The axes of ``tiles`` that the row's operand has too."""
        return tuple((k, d) for k, d in self.tiles if chr(k) in self.letters)

    @property
    def fragment_vector(self) -> int:
        """Words of fragment B that a lane reads at once."""
        return min(4, self.chunk // 8)

    @property
    def power_words(self) -> int:
        """Words of shared memory for the powers of two of the columns, and for what their sums begin at."""
        begins = math.prod(d for _, d in self.row_tiles) if self.shifted else 0
        return (2 + begins) * self.count if self.raised else 0

    @property
    def fragment_words(self) -> int:
        return self.extent // 8 * WARP

    def fragments(self) -> list[tuple[int, int, int]]:
        """Fragments B by (index along row_tiles, tile of columns, piece)."""
        tiles = math.prod(d for _, d in self.row_tiles)
        return [(t, n, s) for t in range(tiles) for n in range(self.column_tiles) for s in range(self.fragments_b)]

    def fragment_of(self, at: dict[int, int]) -> int:
        """The index along row_tiles of a place along ``tiles``."""
        found = 0
        for k, d in self.row_tiles:
            found = found * d + at[k]
        return found


def matrix_of(o: Op, paged: Paged) -> Matrix | None:
    """The plan for a dot of pages with the row, or None where tensor cores do not fit."""
    found = _matrix(o, paged)
    return found if isinstance(found, Matrix) else None


def why_no_matrix(o: Op, paged: Paged) -> str | None:
    """Why tensor cores do not do a contraction over pages, in words; None where they do, or where it is none."""
    if not isinstance(o, flow.Dot) or not over_pages(o.value):
        return None
    found = _matrix(o, paged)
    return found if isinstance(found, str) else None


def _computed_with(o: flow.Dot, paged: Paged) -> str | None:
    """The field, or pool, behind a side over pages that is computed from it; None where each such side is stored."""
    computed = [x for x in map(origin_of, (o.a, o.b)) if over_pages(x) and not isinstance(x.owner, page.Load)]
    loads = [v.owner for v in behind(*computed) if isinstance(v.owner, page.Load) and paged(v.owner) is not None]
    return min((x.buffer for x in loads), default=None)


def _matrix(o: Op, paged: Paged) -> Matrix | str:
    """The plan, or what is in its way."""
    if not isinstance(o, flow.Dot):
        return "it is no contraction"
    lane_group = lane_group_of(o, paged)
    if lane_group is None:
        if (buffer := _computed_with(o, paged)) is not None:
            return f"{buffer} is not multiplied as it is stored: something is computed with it first"
        return "no field is read along the axis that is summed, which must be its last one"
    if len(lane_group.loads) != 1:
        return f"it reads {len(lane_group.loads)} fields along the axis that is summed, and one is needed"
    (load,) = lane_group.loads
    la, lb, lo = o.letters()
    sides = ((o.a, la, o.b, lb), (o.b, lb, o.a, la))
    pages, mine, row, letters = next((s for s in sides if origin_of(s[0]).owner is load.load), (None, "", o.a, ""))
    dims = dict(zip(la + lb, type_of(o.a).shape + type_of(o.b).shape, strict=True))
    summed = [c for c in dict.fromkeys(la + lb) if c not in lo]
    if pages is None:
        return f"{load.load.buffer} is not multiplied as it is stored: something is computed with it first"
    if over_pages(row):
        return "both sides run over pages, and one must be the same for all pages of a row"
    if summed != [chr(lane_group.axis)]:
        return f"{len(summed)} axes are summed, and one is needed"
    if load.dtype not in MULTIPLIED:
        names = ", ".join(t.name for t in MULTIPLIED[:-1]) + f" or {MULTIPLIED[-1].name}"
        return f"field {load.load.buffer} is stored as {load.dtype}, and {names} is needed"
    if any(letters.count(c) > 1 or mine.count(c) > 1 for c in letters + mine):
        return "an axis occurs twice on one side"
    extent, least = dims[summed[0]], max(16, 4 * 32 // load.dtype.bits)
    if not isinstance(extent, int) or extent % least:
        return f"the axis that is summed has {extent} elements, and a multiple of {least} is needed"
    axes = [(ord(c), int(d)) for c in lo if isinstance(d := dims[c], int)]
    tiles = tuple(x for x in axes if x[0] in lane_group.tiled)
    columns = tuple(x for x in axes if x[0] not in lane_group.tiled)
    if 0 in [d for _, d in axes]:
        return "an axis of the result has no elements"
    if any(chr(k) in mine for k, _ in columns):
        return f"an axis of field {load.load.buffer} that stays is not read by index"
    core = bf16 if load.dtype == bf16 else f16
    exact = _exact(row, (bf16,) if core == bf16 else (bf16, f16))
    raised = core == f16 and (load.dtype == int4 or not _exact(row, (f16,)))
    return Matrix(o, load, extent, row, letters, columns, tiles, lane_group.axis, exact, raised)


def _exact(v: Value, dtypes: Sequence[DType]) -> bool:
    """Whether a value of the row holds nothing but numbers that were stored in one of the types."""
    o = v.owner
    if isinstance(o, page.Load):
        return type_of(o.value).dtype in dtypes
    if isinstance(o, flow.Constant):
        return o.number == 0
    if isinstance(o, flow.View):
        return _exact(o.x, dtypes)
    return o is not None and not o.rounds and all(_exact(x, dtypes) for x in o.operands)


def contracted_as_stored(program: Module, o: page.Load) -> DType | None:
    """The type in which tensor cores may take what a load reads: summaries, and rows of pools, by whose scale results
    are multiplied; None for anything else.
    """
    return page.stored_dtype(program, o) if page.is_paged(program, o) else None


def matrices_of(program: Module, f: Function) -> list[Matrix]:
    """What of a kernel tensor cores contract."""
    paged, users = partial(contracted_as_stored, program), f.users()
    return [with_scales(m, users, paged) for o in f.ops if (m := matrix_of(o, paged)) is not None]


# what a result is multiplied by


def with_scales(m: Matrix, users: Mapping[Value, list[Op]], paged: Paged) -> Matrix:
    """The plan with the products that can be done before its result is written: as long as what is multiplied has no
    other use, by constants and by one field of scales.
    """
    found: list[Scaled] = []
    if m.stacked == 1 or m.op.notes.get("in") != "tile":
        return m
    while True:
        v = found[-1].op.value if found else m.op.value
        following = users[v]
        if len(following) != 1 or not isinstance(o := following[0], flow.Mul) or o.value.type != m.op.value.type:
            break
        if v is not m.op.value and v.owner is not None and v.owner.notes.get("in") not in ("inline", "tile"):
            break
        scaled = _scaled(m, o, o.b if o.a is v else o.a, paged)
        if scaled is None or (scaled.load is not None and any(s.load is not None for s in found)):
            break
        found.append(scaled)
    while found and found[-1].op.notes.get("in") not in ("inline", "tile"):
        found.pop()
    return replace(m, scaled=tuple(found))


def _scaled(m: Matrix, o: flow.Mul, by: Value, paged: Paged) -> Scaled | None:
    """A product with a constant, or with a field that has an f16 number for each row of a page in their order."""
    if isinstance(by.owner, flow.Constant):
        return Scaled(o, by, None)
    if by.owner is None or not over_pages(by) or not isinstance(origin_of(by).owner, page.Load):
        return None
    _, _, letters = m.op.letters()
    shape, tail = type_of(o.value).shape, type_of(by).shape
    keys = [ord(c) for c in letters][len(letters) - len(tail) :]
    places = zip(keys, tail, strict=True)
    index: list[Axis | int | None] = [0 if d == 1 or not isinstance(d, int) else Axis(k) for k, d in places]
    asked = list(loads_of(by, index))
    if len(asked) != 1 or len(tail) != len(shape):
        return None
    ((load, where),) = asked
    rows = [i.key for i in where[1:] if isinstance(i, Axis)]
    constant = all(i == 0 for i in where[1:] if not isinstance(i, Axis))
    fits = type_of(load.value).dtype == f16 and type_of(load.value).numel == m.stacked
    if paged(load) is None or not constant or not fits or rows != [k for k, d in m.tiles if d != 1]:
        return None
    return Scaled(o, None, load)
