"""A prompt decoded by all its lanes: once along the right answer, which is measured, and once freely."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from vortex.evaluate.attention import attending
from vortex.evaluate.lanes import Lanes, Tally
from vortex.evaluate.outcomes import Lane, Outcome
from vortex.evaluate.prompts import Prompt
from vortex.evaluate.rules import Step

if TYPE_CHECKING:
    from vortex.evaluate.models import Model

OnStep = Callable[[], None]


@torch.inference_mode()
def decode(
    model: Model, prompt: Prompt, lanes: Sequence[Lane], reading: Lanes, on_step: OnStep = lambda: None
) -> dict[Lane, Outcome]:
    """The outcome of each lane, but for those that failed: ``reading.failed`` says why.

    ``on_step`` is called before each step, and may raise to stop.
    """
    reading.begin()
    logprobs = _forced(model, prompt, reading, on_step)
    tally = reading.tally
    reading.tally = None
    texts = _free(model, prompt, reading, on_step) if prompt.wanted else {}
    made = {}
    for i, lane in enumerate(lanes):
        if i in reading.failed:
            continue
        text = texts.get(i, "")
        assert tally is not None
        made[lane] = Outcome(
            task=prompt.task,
            length=prompt.length,
            index=prompt.index,
            lane=lane,
            text=text,
            score=prompt.scored(text) if prompt.wanted else math.nan,
            logprob=float(logprobs[i]),
            **tally.of(i),
        )
    return made


def _forced(model: Model, prompt: Prompt, reading: Lanes, on_step: OnStep) -> torch.Tensor:
    """Mean log-probability of the answer's tokens, of each lane; NaN for no answer."""
    rows = list(range(len(reading.rules)))
    reading.tally = Tally(len(rows), len(reading.layers), model.kv_heads, prompt.evidence, reading.pages.page)
    total = torch.zeros(len(rows), dtype=torch.float64)
    given = (prompt.tokens[-1], *prompt.answer[:-1])
    for at, want in enumerate(prompt.answer):
        on_step()
        logits = step(model, reading, rows, [given[at]] * len(rows), at)
        total += logits.log_softmax(-1)[:, want].double().cpu()
        reading.tally.steps += 1
    return total / len(prompt.answer) if prompt.answer else torch.full_like(total, math.nan)


def _free(model: Model, prompt: Prompt, reading: Lanes, on_step: OnStep) -> dict[int, str]:
    """The text that each lane decodes greedily, until it ends or has ``new_tokens``."""
    made: dict[int, list[int]] = {i: [] for i in range(len(reading.rules)) if i not in reading.failed}
    rows, tokens = list(made), [prompt.tokens[-1]] * len(made)
    for at in range(prompt.new_tokens):
        if not rows:
            break
        on_step()
        logits = step(model, reading, rows, tokens, at)
        going = {}
        for row, token in zip(rows, logits.argmax(-1).tolist(), strict=True):
            if token in model.stop or row in reading.failed:
                continue
            made[row].append(token)
            going[row] = token
        rows, tokens = list(going), list(going.values())
    return {row: model.tokenizer.decode(found, skip_special_tokens=True) for row, found in made.items()}


def step(model: Model, reading: Lanes, rows: list[int], tokens: list[int], at: int) -> torch.Tensor:
    """Logits ``[B, vocabulary]`` after the ``at``-th token behind the prompt's first ones, one token of each row."""
    place = reading.pages.prompt + at
    reading.plan(rows, Step(place + 1, at == 0, reading.pages.page))
    ids = torch.tensor(tokens, device=model.device)[:, None]
    with attending(model.hf, reading):
        made = model.hf(input_ids=ids, position_ids=torch.full_like(ids, place), use_cache=False)
    logits: torch.Tensor = made.logits[:, -1].float()
    return logits
