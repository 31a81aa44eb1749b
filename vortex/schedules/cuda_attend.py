"""What ``attend`` over K and V leaves open on a GPU."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from vortex.ir.core import Attr, Function, Module
from vortex.ir.dialects import page
from vortex.ir.types import TensorType
from vortex.schedules.knobs import Knobs, knob
from vortex.schedules.shared_words import aligned
from vortex.schedules.template import Schedulable, declare
from vortex.targets.gpu import H200, MACHINES, Machine
from vortex.targets.target import Target

CTA_BYTES = 1024
"""Shared memory of a CTA beside its arena."""
RINGS = ((2, 4), (2, 6), (4, 4), (4, 6), (8, 4))
"""Warps and stages of rings that are deeper than the default."""


@dataclass(frozen=True, slots=True)
class AttendShape:
    """What of a model ``attend`` is compiled for; sizes in elements, each of ``kv_bytes`` in the pools."""

    group: int
    dim: int
    v_dim: int
    page: int
    kv_bytes: int = 2

    @property
    def head_tiles(self) -> int:
        """Tensor core tiles of 8 heads; the padding costs arithmetic, no traffic."""
        return -(-self.group // 8)

    @property
    def unit(self) -> int:
        """The fewest tokens a tile may have: whole pages or an equal part of one, in steps of 16."""
        return math.lcm(self.page, 16) if self.page % 16 else 16


@dataclass(frozen=True, slots=True)
class AttendKnobs(Knobs):
    """Of a CTA whose warps each have a ring of tiles."""

    warps: int = knob(
        4, "warps of a CTA", only=(1, 2, 4, 8, 16),
        chosen="4; fewer where their rings do not fit or registers run out, more where too little is on its way",
    )  # fmt: skip
    stages: int = knob(
        3, "tiles of each warp's ring: one is computed on, the others are on their way", least=2, most=16,
        chosen="3; 2 where shared memory would hold one CTA an SM, more where too little is on its way",
    )  # fmt: skip
    tile: int = knob(
        16, "tokens of a tile: whole pages or an equal part of one", least=16, step=16,
        chosen="the fewest tokens that a tile may have for the page size",
    )  # fmt: skip
    residents: int = knob(1, "CTAs that an SM must have room for, which bounds registers", least=1, most=32)
    overlap: int = knob(
        1, "whether the kernel behind it may be launched before it has ended, and it before the one in front",
        only=(0, 1),
    )  # fmt: skip

    def arena_bytes(self, shape: AttendShape) -> int:
        """Shared memory of the rings, or of the merge of the warps that follows in the same place."""
        ring = self.warps * self.stages * self.tile * (shape.dim + shape.v_dim) * shape.kv_bytes
        merge = self.warps * shape.head_tiles * 8 * (shape.v_dim + 4 + 2) * 4
        return max(ring, merge)

    def in_flight(self, shape: AttendShape) -> int:
        """Bytes that a CTA has on their way while it computes."""
        return self.warps * (self.stages - 1) * self.tile * (shape.dim + shape.v_dim) * shape.kv_bytes

    def of_sm(self, shape: AttendShape, machine: Machine) -> int:
        """Bytes that an SM has on their way, as far as shared memory decides how many CTAs it holds."""
        shared = self.arena_bytes(shape) + 1024
        return machine.ctas_of(shared, self.warps * 32) * self.in_flight(shape)

    def refuse(self, shape: AttendShape, machine: Machine = H200) -> str | None:
        """Why no CTA of these knobs can be launched; None where one can."""
        if self.tile % 16 or not (self.tile % shape.page == 0 or shape.page % self.tile == 0):
            return f"tiles of {self.tile} tokens are neither whole pages of {shape.page} nor equal parts of one"
        if self.tile // shape.page > 32:
            return f"tiles of {self.tile} tokens are more than 32 pages of {shape.page}"
        if (need := self.arena_bytes(shape) + CTA_BYTES) > machine.cta_shared:
            what = f"{self.warps} warps, {self.stages} stages and tiles of {self.tile} tokens"
            of = f"{shape.dim}+{shape.v_dim} numbers"
            return f"{what} of {of} take {need} bytes of shared memory; a CTA may have {machine.cta_shared}"
        if (held := machine.ctas_of(need, self.warps * 32)) < self.residents:
            return f"an SM holds {held} CTAs of {self.warps} warps and {need} bytes, not {self.residents}"
        return None

    def fits(self, shape: AttendShape, machine: Machine = H200) -> bool:
        """Whether a CTA of these knobs can be launched."""
        return self.refuse(shape, machine) is None


def _deep_enough(found: AttendKnobs, shape: AttendShape, machine: Machine) -> AttendKnobs:
    """``found``, or knobs that have more bytes on their way where it has too few."""
    deeper = [replace(found, warps=warps, stages=stages) for warps, stages in RINGS]
    options = [found, *(k for k in deeper if k.fits(shape, machine))]
    enough = machine.cover * machine.bytes_needed
    return max(options, key=lambda k: min(enough, k.of_sm(shape, machine)))


def space(shape: AttendShape, machine: Machine = H200) -> Iterator[AttendKnobs]:
    """Every configuration that the template can be built with."""
    for warps in (1, 2, 4, 8):
        for stages in (2, 3, 4, 6):
            for times in (1, 2, 4):
                knobs = AttendKnobs(warps, stages, shape.unit * times)
                if knobs.fits(shape, machine):
                    yield knobs


def choose(shape: AttendShape, given: Mapping[str, int], machine: Machine = H200) -> AttendKnobs:
    """The knobs given, a default for each other one; they may still be refused.

    By default a ring holds three tiles, so that two are in flight while one is computed on; two where
    shared memory would leave a single CTA on an SM. Where the SMs of the machine then have fewer bytes under way
    than cover its latency, the first of ``RINGS`` that has enough, or the one that has most.
    """
    found = AttendKnobs(**{"tile": shape.unit, **given})
    if "stages" not in given and 2 * (found.arena_bytes(shape) + CTA_BYTES) > machine.cta_shared:
        found = replace(found, stages=2)
    if "warps" not in given:
        if shape.head_tiles * shape.v_dim >= 512 and shape.page < found.tile:
            # sums of 16 heads and 256 numbers leave no register for where the pages of a tile lie: ptxas spills at 4
            found = replace(found, warps=2)
        while not found.fits(shape, machine) and found.warps > 1:
            found = replace(found, warps=found.warps // 2)
    return found if {"warps", "stages"} & set(given) else _deep_enough(found, shape, machine)


def partial_words(shape: AttendShape) -> int:
    """f32 words that one split of one row leaves: the sums, then maximum and total per head."""
    return shape.group * shape.v_dim + aligned(2 * shape.group)


def attend_of(f: Function) -> page.Attend:
    """The op that an ``attend`` kernel is made for."""
    return next(o for o in f.ops if isinstance(o, page.Attend))


def reads_one_pool(f: Function) -> bool:
    """Whether keys and values are rows of one tensor, as under MLA: a template of its own reads it once."""
    return any(isinstance(o, page.Attend) and o.keys == o.values for o in f.ops)


def tile_of(program: Module, name: str) -> TensorType:
    """The type of a declared buffer."""
    found = program.decls[name].type
    assert isinstance(found, TensorType)
    return found


def shape_of(program: Module, f: Function) -> AttendShape:
    """What of the model an ``attend`` over K and V is compiled for."""
    o = attend_of(f)
    q, k, v = (tile_of(program, n) for n in ("q", o.keys, o.values))
    return AttendShape(q.tile[0], q.tile[1], v.tile[1], k.tile[0], k.dtype.bytes)


@declare
class CudaAttend(Schedulable[AttendKnobs]):
    target, kind, variant, version, knobs = "cuda", "attend", "K and V", 1, AttendKnobs
    scratch = ("work", "partials", "arrivals")

    def serves(self, f: Function) -> bool:
        return not reads_one_pool(f)

    def choose(self, program: Module, f: Function, target: Target, given: Mapping[str, int]) -> AttendKnobs:
        return choose(shape_of(program, f), given, MACHINES[target.name])

    def space(self, program: Module, f: Function, target: Target) -> Iterable[AttendKnobs]:
        return space(shape_of(program, f), MACHINES[target.name])

    def refuse(self, program: Module, f: Function, target: Target, knobs: AttendKnobs) -> str | None:
        return knobs.refuse(shape_of(program, f), MACHINES[target.name])

    def facts(self, program: Module, f: Function, knobs: AttendKnobs) -> dict[str, Attr]:
        shape = shape_of(program, f)
        return {
            "bytes_in_flight": knobs.in_flight(shape),
            "flops_per_byte": 8 * shape.head_tiles,
            "partial_words": partial_words(shape),
        }
