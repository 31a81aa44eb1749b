"""What tuning gains: for each kernel and shape the default's time, the best's, and that of the variant a compile takes.

    python bench/tune_report.py out.vxb results.jsonl --out bench/results/h200/tune.json \\
        --ship vortex/tune/shipped/h200.jsonl

With --ship, what choices need goes to a file of records: of each kernel the default and whatever is among the best two
somewhere. The default of a kernel is what a compile takes without a database, in the variant for the shape's bucket. A
variant is taken as by 'vortex compile --variants N': of at most N configurations, the one for the shape's bucket. With
--add, kernels and buckets of which these results have as many configurations or more take the place of those that both
files had; the others stay.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from vortex.driver import compile_flow
from vortex.ir.core import Module
from vortex.kinds.buckets import Bucket
from vortex.schedules.variants import variant_for
from vortex.spec import Spec
from vortex.targets.target import TARGETS
from vortex.tune.bundle import Candidate, read_bundle
from vortex.tune.choose import cover, defaults
from vortex.tune.exchange import read_file, read_lines, write_lines
from vortex.tune.prune import prunable
from vortex.tune.record import Record
from vortex.tune.search import Point

BEST = 2
"""Configurations of a bucket that are shipped, in all buckets."""


@dataclass(frozen=True, slots=True)
class Row:
    """One kernel in one bucket; times in microseconds."""

    kernel: str
    flow: str
    bucket: str
    measured: int
    default_us: float
    best_us: float
    chosen_us: float
    default: dict[str, int]
    best: dict[str, int]
    chosen: dict[str, int]
    times: tuple[tuple[float, ...], ...]
    """Of each configuration the values of its knobs, in order of their names, and microseconds: fastest first."""

    @property
    def default_over_best(self) -> float:
        return self.default_us / self.best_us

    @property
    def gain(self) -> float:
        """How many times as fast as the default what is compiled is."""
        return self.default_us / self.chosen_us

    def to_json(self) -> dict[str, Any]:
        named = {name: getattr(self, name) for name in self.__slots__}
        return {**named, "default_over_best": round(self.default_over_best, 4), "gain": round(self.gain, 4)}


def rows_of(candidates: Iterable[Candidate], records: Iterable[Record], most: int) -> list[Row]:
    """A row for each kernel and bucket whose default was measured, by the times that choices are made by."""
    first = _first(candidates)
    kernels: dict[str, dict[Bucket, dict[Point, Record]]] = {}
    for r in _judged(records):
        if r.key.ir in first:
            kernels.setdefault(r.key.ir, {}).setdefault(r.key.bucket, {})[r.point] = r
    rows = []
    for ir, buckets in kernels.items():
        found = cover(buckets, most)
        for bucket, group in sorted(buckets.items()):
            if (default := _default(first[ir], bucket)) not in group:
                continue
            served = next((x.record.point for x in found if bucket in x.buckets), found[0].record.point)
            times = {p: r.us or math.inf for p, r in group.items()}
            best = min(times, key=lambda p: (times[p], p))
            three = times[default], times[best], times.get(served, math.inf)
            configs = dict(default), dict(best), dict(served)
            all_times = tuple((*(v for _, v in p), us) for us, p in sorted((us, p) for p, us in times.items()))
            named = first[ir].kind, first[ir].flow, str(bucket)
            rows.append(Row(*named, len(group), *three, *configs, all_times))
    return sorted(rows, key=lambda x: (x.kernel, x.flow))


def _first(candidates: Iterable[Candidate]) -> dict[str, Candidate]:
    """The first candidate of each kernel, by IR: its default for most shapes."""
    found: dict[str, Candidate] = {}
    for c in candidates:
        found.setdefault(c.ir, c)
    return found


def _judged(records: Iterable[Record]) -> list[Record]:
    """The records that choices are made by."""
    return [r for r in records if r.measure.l2 != "warm" and r.us is not None]


@cache
def _program(flow: str) -> Module:
    return compile_flow(flow, spec=Spec(), targets=[TARGETS["sm_90a"]], to="page", choose=defaults()).programs["sm_90a"]


def _default(c: Candidate, bucket: Bucket) -> Point:
    """What a compile without a database has for the bucket of a candidate's kernel."""
    taken = variant_for(_program(c.flow).functions[c.kernel], bucket).attrs["schedule"]
    return tuple(sorted((name, taken[name]) for name in c.config))


