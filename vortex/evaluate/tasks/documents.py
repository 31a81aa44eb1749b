"""RULER's question answering: a question of SQuAD or HotpotQA, its documents among others."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING

from vortex.evaluate.tasks import ruler
from vortex.evaluate.tasks.question import Question, Span
from vortex.evaluate.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Documents(Task):
    """``size`` is documents. The evidence is those that tell the answer: of HotpotQA the two supporting ones."""

    score = "part"

    def write(self, tokenizer: PreTrainedTokenizerFast, size: int, length: int, seed: int) -> Question | None:
        space = ruler.generator(self.ruler)
        index = seed % len(space["QAS"])
        asked = space["QAS"][index]
        size += len(asked["context"]) - 1
        if size >= len(space["DOCS"]):
            return None
        text, prefix, answers = ruler.compose(self.ruler, seed, length, index, size)
        wanted = tuple(dict.fromkeys(answers))
        titles = _supports()[index] if "hotpotqa" in space["args"].dataset else None
        gold = [d for d in (space["DOCS"][i] for i in asked["context"]) if not titles or d.split("\n")[0] in titles]
        return Question(text, prefix, wanted, " " + wanted[0], tuple(_place(text, d) for d in gold))


@cache
def _supports() -> list[set[str]]:
    """Titles of the documents that an answer of HotpotQA follows from, by question."""
    data = json.loads((ruler.package() / "data" / "synthetic" / "json" / "hotpotqa.json").read_text(encoding="utf-8"))
    return [{title for title, _ in asked["supporting_facts"]} for asked in data]


def _place(text: str, document: str) -> Span:
    first = text.index(document)
    return first, first + len(document)
