"""Twelve keys get their values in different places of a program; what is the value of one of them?

The program is the source text of RULER's package, real code that is the same on every machine.
"""

from __future__ import annotations

import random
import re
from functools import cache
from typing import TYPE_CHECKING

from vortex.evaluate.tasks import ruler
from vortex.evaluate.tasks.question import Question
from vortex.evaluate.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAIRS = 12


class KeyValue(Task):
    """``size`` is lines of code, from a different place in each prompt; a key is two words, a value six digits."""

    least = PAIRS

    def write(self, tokenizer: PreTrainedTokenizerFast, size: int, length: int, seed: int) -> Question | None:
        draw = random.Random(seed)
        lines = code_lines()
        start = draw.randrange(len(lines))
        body = [lines[(start + i) % len(lines)] for i in range(size)]
        keys = [re.sub(r"\W", "_", ruler.random_pair(draw)) for _ in range(PAIRS)]
        told = [f'SETTINGS["{key}"] = "{draw.randrange(100_000, 1_000_000)}"' for key in keys]
        for place, line in sorted(zip(draw.sample(range(size), PAIRS), told, strict=True), reverse=True):
            body.insert(place, line)
        asked = draw.randrange(PAIRS)
        name, value = told[asked].split(" = ")
        program = "\n".join(body)
        text = (
            "Read the following program. Remember the settings that are made in it, you will be asked for one of them."
            f"\n\n{program}\n\nWhich value does the program above give to {name}?"
        )
        first = text.index(told[asked])
        return Question(
            text, f"{name} =", (value.strip('"'),), f" {value}", evidence=((first, first + len(told[asked])),)
        )


@cache
def code_lines() -> tuple[str, ...]:
    """Lines of all Python files of RULER's package without empty ones and the comments of licences."""
    files = sorted(ruler.package().rglob("*.py"))
    lines = (line.rstrip() for file in files for line in file.read_text(encoding="utf-8").splitlines())
    return tuple(line for line in lines if line and not line.startswith("#"))
