"""Making a bundle: candidates compiled in parallel where there is no GPU, a few to a library.

A group of candidates is an artifact of its own, named by a hash of all that goes into it. One that is there already is
not built again, so that a build that was interrupted goes on where it stopped, and one with more candidates adds them.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import islice
from math import inf
from pathlib import Path

from vortex.errors import VortexError
from vortex.install.identity import Identity, digest, of_build
from vortex.install.scratch import scratch_folder
from vortex.install.versions import versions
from vortex.ir.core import Function, Module
from vortex.ir.printer import print_module
from vortex.kinds.buckets import Bucket
from vortex.schedules.space import Config, Space, freeze
from vortex.targets.cpu import detect_mcpu
from vortex.targets.target import TARGETS, Target
from vortex.tune.bundle import Bundle, Candidate
from vortex.tune.keys import key_of
from vortex.tune.search import Point
from vortex.tune.shapes import Shape

GROUP = {"cpu": 2, "cuda": 16}
"""Candidates of a library: enough to share what every library has (on a GPU the CUDA runtime, 1 MB), few enough to
spread over cores."""

Propose = Callable[[Module, Function, Space], Sequence[Config]]
"""Which points of a kernel's space to build."""

Told = Callable[[int, int], None]
"""Hears how many of how many candidates are built."""


@dataclass(frozen=True, slots=True)
class Job:
    """One library to build; plain data, for it travels to another process."""

    program: str
    """Text of the scheduled page IR."""
    target: str
    kernel: str
    base: str
    out: str
    configs: tuple[tuple[tuple[str, int], ...], ...]
    symbols: tuple[str, ...]


def toolchain(target: Target) -> dict[str, str]:
    """What built a candidate, as records name it."""
    known = versions()
    env = {"vortex": known["vortex"] or "source", "tvm": known["apache-tvm"] or "none"}
    if target.kind == "cuda":
        from vortex.codegen.build.toolkit import find_toolkit

        env["nvcc"] = _word(find_toolkit().version)
    return {k: _word(v) for k, v in env.items()}


def _word(text: str) -> str:
    """Without what a record's names may not hold."""
    kept = "".join(c if c.isalnum() or c in "_.:+@-" else "-" for c in text.strip())[:64].lstrip("_.:+@-")
    return kept or "unknown"


def build_bundle(
    path: Path,
    flows: dict[str, Module],
    bases: dict[str, Path],
    target: Target,
    shapes: Sequence[Shape],
    propose: Propose,
    *,
    kinds: Sequence[str],
    jobs: int | None = None,
    told: Told = lambda done, total: None,
    built: Sequence[Candidate] = (),
    until: float = inf,
) -> Bundle:
    """Build candidates of the kernels of ``kinds`` of all ``flows`` (scheduled page IR) into the folder ``path``.

    Kernels that several flows share are built once. ``bases`` are the flows' artifacts, inside ``path``. What earlier
    calls for the same folder have ``built`` comes first and stays as it is. From ``until`` on (a ``time.monotonic()``)
    no library is begun, and candidates of those that were not are left out.

    Raises:
        VortexError: VX4003, VX4007 without a compiler.
    """
    from vortex.schedules.space import space_of

    jobs = jobs or os.cpu_count() or 1
    candidates: list[Candidate] = []
    work: list[Job] = []
    seen: set[str] = set()
    there = {(c.ir, freeze(c.config)) for c in built}
    # what all candidates have in common
    base = of_build({}, spec="", target=f"{target.name} {_processor(target)}", consults=False)
    for flow, program in flows.items():
        for f in program.functions.values():
            space = space_of(program, f, target) if f.attrs["kind"] in kinds else None
            if space is None:
                continue
            key = key_of(program, f, Bucket())
            if key.ir in seen:
                continue
            seen.add(key.ir)
            configs = [c for c in {freeze(c): c for c in propose(program, f, space)} if (key.ir, c) not in there]
            made = [Candidate(flow, f.name, key.kind, key.ir, key.dtypes, space.template, dict(c)) for c in configs]
            text, size = print_module(program, locs=False), GROUP[target.kind]
            for first in range(0, len(made), size):
                group = made[first : first + size]
                points = tuple(freeze(c.config) for c in group)
                name = _identity(base, text, f.name, points).short
                symbols = tuple(f"{f.name}_{name}_{i}" for i in range(len(group)))
                out = path / "candidates" / f"{name}.vxa"
                work.append(Job(text, target.name, f.name, str(bases[flow]), str(out), points, symbols))
                candidates += [
                    replace(c, artifact=f"candidates/{name}.vxa", symbol=s) for c, s in zip(group, symbols, strict=True)
                ]
    (path / "candidates").mkdir(parents=True, exist_ok=True)
    failures: dict[str, str] = {}
    done = 0
    told(0, len(candidates))
    finished: set[str] = set()
    for job, failed in _run(_in_turns(work), jobs, until):
        failures |= failed
        finished |= set(job.symbols)
        done += len(job.symbols)
        told(done, len(candidates))
    made = [
        replace(c, artifact="", symbol="", error=failures[c.symbol]) if c.symbol in failures else c
        for c in candidates
        if c.symbol in finished
    ]
    bundle = Bundle(path, target.name, toolchain(target), tuple(shapes), (*built, *made))
    bundle.write()
    _sweep(path / "candidates", {Path(job.out).stem for job in work} | {Path(c.artifact).stem for c in built})
    return bundle


