"""Find the fastest configuration of each kernel for a set of shapes.

Without --bundle candidates are built and measured here, in turns: first the default of each kernel and what the cost
model thinks best, then more while there is time. So a short --budget leaves something measured too; what comes out goes
to the database that 'vortex compile' looks into. With --bundle they are built only: a folder to take to the machine
that has the GPU, where

  python -m vortex.tune.measure out.vxb -o results.jsonl

needs torch and apache-tvm-ffi, and back here 'vortex db merge results.jsonl' takes the results in. A bundle that is
there already is added to; what was built is not built again.

examples:
  vortex tune quest --target cpu --shapes tiny --budget 2m
  vortex tune quest block_topk --target sm_90 --shapes bench --bundle out.vxb
  vortex tune quest --target sm_90 --shapes batch=8,kv_heads=8,tokens=32768,kept=30 --bundle out.vxb
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vortex.cli.flow_options import add_spec, spec_of
from vortex.cli.numbers import bounded, seconds
from vortex.cli.show import check_out, emit_json, progress, say, so_far
from vortex.errors import BAD_OPTION, UNKNOWN_NAME, nearest_or_all
from vortex.install.scratch import scratch_folder
from vortex.kinds.kind import KINDS
from vortex.targets.target import parse_targets

if TYPE_CHECKING:
    from vortex.tune.build import Told
    from vortex.tune.shapes import Shape
    from vortex.tune.tuner import Tuner


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("flows", metavar="FLOW", nargs="+", help="name, file.py or file.py:name")
    parser.add_argument("--target", metavar="NAME", default="cpu", help="one of 'vortex targets' (default: cpu)")
    parser.add_argument(
        "--shapes", metavar="WHAT", default="tiny", help="tiny, bench, a file of JSON lines, or one shape"
    )
    parser.add_argument(
        "--budget", metavar="TIME", default="10m", help="how long to go on, e.g. 90s, 10m (default: 10m)"
    )
    parser.add_argument("--bundle", metavar="OUT.vxb", type=Path, help="build candidates only, into this folder")
    tuned = ",".join(k.name for k in KINDS.values() if k.tuned)
    parser.add_argument("--kinds", metavar="K,K", default=tuned, help=f"kernels to tune (default: {tuned})")
    parser.add_argument(
        "--candidates", metavar="N", type=int, default=24, help="of each kernel at a time (default: 24)"
    )
    parser.add_argument(
        "--where", metavar="KNOB=N,N", action="append", default=[], help="try these values of a knob only (repeatable)"
    )
    parser.add_argument("--jobs", metavar="N", type=int, help="processes that build (default: one a core)")
    parser.add_argument("--rounds", metavar="N", type=int, default=5, help="interleaved rounds of timing (default: 5)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the search (default: 0)")
    parser.add_argument("--db", metavar="PATH", type=Path, help="the database (default: the user's, see vortex db)")
    parser.add_argument("-o", dest="out", metavar="FILE", type=Path, help="also write the records to this file")
    parser.add_argument("--json", action="store_true", help="print what was built or found as JSON")
    add_spec(parser)


def run(args: argparse.Namespace) -> int:
    """Tune, or build a bundle."""
    from vortex.install.databases import user_path
    from vortex.tune.here import require_device
    from vortex.tune.layers import Layers
    from vortex.tune.shapes import read_shapes
    from vortex.tune.tuner import Tuner

    limit = seconds("--budget", args.budget)
    kinds = tuple(filter(None, (k.strip() for k in args.kinds.split(","))))
    for kind in kinds:
        if kind not in KINDS:
            raise UNKNOWN_NAME.at(what="kernel kind", name=kind, nearest=nearest_or_all(kind, KINDS))
    for option in ("candidates", "rounds", "jobs"):
        bounded(args, option, 1)
    check_out(args.out)
    targets = parse_targets(args.target, say)
    if len(targets) != 1:
        raise BAD_OPTION.at(option="--target", why="names several targets", hint="tune for one at a time")
    spec = spec_of(args)
    shapes = _within(read_shapes(args.shapes), spec.block_size)
    if args.bundle is None:
        require_device(targets[0])
    path = args.db or user_path()
    layers = Layers.default(path) if path.exists() else Layers.default()
    with scratch_folder("vortex-tune-") as scratch:
        out = args.bundle or scratch / "tune.vxb"
        tuner = Tuner(
            args.flows, spec, targets[0], shapes, out, layers, kinds, args.candidates, args.jobs, args.seed,
            _where(args.where),
        )  # fmt: skip
        if args.bundle is not None:
            return _bundle(tuner, args)
        return _here(tuner, args, path, limit)


def _within(shapes: tuple[Shape, ...], page_size: int) -> tuple[Shape, ...]:
    """The shapes with no more pages kept than a row has, each once; says which are others than was asked for."""
    for s in shapes:
        if s.kept > (pages := s.columns(page_size)):
            say(f"{s}: a request has {pages} pages of {page_size} tokens, so {pages} are kept")
    return tuple(dict.fromkeys(s.within(page_size) for s in shapes))


def _bundle(tuner: Tuner, args: argparse.Namespace) -> int:
    with _building(f"building candidates for {tuner.target.name}") as told:
        bundle = tuner.bundle(told)
    built = [c for c in bundle.candidates if c.symbol]
    failed = len(bundle.candidates) - len(built)
    size = sum(f.stat().st_size for f in bundle.path.rglob("*") if f.is_file())
    if args.json:
        emit_json(
            {
                "bundle": bundle.path,
                "candidates": len(built),
                "failed": failed,
                "bytes": size,
            }
        )
    say(f"wrote {bundle.path}: {len(built)} candidates, {failed} failed, {size / 1e6:.1f} MB")
    say(f"on the machine that has the device: python -m vortex.tune.measure {bundle.path} -o results.jsonl")
    return 0


@contextmanager
def _building(what: str) -> Iterator[Told]:
    """Says how many candidates are built, and how long the rest takes at that rate."""
    with progress(what, 100) as bar:
        start = last = time.monotonic()

        def told(done: int, total: int) -> None:
            nonlocal last
            now = time.monotonic()
            note = so_far(start, done, total)
            bar(100 * done // max(1, total), note)
            if now - last > 10:
                last = now
                say(note)

        yield told


def _here(tuner: Tuner, args: argparse.Namespace, path: Path, limit: float) -> int:
    from vortex.tune.exchange import write_file, write_lines
    from vortex.tune.here import tune_here
    from vortex.tune.record import merge
    from vortex.tune.store import Store

    with Store(path) as store:
        if store.read_only:
            store.put([])  # says why
        made = tune_here(tuner, lambda r: store.put([r]), _building, say, limit, args.rounds)
    if args.out is not None:
        write_file(args.out, write_lines(made))
    found = merge(made)
    if args.json:
        emit_json({"database": path, "records": len(found), "ok": sum(r.us is not None for r in found)})
    say(f"{len(found)} records are in {path}; 'vortex compile' uses them, 'vortex db best' shows them")
    return 0


def _where(options: list[str]) -> dict[str, tuple[int, ...]]:
    found = {}
    for text in options:
        name, _, values = text.partition("=")
        if not re.fullmatch(r"\d+(,\d+)*", values):
            raise BAD_OPTION.at(option="--where", why=f"'{text}' names no values", hint="e.g. warps=2,4")
        found[name.strip()] = tuple(map(int, values.split(",")))
    return found
