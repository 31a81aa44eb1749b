"""What would be slow about a flow on a GPU, and why: told from its page program, with the line of the flow.

Each rule is computed from the program: the contractions that tensor cores do not take, arithmetic that outlasts the
memory, fields that are read in several sweeps, kernels beside the three of a layer, and selections that read nearly
what dense attention reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from vortex.check.step_bytes import StepBytes
from vortex.errors import Loc
from vortex.ir.core import Function, Module, Op, Value
from vortex.ir.dialects import flow, page
from vortex.ir.staging import loads_by_loop, origin_of, over_pages, stage
from vortex.ir.types import DType, Shape, TensorType
from vortex.schedules.cuda_select import matrices_of
from vortex.schedules.matrices import why_no_matrix
from vortex.targets.gpu import Machine, machine_of

RULES = {
    "tensor-cores": "a contraction over pages runs on scalar units",
    "arithmetic": "scalar arithmetic of select takes longer than its bytes",
    "read-again": "a field is read from memory in more than one sweep over the pages",
    "launches": "a layer takes more kernels than append, select and attend",
    "spills": "numbers of a kernel do not fit into the registers of a GPU",
    "near-dense": "select reads 40 % or more of the bytes of dense attention",
}
"""What may be slow, by the rule's name."""

DENSE_SHARE = 0.4


@dataclass(frozen=True, slots=True)
class Remark:
    """One thing that makes a flow slow, and what would change it."""

    rule: str
    message: str
    help: str
    loc: Loc | None = None


@dataclass(frozen=True, slots=True)
class Contraction:
    """A contraction over pages in ``select``."""

    op: str
    """What it computes, as ``sd,gd->sg`` with its shape."""
    loc: Loc | None
    why_scalar: str
    """Why tensor cores do not do it; empty where they do."""


def contractions(program: Module) -> list[Contraction]:
    """Every contraction over pages, and whether tensor cores do it."""
    found = []
    for f in _of_kind(program, "select"):
        for o in f.ops:
            if isinstance(o, flow.Dot) and over_pages(o.value):
                why = why_no_matrix(o, partial(page.is_summary, program)) or ""
                if why and (pools := _raw_rows(program, o)):
                    why = f"it reads {' and '.join(f'cache.{n}' for n in pools)}, the rows of the pool, and no field"
                found.append(Contraction(_shown(o), o.loc, why))
    return found


def _raw_rows(program: Module, o: Op) -> list[str]:
    """The pools whose rows an op takes as they are stored."""
    loads = [x for v in o.operands if isinstance(x := origin_of(v).owner, page.Load)]
    return [x.buffer for x in loads if page.is_paged(program, x) and not page.is_summary(program, x)]


def remarks(program: Module, steps: Sequence[StepBytes], dense_bytes: int) -> list[Remark]:
    """What is slow about a program for a GPU; ``steps`` counts one row, ``dense_bytes`` are those of its K and V."""
    made = [
        Remark("tensor-cores", f"{c.op} runs on scalar units: {c.why_scalar}", TENSOR_CORES, c.loc)
        for c in contractions(program)
        if c.why_scalar
    ]
    for f in _of_kind(program, "select"):
        made += _arithmetic(program, f)
        made += _read_again(program, f)
    kernels = {f.name: f.attrs["kind"] for f in program.functions.values() if f.attrs["kind"] != "plan"}
    if len(kernels) > len(set(kernels.values())):
        why = f"a layer takes {len(kernels)} launches: {', '.join(kernels)}"
        made.append(Remark("launches", why, "keep fewer numbers of each page between sweeps: reduce before a softmax"))
    read = sum(s.read for s in steps if s.kernel.startswith("select"))
    if dense_bytes and read >= DENSE_SHARE * dense_bytes:
        why = f"select reads {read / dense_bytes:.0%} of what dense attention reads"
        made.append(Remark("near-dense", why, "store fields in a narrower type, or score a shortlist of the pages"))
    return made


def spills(resources: Mapping[str, Mapping[str, int | float | str]]) -> list[Remark]:
    """Of kernels, by name, what does not fit into registers, as ptxas said."""
    help = "keep fewer numbers of a page at a time: reduce over its tokens before other work, or store fewer rows"
    return [
        Remark("spills", f"{name} has no room for {r['spills']} bytes in its {r['registers']} registers a lane", help)
        for name, r in resources.items()
        if r["spills"]
    ]


TENSOR_CORES = "multiply a field as it is stored (in f32 it cannot be), along its last axis, with numbers of the row"


def _of_kind(program: Module, kind: str) -> Iterator[Function]:
    return (f for f in program.functions.values() if f.attrs["kind"] == kind)


def _shown(o: flow.Dot) -> str:
    a, b = o.a.type, o.b.type
    return f"the contraction {o.attrs['spec']} of {a} and {b}"


