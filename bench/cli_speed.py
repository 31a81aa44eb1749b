"""How long the command line takes: whole processes, the best of several, against the limits of the project.

python bench/cli_speed.py        prints a table, writes bench/results/cli_speed.json
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from vortex.cli.show import plain  # noqa: E402
from vortex.install.versions import versions  # noqa: E402

OUT = ROOT / "bench" / "results" / "cli_speed.json"
OWN_CODE = """
import json, sys, time
import torch, vortex.codegen.tir
from vortex.driver import compile_flow
from vortex.flow.flow import find_flow, library_names
from vortex.flow import trace
from vortex.passes import manager
manager.listing()
for name in library_names():
    find_flow(name)
compile_flow("quest", to="page")
found = {}
for name in [n for n in library_names() if not n.startswith("latent_")]:
    start = time.perf_counter()
    compile_flow(name, to="page")
    found[name] = time.perf_counter() - start
print(json.dumps(found))
"""


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(Path(folder))
    rows = [[m["what"], f"{m['seconds']:.3f}", f"{m['limit']:.1f}", "yes" if m["ok"] else "NO"] for m in measured]
    print(plain(("what", "seconds", "limit", "met"), rows), end="")
    found = {
        "command": "python bench/cli_speed.py",
        "machine": {"processor": processor(), "cores": os.cpu_count()},
        "commit": _output(["git", "-C", str(ROOT), "rev-parse", "HEAD"]).strip(),
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions(),
        "measured": measured,
    }
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if all(m["ok"] for m in measured) else 1


def measure(folder: Path) -> list[dict[str, Any]]:
    vortex = [sys.executable, "-m", "vortex"]
    largest = _largest_flow(vortex, folder)
    passes = "canonicalize,cse,reassociate,drop-monotone,canonicalize,cse,dce"
    found = [
        _limit("vortex --help", _best([*vortex, "--help"], folder, 7), 0.3),
        _limit(f"vortex opt {largest.name} --passes={passes}",
               _best([*vortex, "opt", str(largest), f"--passes={passes}"], folder, 7), 0.5),
        _limit(f"vortex opt {largest.name} --passes=outline,fuse",
               _best([*vortex, "opt", str(largest), "--passes=outline,fuse"], folder, 7), 0.5),
    ]  # fmt: skip
    own = []
    for _ in range(2):
        command = [*vortex, "compile", "quest", "-o", "quest.vxa", "--json"]
        start = time.perf_counter()
        made = json.loads(_output(command, folder))
        own.append((time.perf_counter() - start, made["own_seconds"]))
    found.append(_limit("vortex compile quest --target cpu", min(t for t, _ in own), 15.0))
    found.append(_limit("of which our own code", min(o for _, o in own), 1.0))
    warm = json.loads(_output([sys.executable, "-c", OWN_CODE], folder))
    slowest = max(warm, key=warm.__getitem__)
    found.append(_limit(f"trace to page IR after imports, slowest flow ({slowest})", warm[slowest], 0.1))
    return [*found, *_gpu(vortex, folder)]


def _gpu(vortex: list[str], folder: Path) -> list[dict[str, Any]]:
    """Quest for one GPU, nothing in nvcc's cache and then all of it; nothing where there is no nvcc."""
    from vortex.codegen.build.toolkit import find_toolkit
    from vortex.errors import VortexError

    try:
        find_toolkit()
    except VortexError:
        return []
    found = []
    for state, limit in (("cold", 40.0), ("cached", 15.0)):
        command = [*vortex, "compile", "quest", "--target", "sm_90a", "-o", "gpu.vxa", "--no-dump"]
        start = time.perf_counter()
        _output(command, folder, XDG_CACHE_HOME=str(folder / "cache"))
        seconds = time.perf_counter() - start
        found.append(_limit(f"vortex compile quest --target sm_90a, {state}", seconds, limit))
    return found


def _largest_flow(vortex: list[str], folder: Path) -> Path:
    """The shipped flow with the longest text, as a file."""
    names = json.loads(_output([sys.executable, "-c", "import json; from vortex.flow.flow import library_names; "
                                "print(json.dumps(library_names()))"], folder))  # fmt: skip
    names = [name for name in names if not name.startswith("latent_")]
    files = [folder / f"{name}.flow" for name in names]
    for file in files:
        subprocess.run([*vortex, "compile", file.stem, "--to", "flow", "--no-dump", "--passes", "", "-o", file],
                       check=True, cwd=folder, env=_environment())  # fmt: skip
    return max(files, key=lambda f: f.stat().st_size)


def _limit(what: str, seconds: float, limit: float) -> dict[str, Any]:
    return {"what": what, "seconds": round(seconds, 4), "limit": limit, "ok": seconds < limit}


def _best(command: list[str], folder: Path, times: int) -> float:
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        _output(command, folder)
        best = min(best, time.perf_counter() - start)
    return best


def _output(command: list[str], folder: Path = ROOT, **more: str) -> str:
    done = subprocess.run(command, cwd=folder, env=_environment() | more, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    sys.exit(main())
