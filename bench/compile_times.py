"""How long each library flow and each example takes to compile, against the limits of the project.

Every flow is compiled by a process of its own, with empty caches, for the CPU and for one GPU architecture. Two
numbers are kept of each: wall seconds, and the CPU seconds of the process and of the compilers that it started. On a
machine that nobody else uses the wall is hardly more than the CPU seconds, so a flow meets its limit when the smaller
of the two does.

    python bench/compile_times.py [FLOW ...]      all flows, unless some are named

It prints a table and keeps the numbers in bench/results/compile_times.json. What was measured of other flows before
stays there, each with its commit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from cli_speed import processor  # noqa: E402

from vortex.cli.show import plain  # noqa: E402
from vortex.errors import VortexError, VortexWarning  # noqa: E402
from vortex.flow.flow import find_flow, flows_of, library_names  # noqa: E402
from vortex.flow.trace import trace  # noqa: E402
from vortex.install.versions import versions  # noqa: E402
from vortex.ir.dialects.flow import of_pages  # noqa: E402
from vortex.spec import Spec  # noqa: E402

OUT = ROOT / "bench" / "results" / "compile_times.json"
LIMITS = {"cpu": 15.0, "sm_90a": 40.0}
"""Seconds on two cores, by target."""
LATENT = ("--latent", "512+64", "--heads", "20")
BLOCKS = ("--page-size", "64", "--block-size", "16")
"""For flows that tell pages from blocks."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """One flow for one target."""

    flow: str
    target: str
    wall: float
    cpu: float
    """User and system seconds, of the compilers too."""
    commit: str
    date: str
    error: str = ""
    """What was said where there is no artifact."""

    @property
    def ok(self) -> bool:
        return not self.error and min(self.wall, self.cpu) < LIMITS[self.target]


def main(asked: list[str]) -> int:
    warnings.simplefilter("ignore", VortexWarning)
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    made: list[Compiled] = []
    for flow in asked or every_flow():
        for target in LIMITS:
            made.append(compiled(flow, target, commit.strip()))
            print(f"{flow} {target}: {made[-1].wall} s, {made[-1].cpu} CPU seconds {made[-1].error}", flush=True)
            keep(made[-1])
    print(plain(("flow", *(f"{t} {what}" for t in LIMITS for what in ("wall", "CPU s")), "met"), table(made)), end="")
    return 0 if all(c.ok for c in made) else 1


def keep(new: Compiled) -> None:
    """Put it into the results, in place of what was measured of the same before."""
    before = json.loads(OUT.read_text())["measured"] if OUT.exists() else []
    others = [m for m in before if (m["flow"], m["target"]) != (new.flow, new.target)]
    found = {
        "command": "python bench/compile_times.py",
        "machine": {"processor": processor(), "cores": os.cpu_count()},
        "versions": versions(),
        "limits": LIMITS,
        "measured": [*others, asdict(new) | {"ok": new.ok}],
    }
    OUT.write_text(json.dumps(found, indent=1) + "\n")


def every_flow() -> list[str]:
    """What ``vortex compile`` calls them."""
    made = library_names()
    for file in sorted((ROOT / "examples").glob("*.py")):
        names = _names(file)
        made += [f"examples/{file.name}:{name}" for name in names]
    return made


def _names(file: Path) -> list[str]:
    with suppress(VortexError):  # it has several
        find_flow(str(file))
    return list(flows_of(str(file)))


def shape_of(flow: str) -> tuple[str, ...]:
    """The options for the model shape that a flow is for."""
    found = find_flow(str(ROOT / flow) if flow.startswith("examples/") else flow)
    try:
        module = trace(found, Spec(page_size=64, block_size=16))
    except VortexError:
        trace(found, Spec.of_latent())
        return LATENT
    return BLOCKS if of_pages(module) else ()


def compiled(flow: str, target: str, commit: str) -> Compiled:
    """By a process of its own, in an empty folder."""
    with tempfile.TemporaryDirectory(prefix="vortex-bench-") as folder:
        command = [sys.executable, "-m", "vortex", "compile", str(flow), *shape_of(flow), "--target", target]
        command += ["--no-dump", "--no-db", "-o", f"{folder}/made.vxa"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": f"{folder}/cache"}
        said = Path(folder, "said")
        begin = time.perf_counter()
        with said.open("w") as to:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=to, stderr=to)
            _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        error = said.read_text().strip() if process.returncode else ""
        cpu = used.ru_utime + used.ru_stime
        return Compiled(flow, target, round(wall, 2), round(cpu, 2), commit, time.strftime("%Y-%m-%d"), error)


def table(made: list[Compiled]) -> list[list[str]]:
    """A row for each flow."""
    rows: dict[str, list[Compiled]] = {}
    for c in made:
        rows.setdefault(c.flow, []).append(c)
    return [
        [flow, *(f"{x:.1f}" for c in each for x in (c.wall, c.cpu)), "yes" if all(c.ok for c in each) else "NO"]
        for flow, each in rows.items()
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
