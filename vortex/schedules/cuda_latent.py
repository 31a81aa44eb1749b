"""What ``attend`` over latent rows (MLA) leaves open on a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from vortex.ir.core import Attr, Function, Module
from vortex.schedules.cuda_attend import AttendShape, attend_of, partial_words, reads_one_pool, tile_of
from vortex.schedules.cuda_select import too_many_threads
from vortex.schedules.knobs import Knobs, knob
from vortex.schedules.shared_words import aligned
from vortex.schedules.template import Schedulable, declare
from vortex.targets.gpu import H200, MACHINES, Machine
from vortex.targets.target import Target

KEY_PARTS = 4
"""Parts of a row that warps multiply with the queries apart: steps of 16 numbers, dealt out in turn."""
BLOCK_TILES = {4: 3, 8: 4}
"""Most tiles of 8 heads of a CTA, by its warps: more do not fit their registers beside the sums."""
RINGS = ((2, 64), (4, 32), (3, 32), (2, 32))
"""Stages and tokens of a tile: the first that fits is the default of 8 warps, the last that of 4."""
NARROW_RINGS = ((2, 128), *RINGS)
"""The same of rows in fp8, of which twice as many tokens are as many bytes: 69 us instead of 75 with four stages of 64
for 128 requests of 20 heads and 2048 tokens on an H200.
"""
MOST_GROUPS = 32
"""Most groups of a row's splits, each of which the last of its CTAs merges."""
COUNTERS = 1 + MOST_GROUPS
"""Arrivals of a row and block of heads: the groups, and the CTAs of each."""


