"""How long does a query of a database of 100,000 records take, and opening one? A query counts as the best of twenty.

python bench/db_speed.py [--records N] [--out bench/results/db_speed.json]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vortex.kinds.buckets import bucket_of
from vortex.schedules.space import Space
from vortex.tune.layers import Layers, Query
from vortex.tune.record import Key, MachineKey, Measure, Record, Sample
from vortex.tune.store import Store

SPACE = Space("cuda.select@1", tuple({"threads": t, "in_flight": i} for t in (128, 256) for i in range(100)), {})
COLD = """
import sys, time
start = time.perf_counter()
from pathlib import Path
from vortex.tune.layers import Layers, Query
from vortex.tune.store import Store
from vortex.tune.parse import parse_line
imported = time.perf_counter()
r = parse_line(Path(sys.argv[2]).read_text())
asked = time.perf_counter()
found = Layers({"user": Store(sys.argv[1], write=False)}).find(Query(r.key, r.target, r.template, r.measure))
assert found is not None
print((time.perf_counter() - asked) * 1e3, (imported - start) * 1e3)
"""


def made(number: int) -> Record:
    """The number-th of many: 200 configurations each of buckets of many kernels."""
    config, rest = number % 200, number // 200
    bucket = bucket_of("select", 1 << rest % 10, 1 << (rest // 10) % 5 + 6, 32)
    us = 10.0 + (number * 7919) % 1000 / 10
    sample = Sample(
        "ok", True, (us, us, round(us * 1.02, 3)), 25, (("at", "2026-01-01T00:00:00Z"), ("gpu", "some GPU"))
    )
    key = Key("select", f"vx1:{rest // 50:024x}", bucket, ("bf16",))
    env = {"template": "cuda.select@1", "vortex": "0.1.0", "tvm": "0.27.0.post1", "nvcc": "13.0"}
    point = {"threads": (128, 256)[config % 2], "in_flight": config // 2}
    return Record.make(key, MachineKey("sm_90a", 132, 232448), env, Measure("cudagraph", "cold"), point, [sample])


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--records", type=int, default=100_000)
    args.add_argument("--out", type=Path, default=Path("bench/results/db_speed.json"))
    found = args.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path, probe = Path(folder) / "tune.db", Path(folder) / "probe.json"
        start = time.perf_counter()
        store = Store(path)
        for first in range(0, found.records, 10_000):
            store.put(made(i) for i in range(first, min(found.records, first + 10_000)))
        put = (time.perf_counter() - start) / found.records
        times: dict[str, list[float]] = {"hit": [], "fallback": [], "miss": []}
        layers = Layers({"user": store})
        for i in range(0, found.records, max(1, found.records // 500)):
            r = made(i)
            wide = bucket_of("select", r.key.bucket.rows, r.key.bucket.columns, 128)
            asked = {
                "hit": r.key,
                "fallback": Key("select", r.key.ir, wide, r.key.dtypes),
                "miss": Key("select", "vx1:none", r.key.bucket, r.key.dtypes),
            }
            for kind, key in asked.items():
                best = 1.0
                for _ in range(20):
                    start = time.perf_counter()
                    hit = layers.find(Query(key, r.target, r.template, r.measure), SPACE)
                    best = min(best, time.perf_counter() - start)
                times[kind].append(best)
                assert (hit is None) == (kind == "miss")
        probe.write_text(made(found.records // 2).to_line())
        store.close()
        runs = [
            subprocess.run([sys.executable, "-c", COLD, path, probe], capture_output=True, text=True, check=True).stdout
            for _ in range(7)
        ]
        opened, imported = zip(*(map(float, r.split()) for r in runs), strict=True)
        result = {
            "date": time.strftime("%F"),
            "machine": f"{platform.machine()}, Python {platform.python_version()}",
            "command": " ".join(["python", *sys.argv]),
            "records": found.records,
            "MB": round(path.stat().st_size / 1e6, 1),
            "put_us": round(put * 1e6, 1),
            **{f"{k}_ms": round(statistics.median(t) * 1e3, 4) for k, t in times.items()},
            **{f"{k}_p99_ms": round(sorted(t)[int(len(t) * 0.99)] * 1e3, 4) for k, t in times.items()},
            "cold_open_and_query_ms": round(statistics.median(opened), 2),
            "cold_import_ms": round(statistics.median(imported), 1),
        }
    found.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
