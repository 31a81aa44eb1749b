"""What tuning gains: for each kernel and shape the default's time, the best's, and that of the variant a compile takes.

    python bench/tune_report.py out.vxb results.jsonl --out bench/results/h200/tune.json \\
        --ship vortex/tune/shipped/h200.jsonl

With --ship, what choices need goes to a file of records: of each kernel the default and whatever is among the best two
somewhere. The default configuration of a kernel is the first of its candidates in the bundle. A variant is taken as by
'vortex compile --variants N': of at most N configurations, the one for the shape's bucket.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vortex.kinds.buckets import Bucket
from vortex.tune.bundle import Candidate, read_bundle
from vortex.tune.choose import cover
from vortex.tune.exchange import read_file, write_lines
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
    defaults: dict[str, Candidate] = {}
    for c in candidates:
        defaults.setdefault(c.ir, c)
    kernels: dict[str, dict[Bucket, dict[Point, Record]]] = {}
    for r in records:
        if r.us is not None and r.measure.l2 != "warm" and r.key.ir in defaults:
            kernels.setdefault(r.key.ir, {}).setdefault(r.key.bucket, {})[r.config] = r
    rows = []
    for ir, buckets in kernels.items():
        default = defaults[ir]
        point: Point = tuple(sorted(default.config.items()))
        found = cover(buckets, most)
        for bucket, group in sorted(buckets.items()):
            if point not in group:
                continue
            served = next((x.record.config for x in found if bucket in x.buckets), found[0].record.config)
            times = {p: r.us or math.inf for p, r in group.items()}
            best = min(times, key=lambda p: (times[p], p))
            three = times[point], times[best], times.get(served, math.inf)
            configs = dict(point), dict(best), dict(served)
            all_times = tuple((*(v for _, v in p), us) for us, p in sorted((us, p) for p, us in times.items()))
            rows.append(Row(default.kind, default.flow, str(bucket), len(group), *three, *configs, all_times))
    return sorted(rows, key=lambda x: (x.kernel, x.flow))


def shipped(candidates: Iterable[Candidate], records: Iterable[Record]) -> list[Record]:
    """The records that choices are made by, without configurations that are good nowhere."""
    defaults: dict[str, Candidate] = {}
    for c in candidates:
        defaults.setdefault(c.ir, c)
    judged = [r for r in records if r.measure.l2 != "warm" and r.us is not None]
    gone = set(prunable(judged, BEST))
    return [r for r in judged if r.id not in gone or dict(r.config) == dict(defaults[r.key.ir].config)]


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
    found = args.parse_args()
    records = read_file(found.results)
    candidates = read_bundle(found.bundle).candidates
    rows = rows_of(candidates, records, found.variants)
    if found.ship:
        found.ship.parent.mkdir(exist_ok=True)
        found.ship.write_bytes(write_lines(shipped(candidates, records)))
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
