"""RULER's needles in a haystack: sentences that tell a magic number, among essays, noise, or other needles."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vortex.evaluate.tasks import ruler
from vortex.evaluate.tasks.question import Question, Span
from vortex.evaluate.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Needles(Task):
    """``size`` is words of the essays, or sentences of the other haystacks.

    RULER begins each prompt with the first essay. Here each prompt begins somewhere else in them, so that prompts are
    samples that do not depend on one another.
    """

    def write(self, tokenizer: PreTrainedTokenizerFast, size: int, length: int, seed: int) -> Question | None:
        kind = ruler.settings(self.ruler)["args"]
        if kind["type_haystack"] == "essay":
            essays = ruler.essay_words()
            if size > len(essays):
                return None
            start = seed % len(essays)
            while start and essays[start - 1][-1:] not in ".?!":
                start -= 1
            again = essays[: max(0, start + size - len(essays))]
            ruler.generator(self.ruler)["haystack"] = [*essays[start : start + size], *again]
        text, prefix, answers = ruler.compose(self.ruler, seed, length, size)
        found = {a: _needle(text, a) for a in answers}
        said = sorted(answers, key=found.__getitem__) if kind["num_needle_q"] == 1 else answers
        return Question(text, prefix, tuple(answers), " " + _list(said) + ".", tuple(found.values()))


def _needle(text: str, value: str) -> Span:
    """Where the sentence stands that tells ``value``."""
    told = re.search(rf"One of the special magic \w+ for \S+ is: {re.escape(value)}\.", text)
    assert told is not None, f"no needle tells {value}"
    return told.span()


def _list(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + f", and {words[-1]}"
