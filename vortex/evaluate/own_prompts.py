"""Prompts that the user brings, without right answers: what the model itself says densely is what is wanted."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from vortex.errors import BAD_PROMPTS, NO_SUCH_FILE
from vortex.evaluate.prompts import Prompt
from vortex.evaluate.tasks.question import Question, tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LINES = ".jsonl"
"""Suffix of files with an object on each line; others are text."""
FORMS = 'a text file with a prompt a paragraph, or x.jsonl with {"prompt": "..."} on each line'


def read_texts(path: Path) -> list[str]:
    """The prompts of a file: of ``x.jsonl`` the ``prompt`` of each line, of any other its paragraphs, which blank lines
    part.

    Raises:
        VortexError: VX7002 for a file that cannot be read, VX9125 for one without prompts or a line that is none.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NO_SUCH_FILE.at(path=path, why="does not exist") from None
    except OSError as error:
        raise NO_SUCH_FILE.at(path=path, why=f"cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise BAD_PROMPTS.at(where=f"'{path}'", why=f"is no UTF-8 at byte {error.start}", hint=FORMS) from None
    if path.suffix == LINES:
        lines = [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
        made = [_prompt(line, f"line {n} of '{path}'") for n, line in lines]
    else:
        made = [part.strip() for part in re.split(r"\n[^\S\n]*\n", text.replace("\r\n", "\n")) if part.strip()]
    if not made:
        raise BAD_PROMPTS.at(where=f"'{path}'", why="holds no prompt", hint=FORMS)
    return made


def _prompt(line: str, where: str) -> str:
    """``prompt`` of one line; VX9125."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BAD_PROMPTS.at(where=where, why=f"is no JSON: {error}", hint=FORMS) from None
    prompt = found.get("prompt") if isinstance(found, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        why = 'has no text under "prompt"'
        raise BAD_PROMPTS.at(where=where, why=why, hint=FORMS)
    return prompt


def own_prompts(
    tokenizer: PreTrainedTokenizerFast, texts: list[str], new_tokens: int, *, plain: bool = False
) -> list[Prompt]:
    """``texts`` within the chat template, where the model has one and they are not ``plain``; each is answered with up
    to ``new_tokens`` tokens.

    Raises:
        VortexError: VX9125 for a prompt of fewer than two tokens, of which nothing is read before the first step.
    """
    made = []
    for index, text in enumerate(texts):
        tokens = tokenise(tokenizer, Question(text, "", (), "", plain=plain)).tokens
        if len(tokens) < 2:
            why = f"has {len(tokens)} tokens; at least 2 are needed"
            raise BAD_PROMPTS.at(where=f"prompt {index + 1}", why=why, hint=FORMS)
        made.append(Prompt(f"prompt {index + 1}", len(tokens), index, tokens, (), "all", (), (), new_tokens))
    return made
