"""The code knobs of ``attend`` on a GPU: what there is to choose, and what is chosen without measurements."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace

from vortex.errors import NOT_EMITTABLE
from vortex.ir.core import Attr
from vortex.targets.gpu import H200, Machine

SHARED_LIMIT = H200.cta_shared
"""Bytes of shared memory that one CTA may have, on a B200 as well."""
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
class AttendKnobs:
    """``warps`` a CTA, ``stages`` of each warp's ring of tiles, ``tile`` tokens, ``residents`` CTAs an SM must hold.

    ``overlap`` lets the next kernel of the stream begin before this one ends, as far as it does not read (1), and
    lets this one do so.
    """

    warps: int = 4
    stages: int = 3
    tile: int = 16
    residents: int = 1
    overlap: int = 1

    def attrs(self) -> dict[str, Attr]:
        return dict(asdict(self))

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

    def fits(self, shape: AttendShape) -> bool:
        """Whether a CTA of these knobs can be launched."""
        whole = self.tile % shape.page == 0 if shape.page < self.tile else shape.page % self.tile == 0
        lanes = self.tile // shape.page <= 32 if shape.page else False
        return self.tile % 16 == 0 and whole and lanes and self.arena_bytes(shape) + 1024 <= SHARED_LIMIT


def _deep_enough(found: AttendKnobs, shape: AttendShape, machine: Machine) -> AttendKnobs:
    """``found``, or knobs that have more bytes on their way where it has too few."""
    deeper = [replace(found, warps=warps, stages=stages) for warps, stages in RINGS]
    options = [found, *(k for k in deeper if k.fits(shape))]
    enough = machine.cover * machine.bytes_needed
    return max(options, key=lambda k: min(enough, k.of_sm(shape, machine)))


def space(shape: AttendShape) -> Iterator[AttendKnobs]:
    """Every configuration that the template can be built with."""
    for warps in (1, 2, 4, 8):
        for stages in (2, 3, 4, 6):
            for times in (1, 2, 4):
                knobs = AttendKnobs(warps, stages, shape.unit * times)
                if knobs.fits(shape):
                    yield knobs


def choose(shape: AttendShape, schedule: Mapping[str, Attr], machine: Machine = H200) -> AttendKnobs:
    """The knobs of a schedule, a default for each it does not name.

    By default a ring holds three tiles, so that two are in flight while one is computed on; two where
    shared memory would leave a single CTA on an SM. Where the SMs of the machine then have fewer bytes under way
    than cover its latency, the first of ``RINGS`` that has enough, or the one that has most.

    Raises:
        VortexError: VX4006 when no kernel of these knobs can be launched.
    """
    tile = int(schedule.get("tile", shape.unit))
    warps = int(schedule.get("warps", 4))
    stages = schedule.get("stages")
    rest = {name: int(schedule[name]) for name in ("residents", "overlap") if name in schedule}
    found = AttendKnobs(warps, int(stages or 3), tile, **rest)
    if stages is None and 2 * (found.arena_bytes(shape) + 1024) > SHARED_LIMIT:
        found = replace(found, stages=2)
    if "warps" not in schedule:
        while not found.fits(shape) and found.warps > 1:
            found = replace(found, warps=found.warps // 2)
    if not {"warps", "stages"} & set(schedule):
        found = _deep_enough(found, shape, machine)
    if not found.fits(shape):
        why = f"attend with {found.warps} warps, {found.stages} stages, {tile} tokens a tile does not fit"
        raise NOT_EMITTABLE.at(
            why=f"{why} pages of {shape.page} tokens of {shape.dim}+{shape.v_dim} numbers",
            hint="leave the knobs out of the schedule, or take a point of its space()",
        )
    return found
