"""Our kernels of ``bench/stage_peers.py``: ``plan`` once, then ``attend`` or ``select`` as an artifact runs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vortex.kinds.buckets import bucket_of, buckets_of, serving
from vortex.runtime.scratch import ROUNDS

from .cases import Tensors

Launch = Callable[[Tensors], object]


@dataclass
class Planned:
    """The staged library: ``about`` says what each function is."""

    about: dict[str, Any]
    module: Any
    slots: int
    """CTAs per KV head that the work lists are made for; 0 for as many as the decoder takes."""

    @classmethod
    def load(cls, folder: Path, slots: int) -> Planned:
        import tvm_ffi

        about = json.loads((folder / "kernels.json").read_text())
        return cls(about, tvm_ffi.load_module(str((folder / about["library"]).resolve())), slots)

    def slots_of(self, kernels: dict[str, Any], heads: int) -> int:
        """As :mod:`vortex.runtime.scratch` counts them: several rounds of the CTAs that the device holds."""
        sms = torch.cuda.get_device_properties(0).multi_processor_count
        held = kernels["attend"][0]["resources"]["ctas"] if "attend" in kernels else 1
        return self.slots or -(-ROUNDS * sms * held // heads)

    def bind(self, entry: str, kind: str, t: Tensors, budget: list[int]) -> Launch | None:
        """A launch of ``kind`` on sets of the shape of ``t``, planned once here; None where it was not staged.

        The scratch is its own and all its launches': lengths and counts of all sets must be those of ``t``.
        """
        kernels = self.about["kernels"].get(entry)
        if kernels is None:
            return None
        batch, columns = t["page_table"].shape
        rows = batch * t["counts"].shape[1]
        made = {"dtype": torch.int32, "device": t["lengths"].device}
        wanted = bucket_of(kind, rows, columns, t["pages"].shape[-1])
        used = serving(wanted, [(k, buckets_of(k["schedule"])) for k in kernels[kind]])
        words = used["page_words"] * columns + used["row_words"]
        slots = self.slots_of(kernels, t["counts"].shape[1])
        scratch = {
            "budget": torch.tensor(budget + [0] * (kernels.get("budget", 5) - len(budget)), **made),
            "plan": torch.full((4, batch), -9, **made),
            "work": torch.zeros(2, 2 + batch + slots, **made), "arrivals": torch.zeros(rows, **made),
            "workspace": torch.full((rows, max(1, words)), float("nan"), device=made["device"]), "layer": 0,
        }  # fmt: skip
        if "row_offsets" in used["args"]:
            scratch |= _no_new_tokens(kernels, t)
        if kind == "attend":
            size = (batch + slots, t["counts"].shape[1], int(used["schedule"]["partial_words"]))
            scratch["partials"] = torch.full(size, float("nan"), device=made["device"])
        (planned,) = kernels["plan"]
        plan, call = self.module[planned["symbol"]], self.module[used["symbol"]]
        plan(*({**t, **scratch}[n] for n in planned["args"]))
        names = used["args"]
        return lambda one: call(*({**one, **scratch}[n] for n in names))


def _no_new_tokens(kernels: dict[str, Any], t: Tensors) -> Tensors:
    """What ``select`` is given of a step's new tokens where it is to take in none; pools of one page stand for all."""
    device, heads = t["lengths"].device, t["counts"].shape[1]
    pages = next(x.shape[0] for name, x in t.items() if name.startswith("field."))
    bf16 = {"dtype": torch.bfloat16, "device": device}
    pool = torch.zeros(1, heads, kernels["page"], kernels["dim"], **bf16).expand(pages, -1, -1, -1)
    new = torch.zeros(0, heads, kernels["dim"], **bf16)
    loc = torch.zeros(0, dtype=torch.int64, device=device)
    return {
        "k": pool, "v": pool, "k_new": new, "v_new": new, "loc": loc,
        "row_offsets": torch.zeros(1, dtype=torch.int32, device=device),
    }  # fmt: skip
