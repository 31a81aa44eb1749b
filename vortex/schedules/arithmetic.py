"""What ``select`` computes of a page, told from the IR alone: scalar instructions beside the FLOPs of tensor cores.

    %d = flow.dot(%q, %c) {spec = "gd,sd->sg"}      on tensor cores: 2 * 8 * 128 FLOPs, for columns come in eights
    %e = flow.mul(%d, %d)                           %e : f32[S, 4]: 4 numbers of a page, 2 instructions each

Conversions of what is stored count as instructions too. All are estimates: no addresses, no loops, nothing that the
compiler leaves out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from vortex.ir.core import Function, Module, Op, Value
from vortex.ir.dialects import flow, page
from vortex.ir.staging import axis_of, loads_by_loop, origin_of, over_pages, stage
from vortex.ir.types import Shape, TensorType
from vortex.schedules.matrices import COLUMNS, Matrix, matrices_of

NUMBER, PRODUCT = 2, 3
"""Instructions for a number that an op makes, and for a product and sum of a contraction: its own, and those that bring
its operands. As counted in the PTX of kernels: 518 for 256 numbers of the mass of a page, 386 for 128 products."""
CONVERSION = {"bf16": 1, "f16": 1, "fp8_e4m3": 12, "int8": 2, "int4": 5, "uint1": 3}
"""Instructions that make one stored number an fp32 number, as ``codegen/narrow.py`` writes them."""
TENSOR_CONVERSION = {"fp8_e4m3": 1, "int8": 1, "int4": 1}
"""Those that make it an f16 number for tensor cores, two at a time; bf16 and f16 are multiplied as they lie."""


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Of a ``select`` kernel; every number is of one page, or block where pages have several."""

    counted: dict[Op, int]
    """Scalar instructions, by the op that needs them."""
    converted: dict[Op, int]
    """Scalar instructions that make numbers that can be multiplied, by the load of what is stored."""
    sizes: dict[Op, int]
    """Bytes of the page's fields, by their load, each sweep counted."""
    tensor: dict[Op, int]
    """FLOPs of tensor cores, padding included."""
    limits: dict[Op, int]
    """Of what is done of a shortlist's pages alone: the most that there are."""

    @property
    def conversions(self) -> int:
        return sum(self.converted.values())

    @property
    def total(self) -> int:
        """All scalar instructions."""
        return sum(self.counted.values()) + self.conversions

    @property
    def of_candidates(self) -> Arithmetic:
        """What is done of every candidate page, and not of the pages of a shortlist alone."""
        parts = (self.counted, self.converted, self.sizes, self.tensor)
        counted, converted, sizes, tensor = (
            {o: n for o, n in part.items() if o not in self.limits} for part in parts
        )  # fmt: skip
        return Arithmetic(counted, converted, sizes, tensor, {})

    def scalar(self, pages: float) -> float:
        """Instructions of a row of so many candidates."""
        return self._of_row(self.counted, pages) + self._of_row(self.converted, pages)

    def flops(self, pages: float) -> float:
        """FLOPs of tensor cores of such a row."""
        return self._of_row(self.tensor, pages)

    def _of_row(self, counted: dict[Op, int], pages: float) -> float:
        return sum(n * min(pages, self.limits.get(o, pages)) for o, n in counted.items())

    @property
    def size(self) -> int:
        """Bytes of the page's fields."""
        return sum(self.sizes.values())

    @classmethod
    def of(cls, program: Module, f: Function, *, tensor_cores: bool = True) -> Arithmetic:
        """Of one kernel; without ``tensor_cores`` of one that was compiled with none, whatever today's choice is."""
        matrices = matrices_of(program, f) if tensor_cores else []
        contracted = {o for m in matrices for o in m.ops}
        counted = {
            o: _instructions(o) // candidates(o)
            for o in f.ops
            if o.role in ("elementwise", "nest") and _spans_pages(o) and o not in contracted
        }
        converted: dict[Op, int] = {}
        sizes: dict[Op, int] = {}
        for load, sweeps in field_reads(program, f):
            numbers, dtype = _numel(load.value) * len(sweeps), page.stored_dtype(program, load)
            sizes[load] = numbers * dtype.bits // 8 // candidates(load)
            scalar = not all(o in contracted for o in f.ops if _reads(o, load))
            rates = CONVERSION if scalar else TENSOR_CONVERSION
            converted[load] = numbers * rates.get(dtype.name, 0) // candidates(load)
        tensor: dict[Op, int] = {m.op: _padded_flops(m) // candidates(m.op) for m in matrices}
        return cls(counted, converted, sizes, tensor, _limits(program, f))


def field_reads(program: Module, f: Function) -> Iterator[tuple[page.Load, set[int]]]:
    """The loads through the page table, and the sweeps in which memory is read."""
    for o, sweeps in loads_by_loop(f, stage(f)).items():
        if isinstance(o, page.Load) and page.is_paged(program, o):
            yield o, sweeps


def candidates(o: Op) -> int:
    """How many candidates share what an op computes: the blocks of a page, where it is of pages of several."""
    values = [*o.operands, *([o.result] if o.result is not None else [])]
    axes = [v.type.pages for v in values if isinstance(v.type, TensorType)]
    return max((axis.blocks for axis in axes if axis is not None), default=1)


def flops_of(o: Op) -> int:
    """Arithmetic of the flow in one op, of one page where it goes over pages: a product and a sum are two."""
    if o.role not in ("elementwise", "nest"):
        return 0
    return 2 * _products(o) if isinstance(o, flow.Dot) else _numbers(o)


def _limits(program: Module, f: Function) -> dict[Op, int]:
    """Of ops that go over the pages of a shortlist, and loads of no other pages: how many candidates those are."""
    staging = stage(f)
    over = {o: [axis_of(o)] for o in f.ops if not isinstance(o, page.Load)}
    over |= {o: [staging.axes[n] for n in sweeps] for o, sweeps in field_reads(program, f)}
    listed = {o: [a for a in axes if a is not None and a.listed] for o, axes in over.items()}
    return {
        o: max(a.limit * a.blocks for a in axes) for o, axes in listed.items() if axes and len(axes) == len(over[o])
    }


def _padded_flops(m: Matrix) -> int:
    rows = prod(d for _, d in m.tiles)
    return 2 * m.extent * rows * COLUMNS * m.column_tiles * m.fragments_b


def _spans_pages(o: Op) -> bool:
    return any(over_pages(v) for v in o.operands) or (o.result is not None and over_pages(o.result))


def _reads(o: Op, load: page.Load) -> bool:
    """Whether an op takes what was loaded, seen through views."""
    return not isinstance(o, flow.View) and any(origin_of(v).owner is load for v in o.operands)


def _instructions(o: Op) -> int:
    return PRODUCT * _products(o) if isinstance(o, flow.Dot) else NUMBER * _numbers(o)


def _products(o: flow.Dot) -> int:
    la, lb, _ = o.letters()
    dims = dict(zip(la + lb, _shape(o.a) + _shape(o.b), strict=True))
    return prod(d for d in dims.values() if isinstance(d, int))


def _numbers(o: Op) -> int:
    """Numbers that an op looks at or makes of one page."""
    if isinstance(o, flow.Reduce):
        return _numel(o.x)
    if isinstance(o, flow.ArgSort):
        size = _shape(o.x)[o.axis]
        return _numel(o.x) * (size if isinstance(size, int) else 1)
    return _numel(o.value)


def _shape(v: Value) -> Shape:
    assert isinstance(v.type, TensorType)
    return v.type.shape


def _numel(v: Value) -> int:
    return v.type.numel if isinstance(v.type, TensorType) else 0
