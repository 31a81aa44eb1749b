"""What a database can do without."""

from __future__ import annotations

from collections.abc import Iterable

from vortex.tune.record import Record


def prunable(records: Iterable[Record], keep: int) -> list[str]:
    """Ids of usable records beyond the best ``keep`` of a key and bucket; failures stay: they save a measurement."""
    groups: dict[tuple[object, ...], list[Record]] = {}
    for r in records:
        if r.us is not None:
            groups.setdefault((r.lookup, r.key.bucket), []).append(r)
    gone = []
    for group in groups.values():
        group.sort(key=lambda r: (r.noisy, r.us, -len(r.samples), r.id))
        gone += [r.id for r in group[keep:]]
    return gone
