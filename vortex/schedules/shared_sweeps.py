"""Which sweeps of ``select`` the CTAs of a cluster share, told from the IR alone.

    sweep   goes over              reads in memory
    0       candidates             bounds             each CTA its page tiles
    1       pages of a shortlist   keys               each CTA its page tiles
    2       pages of a shortlist   nothing            the first CTA alone

The kernel does so, and predictions of its time count it so.
"""

from __future__ import annotations

from vortex.ir.core import Function, Module
from vortex.ir.staging import stage
from vortex.schedules.arithmetic import field_reads


def shared_sweeps(program: Module, f: Function) -> int:
    """How many sweeps from the first on. Behind them each is too little to be worth a wait: it goes over a list, and
    reads nothing but what was kept of its pages.
    """
    staging = stage(f)
    reading = {n for _, sweeps in field_reads(program, f) for n in sweeps}
    large = (n + 1 for n, axis in enumerate(staging.axes) if n in reading or not axis.listed)
    return max(large, default=0)