def _identity(base: Identity, program: str, kernel: str, points: Sequence[Point]) -> Identity:
    """What decides a group: ``program`` is its page IR, in which the flow, its constants and the model shape are."""
    knobs = "; ".join(" ".join(f"{k}={v}" for k, v in point) for point in points)
    return Identity({**base.parts, "ir": digest(program), "kernel": kernel, "knobs": knobs})


def _processor(target: Target) -> str:
    if target.kind == "cpu":
        return detect_mcpu()
    from vortex.codegen.build.toolkit import find_toolkit

    return f"nvcc {find_toolkit().version}"


def _sweep(folder: Path, names: set[str]) -> None:
    """Remove what the bundle has no use for any more: it travels."""
    for old in folder.iterdir():
        if old.stem not in names:
            shutil.rmtree(old) if old.is_dir() else old.unlink()


def _in_turns(work: Sequence[Job]) -> list[Job]:
    """The first job of each kernel, then the second of each: candidates come the most promising first."""
    ranks: Counter[tuple[str, str]] = Counter()
    placed = []
    for job in work:
        placed.append((ranks[job.program, job.kernel], job))
        ranks[job.program, job.kernel] += 1
    return [job for _, job in sorted(placed, key=lambda x: x[0])]


def _run(work: Sequence[Job], jobs: int, until: float) -> Iterator[tuple[Job, dict[str, str]]]:
    """Each job as it is done, with the symbols that failed to build and why; none is begun after ``until``."""
    todo = []
    for job in work:
        if (found := _finished(job)) is not None:
            yield job, found
        else:
            todo.append(job)
    if len(todo) <= 1 or jobs == 1:
        for job in todo:
            if time.monotonic() < until:
                yield job, build_group(job)
        return
    # spawned: TVM does not like to be forked
    context = multiprocessing.get_context("spawn")
    waiting = iter(todo)
    with ProcessPoolExecutor(min(jobs, len(todo)), mp_context=context) as pool:
        running: dict[Future[dict[str, str]], Job] = {pool.submit(build_group, j): j for j in islice(waiting, jobs)}
        try:
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
                    for job in islice(waiting, int(time.monotonic() < until)):
                        running[pool.submit(build_group, job)] = job
        finally:
            for future in running:
                future.cancel()


def _finished(job: Job) -> dict[str, str] | None:
    """What an earlier build of the same group left; None when there was none, or it was not finished."""
    try:
        found = json.loads(Path(job.out).with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def build_group(job: Job) -> dict[str, str]:
    """Build one library; the symbols that did not build, and why."""
    from vortex.codegen.emit import KernelSource, emit_kernel
    from vortex.ir.parser import parse_module

    target = TARGETS[job.target]
    sources: dict[str, KernelSource] = {}
    failed: dict[str, str] = {}
    for config, symbol in zip(job.configs, job.symbols, strict=True):
        program = parse_module(job.program)
        f = program.functions[job.kernel]
        f.attrs["schedule"] = {**f.attrs.get("schedule", {}), **dict(config), "from": "tune"}
        try:
            sources[symbol] = replace(emit_kernel(program, f, target), name=symbol, symbol=symbol)
        except VortexError as e:
            failed[symbol] = e.message[:400]
    try:
        _library(job, target, sources)
    except VortexError as e:
        if len(sources) == 1:
            failed[next(iter(sources))] = e.message[:400]
            sources = {}
        else:
            # one of them: find out which
            fine = {}
            for symbol, source in sources.items():
                try:
                    _library(job, target, {symbol: source})
                    fine[symbol] = source
                except VortexError as each:
                    failed[symbol] = each.message[:400]
            _library(job, target, fine)
    Path(job.out).with_suffix(".json").write_text(json.dumps(failed), encoding="utf-8")
    return failed


def _library(job: Job, target: Target, sources: dict[str, KernelSource]) -> None:  # type: ignore[name-defined]  # noqa: F821
    """Write the artifact of a group: the base's manifest with other kernels."""
    from vortex.artifact.folder import read_file, read_manifest, write_artifact
    from vortex.artifact.manifest import KernelEntry
    from vortex.codegen.build.library import build_target

    if not sources:
        return
    base = read_manifest(job.base)
    entry = base.targets[target.name]
    with scratch_folder() as scratch:
        library = scratch / entry.library
        built = build_target(target, sources, library)
        kernels = tuple(
            KernelEntry(
                k.name, k.kind, k.symbol, k.args, k.page_words, k.row_words, k.schedule, k.digest,
                built.resources.get(k.symbol, {}),
            )
            for k in sources.values()
        )  # fmt: skip
        targets = {target.name: replace(entry, kernels=kernels)}
        files: dict[str, bytes | Path] = {c.file: read_file(job.base, base, c.file) for c in base.constants}
        write_artifact(job.out, replace(base, targets=targets, files={}), {**files, entry.library: library})
