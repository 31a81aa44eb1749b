"""Prompts for the tiny model of random weights: what it answers densely is what is wanted."""

import random

import torch

from vortex.evaluate.models import Model
from vortex.evaluate.prompts import Prompt


def prompts(model: Model, tokens: int, count: int, new: int = 6) -> list[Prompt]:
    """Random tokens; the right answer is the model's own, found by transformers' generate."""
    made = []
    for index in range(count):
        r = random.Random(1000 * tokens + index)
        given = [1, *(r.randrange(3, 128) for _ in range(tokens - 1))]
        made.append(answered(model, given, index, new))
    return made


def answered(model: Model, given: list[int], index: int = 0, new: int = 6) -> Prompt:
    """``given`` with the model's own dense answer."""
    ids = torch.tensor([given])
    mask = torch.ones_like(ids)
    out = model.hf.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0)
    answer = out[0, len(given) :].tolist()
    text = model.tokenizer.decode([t for t in answer if t not in model.stop])
    wanted = tuple(text.split()) or ("nothing",)
    evidence = ((40, 50),) if len(given) > 50 else ((5, 12),)
    return Prompt("random", len(given), index, tuple(given), wanted, "all", tuple(answer), evidence, new)
