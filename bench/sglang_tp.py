"""SGLang on one rank and on two: the same prompts through two engines, tokens compared, decoding timed.

A Qwen3 with random weights is written once, so that all engines read the same. Decoding is what a long answer takes
more than a short one. In bf16 two ranks add in another order than one, so where tokens part, the place is stated, and
SGLang's own dense backend on one rank and on two is the control. SGLang's own all-reduce is off: NCCL's is everywhere.

Runs where SGLang 0.5.16 or 0.5.23 imports and two GPUs are (bench/parts/sglang.sh and serve.sh stage it; TP=1 runs
this):

    VORTEX_CONFIG='{"flow": "quest.vxa", "budget": {"pages": 27}}' python3 bench/sglang_tp.py --out $OUT/sglang_tp.json
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from sglang_decode import about

MODELS: dict[str, dict[str, int]] = {
    "1.7b": dict(hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16, head_dim=128),
    "tiny": dict(hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=16, head_dim=64),
}
"""Shapes of Qwen3 with 8 KV heads."""
WORDS = 1024
PAGE = 16
SHORT = 8
"""Tokens of the short answer."""


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--model", choices=MODELS, default="1.7b")
    words.add_argument("--batch", type=int, default=8)
    words.add_argument("--tokens", type=int, default=8192, help="of a prompt")
    words.add_argument("--new", type=int, default=136, help="tokens of the long answer")
    words.add_argument("--ranks", type=int, nargs="*", default=[1, 2])
    words.add_argument("--backends", nargs="*", default=["triton", "vortex"])
    words.add_argument("--rounds", type=int, default=2)
    words.add_argument("--device", default="cuda", help="cpu tries the script")
    words.add_argument("--out", type=Path, required=True)
    args = words.parse_args()
    model = Path(tempfile.mkdtemp())
    write_model(args.model, model, args.tokens + args.new + 64)
    found: dict[str, Any] = {
        "about": about(args.device, f"{args.model} --batch {args.batch} --tokens {args.tokens}"),
        "rows": [],
    }
    for backend in args.backends:
        first: tuple[dict[str, Any], list[list[int]]] | None = None
        for ranks in args.ranks:
            row, answer = measure(args, model, ranks, backend)
            first = first or (row, answer)
            row["as_one_rank"] = compare(first[1], answer)
            row["speedup"] = round(row["tokens_per_s"] / first[0]["tokens_per_s"], 3)
            found["rows"].append(row)
            print(json.dumps(row), flush=True)
            args.out.write_text(json.dumps(found, indent=1) + "\n")


def write_model(name: str, folder: Path, longest: int) -> None:
    """Wide random weights, so that attention is far from uniform; what layers add is little, so that an error of
    rounding does not grow from layer to layer into other tokens.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        **MODELS[name], num_key_value_heads=8, vocab_size=WORDS, max_position_embeddings=longest,
        tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():
        for label, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.normal_(0, 0.5 if "embed" in label or "lm_head" in label else 2 * weight.shape[-1] ** -0.5)
            if "q_norm" in label or "k_norm" in label:
                weight.fill_(1.5)
            if "o_proj" in label or "down_proj" in label:
                weight.mul_(1 / 15)
    model.save_pretrained(folder)


def measure(args: argparse.Namespace, model: Path, ranks: int, backend: str) -> tuple[dict[str, Any], list[list[int]]]:
    """A row, and the answers of an engine on that many ranks."""
    import sglang

    draw = random.Random(0)
    prompts = [[draw.randrange(5, WORDS) for _ in range(args.tokens)] for _ in range(args.batch)]
    cpu = args.device == "cpu"
    engine = sglang.Engine(
        model_path=str(model), tp_size=ranks, attention_backend=backend, device=args.device,
        dtype="float32" if cpu else "bfloat16", skip_tokenizer_init=True, grammar_backend="none",
        disable_cuda_graph=cpu, max_running_requests=args.batch, context_length=args.tokens + args.new + 64,
        max_total_tokens=args.batch * (args.tokens + args.new + 64), random_seed=0, log_level="warning",
        disable_custom_all_reduce=True, page_size=PAGE, sampling_backend="pytorch",
    )  # fmt: skip
    try:
        took: dict[int, float] = {}
        answer: list[list[int]] = []
        for _ in range(args.rounds + 1):  # the first reads the prompts, later ones find them in the radix cache
            for new in (SHORT, args.new):
                began = time.perf_counter()
                sampling = {"temperature": 0, "max_new_tokens": new, "ignore_eos": True}
                said = engine.generate(input_ids=prompts, sampling_params=sampling)
                spent = time.perf_counter() - began
                took[new] = min(took.get(new, spent), spent)
                answer = answer or [m["output_ids"] for m in said] if new == args.new else answer
    finally:
        engine.shutdown()
    seconds = took[args.new] - took[SHORT]
    row = {
        "backend": backend,
        "ranks": ranks,
        "batch": args.batch,
        "tokens": args.tokens,
        "seconds": {str(n): t for n, t in took.items()},
    }
    return row | {"tokens_per_s": round(args.batch * (args.new - SHORT) / seconds, 1)}, answer


def compare(one: list[list[int]], other: list[list[int]]) -> dict[str, Any]:
    """How many answers are the same, and after how many tokens the first of the others parts."""
    parts = [
        next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), None)
        for a, b in zip(one, other, strict=True)
    ]
    apart = [p for p in parts if p is not None]
    return {"same": len(parts) - len(apart), "of": len(parts), "first_difference": min(apart, default=None)}


if __name__ == "__main__":
    main()
