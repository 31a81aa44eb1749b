"""Builds ``attend`` for sm_90a in many shapes and configurations into one library, with an index of what each is."""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from pathlib import Path

from scheduled import program

from vortex.codegen.build.nvcc import build_cuda
from vortex.codegen.emit import emit_kernel, parse_tir
from vortex.errors import VortexError
from vortex.spec import Spec
from vortex.targets.target import TARGETS

Shape = tuple[int, int, int, str, str]
"""Page, head dim, group, types of Q and of K and V."""
FP8 = "fp8_e4m3"
MAIN = (16, 128, 4, "bf16", "bf16")
KNOBS = [
    {"warps": w, "stages": s, "tile": t, "overlap": o}
    for o in (0, 1)
    for w, s, t in ((4, 3, 16), (4, 2, 16), (4, 4, 16), (2, 3, 16), (2, 4, 16), (8, 2, 16), (8, 3, 16), (4, 2, 32))
]
SHAPES = [
    (page, dim, group, dtype, dtype)
    for page, dim, group, dtype in (
        (8, 128, 4, "bf16"), (32, 128, 4, "bf16"), (64, 128, 4, "bf16"), (128, 128, 8, "bf16"), (16, 64, 4, "bf16"),
        (16, 96, 3, "bf16"), (16, 256, 2, "bf16"), (16, 128, 1, "bf16"), (16, 128, 5, "f16"), (16, 128, 6, "bf16"),
        (16, 128, 12, "bf16"), (16, 128, 16, "f16"), (32, 256, 16, "bf16"), (24, 80, 7, "bf16"),
    )
]  # fmt: skip
MAIN_FP8 = (16, 128, 4, "bf16", FP8)
KNOBS_FP8 = [
    {"warps": w, "stages": s, "tile": t, "residents": r, "overlap": o}
    for w, s, t, r, o in (
        (4, 3, 16, 1, 0), (4, 4, 16, 1, 0), (4, 3, 16, 4, 0), (4, 6, 16, 1, 0), (4, 3, 32, 1, 0), (4, 4, 32, 1, 0),
        (4, 2, 64, 1, 0), (8, 2, 16, 1, 0), (8, 3, 16, 1, 0), (8, 2, 32, 1, 0), (2, 4, 32, 1, 0), (4, 3, 16, 1, 1),
    )
]  # fmt: skip
SHAPES_FP8 = [
    (*shape, FP8)
    for shape in (
        (8, 128, 4, "bf16"), (64, 128, 8, "f16"), (128, 64, 5, "bf16"), (16, 96, 12, "bf16"), (16, 256, 2, "bf16"),
        (32, 256, 16, "bf16"), (24, 80, 3, "f16"), (16, 128, 16, "bf16"), (16, 128, 1, "f16"),
    )
]  # fmt: skip


def wanted(kv: str, *, few: bool) -> list[tuple[Shape, dict[str, int]]]:
    """What is built: for fp8 its own shapes and configurations, and two of bf16 to stand beside them. ``few`` leaves
    out most configurations and no shape.
    """
    if few and kv == "16-bit":
        return [(MAIN, k) for k in KNOBS[::4]] + [(s, {}) for s in SHAPES]
    if kv == "16-bit":
        return [(MAIN, k) for k in KNOBS] + [(s, {}) for s in SHAPES]
    beside = [(MAIN, k) for k in KNOBS if not k["overlap"]][:2]
    return [(MAIN_FP8, k) for k in KNOBS_FP8] + beside + [(s, {}) for s in SHAPES_FP8]


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--out", type=Path, default=Path(".gpu"))
    args.add_argument("--arch", default="sm_90a")
    args.add_argument("--kv", choices=("16-bit", "fp8"), default="16-bit", help="types of K and V")
    args.add_argument("--few", action="store_true", help="few configurations of the main shape (16-bit only)")
    found = args.parse_args()
    found.out.mkdir(parents=True, exist_ok=True)
    index, functions, start = {}, {}, time.time()
    for shape, knobs in wanted(found.kv, few=found.few):
        page, dim, group, dtype, kv = shape
        spec = Spec(page_size=page, head_dim=dim, group=group, dtype=dtype, kv_dtype=kv)
        target = TARGETS[found.arch]
        parts = [f"p{page}", f"d{dim}", f"g{group}", dtype, *(["fp8"] if kv == FP8 else [])]
        name = "_".join(["attend", *parts, *(f"{k[0]}{v}" for k, v in knobs.items())])
        try:
            made_of = program("quest", spec, target, "attend", knobs)
            made = emit_kernel(made_of, made_of.functions["attend"], target)
        except VortexError as error:
            print(f"{name}: {error}")
            continue
        functions[name] = parse_tir(made.text, name)
        index[name] = {"args": made.args, "knobs": made.schedule, "page": page, "dim": dim, "group": group}
        index[name] |= {"dtype": dtype, "kv_dtype": kv, "words": group * dim + (2 * group + 3) // 4 * 4}
        index[name]["main"] = shape in (MAIN, MAIN_FP8)
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
