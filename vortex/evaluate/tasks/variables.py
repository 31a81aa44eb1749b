"""RULER's variable tracking: a value is assigned to a variable, that one to the next; which ones hold the value?"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vortex.evaluate.tasks import ruler
from vortex.evaluate.tasks.question import Question
from vortex.evaluate.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Variables(Task):
    """``size`` is lines of noise. A worked example stands before the question, as in RULER."""

    least = 6

    def write(self, tokenizer: PreTrainedTokenizerFast, size: int, length: int, seed: int) -> Question | None:
        kind = ruler.settings(self.ruler)["args"]
        chain = (kind["num_chains"], kind["num_hops"])
        # RULER's example has up to 500 tokens, which a short prompt has no room for
        noise = 10 if length >= 2048 else 5
        shown, begins, held = ruler.compose(self.ruler, seed + 1, length, noise, *chain, is_icl=True)
        with ruler.seeded(seed):
            example = ruler.generator(self.ruler)["randomize_icl"](f"{shown}{begins} {' '.join(held)}\n\n")
        text, prefix, answers = ruler.compose(self.ruler, seed, length, size, *chain)
        before = f" {example}\n\n"
        told = [re.search(rf"VAR {name} = (VAR )?\w+", text) for name in answers]
        evidence = tuple((len(before) + t.start(), len(before) + t.end()) for t in told if t is not None)
        return Question(before + text, prefix, tuple(answers), " ".join(answers), evidence)
