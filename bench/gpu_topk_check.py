"""Top-k alone on a GPU: random rows of every kind and length; what is chosen of them, against a stable sort in torch.

Rows are up to 262,144 pages long, of scores that are spread, tied, sorted, clustered, infinite or NaN; one page is kept
or nearly all are. Lists are poisoned before each launch, and every one is launched twice: nothing may be left behind.
From the repository's root, with .gpu/ready staged by

    python bench/stage_peers.py --out .gpu/ready --only ready

    PYTHONPATH=.:bench python3 bench/gpu_topk_check.py --kernels .gpu/ready --out $OUT/topk_check.json
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from baselines.cases import FAR, Tensors
from baselines.planned import Planned

HEADS = 8
BELOW_ALL, BELOW_NUMBERS = -2e300, -1e300
"""Where NaN and -inf stand in float64 among fp32 numbers."""


def spread(n: int, g: torch.Generator) -> torch.Tensor:
    return torch.randn(HEADS, n, device="cuda", generator=g)


def tied(n: int, g: torch.Generator) -> torch.Tensor:
    return torch.randint(-3, 4, (HEADS, n), device="cuda", generator=g).float()


def mostly_zero(n: int, g: torch.Generator) -> torch.Tensor:
    return torch.relu(spread(n, g) - 1.5)


def equal(n: int, g: torch.Generator) -> torch.Tensor:
    return torch.full((HEADS, n), 0.25, device="cuda")


def ascending(n: int, g: torch.Generator) -> torch.Tensor:
    return torch.arange(n, device="cuda").float().expand(HEADS, n).contiguous()


def descending(n: int, g: torch.Generator) -> torch.Tensor:
    return -ascending(n, g)


def clustered(n: int, g: torch.Generator) -> torch.Tensor:
    """Neighbours are alike, as pages of a text are."""
    x = spread(-(-n // 50), g).repeat_interleave(50, 1)[:, :n]
    return x + 0.1 * spread(n, g)


def periodic(n: int, g: torch.Generator) -> torch.Tensor:
    """Every 24th page is far above the others: a sample at equal distances would see all or none of them."""
    x = spread(n, g)
    x[:, ::24] += 100.0
    return x


def infinite(n: int, g: torch.Generator) -> torch.Tensor:
    x = spread(n, g)
    return torch.where(x > 1.9, torch.inf, torch.where(x < -0.5, -torch.inf, x))


def partly_nan(n: int, g: torch.Generator) -> torch.Tensor:
    x = spread(n, g)
    return torch.where(x.abs() > 0.8, torch.nan, x)


def close(n: int, g: torch.Generator) -> torch.Tensor:
    """Numbers that differ in their last bits."""
    return 1 + torch.rand(HEADS, n, device="cuda", generator=g) * 1e-5


KINDS = (spread, tied, mostly_zero, equal, ascending, descending, clustered, periodic, infinite, partly_nan, close)


def best_of(scores: torch.Tensor, k: int) -> torch.Tensor:
    """The ``k`` best pages of each row, ascending: of equal ones the first, NaN last of all."""
    x = scores.double()
    x = torch.where(x == -torch.inf, BELOW_NUMBERS, x).nan_to_num(nan=BELOW_ALL, posinf=torch.inf)
    return x.sort(dim=-1, descending=True, stable=True).indices[:, :k].sort(-1).values


def batch(scores: torch.Tensor, k: int) -> Tensors:
    """One request of which the last page is reserved, its pages in the order of their table."""
    n = scores.shape[1]
    made = {"device": "cuda", "dtype": torch.int32}
    stored = torch.cat([scores, torch.zeros(HEADS, 1, device="cuda")], 1)
    return {
        "plan": torch.tensor([n + 1, k + 1, 0, n], **made)[:, None].contiguous(),
        "pages": torch.full((1, HEADS, k + 1), FAR, **made), "counts": torch.full((1, HEADS), -1, **made),
        "page_table": torch.arange(n + 1, **made)[None], "lengths": torch.full((1,), 16 * (n + 1), **made),
        "field.score": stored.T[..., None].contiguous(),
    }  # fmt: skip


def drawn(at: int, rng: random.Random) -> tuple[Callable[[int, torch.Generator], torch.Tensor], int, int]:
    """A kind, a length and how many are kept."""
    n = int(2 ** rng.uniform(5, 18))
    few = rng.random() < 0.8
    return KINDS[at % len(KINDS)], n, min(n - 1, int(2 ** rng.uniform(0, 11.5)) if few else rng.randint(1, n - 1))


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--kernels", type=Path, required=True, help="what bench/stage_peers.py made")
    args.add_argument("--out", type=Path, required=True)
    args.add_argument("--rows", type=int, default=330, help="configurations")
    args.add_argument("--seed", type=int, default=0)
    found = args.parse_args()
    planned, rng = Planned.load(found.kernels, 0), random.Random(found.seed)
    wrong: list[dict[str, Any]] = []
    for at in range(found.rows):
        kind, n, k = drawn(at, rng)
        scores = kind(n, torch.Generator(device="cuda").manual_seed(at))
        t, want = batch(scores, k), best_of(scores, k)
        launch = planned.bind("ready", "select", t, [k, 0, 1, 0, 1])
        assert launch is not None, f"{found.kernels} has no kernel of ready scores"
        for turn in range(2):
            t["pages"].fill_(FAR)
            t["counts"].fill_(-1)
            launch(t)
            right = bool((t["counts"] == k + 1).all()) and torch.equal(t["pages"][0, :, :k].long(), want)
            if not right or not bool((t["pages"][0, :, k] == n).all()):
                wrong.append({"kind": kind.__name__, "pages": n, "kept": k, "turn": turn, "seed": at})
                print("WRONG", wrong[-1], flush=True)
    about = {
        "device": torch.cuda.get_device_name(), "torch": torch.__version__, "date": time.strftime("%F %T"),
        "command": " ".join(["python3", *sys.argv]), "commit": planned.about["commit"],
    }  # fmt: skip
    found.out.write_text(json.dumps({**about, "rows": found.rows, "wrong": wrong}, indent=1))
    print(f"{found.rows} configurations, {len(wrong)} wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
