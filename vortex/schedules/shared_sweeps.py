"""Which sweeps of ``select`` the CTAs of a cluster share, and whether the choice behind them, told from the IR alone.

    sweep   goes over              reads in memory
    0       candidates             bounds             each CTA its page tiles
    1       pages of a shortlist   keys               each CTA its page tiles
    2       pages of a shortlist   nothing            the first CTA alone

The kernel does so, and predictions of its time count it so.
"""

from __future__ import annotations

from vortex.ir.core import Function, Module
from vortex.ir.dialects import flow
from vortex.ir.staging import is_for_row, stage
from vortex.schedules.arithmetic import field_reads


def shared_sweeps(program: Module, f: Function) -> int:
    """How many sweeps from the first on. Behind them each is too little to be worth a wait: it goes over a list, and
    reads nothing but what was kept of its pages.
    """
    staging = stage(f)
    reading = {n for _, sweeps in field_reads(program, f) for n in sweeps}
    large = (n + 1 for n, axis in enumerate(staging.axes) if n in reading or not axis.listed)
    return max(large, default=0)


def chosen_together(f: Function) -> flow.Part | None:
    """The only part of a selection, where all CTAs choose it from long rows: one of the candidates, by scores that
    are there after a single sweep. Of what takes more, the first CTA does the rest.
    """
    staging, parts = stage(f), [o for o in f.ops if isinstance(o, flow.Part)]
    late = any(is_for_row(o) and o.result is not None and staging.level.get(o.value, 0) == 1 for o in f.ops)
    if len(parts) != 1 or staging.loops != 1 or staging.axes[0].listed or late:
        return None
    part = parts[0]
    return part if not part.share and part.near is None and part.counted is None else None
