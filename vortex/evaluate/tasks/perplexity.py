"""Long text that goes on: how probable is its continuation?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vortex.evaluate.tasks import ruler
from vortex.evaluate.tasks.question import Question
from vortex.evaluate.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CONTINUED = 64
"""Words that are the answer."""


class Perplexity(Task):
    """``size`` is words of the essays, from a different place in each prompt. Nothing is generated, nothing scored."""

    def write(self, tokenizer: PreTrainedTokenizerFast, size: int, length: int, seed: int) -> Question | None:
        words = ruler.essay_words()
        start = seed % (len(words) // 2)
        if start + size + CONTINUED > len(words):
            return None
        text = " ".join(words[start : start + size])
        rest = " ".join(words[start + size : start + size + CONTINUED])
        return Question(text, "", (), f" {rest}", plain=True)
