"""Why a query found what it found: every component of the key, the buckets it may fall back to, the nearest misses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vortex.kinds.buckets import FALLBACK_STEPS, Bucket, fallbacks
from vortex.tune.layers import Hit, Layers, Query
from vortex.tune.record import Record

NEAREST = 3
"""Records shown beside a miss."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A record that was not taken, and each exact component in which it is another."""

    record: Record
    components: dict[str, tuple[str, str]]
    """Component -> (asked for, there)."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer to a query with its reasons."""

    query: Query
    hit: Hit | None
    reason: str
    fallbacks: list[tuple[int, Bucket]]
    nearest: list[Difference]

    def to_json(self) -> dict[str, object]:
        return {
            "query": components(self.query),
            "bucket": str(self.query.key.bucket),
            "found": self.hit.record.id if self.hit else None,
            "layer": self.hit.layer if self.hit else None,
            "steps": self.hit.steps if self.hit else None,
            "reason": self.reason,
            "fallbacks": [{"steps": s, "bucket": str(b)} for s, b in self.fallbacks],
            "nearest": [{"id": d.record.id, "differs": d.components} for d in self.nearest],
        }


def components(query: Query) -> dict[str, str]:
    """The parts of a query that must match exactly, by name."""
    return {
        "kind": query.key.kind,
        "ir": query.key.ir,
        "dtypes": " ".join(query.key.dtypes),
        "arch": query.target.arch,
        "sms": str(query.target.sms),
        "smem": str(query.target.smem),
        "template": query.template,
        "mode": query.measure.mode,
        "l2": query.measure.l2,
    }


def explain(layers: Layers, query: Query) -> Explanation:
    """Look ``query`` up and say why the answer is what it is."""
    hit = layers.find(query)
    known = layers.buckets(query.lookup)
    near = fallbacks(query.key.bucket, known)
    if hit is not None:
        why = "its own bucket was measured" if not hit.steps else f"the nearest measured bucket, {hit.steps} steps off"
        return Explanation(query, hit, why, near, [])
    others = _nearest(query, (r for _, r in layers.records(query.key.kind)))
    if not layers.layers:
        why = "there is no database"
    elif known:
        far = ", ".join(map(str, known[:4]))
        why = f"measured, but no bucket within {FALLBACK_STEPS} steps: {far}"
    elif others and not others[0].components:
        worst = {d.record.status for d in others if not d.components}
        why = f"measured, but none of it may be used: {', '.join(sorted(worst))}"
    elif others:
        why = f"nothing has this key; the nearest differs in {', '.join(others[0].components)}"
    else:
        why = f"no layer has a record of kind {query.key.kind}"
    return Explanation(query, None, why, near, others)


def _nearest(query: Query, records: Iterable[Record]) -> list[Difference]:
    """The records with the fewest different components, one of each combination."""
    asked = components(query)
    found: dict[tuple[tuple[str, tuple[str, str]], ...], Difference] = {}
    for r in records:
        there = components(Query(r.key, r.target, r.template, r.measure))
        odd = {name: (asked[name], there[name]) for name in asked if asked[name] != there[name]}
        found.setdefault(tuple(odd.items()), Difference(r, odd))
    return sorted(found.values(), key=lambda d: (len(d.components), d.record.id))[:NEAREST]
