"""What a database can do without."""

from __future__ import annotations

from collections.abc import Iterable

from vortex.kinds.buckets import Bucket
from vortex.tune.record import Record


def prunable(records: Iterable[Record], keep: int) -> list[str]:
    """Ids of usable records of configurations that are not among the best ``keep`` of any bucket of their key.

    One that is good for some shapes stays in all: how much it loses elsewhere decides about variants. Failures stay,
    for they save a measurement.
    """
    groups: dict[tuple[str, Bucket], list[Record]] = {}
    for r in records:
        if r.us is not None:
            groups.setdefault((r.lookup, r.key.bucket), []).append(r)
    good = set()
    for (lookup, _), group in groups.items():
        group.sort(key=lambda r: (r.noisy, r.us, -len(r.samples), r.id))
        good |= {(lookup, r.config) for r in group[:keep]}
    return [r.id for group in groups.values() for r in group if (r.lookup, r.config) not in good]
