"""A plug-in of SGLang's that breaks the backend in ways that happened to others; VORTEX_PLANTED_BUG says which."""

from __future__ import annotations

import os
from typing import Any


def plant() -> None:
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
    from sglang.srt.runtime_context import get_parallel

    from vortex.runtime.sglang.arrivals import Arrivals
    from vortex.runtime.sglang.step import Step

    bug = os.environ["VORTEX_PLANTED_BUG"]
    begin, fill, attend = Step.begin, Step.fill, Step.attend
    summarise = Arrivals.summarise

    def whole_tail(self: Any, requests: Any, lengths: Any) -> None:
        """The partial last page counts as full: what its previous owner left there is attended to."""
        begin(self, requests, (lengths + 15) // 16 * 16)

    def no_fill(self: Any, layer: int, q: Any, out: Any, scale: float, loc: Any = None) -> None:
        """Pages that decoding fills keep the summaries of their previous owner."""
        attend(self, layer, q, out, scale)

    def no_summaries(self: Any, index: int) -> None:
        """Pages that come back from the host to the last rank keep the summaries of their previous owner."""
        if get_parallel().attn_tp_rank < get_parallel().attn_tp_size - 1:
            summarise(self, index)

    filled: dict[int, set[int]] = {}

    def fill_once(self: Any, layer: int, loc: Any) -> None:
        """A page is summarised in the first prompt that it holds and never again."""
        fields, seen = self._layers[layer].fields, filled.setdefault(layer, set())
        kept = {name: (field, field.clone()) for name, field in fields.items()}
        fill(self, layer, loc)
        for field, before in kept.values():
            field[sorted(seen)] = before[sorted(seen)]
        seen.update((loc // 16).tolist())

    def not_here(runner: Any) -> Any:
        """The dense backend that reads prompts wants what the machine lacks."""
        raise ImportError("no such package")

    if bug == "whole-tail":
        Step.begin = whole_tail  # type: ignore[method-assign]
    elif bug == "stale-in-decode":
        Step.attend = no_fill  # type: ignore[method-assign]
    elif bug == "stale-in-reuse":
        Step.fill = fill_once  # type: ignore[method-assign]
    elif bug == "stale-in-load":
        Arrivals.summarise = no_summaries  # type: ignore[method-assign]
    elif bug == "no-prefill":
        ATTENTION_BACKENDS["torch_native"] = not_here
    else:
        raise ValueError(bug)
