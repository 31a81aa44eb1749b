"""Builds ``attend`` for sm_90a in many shapes and configurations into one library, with an index of what each is."""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from pathlib import Path

from vortex.codegen.emit import emit_kernel, parse_tir
from vortex.codegen.nvcc import build_cuda
from vortex.driver import compile_flow
from vortex.errors import VortexError
from vortex.spec import Spec
from vortex.target import TARGETS

MAIN = (16, 128, 4, "bf16")
KNOBS = [
    {"warps": w, "stages": s, "tile": t, "overlap": o, "planned": p}
    for o, p in ((0, 0), (0, 1), (1, 1))
    for w, s, t in ((4, 3, 16), (4, 2, 16), (4, 4, 16), (2, 3, 16), (2, 4, 16), (8, 2, 16), (8, 3, 16), (4, 2, 32))
]
SHAPES = [
    (page, dim, group, dtype)
    for page, dim, group, dtype in (
        (8, 128, 4, "bf16"), (32, 128, 4, "bf16"), (64, 128, 4, "bf16"), (128, 128, 8, "bf16"), (16, 64, 4, "bf16"),
        (16, 96, 3, "bf16"), (16, 256, 2, "bf16"), (16, 128, 1, "bf16"), (16, 128, 5, "f16"), (16, 128, 6, "bf16"),
        (16, 128, 12, "bf16"), (16, 128, 16, "f16"), (32, 256, 16, "bf16"), (24, 80, 7, "bf16"),
    )
]  # fmt: skip


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--out", type=Path, default=Path(".gpu"))
    args.add_argument("--arch", default="sm_90a")
    found = args.parse_args()
    index, functions, start = {}, {}, time.time()
    for shape, knobs in [(MAIN, k) for k in KNOBS] + [(s, {"planned": p}) for s in SHAPES for p in (0, 1)]:
        page, dim, group, dtype = shape
        spec = Spec(page_size=page, head_dim=dim, group=group, dtype=dtype)
        target = TARGETS[found.arch]
        program = compile_flow("quest", spec=spec, targets=[target], to="page").programs[found.arch]
        f = program.functions["attend"]
        f.attrs["schedule"] = dict(knobs)
        name = "_".join(
            ["attend", f"p{page}", f"d{dim}", f"g{group}", dtype, *(f"{k[0]}{v}" for k, v in knobs.items())]
        )
        try:
            made = emit_kernel(program, f, target)
        except VortexError as error:
            print(f"{name}: {error}")
            continue
        functions[name] = parse_tir(made.text, name)
        index[name] = {"args": made.args, "knobs": made.schedule, "page": page, "dim": dim, "group": group}
        index[name] |= {"dtype": dtype, "words": group * dim + (2 * group + 3) // 4 * 4, "main": shape == MAIN}
    emitted = time.time()
    build = build_cuda(functions, found.arch, (found.out / f"lib.{found.arch}.so").resolve())
    for name, r in build.resources.items():
        index[name] |= {"registers": r.registers, "spills": r.spills, "shared": r.static_shared + r.dynamic_shared}
        index[name] |= {"ctas": r.ctas}
        print(
            f"{name}: {r.registers} registers, {r.spills} bytes spilled, {r.dynamic_shared} shared, {r.ctas} CTAs an SM"
        )
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    about = {"arch": found.arch, "library": f"lib.{found.arch}.so", "commit": commit, "kernels": index}
    (found.out / "kernels.json").write_text(json.dumps(about, indent=1))
    print(f"{len(index)} kernels: TensorIR {emitted - start:.0f} s, nvcc {time.time() - emitted:.0f} s")


if __name__ == "__main__":
    main()
