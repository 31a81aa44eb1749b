"""A task: asked for a length, it writes prompts of that length, the same ones for the same seed."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from vortex.errors import PROMPT_TOO_SHORT
from vortex.evaluate.prompts import Prompt
from vortex.evaluate.tasks.question import Question, Tokenised, tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ATTEMPTS = 20
"""Questions that are tried where they come with documents of their own, which may be too long for the prompt."""


class Task(ABC):
    """One kind of question. A subclass writes it around any amount of text; how much fits is found here.

    Attributes:
        name: what ``--tasks`` takes.
        ruler: its name in RULER, which ``--tasks`` takes too; empty for tasks of our own.
        description: one line for the help.
        score: as in :class:`Prompt`.
        new_tokens: most tokens that are generated, as in RULER.
        least: smallest size that :meth:`write` takes.
    """

    score: ClassVar[Literal["all", "part"]] = "all"
    least: ClassVar[int] = 1

    def __init__(self, name: str, description: str, *, ruler: str = "", new_tokens: int) -> None:
        self.name = name
        self.description = description
        self.ruler = ruler
        self.new_tokens = new_tokens

    @abstractmethod
    def write(self, tokenizer: PreTrainedTokenizerFast, size: int, length: int, seed: int) -> Question | None:
        """The question of ``seed`` within ``size`` parts of text (words, sentences, documents), or None for more
        parts than there are. ``length`` is that of the prompt, for tasks that look different in short ones.
        """

    def make(self, tokenizer: PreTrainedTokenizerFast, length: int, count: int, seed: int) -> list[Prompt]:
        """Prompts ``0`` to ``count - 1``; a prompt depends on ``length``, ``seed`` and its index alone.

        Prompt and answer together have at most ``length`` tokens, and as many as the parts of the text allow.

        Raises:
            VortexError: VX9101 for a package that is not installed, VX9104 where the shortest prompt is longer.
        """
        return [self._prompt(tokenizer, length, index, seed) for index in range(count)]

    def _prompt(self, tokenizer: PreTrainedTokenizerFast, length: int, index: int, seed: int) -> Prompt:
        for attempt in range(ATTEMPTS):
            drawn = f"{self.name} {length} {seed} {index} {attempt}"
            found = self._longest(tokenizer, length, int.from_bytes(hashlib.sha256(drawn.encode()).digest()[:4]))
            if found is not None:
                return self._asked(length, index, *found)
        raise PROMPT_TOO_SHORT.at(task=self.name, tokens=length)

    def _longest(self, tokenizer: PreTrainedTokenizerFast, length: int, own: int) -> tuple[Question, Tokenised] | None:
        """The question of ``own`` with as much text as fits; None where it does not fit with the least."""

        def fits(size: int) -> tuple[Question, Tokenised] | None:
            asked = self.write(tokenizer, size, length, own)
            if asked is None:
                return None
            coded = tokenise(tokenizer, asked)
            return None if len(coded.tokens) + self._room(coded) > length else (asked, coded)

        size, best = self.least, fits(self.least)
        if best is None:
            return None
        step = 1
        while (found := fits(size + step)) is not None:
            size, best, step = size + step, found, 2 * step
        while step := step // 2:
            if (found := fits(size + step)) is not None:
                size, best = size + step, found
        return best

    def _asked(self, length: int, index: int, asked: Question, coded: Tokenised) -> Prompt:
        return Prompt(
            task=self.name,
            length=length,
            index=index,
            tokens=coded.tokens,
            wanted=asked.wanted,
            score=self.score,
            answer=coded.answer,
            evidence=coded.evidence,
            new_tokens=self.new_tokens,
        )

    def _room(self, coded: Tokenised) -> int:
        """Tokens that are kept free for the answer."""
        return max(self.new_tokens, len(coded.answer))
