"""RULER's aggregations: the most common words of a list, the most frequent ones of a coded text.

No place holds the answer, it is in all of them; so there is no evidence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vortex.evaluate.tasks import ruler
from vortex.evaluate.tasks.question import Question
from vortex.evaluate.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class CommonWords(Task):
    """``size`` is different words; ten of them come more often. A worked example stands before, as in RULER."""

    least = 11

    def write(self, tokenizer: PreTrainedTokenizerFast, size: int, length: int, seed: int) -> Question | None:
        if size > len(ruler.generator(self.ruler)["words"]):
            return None
        text, prefix, answers = ruler.compose(self.ruler, seed, length, size)
        right = " " + " ".join(f"{i}. {word}" for i, word in enumerate(answers, 1))
        return Question(text, prefix, tuple(answers), right)


class FrequentWords(Task):
    """``size`` is words drawn, tens of them, from a vocabulary of made-up words by a power law."""

    least = 6

    def write(self, tokenizer: PreTrainedTokenizerFast, size: int, length: int, seed: int) -> Question | None:
        alpha = ruler.settings(self.ruler)["args"]["alpha"]
        ruler.generator(self.ruler)["TOKENIZER"] = _Endless
        text, prefix, answers = ruler.compose(
            self.ruler, seed, length, 0, num_words=10 * size, vocab_size=max(8, length // 50), alpha=alpha
        )
        return Question(text, prefix, tuple(answers), " " + ", ".join(answers) + ".")


class _Endless:
    """The script makes a text shorter that its tokenizer finds too long: this one finds none so."""

    @staticmethod
    def text_to_tokens(text: str) -> list[str]:
        return []
