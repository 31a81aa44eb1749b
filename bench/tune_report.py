"""What tuning gained: for each kernel and shape the default's time, the best's, and how far apart they are.

    python bench/tune_report.py out.vxb results.jsonl --out bench/results/h200/tune.json

The default configuration of a kernel is the first of its candidates in the bundle.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from vortex.tune.bundle import read_bundle
from vortex.tune.exchange import read_file


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("bundle", type=Path)
    args.add_argument("results", type=Path)
    args.add_argument("--out", type=Path, required=True)
    found = args.parse_args()
    default: dict[str, tuple[str, Any]] = {}
    for c in read_bundle(found.bundle).candidates:
        default.setdefault(c.ir, (c.flow, c.config))
    groups: dict[Any, list[Any]] = {}
    records = read_file(found.results)
    for r in records:
        if r.us is not None and r.measure.l2 != "warm" and r.key.ir in default:
            groups.setdefault((r.key.kind, default[r.key.ir][0], r.key.bucket, r.key.ir), []).append(r)
    rows = []
    for (kind, flow, bucket, ir), group in sorted(groups.items(), key=lambda x: x[0][:3]):
        best = min(group, key=lambda r: r.us)
        plain = next((r for r in group if dict(r.config) == dict(default[ir][1])), None)
        row = {"kernel": kind, "flow": flow, "bucket": str(bucket), "measured": len(group), "best_us": best.us}
        row |= {"best": dict(best.config), "id": best.id, "default_us": plain.us if plain else None}
        row["default_over_best"] = round(plain.us / best.us, 4) if plain else None
        rows.append(row)
        print(f"{kind:7} {flow:12} {bucket!s:40} {row['default_us']} -> {best.us} us  x{row['default_over_best']}")
    gaps = [r["default_over_best"] for r in rows if r["default_over_best"]]
    gpu = {dict(s.by).get("gpu", "") for r in records for s in r.samples}
    result = {
        "device": sorted(gpu),
        "date": time.strftime("%F"),
        "command": " ".join(["python", *sys.argv]),
        "default_over_best": {"median": statistics.median(gaps), "largest": max(gaps)} if gaps else None,
        "failed": sum(r.us is None for r in records),
        "rows": rows,
    }
    found.out.write_text(json.dumps(result, indent=1) + "\n")
    print(result["default_over_best"])


if __name__ == "__main__":
    main()
