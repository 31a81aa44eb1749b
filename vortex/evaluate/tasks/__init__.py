"""What models are asked: RULER's tasks, values of keys in a program, long text that goes on; ``vortex.cli`` imports it.

A new task is a module with a subclass of :class:`Task`, and a line in :data:`TASKS`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from vortex.errors import UNKNOWN_NAME, nearest_or_all
from vortex.evaluate.prompts import Prompt
from vortex.evaluate.tasks.documents import Documents
from vortex.evaluate.tasks.keyvalue import KeyValue
from vortex.evaluate.tasks.needles import Needles
from vortex.evaluate.tasks.perplexity import Perplexity
from vortex.evaluate.tasks.task import Task
from vortex.evaluate.tasks.variables import Variables
from vortex.evaluate.tasks.words import CommonWords, FrequentWords

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_ALL: tuple[Task, ...] = (
    Needles("niah_single", "one magic number in essays", ruler="niah_single_2", new_tokens=128),
    Needles("niah_single_noise", "one magic number in repeated sentences", ruler="niah_single_1", new_tokens=128),
    Needles("niah_single_uuid", "one UUID in essays", ruler="niah_single_3", new_tokens=128),
    Needles("niah_multikey", "one of four magic numbers in essays", ruler="niah_multikey_1", new_tokens=128),
    Needles("niah_multikey_line", "one of as many numbers as fit", ruler="niah_multikey_2", new_tokens=128),
    Needles("niah_multikey_uuid", "one of as many UUIDs as fit", ruler="niah_multikey_3", new_tokens=128),
    Needles("niah_multivalue", "the four magic numbers of a key in essays", ruler="niah_multivalue", new_tokens=128),
    Needles("niah_multiquery", "the magic numbers of four keys in essays", ruler="niah_multiquery", new_tokens=128),
    Variables("vt", "variables that hold a value by a chain of assignments", ruler="vt", new_tokens=30),
    CommonWords("cwe", "the ten most common words of a list", ruler="cwe", new_tokens=120),
    FrequentWords("fwe", "the three most frequent words of a coded text", ruler="fwe", new_tokens=50),
    Documents("qa_squad", "a question of SQuAD among documents", ruler="qa_1", new_tokens=32),
    Documents("qa_hotpot", "a question of HotpotQA that needs two documents", ruler="qa_2", new_tokens=32),
    KeyValue("keyvalue", "the value of one of twelve keys in a program", new_tokens=16),
    Perplexity("perplexity", "essays that go on: only log-probability counts", new_tokens=0),
)
TASKS: dict[str, Task] = {task.name: task for task in _ALL}
"""All tasks by name, in the order of the help."""

DEFAULT: tuple[str, ...] = ("niah_single", "keyvalue")
"""What ``vortex eval`` asks unless told otherwise."""


def find_task(name: str) -> Task:
    """The task of a name, ours or RULER's.

    Raises:
        VortexError: VX7003 for a name of none.
    """
    for task in _ALL:
        if name in (task.name, task.ruler or task.name):
            return task
    raise UNKNOWN_NAME.at(what="task", name=name, nearest=nearest_or_all(name, TASKS))


def write_prompts(
    names: Iterable[str], tokenizer: PreTrainedTokenizerFast, lengths: Iterable[int], count: int, seed: int
) -> list[Prompt]:
    """``count`` prompts of each task and length, by index, then length: a time limit leaves something of each task."""
    made = [p for name in names for length in lengths for p in find_task(name).make(tokenizer, length, count, seed)]
    return sorted(made, key=lambda p: (p.index, p.length))


__all__ = ["DEFAULT", "TASKS", "Task", "find_task", "write_prompts"]