@dataclass(frozen=True, slots=True)
class ScalarWork:
    """Scalar instructions that a ``select`` kernel spends on one page, beside the bytes that it reads of it."""

    counted: dict[Op, int]
    """By the op that needs them."""
    conversions: int
    """To make numbers that can be multiplied of what is stored."""
    size: int
    """Bytes of the page's fields, each sweep counted."""

    @property
    def total(self) -> int:
        return sum(self.counted.values()) + self.conversions

    def beside_memory(self, machine: Machine) -> float:
        """How many times as long as the bytes the instructions take; 0 where either are none."""
        if not self.size or not self.counted:
            return 0.0
        return self.total / scalar_rate(machine) * machine.copy_bandwidth / self.size


def scalar_work(program: Module, f: Function) -> ScalarWork:
    """What of a ``select`` kernel is not done by tensor cores."""
    matrices = {o for m in matrices_of(program, f) for o in m.ops}
    counted: dict[Op, int] = {}
    for o in f.ops:
        if o.role in ("elementwise", "nest") and _spans_pages(o) and o not in matrices:
            counted[o] = _scalar(o) // _candidates(o)
    size, conversions = 0, 0
    for load, sweeps in _field_reads(program, f):
        size += _numel(load.value) * _dtype(load).bits * len(sweeps) // 8 // _candidates(load)
        scalar = not all(o in matrices for o in f.ops if _reads(o, load))
        rates = CONVERSION if scalar else TENSOR_CONVERSION
        conversions += _numel(load.value) * rates.get(_dtype(load).name, 0) * len(sweeps)
    return ScalarWork(counted, conversions, size)


def _arithmetic(program: Module, f: Function) -> Iterator[Remark]:
    """Scalar instructions of a page, where they outlast its bytes."""
    work = scalar_work(program, f)
    times = work.beside_memory(machine_of(program))
    if times > 1:
        worst = max(work.counted, key=lambda o: work.counted[o])
        why = (
            f"about {work.total} scalar instructions a page take {times:.1f} times as long as its {work.size} bytes: "
            f"{work.counted[worst]} of them in {worst.name.removeprefix('flow.')}, "
            f"{work.conversions} to convert what is stored"
        )
        yield Remark("arithmetic", why, "turn it into a contraction with the field, or fold an axis earlier", worst.loc)


CONVERSION = {"bf16": 1, "f16": 1, "fp8_e4m3": 4, "int8": 2, "int4": 3, "uint1": 2}
"""Instructions that make one stored number an fp32 number; estimates."""
TENSOR_CONVERSION = {"fp8_e4m3": 1, "int8": 1, "int4": 1}
"""Those that make it an f16 number for tensor cores, two at a time; bf16 and f16 are multiplied as they lie."""


def scalar_rate(machine: Machine) -> float:
    """Scalar instructions a second, over all lanes: 128 lanes an SM at 1.7 GHz, an estimate."""
    return machine.sms * 128 * 1.7e9


def _candidates(o: Op) -> int:
    """How many candidates share what an op computes: the blocks of a page, where it is of pages of several."""
    values = [*o.operands, *([o.result] if o.result is not None else [])]
    axes = [v.type.pages for v in values if isinstance(v.type, TensorType)]
    return max((axis.blocks for axis in axes if axis is not None), default=1)


def _spans_pages(o: Op) -> bool:
    return any(over_pages(v) for v in o.operands) or (o.result is not None and over_pages(o.result))


def _reads(o: Op, load: page.Load) -> bool:
    """Whether an op takes what was loaded, seen through views."""
    return not isinstance(o, flow.View) and any(origin_of(v).owner is load for v in o.operands)


def _field_reads(program: Module, f: Function) -> Iterator[tuple[page.Load, set[int]]]:
    """The loads through the page table, and the sweeps in which memory is read."""
    for o, sweeps in loads_by_loop(f, stage(f)).items():
        if isinstance(o, page.Load) and page.is_paged(program, o):
            yield o, sweeps


def _dtype(o: page.Load) -> DType:
    assert isinstance(o.value.type, TensorType)
    return o.value.type.dtype


def _scalar(o: Op) -> int:
    """Instructions that one page costs, at one a number: products and sums of a contraction are one."""
    if isinstance(o, flow.Dot):
        la, lb, _ = o.letters()
        dims = dict(zip(la + lb, _shape(o.a) + _shape(o.b), strict=True))
        total = 1
        for d in dims.values():
            total *= d if isinstance(d, int) else 1
        return total
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


def _read_again(program: Module, f: Function) -> Iterator[Remark]:
    for o, sweeps in _field_reads(program, f):
        if len(sweeps) > 1:
            raw = not page.is_summary(program, o)
            what = f"cache.{o.buffer}, the rows of the pool," if raw else f"field {o.buffer}"
            why = f"{what} is read {len(sweeps)} times: sweeps {', '.join(map(str, sorted(sweeps)))} need it"
            way = "compute what the later sweep needs before the statistic over pages, or store it as a field"
            if raw:
                way = "keep a smaller summary of the rows as a field, or read them at the pages of a shortlist"
            yield Remark("read-again", why, way, o.loc)
