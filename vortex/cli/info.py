"""What an artifact holds (its library is never loaded), or what this machine has.

examples:
  vortex info
  vortex info quest.vxa
  vortex info quest.vxa --json
  vortex info passes
"""

from __future__ import annotations

import argparse
import importlib
import shutil
from typing import TYPE_CHECKING

from vortex.cli.show import emit_json, plain, table
from vortex.errors import VortexError, nearest

if TYPE_CHECKING:
    from vortex.manifest import KernelEntry

LISTINGS = ("ops", "passes", "errors", "targets")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("what", nargs="?", metavar="ARTIFACT|LISTING", help=f"a .vxa folder, or {', '.join(LISTINGS)}")
    parser.add_argument("--verify", action="store_true", help="also check every file against its hash")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Show."""
    if args.what is None:
        return _machine(args.json)
    if args.what in LISTINGS:
        listing = argparse.Namespace(name=None, code=None, ir=False, json=args.json)
        return int(importlib.import_module(f"vortex.cli.{args.what}").run(listing))
    return _artifact(args.what, args.verify, args.json)


def _machine(as_json: bool) -> int:
    from vortex.cpu_features import detect_mcpu, machine
    from vortex.versions import versions

    compiler = next((c for name in ("cc", "gcc", "clang") if (c := shutil.which(name))), None)
    facts = {**versions(), "machine": machine(), "cpu": detect_mcpu(), "C compiler": compiler}
    if as_json:
        emit_json(facts)
    else:
        print(plain(("what", "has"), [[k, v or "not installed"] for k, v in facts.items()]), end="")
    return 0


def _artifact(path: str, verify: bool, as_json: bool) -> int:
    from vortex.artifact import read_manifest, verify_files

    try:
        m = read_manifest(path)
    except VortexError as e:
        hint = nearest(path, LISTINGS)
        raise e.note(f"'{path}' is no listing either{hint}") if hint else e from None
    if verify:
        verify_files(path, m)
    if as_json:
        emit_json(m.to_json())
        return 0
    s = m.spec
    print(f"flow      {m.flow}")
    print(f"digest    {m.digest}")
    narrow = f", K and V in {s.kv_dtype} with scales" if s.scaled else ""
    print(f"shape     page size {s.page_size}, {s}, {s.dtype}{narrow}")
    for f in m.fields:
        print(f"field     {f.name}: {f.dtype}{list(f.tile)} per page and KV head")
    for c in m.constants:
        print(f"constant  {c.name}: {c.dtype}{list(c.shape)}")
    print(f"made by   {', '.join(f'{k} {v}' for k, v in m.toolchain.items())}")
    rows = []
    for name, target in m.targets.items():
        for k in target.kernels:
            words = f"{k.page_words} Pmax + {k.row_words}" if k.page_words or k.row_words else "-"
            rows.append([name, target.mcpu or "-", k.name, k.kind, words, " ".join(k.args)])
    print()
    table(("target", "cpu", "kernel", "kind", "scratch words a row", "arguments"), rows)
    gpu = [_resources(name, k) for name, target in m.targets.items() for k in target.kernels if k.resources]
    if gpu:
        print()
        head = ("target", "kernel", "threads", "registers", "spilled", "shared", "CTAs an SM", "bound by", "limiter")
        table(head, gpu)
    if verify:
        print(f"\n{len(m.files)} files are as the manifest says")
    return 0


def _resources(target: str, kernel: KernelEntry) -> list[str]:
    """A row of the table of what kernels take of a GPU."""
    r = kernel.resources
    shared = sum(n for name in ("static_shared", "dynamic_shared") if isinstance(n := r.get(name), int))
    cells = [r.get("threads"), r.get("registers"), r.get("spills"), shared, r.get("ctas"), r.get("bound_by")]
    return [target, kernel.name, *map(str, cells), str(r.get("limiter", "-"))]
