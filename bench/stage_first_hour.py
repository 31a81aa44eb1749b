"""What bench/gpu_first_hour.py needs where there is no compiler: kernels in a cache, a flow's file, a small model.

    PYTHONPATH=.:bench python bench/stage_first_hour.py --out .gpu/first_hour

``OUT/cache`` is a cache of vortex's, ``OUT/twilight.py`` a flow, and ``OUT/model`` a Llama of random weights with the
tokenizer of smollm2. ``--target cpu`` makes what ``--device cpu`` needs.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from gpu_first_hour import CASES, EVALUATED, Case


def model(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from vortex.evaluate.models import load_tokenizer

    tokenizer = load_tokenizer("smollm2")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=EVALUATED.heads, num_key_value_heads=EVALUATED.kv_heads, head_dim=EVALUATED.dim,
        max_position_embeddings=2048, initializer_range=0.15, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(7)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def kernels(case: Case, files: Path, target: str) -> Path:
    """The artifact that ``vortex.decode(compiled=True)`` looks up there; made as it makes it."""
    from vortex.api.decode import _artifact

    return _artifact(case.located(files), case.spec, case.kv_heads, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="sm_90a")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).parents[1] / "examples" / "twilight.py", args.out)
    model(args.out / "model")
    # a cache of its own, where no tuning database of the user's decides what is compiled
    os.environ["XDG_CACHE_HOME"] = str(args.out.absolute() / "cache")
    for case in (*CASES, Case(EVALUATED.flow, "bf16" if args.target != "cpu" else "f32", EVALUATED.heads)):
        print(kernels(case, args.out, args.target), flush=True)
    shutil.rmtree(args.out / "cache" / "vortex" / "nvcc", ignore_errors=True)


if __name__ == "__main__":
    main()
