"""Our staged ``attend`` (bench/stage_gpu.py) as a contestant on the same tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_batches import work_list

from .cases import Tensors
from .tune import fastest


@dataclass
class Ours:
    about: dict[str, Any]
    module: Any

    @classmethod
    def load(cls, folder: Path) -> Ours:
        import tvm_ffi

        about = json.loads((folder / "kernels.json").read_text())
        return cls(about, tvm_ffi.load_module(str(folder / about["library"])))

    def candidates(self, t: Tensors) -> list[tuple[str, int]]:
        """Kernels for this shape with splits worth trying."""
        _, heads, page, dim = t["k"].shape
        group, rows, kept = t["q"].shape[1] // heads, t["counts"].numel(), t["pages"].shape[-1]
        shape = {"page": page, "dim": dim, "group": group, "dtype": "bf16"}
        known = {*t, "work", "partials", "arrivals"}
        fits = lambda a: known >= set(a["args"]) and all(a[key] == value for key, value in shape.items())  # noqa: E731
        names = [n for n, a in self.about["kernels"].items() if fits(a)]
        splits = [s for s in (1, 2, 3, 4, 6, 8, 16, 32, 64) if s == 1 or (s <= kept and rows * s <= 16 * 132)]
        return [(name, s) for name in names for s in splits]

    def bind(self, name: str, splits: int, t: Tensors) -> Callable[[Tensors], object]:
        """A launch with scratch of its own; it leaves the counters as it found them."""
        about, call, (batch, heads) = self.about["kernels"][name], getattr(self.module, name), t["counts"].shape
        slots = batch * splits
        scratch = {"partials": torch.empty(batch + slots, heads, about["words"], device="cuda")}
        scratch["work"] = work_list(t["counts"], slots).cuda()
        scratch["arrivals"] = torch.zeros(batch * heads, dtype=torch.int32, device="cuda")
        return lambda one: call(*({**one, **scratch}[n] for n in about["args"]))

    def best(self, sets: Sequence[Tensors]) -> tuple[str, Callable[[Tensors], object]] | None:
        """The fastest kernel for these sets, named."""
        found = fastest(self.candidates(sets[0]), lambda c: self.bind(*c, sets[0]), sets)
        if not found:
            return None
        name, splits = found[0][1]
        return f"{name} splits {splits}", self.bind(name, splits, sets[0])
