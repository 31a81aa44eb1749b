"""What a model is asked, and what it should answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Prompt:
    """One question, tokenised, with its right answer.

    Attributes:
        task: name of the task that made it, e.g. ``niah_single``.
        length: tokens that were asked for; ``tokens`` are at most so many.
        index: its number among the prompts of its task and length; task, length, seed and index make it again.
        tokens: what the model reads, special tokens and chat template included.
        wanted: the strings that a right answer has in it; none where only log-probability counts (perplexity).
        score: as in RULER; ``all``: the share of ``wanted`` that the answer has, ``part``: 1 if it has any of them.
        answer: tokens of the right answer, for its log-probability under teacher forcing.
        evidence: places in ``tokens``, ``(first, last + 1)``, of what must be read to answer.
        new_tokens: most tokens that are generated.
    """

    task: str
    length: int
    index: int
    tokens: tuple[int, ...]
    wanted: tuple[str, ...]
    score: Literal["all", "part"]
    answer: tuple[int, ...]
    evidence: tuple[tuple[int, int], ...]
    new_tokens: int

    def scored(self, text: str) -> float:
        """Share of right in the answer ``text``, 0 to 1; case does not count, as in RULER. NaN if nothing is wanted."""
        if not self.wanted:
            return math.nan
        found = [w.lower() in text.lower() for w in self.wanted]
        return float(any(found)) if self.score == "part" else sum(found) / len(found)
