"""The bytes that kernels move on a GPU: by Nsight Compute (``ncu``), beside the count of the page IR's interpreter.

Needs torch, apache-tvm-ffi, ncu and artifacts made for the GPU; no compiler. Each artifact is run by a process of its
own under ncu, without a CUDA graph: page ids are random over a pool far larger than L2, and ncu empties the caches
before each kernel. A row is one kind of kernel at one shape: ``counted`` is the interpreter's, ``measured`` ncu's, and
``ratio`` the bytes of DRAM, read and written, over those counted. What a kernel wrote last may still be in L2 when
it ends, so ``read_ratio`` stands beside it. ``append`` is measured in a step that fills a page and in one that does
not, and each bears its part, as in the count. From the repository's root, artifacts staged in .gpu/:

    PYTHONPATH=. python3 bench/gpu_bytes.py .gpu/bytes/quest.vxa --out $OUT/bytes.json
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_layer import BUDGET, HKV, Layer, Step
from layer_by_ir import ByIR

from vortex.check.step_bytes import count_step
from vortex.runtime.library import Library, open_library

SHAPES = [(8, 32768), (64, 32768)]
"""Requests and their tokens, all of whose pages are full: 64 requests attend to more bytes than L2 holds."""
KINDS = ("append", "select", "attend")
METRICS = {
    "dram_read": "dram__bytes_read.sum",
    "dram_written": "dram__bytes_write.sum",
    "l2": "lts__t_bytes.sum",
    "l2_written": "lts__t_sectors_op_write.sum",
    "nanoseconds": "gpu__time_duration.sum",
}
SECTOR = 32
"""Bytes of a sector of L2."""
PLACES = ("/usr/local/cuda/bin/ncu", *sorted(map(str, Path("/opt/nvidia/nsight-compute").glob("*/ncu")), reverse=True))
"""Where ncu is, if not on the PATH."""


@dataclass(frozen=True)
class Launch:
    """A kernel that ncu saw."""

    kernel: str
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Call:
    """What a step asked for, in launch order."""

    requests: int
    tokens: int
    kind: str
    fills: bool
    """Whether each request's last page is full."""


def launches(log: str) -> list[Launch]:
    """The kernels of what ``ncu --csv --page raw`` wrote: a line of names, one of units, one for each kernel.

    Raises:
        ValueError: when there is no such table, with what it says instead.
    """
    lines = log.splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if first is None:
        raise ValueError(f"ncu measured nothing: {' '.join(lines[-6:])[-600:]}")
    table = [line for line in lines[first:] if line.startswith('"')]
    rows = list(csv.DictReader(io.StringIO("\n".join(table))))[1:]
    return [
        Launch(r["Kernel Name"], {name: float(r[m].replace(",", "")) for name, m in METRICS.items() if r.get(m)})
        for r in rows
    ]


def sums(found: Sequence[Launch], kinds: Mapping[str, str], calls: Sequence[Call]) -> list[Mapping[str, float]]:
    """What each call moved. ``kinds`` says by symbol which kind a kernel is; others, such as torch's, do not count.

    Raises:
        ValueError: when the launches are not those of the calls.
    """
    groups: list[tuple[str, dict[str, float]]] = []
    for launch in found:
        name = launch.kernel.partition("(")[0]
        kind = kinds.get(re.sub(r"_kernel(_\d+)?$", "", name), "")
        if not kind:
            print(f"  not counted: {name}")
            continue
        if not groups or groups[-1][0] != kind:
            groups.append((kind, defaultdict(float)))
        for metric, x in launch.metrics.items():
            groups[-1][1][metric] += x
    if [kind for kind, _ in groups] != [c.kind for c in calls]:
        raise ValueError(f"ncu saw {[kind for kind, _ in groups]} where {[c.kind for c in calls]} were called")
    return [made for _, made in groups]


def launch(path: Path, shapes: Sequence[tuple[int, int]]) -> None:
    """Run the calls under ncu: a step that fills the last pages, then one that does not, at each shape."""
    library = open_library(path, None)
    layer = Layer(library, "cuda", BUDGET, ByIR.of(path, library))
    for requests, tokens in shapes:
        steps = [Step(layer, [n] * requests, 100 + i) for i, n in enumerate((tokens, tokens - 1))]
        for step in steps:
            step.run()
        torch.cuda.synchronize()
        for step in steps:
            torch.cuda.profiler.start()
            step.run()
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()


def calls_of(shapes: Sequence[tuple[int, int]]) -> list[Call]:
    """What ``launch`` calls while ncu looks."""
    return [Call(r, n, kind, fills) for r, n in shapes for fills in (True, False) for kind in KINDS]


