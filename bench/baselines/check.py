"""Are the Triton baselines right? Ragged batches against float64, on a GPU or under the interpreter of Triton.

Without a GPU:

    TRITON_INTERPRET=1 python bench/baselines/check.py --device cpu
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from baselines import cases, triton_attend, triton_select, triton_topk
else:
    from . import cases, triton_attend, triton_select, triton_topk


def mend_interpreter() -> None:
    """Triton 3.6's interpreter calls ``int`` on arrays of one element (numpy 2.4 refuses), multiplies bf16 as ints."""
    import triton.language as tl
    from triton.runtime import interpreter

    patch, dot = interpreter._patch_lang_tensor, interpreter.InterpreterBuilder.create_dot

    def patched(tensor: Any, *rest: Any) -> None:
        patch(tensor, *rest)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    def widened(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        a, b = (self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return dot(self, a, b, *rest)

    interpreter._patch_lang_tensor = patched
    interpreter.InterpreterBuilder.create_dot = widened


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((got.double() - wanted).norm() / wanted.norm().clamp(min=1e-30)).item()


def sampled_error(launch: Any, t: cases.Tensors) -> float:
    """Relative error of a launch over the requests ``t['sample']``, whose right output is ``t['wanted']``."""
    t["out"].fill_(float("nan"))
    launch(t)
    return relative(t["out"][t["sample"]], t["wanted"])


def attend_errors(t: cases.Tensors, config: triton_attend.Config) -> tuple[float, float]:
    """Relative error of the output, absolute of the log-sum-exp (NaN where infinities differ)."""
    t["out"].fill_(float("nan"))
    t["lse"].fill_(float("nan"))
    triton_attend.Attend(t, config)(t)
    out, lse = cases.attend_reference(t)
    some = lse.isfinite()
    same = torch.equal(t["lse"].isneginf(), ~some)
    return relative(t["out"], out), (t["lse"].double() - lse)[some].abs().max().item() if same else float("nan")


def poison_tails(t: cases.Tensors, page: int) -> None:
    """NaN into what lies past the end of each request's last page, where no other request reads it."""
    lengths = t["lengths"].tolist()
    last = {int(t["page_table"][r, (n - 1) // page]) for r, n in enumerate(lengths) if n}
    listed = t["page_table"].flatten().tolist()
    for r, n in enumerate(lengths):
        physical = int(t["page_table"][r, (n - 1) // page]) if n else -1
        if physical in last and listed.count(physical) == 1:
            for name in ("k", "v"):
                t[name][physical, :, (n - 1) % page + 1 :] = float("nan")


def attend_checks(device: str, configs: list[triton_attend.Config]) -> Iterator[tuple[str, bool]]:
    for page, dim, group, nhd in ((16, 128, 4, False), (16, 64, 5, True), (64, 96, 12, False), (8, 128, 1, False)):
        lengths = torch.tensor([page * 9 + 3, 1, 0, page * 4, page * 21 - 1])
        pools = cases.kv_pools(512, 2, page, dim, nhd=nhd, device=device)
        for config in configs:
            t = cases.attend_batch(pools, group, lengths, 12, seed=page)
            t |= {name: t[name].clone() for name in ("k", "v") if not nhd}
            poison_tails(t, page)
            out, lse = attend_errors(t, config)
            good = out < 1e-2 and lse < 2e-3
            yield f"attend page {page} dim {dim} group {group} nhd {nhd} {config}: {out:.1e} {lse:.1e}", good


def score_error(t: cases.Tensors, kind: str, config: triton_select.Config) -> float:
    """Relative to the norm of the right scores; NaN where -inf stands elsewhere."""
    t["scores"].fill_(float("nan"))
    triton_select.Score(kind, config)(t)
    wanted = triton_select.torch_scores(kind, t)
    some = wanted.isfinite()
    same = torch.equal(t["scores"].isneginf(), ~some)
    return relative(t["scores"][some], wanted[some]) if same and some.any() else 0.0 if same else float("nan")


def select_checks(device: str, least: int) -> Iterator[tuple[str, bool]]:
    for heads, group, dim in ((2, 4, 128), (8, 6, 64)):
        pools = cases.summary_pools(512, heads, dim, device=device)
        t = cases.select_batch(pools, group, torch.tensor([16 * 70 + 5, 1, 0, 16 * 33, 16 * 12]), 16, 12, seed=heads)
        for kind in ("centroid", "quest"):
            for config in triton_select.space(kind == "quest", heads)[::least]:
                error = score_error(t, kind, config)
                yield f"{kind} heads {heads} dim {dim} {config}: {error:.1e}", error < 1e-5


def topk_checks(device: str, columns: tuple[int, ...]) -> Iterator[tuple[str, bool]]:
    for n in columns:
        pools = cases.summary_pools(64, 2, 16, device=device)
        lengths = torch.tensor([n, n - 1, 0, 1, n // 2 + 3, 7])
        for kept in (4, 12, min(128, n)):
            t = cases.select_batch(pools, 1, lengths, 1, kept, seed=n)
            values = torch.randn(t["scores"].shape, device=device)
            values[0] = values[0].round()  # many ties
            specials = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0], device=device)
            values[1] = specials[torch.randint(5, values[1].shape, device=device)]
            t["scores"].copy_(values)
            triton_topk.topk(t)
            pages, counts = triton_topk.torch_topk(t)
            same = torch.equal(t["counts"], counts)
            got = torch.where(pages < 0, -1, t["pages"])
            yield f"topk {n} pages, {kept} kept", same and torch.equal(got, pages)


def run(device: str, quick: bool) -> list[tuple[str, bool]]:
    """Every check and whether it holds."""
    splits = triton_attend.Config(32, 4, 3, True, 4), triton_attend.Config(16, 2, 4, False, 3)
    configs = [triton_attend.Config(64, 4, 3, True), *splits, triton_attend.Config(128, 4, 2, True, 2)]
    found = list(attend_checks(device, configs[1:3] if quick else configs))
    found += select_checks(device, 5 if quick else 1)
    return found + list(topk_checks(device, (20, 300) if quick else (20, 300, 2048, 8192, 30000)))


def main() -> int:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--device", default="cuda")
    args.add_argument("--quick", action="store_true")
    given: Any = args.parse_args()
    torch.manual_seed(0)
    if given.device == "cpu":
        mend_interpreter()
    found = run(given.device, given.quick)
    for line, good in found:
        if not good:
            print("WRONG", line)
    print(f"{sum(good for _, good in found)} of {len(found)} right")
    return 0 if all(good for _, good in found) else 1


if __name__ == "__main__":
    sys.exit(main())
