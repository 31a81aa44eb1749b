"""CTAs that share a row and wait for each other: a cluster, which a GPU begins as a whole or not at all.

warp       0 0 0 0    1 1 1 1    2 ..
CTA        0 1 2 3    0 1 2 3    0 ..      of a cluster of 4
page tile  0 1 2 3    4 5 6 7    8 ..      so few page tiles are read by as many SMs as there are
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from vortex.codegen.cuda.ptx import cluster_sync, cta_sync, remainder
from vortex.codegen.cuda.warp import Cta
from vortex.codegen.tir import Expr, T, equal, i32, let, when


@dataclass(frozen=True)
class Cluster:
    """The place of a CTA in its cluster, which may be one of a single CTA."""

    cta: Cta
    rank: Expr
    ctas: int

    @classmethod
    def of(cls, cta: Cta, place: Expr, ctas: int) -> Cluster:
        """The cluster of a CTA at a place in the grid, which is launched in clusters of ``ctas``."""
        if ctas == 1:
            return cls(cta, i32(0), 1)
        T.cta_id_in_cluster([ctas])
        return cls(cta, let("rank", remainder(place, i32(ctas))), ctas)

    @property
    def shared(self) -> bool:
        """Whether a row is worked on by several CTAs from begin to end."""
        return self.ctas > 1

    @property
    def warp(self) -> Expr:
        """The number of this warp among those of all CTAs."""
        return self.cta.warp * self.ctas + self.rank if self.shared else self.cta.warp

    @property
    def in_order(self) -> Expr:
        """The same where the warps of a CTA follow each other."""
        return self.rank * self.cta.warps + self.cta.warp

    @property
    def warps(self) -> int:
        """Warps of all CTAs."""
        return self.cta.warps * self.ctas

    def one_for_all(self) -> AbstractContextManager[object]:
        """What one CTA does for all."""
        return when(equal(self.rank, i32(0))) if self.shared else nullcontext()

    def sync(self) -> None:
        """Wait until all threads of all CTAs arrive; they then see all that was written before."""
        if self.shared:
            cluster_sync()
        else:
            cta_sync()