def counted(path: Path, library: Library, tokens: int) -> dict[str, dict[str, float]]:
    """Bytes of a row by kind of kernel, by the interpreter."""
    ir = ByIR.of(path, library)
    kinds = {f.name: str(f.attrs["kind"]) for f in ir.program.functions.values()}
    made: dict[str, dict[str, float]] = {}
    for s in count_step(ir.program, library.manifest.spec, tokens, BUDGET):
        of = made.setdefault(kinds[s.kernel], {"read": 0.0, "written": 0.0, "kept_between_sweeps": 0.0})
        of["read"] += s.read
        of["written"] += s.written
        of["kept_between_sweeps"] += s.buffers.get("kept between sweeps", 0.0)
    return made


def rows_of(
    flow: str, moved: Sequence[Mapping[str, float]], calls: Sequence[Call], by_tokens: Mapping[int, Any], page: int
) -> list[dict[str, Any]]:
    """A row for each kind at each shape: of ``append`` both steps, each by its part, of the others the first."""
    rows = []
    for i, c in enumerate(calls):
        if not c.fills:
            continue
        other = moved[i + len(KINDS)]
        part = 1 / page if c.kind == "append" else 1.0
        mine = {name: part * x + (1 - part) * other[name] for name, x in moved[i].items()}
        if "l2_written" in mine:
            mine["l2_written"] *= SECTOR
        row = {name: c.requests * HKV * x for name, x in by_tokens[c.tokens][c.kind].items()}
        made: dict[str, Any] = {"flow": flow, "requests": c.requests, "tokens": c.tokens, "kind": c.kind}
        made |= {"counted": {k: round(x) for k, x in row.items()}, "measured": {k: round(x) for k, x in mine.items()}}
        made["ratio"] = round((mine["dram_read"] + mine["dram_written"]) / (row["read"] + row["written"]), 4)
        made["read_ratio"] = round(mine["dram_read"] / row["read"], 4)
        rows.append(made)
    return rows


def under_ncu(ncu: str, path: Path, shapes: str, seconds: float) -> str:
    """What ncu wrote of an artifact's kernels."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "ncu.csv")
        command = [ncu, "--clock-control", "none", "--profile-from-start", "off", "--target-processes", "all"]
        command += ["--metrics", ",".join(METRICS.values()), "--csv", "--page", "raw", "--print-units", "base"]
        command += ["--log-file", str(log), sys.executable, __file__, "--launch", "--shapes", shapes, str(path)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
            said = done.stdout + done.stderr
        except subprocess.TimeoutExpired:
            said = f"ncu took longer than {seconds:.0f} s"
        return (log.read_text() if log.exists() else "") + said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", type=Path, nargs="+")
    parser.add_argument("--launch", action="store_true", help="run the kernels in this process: what ncu looks at")
    parser.add_argument("--shapes", default=",".join(f"{r}x{n}" for r, n in SHAPES), help="requests x tokens")
    parser.add_argument("--ncu", default="", help="the program (default: on the PATH, or where CUDA puts it)")
    parser.add_argument("--seconds", type=float, default=100, help="that one artifact may take (default: 100)")
    parser.add_argument("--commit", default="")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    shapes = [(int(a), int(b)) for a, b in (x.split("x") for x in args.shapes.split(","))]
    if args.launch:
        launch(args.artifacts[0], shapes)
        return 0
    if args.out is None:
        parser.error("--out is missing")
    ncu = args.ncu or shutil.which("ncu") or next((p for p in PLACES if Path(p).exists()), "")
    if not ncu:
        raise SystemExit("there is no ncu on the PATH or in /usr/local/cuda/bin")
    version = subprocess.run([ncu, "--version"], capture_output=True, text=True, check=False).stdout.split("\n")
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "none", "date": time.strftime("%F %T"),
        "commit": args.commit, "command": " ".join(["python3", *sys.argv]), "torch": torch.__version__,
        "ncu": next((line for line in version if line.startswith("Version")), ""), "rows": [], "failed": {},
    }  # fmt: skip
    for path in args.artifacts:
        library = open_library(path, None if torch.cuda.is_available() else "cpu")
        kinds = {k.symbol: k.kind for k in library.target.kernels}
        log = under_ncu(ncu, path, args.shapes, args.seconds)
        try:
            moved = sums(launches(log), kinds, calls := calls_of(shapes))
            by_tokens = {n: counted(path, library, n) for _, n in shapes}
            rows = rows_of(path.stem, moved, calls, by_tokens, library.manifest.spec.page_size)
        except (ValueError, KeyError) as error:
            found["failed"][path.stem] = f"{type(error).__name__}: {error}; {log[-4000:]}"
            print(f"{path.stem}: {found['failed'][path.stem]}", flush=True)
            rows = []
        for row in rows:
            print("  ".join(f"{k} {v}" for k, v in row.items()), flush=True)
        found["rows"] += rows
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    return int(bool(found["failed"]))


if __name__ == "__main__":
    sys.exit(main())
