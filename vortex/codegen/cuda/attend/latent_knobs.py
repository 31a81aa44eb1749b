"""The code knobs of ``attend`` over latent rows (MLA) on a GPU: what there is to choose, and what is chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace

from vortex.codegen.cuda.attend.dense_knobs import SHARED_LIMIT, AttendShape
from vortex.errors import NOT_EMITTABLE
from vortex.ir.core import Attr

KEY_PARTS = 4
"""Parts of a row that warps multiply with the queries apart: steps of 16 numbers, dealt out in turn."""
BLOCK_TILES = {4: 3, 8: 4}
"""Most tiles of 8 heads of a CTA, by its warps: more do not fit their registers beside the sums."""


@dataclass(frozen=True, slots=True)
class LatentKnobs:
    """``warps`` a CTA, ``stages`` of its ring of tiles, ``tile`` tokens, ``heads`` of a CTA, ``residents`` CTAs an SM.

    ``overlap`` is that of :class:`AttendKnobs`.

    A row of more than ``heads`` heads is the work of several CTAs, which read the same latent rows at about the same
    time: once from memory, then from L2.
    """

    warps: int = 4
    stages: int = 2
    tile: int = 32
    heads: int = 24
    residents: int = 2
    overlap: int = 1

    def attrs(self) -> dict[str, Attr]:
        return dict(asdict(self))

    @property
    def head_tiles(self) -> int:
        return self.heads // 8

    def blocks(self, shape: AttendShape) -> int:
        """CTAs that share a row's heads."""
        return -(-shape.group // self.heads)

    # shared memory, in bytes

    def ring_bytes(self, shape: AttendShape) -> int:
        return self.stages * self.tile * shape.dim * 2

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
        return (self.stages - 1) * self.tile * shape.dim * 2

    def fits(self, shape: AttendShape) -> bool:
        """Whether a CTA of these knobs can be launched."""
        whole = self.tile % shape.page == 0 if shape.page < self.tile else shape.page % self.tile == 0
        groups = self.warps // KEY_PARTS
        split = self.warps in BLOCK_TILES and shape.dim % 64 == 0 and shape.v_dim % (64 * groups) == 0
        if not split:
            return False
        rows = self.tile % 32 == 0 and self.tile % (self.warps * 4) == 0 and self.tile % (16 * groups) == 0
        heads = self.heads % 8 == 0 and 0 < self.heads <= 8 * BLOCK_TILES[self.warps]
        return whole and rows and heads and self.residents * (self.arena_bytes(shape) + 2048) <= SHARED_LIMIT


def space(shape: AttendShape) -> Iterator[LatentKnobs]:
    """Every configuration that the template can be built with."""
    for warps, residents in ((4, 2), (4, 1), (8, 1)):
        for stages in (2, 3, 4):
            for tile in (32, 64):
                for tiles in range(1, BLOCK_TILES[warps] + 1):
                    knobs = LatentKnobs(warps, stages, tile, 8 * tiles, residents)
                    if knobs.fits(shape) and 8 * (tiles - 1) < shape.group:
                        yield knobs


def choose(shape: AttendShape, schedule: Mapping[str, Attr]) -> LatentKnobs:
    """The knobs of a schedule, a default for each it does not name: as few CTAs a row as can be, of equal heads.

    Up to 24 heads the sums of a CTA of 4 warps leave registers for a second one beside it; 32 take 8 warps.

    Raises:
        VortexError: VX4006 when no kernel of these knobs can be launched.
    """
    tiles = -(-shape.group // 8)
    blocks = -(-tiles // BLOCK_TILES.get(int(schedule.get("warps", 8)), 4))
    given = {name: int(schedule[name]) for name in LatentKnobs().attrs() if name in schedule}
    heads = given.get("heads", -(-tiles // blocks) * 8)
    many = {"warps": 8, "residents": 1, "stages": 4} if heads > 24 and "warps" not in given else {}
    found = LatentKnobs(**{**many, "heads": heads, **given})
    while "stages" not in given and not found.fits(shape) and found.stages > 2:
        found = replace(found, stages=found.stages - 1)
    if not found.fits(shape):
        what = f"{found.warps} warps, {found.stages} stages, {found.tile} tokens a tile and {found.heads} heads a CTA"
        raise NOT_EMITTABLE.at(
            why=f"attend of {what} does not fit pages of {shape.page} rows, {shape.v_dim} of {shape.dim} numbers value",
            hint="rows and values in steps of 64, pages of 8, 16, 32, 64, ..; --target cpu has no such limits",
        )
    return found
