"""A plug-in of SGLang's that breaks the backend in ways that happened to others; VORTEX_PLANTED_BUG says which."""

from __future__ import annotations

import os
from typing import Any


def plant() -> None:
    from vortex.runtime.sglang.step import Step

    bug = os.environ["VORTEX_PLANTED_BUG"]
    begin, fill = Step.begin, Step.fill

    def whole_tail(self: Any, requests: Any, lengths: Any) -> None:
        """The partial last page counts as full: what its previous owner left there is attended to."""
        begin(self, requests, (lengths + 15) // 16 * 16)

    def no_fill(self: Any, layer: int, loc: Any) -> None:
        """Pages that decoding fills keep the summaries of their previous owner."""

    filled: set[tuple[int, int]] = set()

    def fill_once(self: Any, layer: int, loc: Any) -> None:
        """A page is summarised the first time it fills and never again."""
        fresh = [(layer, page) for page in self.table.flatten().tolist() if page]
        if not filled.issuperset(fresh):
            fill(self, layer, loc)
        filled.update(fresh)

    if bug == "whole-tail":
        Step.begin = whole_tail  # type: ignore[method-assign]
    elif bug == "stale-in-decode":
        Step.fill_decoded = no_fill  # type: ignore[method-assign]
    elif bug == "stale-in-reuse":
        Step.fill = fill_once  # type: ignore[method-assign]
    else:
        raise ValueError(bug)