def _as_many(candidates: Iterable[Candidate], records: Iterable[Record], report: dict[str, Any]) -> set[Any]:
    """The kernels (by IR) and buckets of which the records have no fewer configurations than the report."""
    named = {c.ir: (c.kind, c.flow) for c in candidates}
    before = {(r["kernel"], r["flow"], r["bucket"]): r["measured"] for r in report["rows"]}
    found = Counter((r.key.ir, r.key.bucket) for r in _judged(records))
    return {one for one, n in found.items() if n >= before.get((*named[one[0]], str(one[1])), 0)}


def added(report: dict[str, Any], rows: list[Row]) -> list[Row]:
    """The rows of a report with ``rows`` in the place of those of the same kernels and buckets: what was chosen is
    theirs, times that were not measured again stay.
    """
    made = {(r.kernel, r.flow, r.bucket): r for r in rows}
    before = [Row(**{name: x[name] for name in Row.__slots__}) for x in report["rows"]]
    kept = [
        replace(r, chosen_us=now.chosen_us, chosen=now.chosen) if now.measured < r.measured else now
        for r in before
        if (now := made.pop((r.kernel, r.flow, r.bucket), r))
    ]
    return sorted([*kept, *made.values()], key=lambda x: (x.kernel, x.flow))


def shipped(candidates: Iterable[Candidate], records: Iterable[Record]) -> list[Record]:
    """The records that choices are made by, without configurations that are good nowhere."""
    first, judged = _first(candidates), _judged(records)
    gone = set(prunable(judged, BEST))
    return [r for r in judged if r.id not in gone or dict(r.config) == dict(first[r.key.ir].config)]


def summary(rows: list[Row]) -> dict[str, Any]:
    """How far defaults are from the best, and what choices gain, over rows of one kind."""
    far = [r.default_over_best for r in rows]
    gain = [r.gain for r in rows]
    return {
        "shapes": len(rows),
        "default_over_best": {"median": round(statistics.median(far), 4), "largest": round(max(far), 4)},
        "gain": {"mean": round(statistics.geometric_mean(gain), 4), "least": round(min(gain), 4)},
    }


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("bundle", type=Path)
    args.add_argument("results", type=Path)
    args.add_argument("--variants", type=int, default=4)
    args.add_argument("--out", type=Path, required=True)
    args.add_argument("--ship", type=Path)
    args.add_argument("--add", action="store_true", help="to what --out and --ship have, which are both needed then")
    found = args.parse_args()
    records = read_file(found.results)
    candidates = read_bundle(found.bundle).candidates
    if found.add:
        report = json.loads(found.out.read_text())
        taken = _as_many(candidates, records, report)
        records = [r for r in records if (r.key.ir, r.key.bucket) in taken]
        others = [r for r in read_lines(found.ship.read_bytes()).records if (r.key.ir, r.key.bucket) not in taken]
        rows = added(report, rows_of(candidates, [*others, *records], found.variants))
    else:
        others, rows = [], rows_of(candidates, records, found.variants)
    kept = [*others, *shipped(candidates, records)]
    if found.ship:
        found.ship.parent.mkdir(exist_ok=True)
        found.ship.write_bytes(write_lines(kept))
    for r in rows:
        print(f"{r.kernel:7} {r.flow:11} {r.bucket:34} {r.default_us:8.2f} best {r.best_us:8.2f} x{r.gain:.3f}")
    by_kind = {kind: summary([r for r in rows if r.kernel == kind]) for kind in sorted({r.kernel for r in rows})}
    failed: dict[str, int] = {}
    for x in records:
        if x.us is None:
            failed[x.status] = failed.get(x.status, 0) + 1
    result = {
        "device": sorted({dict(s.by).get("gpu", "") for r in records for s in r.samples}),
        "date": time.strftime("%F"),
        "command": " ".join(["python", *sys.argv]),
        "records": len(records),
        "failed": failed,
        "noisy": sum(r.noisy for r in records if r.us is not None),
        "kernels": by_kind,
        "all": summary(rows) if rows else None,
        "rows": [r.to_json() for r in rows],
    }
    text = json.dumps(result, indent=1)
    # a configuration a line
    text = re.sub(r"\[\s+((?:[-\d.]+,\s+)+[-\d.]+)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    found.out.write_text(text + "\n")
    print(json.dumps(by_kind, indent=1))


if __name__ == "__main__":
    main()