@dataclass(frozen=True, slots=True)
class LatentKnobs(Knobs):
    """Of a CTA whose warps share a ring of tiles.

    A row of more than ``heads`` heads is the work of several CTAs, which read the same latent rows at about the same
    time: once from memory, then from L2.
    """

    warps: int = knob(4, "warps of a CTA", only=(4, 8), chosen="8; 4 where values are an odd multiple of 64")
    stages: int = knob(
        2, "tiles of the CTA's ring: one is computed on, the others are on their way", least=2, most=16,
        chosen="2; as many of 4 as fit where 8 warps have tiles of 32",
    )  # fmt: skip
    tile: int = knob(
        32, "tokens of a tile: whole pages or an equal part of one", least=32, step=32,
        chosen="64 with 8 warps where it fits, of fp8 128; 32",
    )  # fmt: skip
    heads: int = knob(
        24, "heads of a CTA: a row of more is the work of several", least=8, most=32, step=8,
        chosen="as few CTAs a row as can be, of equal heads",
    )  # fmt: skip
    residents: int = knob(
        2, "CTAs that an SM must have room for, which bounds registers", least=1, most=32,
        chosen="2; 1 with 8 warps",
    )  # fmt: skip
    merged: int = knob(
        8, "most splits of a row that one CTA merges; more are merged in groups of about as many", least=2, most=256
    )
    overlap: int = knob(
        1, "whether the kernel behind it may be launched before it has ended, and it before the one in front",
        only=(0, 1),
    )  # fmt: skip

    @property
    def head_tiles(self) -> int:
        return self.heads // 8

    def blocks(self, shape: AttendShape) -> int:
        """CTAs that share a row's heads."""
        return -(-shape.group // self.heads)

    # shared memory, in bytes

    def ring_bytes(self, shape: AttendShape) -> int:
        return self.stages * self.tile * shape.dim * shape.kv_bytes

    @property
    def score_pitch(self) -> int:
        """Words between the scores of two heads: 4 beyond a multiple of 32, so that a warp's store has no conflicts."""
        return self.tile + 4

    @property
    def score_bytes(self) -> int:
        return KEY_PARTS * self.heads * self.score_pitch * 4

    @property
    def weight_pitch(self) -> int:
        """Elements between the weights of two heads: an odd number of 16-byte chunks, for ldmatrix."""
        return self.tile + 8

    @property
    def weight_bytes(self) -> int:
        return self.heads * self.weight_pitch * 2

    def arena_bytes(self, shape: AttendShape) -> int:
        """Of the ring, scores, weights and factors, or of the merge that follows in the same place."""
        loop = self.ring_bytes(shape) + self.score_bytes + self.weight_bytes + self.heads * 4
        return max(loop, self.heads * (shape.v_dim + 4 + 2) * 4)

    def in_flight(self, shape: AttendShape) -> int:
        """Bytes that a CTA has on their way while it computes."""
        return (self.stages - 1) * self.tile * shape.dim * shape.kv_bytes

    def refuse(self, shape: AttendShape, machine: Machine = H200) -> str | None:
        """Why no CTA of these knobs can be launched; None where one can."""
        groups = self.warps // KEY_PARTS
        if self.warps not in BLOCK_TILES:
            return f"{self.warps} warps are neither 4 nor 8"
        if shape.dim % 64 or shape.v_dim % (64 * groups):
            what = f"rows of {shape.dim} numbers of which {shape.v_dim} are value"
            return f"{what} do not go into steps of 64 and {64 * groups} of {self.warps} warps"
        if not (self.tile % shape.page == 0 or shape.page % self.tile == 0):
            return f"tiles of {self.tile} tokens are neither whole pages of {shape.page} nor equal parts of one"
        if self.tile % 32 or self.tile % (self.warps * 4):
            return f"tiles of {self.tile} tokens cannot be dealt out to {self.warps} warps"
        if self.heads % 8 or not 0 < self.heads <= 8 * BLOCK_TILES[self.warps]:
            most = 8 * BLOCK_TILES[self.warps]
            return f"{self.heads} heads a CTA are no multiple of 8 up to the {most} of {self.warps} warps"
        if (need := self.residents * (self.arena_bytes(shape) + 2048)) > machine.cta_shared:
            what = f"{self.stages} stages, tiles of {self.tile} tokens and {self.heads} heads a CTA"
            return f"{what} take {need} bytes for {self.residents} CTAs an SM; it has {machine.cta_shared}"
        return too_many_threads(machine, self.warps * 32, self.residents)

    def fits(self, shape: AttendShape, machine: Machine = H200) -> bool:
        """Whether a CTA of these knobs can be launched."""
        return self.refuse(shape, machine) is None


def space(shape: AttendShape, machine: Machine = H200) -> Iterator[LatentKnobs]:
    """Every configuration that the template can be built with."""
    for warps, residents in ((4, 2), (4, 1), (8, 1)):
        for stages in (2, 3, 4):
            for tile in (32, 64) if shape.kv_bytes > 1 else (32, 64, 128):
                for tiles in range(1, BLOCK_TILES[warps] + 1):
                    knobs = LatentKnobs(warps, stages, tile, 8 * tiles, residents)
                    if knobs.fits(shape, machine) and 8 * (tiles - 1) < shape.group:
                        yield knobs


def choose(shape: AttendShape, given: Mapping[str, int], machine: Machine = H200) -> LatentKnobs:
    """The knobs given, a default for each other one: as few CTAs a row as can be, of equal heads; they may still be
    refused.

    One CTA of 8 warps an SM with two tiles of 64 tokens is ahead of two CTAs of 4 warps at every batch that was
    measured (20 heads, 2048 tokens: 21 us for 30 of 8 requests, 82 for 92 of 128), and of tiles of 32. Values of an odd
    multiple of 64 numbers cannot be dealt out to 8 warps.
    """
    warps = given.get("warps", 4 if shape.v_dim % 128 else 8)
    tiles = -(-shape.group // 8)
    blocks = -(-tiles // BLOCK_TILES.get(warps, 4))
    heads = given.get("heads", -(-tiles // blocks) * 8)
    sizes = (RINGS if shape.kv_bytes > 1 else NARROW_RINGS) if warps == 8 else RINGS[-1:]
    many = {"residents": 1} if warps == 8 else {}
    options = [
        LatentKnobs(**{**many, "warps": warps, "stages": stages, "tile": tile, "heads": heads, **given})
        for stages, tile in sizes
    ]
    return next((k for k in options if k.fits(shape, machine)), options[-1])


def split_words(shape: AttendShape) -> int:
    """f32 words that one split of one row leaves, and then perhaps its group: the sums, and maxima and totals twice."""
    return partial_words(shape) + aligned(2 * shape.group)


def shape_of(program: Module, f: Function) -> AttendShape:
    """What of the model an ``attend`` over latent rows is compiled for."""
    q, rows, out = (tile_of(program, n) for n in ("q", attend_of(f).keys, "out"))
    return AttendShape(q.tile[0], q.tile[1], out.tile[1], rows.tile[0], rows.dtype.bytes)


@declare
class CudaLatent(Schedulable[LatentKnobs]):
    target, kind, variant, version, knobs = "cuda", "attend", "latent rows", 2, LatentKnobs
    scratch = ("work", "partials", "arrivals")

    def remedy(self, program: Module, f: Function) -> str:
        shape = shape_of(program, f)
        if shape.dim % 64 or shape.v_dim % 64:
            return "take latent rows of two parts that are multiples of 64, as --latent 512+64, or compile for the CPU"
        return super().remedy(program, f)

    def serves(self, f: Function) -> bool:
        return reads_one_pool(f)

    def choose(self, program: Module, f: Function, target: Target, given: Mapping[str, int]) -> LatentKnobs:
        return choose(shape_of(program, f), given, MACHINES[target.name])

    def space(self, program: Module, f: Function, target: Target) -> Iterable[LatentKnobs]:
        return space(shape_of(program, f), MACHINES[target.name])

    def refuse(self, program: Module, f: Function, target: Target, knobs: LatentKnobs) -> str | None:
        return knobs.refuse(shape_of(program, f), MACHINES[target.name])

    def facts(self, program: Module, f: Function, knobs: LatentKnobs) -> dict[str, Attr]:
        """``row_counters`` are the arrivals that a row takes, ``item_ctas`` the CTAs of an item, by blocks of heads."""
        shape = shape_of(program, f)
        products = knobs.blocks(shape) * knobs.heads * (shape.dim + shape.v_dim)  # of a row's numbers, read once
        row = shape.dim * shape.kv_bytes
        return {
            "bytes_in_flight": knobs.in_flight(shape),
            "flops_per_byte": 2 * products // row,
            "partial_words": split_words(shape),
            "row_counters": knobs.blocks(shape) * COUNTERS,
            "item_ctas": knobs.blocks(shape),
        }
