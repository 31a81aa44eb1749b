"""RULER's own generators, out of their package: scripts for a command line, whose functions are called here.

A script runs once a task; then its ``generate_input_output`` is called for each prompt, with a seed of its own. What
the scripts import and evaluation does not need is stood in for: a tokenizer (lengths are found in :mod:`.task`), a
sentence splitter whose data would have to be downloaded, a zeta function.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from vortex.evaluate.packages import folder_of, need

BETWEEN = "\x1e"
"""Stands in a template between what the user says and how the answer begins."""

WORDS = ("noun", "adjective", "verb")
"""Lists of words of the package wonderwords."""


@cache
def package() -> Path:
    """Folder of RULER's package; VX9101 where it is not installed."""
    need("RULER's tasks", "wonderwords", "yaml")
    return folder_of("long_context_eval", "RULER's tasks")


@cache
def settings(task: str) -> dict[str, Any]:
    """A task's ``task`` (its script), ``args``, ``template``, ``answer_prefix`` and ``tokens_to_generate``."""
    import yaml

    folder = package()
    told = yaml.safe_load((folder / "synthetic.yaml").read_text(encoding="utf-8"))[task]
    return {**told, **_constants(folder)[told["task"]]}


@cache
def _constants(folder: Path) -> dict[str, Any]:
    space: dict[str, Any] = {}
    path = folder / "data" / "synthetic" / "constants.py"
    exec(compile(path.read_text(encoding="utf-8"), path, "exec"), space)
    return dict(space["TASKS"])


@cache
def generator(task: str) -> dict[str, Any]:
    """Names of the script of ``task`` after it ran with that task's arguments; its functions read them."""
    told = settings(task)
    script = package() / "data" / "synthetic" / f"{told['task']}.py"
    options = {
        "save_dir": ".",
        "save_name": task,
        "tokenizer_path": "none",
        "max_seq_length": 4096,
        "tokens_to_generate": told["tokens_to_generate"],
        "num_samples": 1,
        "template": told["template"] + BETWEEN + told["answer_prefix"],
        **told["args"],
    }
    space: dict[str, Any] = {"__name__": f"ruler.{told['task']}", "__file__": str(script)}
    code = compile(script.read_text(encoding="utf-8"), script, "exec")
    with _stand_ins(told["task"]), seeded(0):
        sys.argv[:] = [str(script), *(word for name, value in options.items() for word in (f"--{name}", str(value)))]
        exec(code, space)
    if told["task"] == "niah":
        space["words"] = _pairs()
    return space


@cache
def essay_words() -> tuple[str, ...]:
    """All essays, words with their punctuation, a line break counting as a blank."""
    return tuple(generator("niah_single_2")["haystack"])


def random_pair(draw: random.Random) -> str:
    """``adjective-noun``, as RULER names a needle."""
    return draw.choice(_pairs())


def compose(task: str, seed: int, length: int, *args: Any, **options: Any) -> tuple[str, str, list[str]]:
    """Call ``generate_input_output`` of a task's script: what the user says, how the answer begins, the answers."""
    space = generator(task)
    space["args"].random_seed = seed
    space["args"].max_seq_length = length
    with seeded(seed):
        text, answers = space["generate_input_output"](*args, **options)[:2]
    before, _, prefix = text.rpartition(BETWEEN)
    return before.replace(BETWEEN, ""), prefix, answers


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The scripts draw from the generators of the whole process; afterwards these are as if nothing had been drawn."""
    before, numpy_before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)


def sentences(text: str) -> list[str]:
    """Split after a full stop, a question or an exclamation mark."""
    return re.split(r"(?<=[.?!])\s+", text)


class _Pairs:
    """``adjective-noun`` of all adjectives and nouns, six million of them, made when one is drawn."""

    def __init__(self, first: list[str], second: list[str]) -> None:
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first) * len(self.second)

    def __getitem__(self, index: int) -> str:
        return f"{self.first[index // len(self.second)]}-{self.second[index % len(self.second)]}"


@cache
def _pairs() -> _Pairs:
    return _Pairs(_word_list("adjectivelist.txt"), _word_list("nounlist.txt"))


def _word_list(name: str) -> list[str]:
    text = (folder_of("wonderwords", "RULER's tasks") / "assets" / name).read_text(encoding="utf-8")
    return sorted({word.strip() for word in text.splitlines() if word.strip()})


def _zeta(alpha: float) -> float:
    """Riemann's zeta for ``alpha`` > 1: 1000 terms and the integral over the rest, right to 1e-9."""
    n = np.arange(1, 1000, dtype=np.float64)
    return float((n**-alpha).sum() + 1000.0 ** (1 - alpha) / (alpha - 1) + 0.5 * 1000.0**-alpha)


@contextmanager
def _stand_ins(script: str) -> Iterator[None]:
    """Modules under the names that the scripts import; afterwards all is as before, ``sys.path`` and ``argv`` too."""
    # needles are named by pairs of words: the script would sort six million of them, _Pairs makes one at a time
    lists = {f"{kind}list.txt": [] if script == "niah" else _word_list(f"{kind}list.txt") for kind in WORDS}
    tokenizer = {"select_tokenizer": lambda kind, path: None}
    modules: dict[str, dict[str, Any]] = {
        "wonderwords": {"random_word": SimpleNamespace(_get_words_from_text_file=lists.__getitem__)},
        "nltk": {},
        "nltk.tokenize": {"sent_tokenize": sentences},
        "scipy": {},
        "scipy.special": {"zeta": _zeta},
        "tqdm": {"tqdm": iter},
        "tokenizer": tokenizer,
        "long_context_eval.data.tokenizer": tokenizer,
        "long_context_eval.pred.nemo_utils": {"write_manifest": None},
        "constants": {"TASKS": _constants(package())},
    }
    before = {name: sys.modules.get(name) for name in modules}
    argv, path = list(sys.argv), list(sys.path)
    try:
        for name, content in modules.items():
            sys.modules[name] = module = ModuleType(name)
            vars(module).update(content)
        yield
    finally:
        for name, module_before in before.items():
            if module_before is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module_before
        sys.argv[:], sys.path[:] = argv, path
