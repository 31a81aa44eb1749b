"""A real model: SmolLM2-135M-Instruct, asked for a number that one sentence of essays tells.

Of 217 pages of 16 tokens each KV head reads 64 by score, the first and the last two. The first token of an answer comes
from the prompt, which is read densely, and is a space; the digits come from what the flow leaves. Measured on
29 November 2026, log-probability of the right first digit after that space: dense -0.28, where the next best digit is
2.3 nats behind it; `quest` -0.58, 1.3 ahead; random pages -1.92, 0.9 nats behind another one.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.engine.harness import Lab
from vortex.evaluate.models import load_tokenizer, model_folder
from vortex.evaluate.prompts import Prompt
from vortex.evaluate.tasks import find_task

pytestmark = [pytest.mark.engine, pytest.mark.full]

PAGES = 64
LENGTH, INDEX, SEED = 3600, 2, 0
"""Of the prompt, one of RULER's as ``vortex eval`` writes them."""


@pytest.fixture(scope="module")
def folder() -> Path:
    """Found before the cache of vortex is another one: unpacking takes half a minute, once."""
    return model_folder("smollm2")


@pytest.fixture(scope="module")
def needle(folder: Path) -> Prompt:
    prompts = find_task("niah_single").make(load_tokenizer("smollm2"), LENGTH, INDEX + 1, SEED)
    return prompts[INDEX]


@pytest.fixture
def lab(newest: Lab, folder: Path) -> Lab:
    """The newest SGLang with this model."""
    return replace(newest, model=folder)


def ask(lab: Lab, needle: Prompt, config: dict[str, Any], *choices: Any, references: int = 0) -> dict[str, Any]:
    """One answer for each choice, one after the other, so that all but the first find the prompt in the cache; and
    transformers' own, where asked for.
    """
    prompt, tokens = list(needle.tokens), len(needle.answer) + 1
    one = {"prompts": [prompt], "tokens": tokens, "watch": [needle.answer[1]]}
    job = {
        "engine": lab.settings(max_total_tokens=8192, context_length=4096),
        "passes": [one | {"choices": [choice]} for choice in choices],
        "references": [{"flow": "transformers", "prompt": prompt, "tokens": tokens}] * references,
    }
    answer = lab.run(job, config, timeout=1200)
    assert answer.result is not None, answer.log[-6000:]
    return answer.result


def test_all_pages_give_dense_tokens_and_quest_finds_the_needle(lab: Lab, needle: Prompt) -> None:
    config = {"flow": "quest", "budget": {"pages": PAGES}, "per_request": {"pages": 1000}}
    done = ask(lab, needle, config, {"pages": 1000}, None, references=1)
    everything, few = (one[0] for one in done["passes"])
    right = list(needle.answer)
    assert everything["ids"] == [token for token, _ in done["references"][0]]
    assert everything["ids"][: len(right)] == few["ids"][: len(right)] == right
    assert few["cached"] >= len(needle.tokens) - 32
    most, less = (one["logprobs"][1][0] for one in (everything, few))
    assert most > -0.5
    assert most - 0.1 > less > -0.9, "leaving pages out changed nothing, or too much"


def test_random_pages_do_not_find_it(lab: Lab, needle: Prompt) -> None:
    flow = str(Path(__file__).with_name("random_pages.py"))
    done = ask(lab, needle, {"flow": flow, "budget": {"pages": PAGES}}, None)
    (said,) = done["passes"][0]
    assert said["ids"][0] == needle.answer[0]
    assert said["ids"][1] != needle.answer[1]
    assert said["logprobs"][1][0] < -1.4
