"""Builds what stands against other libraries in ``baselines.protocol``: the kernels as an artifact would have them.

``plan`` and ``attend`` of every page size and group of the protocol and ``select`` of scores that are there already,
each with the knobs of the default schedule and its variants, in one library with an index.

    python bench/stage_peers.py --out .gpu/peers
    python bench/stage_peers.py --out .gpu/clusters --only ready --select cluster=8,threads=512
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from pathlib import Path
from typing import Any

from scheduled import knobs_of, program

from vortex.codegen.build.nvcc import build_cuda
from vortex.codegen.emit import emit_kernel, parse_tir
from vortex.driver import compile_flow
from vortex.kinds.kind import KINDS
from vortex.schedules.variants import variants_of
from vortex.spec import Spec
from vortex.targets.target import TARGETS
from vortex.tune.choose import defaults

READY = str(Path(__file__).with_name("ready_scores.py"))
WANTED = {f"p{page}_g{group}": ("quest", page, group) for page in (16, 32, 64) for group in (2, 4, 6)}
WANTED["ready"] = (READY, 16, 4)


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--out", type=Path, default=Path(".gpu/peers"))
    args.add_argument("--arch", default="sm_90a")
    args.add_argument("--only", nargs="*", default=list(WANTED), help="some of these entries: ready is the top-k alone")
    args.add_argument("--select", default={}, type=knobs_of, metavar="KNOB=N,..", help="knobs of select")
    found = args.parse_args()
    found.out.mkdir(parents=True, exist_ok=True)
    start, functions = time.time(), {}
    index: dict[str, dict[str, Any]] = {}
    (words,) = next(a.shape for a in KINDS["plan"].arguments if a.name == "budget")
    for name, (flow, page, group) in ((n, WANTED[n]) for n in found.only):
        target, spec = TARGETS[found.arch], Spec(page_size=page, head_dim=128, group=group)
        if found.select:
            made = program(flow, spec, target, "select", found.select)
        else:
            made = compile_flow(flow, spec=spec, targets=[target], to="page", choose=defaults()).programs[found.arch]
        index[name] = {"page": page, "dim": 128, "group": group, "budget": words}
        for f in made.functions.values():
            kind = str(f.attrs["kind"])
            if kind in ("plan", "select" if name == "ready" else "attend"):
                index[name][kind] = []
                for i, variant in enumerate(variants_of(f)):
                    source, symbol = emit_kernel(made, variant, target), f"{kind}_{name}_{i}"
                    functions[symbol] = parse_tir(source.text, symbol)
                    about = {"symbol": symbol, "args": source.args, "schedule": source.schedule}
                    about |= {"page_words": source.page_words, "row_words": source.row_words}
                    index[name][kind].append(about)
    build = build_cuda(functions, found.arch, (found.out / f"lib.{found.arch}.so").resolve())
    for kernels in index.values():
        for about in (a for made in kernels.values() if isinstance(made, list) for a in made):
            about["resources"] = build.resources[about["symbol"]].report(about["schedule"])
            print(about["symbol"], {k: about["resources"][k] for k in ("registers", "spills", "ctas")})
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    about = {"arch": found.arch, "library": f"lib.{found.arch}.so", "commit": commit, "kernels": index}
    (found.out / "kernels.json").write_text(json.dumps(about, indent=1))
    print(f"{len(functions)} kernels, {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
