"""Flows of the whole language on a GPU, each decoded and judged by ``vortex run`` against its own flow IR.

    python3 bench/gpu_language.py .gpu/language/*.vxa --out $OUT/language.json

The exit code is 1 where one is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from vortex.cli.main import main as vortex

REQUESTS = ("--tokens", "5,200,1000,9000", "--steps", "5")


def judged(artifact: Path, target: list[str]) -> dict[str, Any]:
    """What ``vortex run`` says of an artifact; without ``requests`` where it ends in an error."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = vortex(["run", str(artifact), *target, *REQUESTS, "--json"])
    found = json.loads(said.getvalue()) if code in (0, 1) else {}
    return {"artifact": artifact.stem, "right": code == 0, **found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", type=Path, nargs="+")
    parser.add_argument("--target", default="sm_90", help="whose library is run")
    parser.add_argument("--commit", default="")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    device = "cpu" if args.target == "cpu" else torch.cuda.get_device_name()
    about = {"device": device, "date": time.strftime("%F %T"), "commit": args.commit, "torch": torch.__version__}
    found: dict[str, Any] = {**about, "command": " ".join(["python3", *sys.argv]), "flows": []}
    for artifact in args.artifacts:
        found["flows"].append(judged(artifact, ["--target", args.target]))
        print(f"{artifact.stem}: {'right' if found['flows'][-1]['right'] else 'WRONG'}", flush=True)
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    return int(not all(f["right"] for f in found["flows"]))


if __name__ == "__main__":
    sys.exit(main())
