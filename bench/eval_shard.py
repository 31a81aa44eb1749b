"""Decode every N-th prompt of an evaluation: several processes on one GPU, whose host work is what takes the time.

    for i in $(seq 0 11); do python bench/eval_shard.py $i/12 --cache DIR --prompts 12 quest mass & done; wait
    python bench/eval_library.py ... -- --cache DIR --prompts 12 --device cuda

All share one folder of outcomes, where ``vortex eval`` with the same words then finds them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vortex.cli.numbers import integers, seconds
from vortex.evaluate.models import load_model
from vortex.evaluate.readers import flow_names
from vortex.evaluate.run import Evaluation
from vortex.evaluate.tasks import DEFAULT, write_prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shard", metavar="I/N")
    parser.add_argument("flows", nargs="+")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--tokens", default="4096,8192")
    parser.add_argument("--budgets", default="4,16,64")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--time-limit", default="7m")
    args = parser.parse_args()
    first, step = map(int, args.shard.split("/"))
    model = load_model(device=args.device)
    lengths = integers("--tokens", args.tokens, "e.g. 4096,8192")
    prompts = write_prompts(DEFAULT, model.tokenizer, lengths, args.prompts, seed=0)
    evaluation = Evaluation(
        model,
        {name: text for text, name in flow_names(args.flows).items()},
        integers("--budgets", args.budgets, "e.g. 4,16,64"),
        folder=args.cache,
        seconds=seconds("--time-limit", args.time_limit, none=True),
    )
    result = evaluation.run(prompts[first::step])
    said = [f"{what}: {error.render()}" for what, error in result.failures.items()]
    print(f"{args.shard}: {result.decoded} outcomes made, {result.missing} left out", *said, sep="\n")


if __name__ == "__main__":
    main()
