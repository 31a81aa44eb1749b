"""Builds ``attend`` over latent rows (MLA) for several head counts, page sizes and knobs into one library.

    python bench/stage_latent.py --out .gpu/latent

An index beside it says what each function is; bench/gpu_latent.py runs them where there is a GPU and no compiler.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from pathlib import Path
from typing import Any

from scheduled import program

from vortex.codegen.build.nvcc import build_cuda
from vortex.codegen.emit import emit_kernel, parse_tir
from vortex.spec import Spec
from vortex.targets.target import TARGETS

FP8 = "fp8_e4m3"
SHAPES = [
    (20, 16, ""),
    (20, 32, ""),
    (20, 64, ""),
    (128, 16, ""),
    (16, 16, ""),
    (20, 16, FP8),
    (20, 64, FP8),
    (128, 16, FP8),
]
"""Heads, page sizes and types of rows (bf16 unless given) with the knobs of the default schedule."""
KNOBS: list[tuple[int, int, str, dict[str, int]]] = [
    (20, 16, "", {"warps": 4}),
    (20, 16, "", {"stages": 4, "tile": 32}),
    (20, 16, FP8, {"stages": 2, "tile": 64}),
    (20, 16, FP8, {"stages": 2, "tile": 128}),
    (128, 16, "", {"stages": 3, "tile": 32}),
]


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--out", type=Path, default=Path(".gpu/latent"))
    args.add_argument("--arch", default="sm_90a")
    found = args.parse_args()
    found.out.mkdir(parents=True, exist_ok=True)
    start, functions = time.time(), {}
    index: dict[str, dict[str, Any]] = {}
    for heads, page, kept, knobs in [(*shape, {}) for shape in SHAPES] + KNOBS:
        target, spec = TARGETS[found.arch], Spec.of_latent("512+64", heads, page_size=page, kv_dtype=kept)
        made_of = program("latent_topk", spec, target, "attend", knobs)
        made = emit_kernel(made_of, made_of.functions["attend"], target)
        short = "latent_fp8" if kept else "latent"
        name = "_".join([short, f"h{heads}", f"p{page}", *(f"{k[0]}{v}" for k, v in knobs.items())])
        functions[name] = parse_tir(made.text, name)
        index[name] = {"args": made.args, "knobs": made.schedule, "heads": heads, "page": page, "main": not knobs}
        index[name] |= {"dim": spec.head_dim, "v_dim": spec.v_dim, "bytes": 1 if kept else 2}
    build = build_cuda(functions, found.arch, (found.out / f"lib.{found.arch}.so").resolve())
    for name, r in build.resources.items():
        index[name] |= {"registers": r.registers, "spills": r.spills, "shared": r.dynamic_shared, "ctas": r.ctas}
        print(f"{name}: {r.registers} registers, {r.spills} spilled, {r.dynamic_shared} shared, {r.ctas} CTAs an SM")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    about = {"arch": found.arch, "library": f"lib.{found.arch}.so", "commit": commit, "kernels": index}
    (found.out / "kernels.json").write_text(json.dumps(about, indent=1))
    print(f"{len(index)} kernels, {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
