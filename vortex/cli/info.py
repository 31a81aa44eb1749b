"""What an artifact holds (its library is never loaded), or what this machine has.

Of GPU kernels also what each takes of a multiprocessor (SM) and what it is predicted to wait for, with the part of its
time that this takes: memory, latency (too few bytes in flight for the memory to be busy), compute (the tensor cores),
scalar arithmetic or spills. --shape tells bytes, FLOPs, microseconds and limiter of each kernel of a step. One kernel's
CUDA source, PTX or machine code is printed by --kernel.

examples:
  vortex info
  vortex info quest.vxa
  vortex info quest.vxa --json
  vortex info quest.vxa --shape batch=8,tokens=32768 --gpu B200
  vortex info quest.vxa --kernel select --target sm_90a --ptx --locs
  vortex info passes
"""

from __future__ import annotations

import argparse
import importlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vortex.cli.predictions import show_costs
from vortex.cli.show import emit_json, lines, table
from vortex.errors import BAD_OPTION, VortexError, nearest
from vortex.targets.target import ALIASES

if TYPE_CHECKING:
    from vortex.artifact.kernel_texts import Text
    from vortex.artifact.manifest import KernelEntry, Manifest

_TOKENS = 32768
"""Of the request whose state is stated."""
MARGIN = " " * 10
"""In front of what does not fit into the line of its name."""
LISTINGS = ("ops", "passes", "kinds", "errors", "targets")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("what", nargs="?", metavar="ARTIFACT|LISTING", help=f"a .vxa folder, or {', '.join(LISTINGS)}")
    parser.add_argument("--verify", action="store_true", help="also check every file against its hash")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--kernel", metavar="NAME", help="print one kernel's text: its CUDA source unless told")
    parser.add_argument("--target", metavar="TARGET", help="of this target (default: the artifact's first GPU)")
    parser.add_argument(
        "--shape", metavar="SHAPE", help="costs of a step, e.g. batch=8,tokens=32768,kv_heads=8,kept=30"
    )
    parser.add_argument("--gpu", metavar="NAME", help="the GPU that --shape predicts for (default: the target's)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--source", dest="text", action="store_const", const="source", help="CUDA source of --kernel")
    what.add_argument("--ptx", dest="text", action="store_const", const="ptx", help="PTX of --kernel")
    what.add_argument("--sass", dest="text", action="store_const", const="sass", help="machine code, by cuobjdump")
    parser.add_argument(
        "--locs", action="store_true",
        help="with --ptx or --sass: the flow's line behind each instruction; nvcc compiles the kernel once more",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Show."""
    if args.what is None:
        return _machine(args.json)
    if args.what in LISTINGS:
        listing = argparse.Namespace(name=None, code=None, ir=False, json=args.json)
        return int(importlib.import_module(f"vortex.cli.{args.what}").run(listing))
    if args.gpu and not args.shape:
        raise BAD_OPTION.at(option="--gpu", why="is what --shape predicts for", hint="give --shape as well")
    if args.shape:
        if args.kernel or args.text or args.locs:
            raise BAD_OPTION.at(option="--shape", why="prints no text of a kernel", hint="drop --kernel")
        return show_costs(args.what, args.shape, args.target, args.gpu, args.json)
    if args.locs and args.text not in ("ptx", "sass"):
        raise BAD_OPTION.at(
            option="--locs", why="is for PTX and machine code", hint="give --ptx or --sass; CUDA source has them always"
        )
    if args.kernel or args.text or args.target:
        return _kernel(args.what, args.kernel, args.target, args.text or "source", locs=args.locs)
    return _artifact(args.what, args.verify, args.json)


def _kernel(path: str, kernel: str | None, target: str | None, what: Text, *, locs: bool) -> int:
    from vortex.artifact.folder import read_manifest
    from vortex.artifact.kernel_texts import kernel_text

    m = read_manifest(path)
    if kernel is None:
        names = ", ".join(dict.fromkeys(k.name for t in m.targets.values() for k in t.kernels))
        raise BAD_OPTION.at(option="--kernel", why="a kernel must be named", hint=f"there are {names}")
    gpus = [name for name, t in m.targets.items() if not t.mcpu]
    name = ALIASES.get(target, target) if target else next(iter(gpus or m.targets))
    text = kernel_text(Path(path), m, kernel, name, what)
    print(_located(path, kernel, name, what) if locs else text, end="")
    return 0


def _located(path: str, kernel: str, target: str, what: Text) -> str:
    """PTX or machine code of a kernel, with the values and lines of the flow behind the instructions that compute them.

    Raises:
        VortexError: VX7001 where they cannot be known, with the reason.
    """
    from vortex.compilation.kin import kin
    from vortex.compilation.stored import read_stored
    from vortex.ir.op_labels import commented, label

    stored = read_stored(path)
    found = kin(stored, next(k for k in stored.kernels if (k.name, k.target) == (kernel, target)))
    if what not in found.texts:
        raise BAD_OPTION.at(option="--locs", why=found.unknown.get(what, "no line is known"), hint="leave it out")
    text = found.texts[what]
    return commented(text.text, [label([found.ops[v] for v in values]) for values in text.values])


def _machine(as_json: bool) -> int:
    from vortex.install.versions import versions
    from vortex.targets.cpu import detect_mcpu, machine

    compiler = next((c for name in ("cc", "gcc", "clang") if (c := shutil.which(name))), None)
    facts = {**versions(), "machine": machine(), "cpu": detect_mcpu(), "C compiler": compiler}
    if as_json:
        emit_json(facts)
    else:
        table(("what", "has"), [[k, v or "not installed"] for k, v in facts.items()])
    return 0


def _artifact(path: str, verify: bool, as_json: bool) -> int:
    from vortex.artifact.folder import read_manifest, verify_files
    from vortex.artifact.manifest import expected
    from vortex.artifact.resumed import resumptions

    try:
        m = read_manifest(path)
    except VortexError as e:
        hint = nearest(path, LISTINGS)
        raise e.note(f"'{path}' is not a listing either{hint}") if hint else e from None
    if verify:
        verify_files(path, m)
    if as_json:
        emit_json(m.to_json())
        return 0
    s = m.spec
    print(lines(f"flow      {m.flow}", MARGIN))
    print(lines(f"digest    {m.digest}", MARGIN))
    kept = "latent rows in {} with a scale" if s.kv_lora_rank else "K and V in {} with scales"
    narrow = f", {kept.format(s.kv_dtype)}" if s.scaled else ""
    blocks = f" in blocks of {s.block_size}" if s.page_blocks > 1 else ""
    print(lines(f"shape     page size {s.page_size}{blocks}, {s}, {s.dtype}{narrow}", MARGIN))
    for f in m.fields:
        print(lines(f"field     {f.name}: {f.dtype}{list(f.tile)} per page and KV head, {f.tile_bytes} bytes", MARGIN))
    for x in m.states:
        each = "page of a request" if x.per == "page" else "request"
        about = f"{x.bytes(1, 1)} bytes per KV head, layer and {each}"
        print(lines(f"state     {x.name}: {x.dtype}{list(x.tile)} per {each}, from {x.init} on; {about}", MARGIN))
    if m.states:
        columns = -(-_TOKENS // s.page_size)
        slot = sum(x.bytes(1, columns) for x in m.states)
        print(lines(f"          {slot} bytes per KV head and layer for each request of up to {_TOKENS} tokens", MARGIN))
    for c in m.constants:
        print(lines(f"constant  {c.name}: {c.dtype}{list(c.shape)}", MARGIN))
    for p in m.parameters:
        each = {"model": "", "layer": " a layer", "head": " a layer and KV head"}[p.per]
        print(lines(f"parameter {p.name}: {expected(p)} in the file of weights, {p.bytes(1, 1)} bytes{each}", MARGIN))
    print(lines(f"made by   {', '.join(f'{k} {v}' for k, v in m.toolchain.items())}", MARGIN))
    for r in resumptions(m.provenance):
        print(lines(f"resumed   {r}", MARGIN))
    rows = []
    for name, target in m.targets.items():
        for k in target.kernels:
            words = f"{k.page_words} Pmax + {k.row_words}" if k.page_words or k.row_words else "-"
            rows.append([name, target.mcpu or "-", k.name, k.kind, words, " ".join(k.args)])
    print()
    table(("target", "cpu", "kernel", "kind", "scratch words a row", "arguments"), rows)
    if any(not str(k.schedule.get("from", "heuristic")).startswith("h") for t in m.targets.values() for k in t.kernels):
        print()
        chosen = [[name, k.name, *line] for name, t in m.targets.items() for k in t.kernels for line in _chosen(k)]
        table(("target", "kernel", "chosen by", "for"), chosen)
    gpu = [_resources(name, k) for name, target in m.targets.items() for k in target.kernels if k.resources]
    if gpu:
        print()
        head = ("target", "kernel", "threads", "registers", "spilled", "shared", "CTAs an SM", "warps", "bound by")
        table((*head, "KiB in flight", "needed", "limiter", "share"), gpu)
        others = [f"{r[1]} on {r[0]} ({r[-2]})" for r in gpu if r[-2] not in ("memory", "-")]
        print("\n" + lines(f"predicted to wait for something else than memory: {', '.join(others) or 'none'}"))
        _warn(m)
    if verify:
        print(f"\n{len(m.files)} files are as the manifest says")
    return 0


def _chosen(kernel: KernelEntry) -> Iterator[tuple[str, str]]:
    """Where a kernel's schedule came from, and each line of its table; and for which shapes they are."""
    if "from" in kernel.schedule:
        rest = "other shapes" if kernel.table else "all shapes"
        yield str(kernel.schedule["from"]), "; ".join(map(str, kernel.serves)) or rest
    for origin, buckets in kernel.table:
        yield origin, "; ".join(map(str, buckets))


def _resources(target: str, kernel: KernelEntry) -> list[str]:
    """A row of the table of what kernels take of a GPU."""
    r = kernel.resources
    shared = sum(n for name in ("static_shared", "dynamic_shared") if isinstance(n := r.get(name), int))
    cells = [r.get("threads"), r.get("registers"), r.get("spills"), shared]
    cells += [r.get(n, "-") for n in ("ctas", "warps", "bound_by")]
    flight = [f"{n / 1024:.0f}" if isinstance(n := r.get(name), int) else "-" for name in ("in_flight", "needed")]
    share = f"{n:.0%}" if isinstance(n := r.get("limiter_share"), float | int) else "-"
    return [target, kernel.name, *map(str, cells), *flight, str(r.get("limiter", "-")), share]


def _warn(m: Manifest) -> None:
    """Print what kernels spill, and which CTAs have no room on an SM."""
    from vortex.remarks.kernels import warnings

    for target, entry in m.targets.items():
        for k in entry.kernels:
            for r in warnings(k.name, k.schedule, k.resources):
                print("\n" + lines(f"on {target}: {r.message}"))
                print(lines(f"  = help: {r.help}", MARGIN))
