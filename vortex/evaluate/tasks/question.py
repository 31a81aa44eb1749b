"""A question as text, and as the tokens that a model reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Span = tuple[int, int]


@dataclass(frozen=True)
class Question:
    """What a task asks, before it is tokenised.

    Attributes:
        text: what the user says; a chat template is put around it where the model has one.
        prefix: how the answer begins, put into the model's mouth as RULER does.
        wanted: strings that a right answer has in it.
        answer: the right answer, as it follows ``prefix``.
        evidence: places in ``text``, ``(first, last + 1)`` in characters, of what must be read to answer.
        plain: whether ``text`` is continued rather than answered, so that no chat template belongs around it.
    """

    text: str
    prefix: str
    wanted: tuple[str, ...]
    answer: str
    evidence: tuple[Span, ...] = ()
    plain: bool = False


@dataclass(frozen=True)
class Tokenised:
    """A question in tokens; ``evidence`` are places in ``tokens``."""

    tokens: tuple[int, ...]
    answer: tuple[int, ...]
    evidence: tuple[Span, ...]


def tokenise(tokenizer: PreTrainedTokenizerFast, asked: Question) -> Tokenised:
    """The question within the model's chat template, followed by how the answer begins."""
    said = asked.text + asked.prefix
    chat = bool(tokenizer.chat_template) and not asked.plain
    if chat:
        # a model that thinks before it answers would think in place of the answer: the template leaves room for none
        said = tokenizer.apply_chat_template(
            [{"role": "user", "content": asked.text}], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        said += asked.prefix
    coded = tokenizer(said, add_special_tokens=not chat, return_offsets_mapping=True)
    return Tokenised(
        tokens=tuple(coded["input_ids"]),
        answer=tuple(tokenizer(asked.answer, add_special_tokens=False)["input_ids"]),
        evidence=_evidence(asked, said, coded["offset_mapping"]),
    )


def _evidence(asked: Question, said: str, places: list[Span]) -> tuple[Span, ...]:
    """The tokens of ``said`` that have the evidence."""
    if not asked.evidence:
        return ()
    # templates strip what they are given
    begin = said.index(asked.text.strip()) - (len(asked.text) - len(asked.text.lstrip()))
    return tuple(sorted(_tokens_of((begin + a, begin + b), places) for a, b in asked.evidence))


def _tokens_of(span: Span, places: list[Span]) -> Span:
    """Tokens that have a character of ``span``: ``(first, last + 1)``."""
    first, last = span
    inside = [i for i, (a, b) in enumerate(places) if a < last and b > first]
    return inside[0], inside[-1] + 1
