"""What else is done to caches between forwards: each gives what the oracle says of the cache alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

import vortex.hf
from tests.hf import reference
from tests.hf.models import model, prompts
from vortex.budget import Budget
from vortex.errors import VortexError
from vortex.runtime.transformers import attention

PAGE, FEW = 8, Budget(pages=1, sink=1, recent=1)
EMA = str(Path(__file__).resolve().parents[2] / "examples" / "query_ema.py")
BACKENDS = ("compiled", "eager")
Script = Callable[[Any], list[torch.Tensor]]


class Talk:
    """A cache, and the logits of what was read into it."""

    def __init__(self, m: Any, cache: DynamicCache | None = None) -> None:
        self.model, self.logits = m, list[torch.Tensor]()
        self.cache = DynamicCache(config=m.config) if cache is None else cache
        self.mask = torch.ones(1, 0, dtype=torch.long)

    @torch.no_grad()
    def read(self, given: dict[str, torch.Tensor]) -> None:
        self.mask = (
            given["attention_mask"] if not self.mask.numel() else torch.cat([self.mask, given["attention_mask"]], 1)
        )
        places = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -given["input_ids"].shape[1] :]
        out = self.model(given["input_ids"], attention_mask=self.mask, position_ids=places, cache=self.cache)
        self.logits.append(out.logits[:, -1])

    def say(self, tokens: int) -> None:
        for n in range(tokens):
            ids = torch.full((self.mask.shape[0], 1), 5 + n)
            self.read({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def later_turns(m: Any) -> list[torch.Tensor]:
    talk = Talk(m)
    talk.read(prompts(40, 33))
    talk.say(2)
    talk.read(prompts(21, 21, seed=1))
    talk.say(2)
    return talk.logits


def another_prompt_in_a_reset_cache(m: Any) -> list[torch.Tensor]:
    first = Talk(m)
    first.read(prompts(48))
    first.say(2)
    first.cache.reset()
    talk = Talk(m, first.cache)
    talk.read(prompts(48, seed=1))
    talk.say(2)
    return talk.logits


def answers_after_one_prefix(m: Any) -> list[torch.Tensor]:
    talk = Talk(m)
    talk.read(prompts(48))
    talk.say(3)
    talk.cache.crop(-12)
    talk.mask = talk.mask[:, :-12]
    talk.read(prompts(13, seed=2))  # one more than was taken away
    talk.say(2)
    talk.cache.crop(-1)
    talk.mask = talk.mask[:, :-1]
    talk.say(2)
    return talk.logits


def a_copied_prefix(m: Any) -> list[torch.Tensor]:
    prefix = Talk(m)
    prefix.read(prompts(48))
    prefix.say(1)
    logits = prefix.logits
    for seed in (1, 2):
        talk = Talk(m, copy.deepcopy(prefix.cache))
        talk.mask = prefix.mask
        talk.read(prompts(9, seed=seed))
        talk.say(1)
        logits += talk.logits
    return logits


def rows_that_leave(m: Any) -> list[torch.Tensor]:
    talk = Talk(m)
    talk.read(prompts(48, 35, 41))
    talk.say(1)
    talk.cache.batch_select_indices(torch.tensor([2, 0]))
    talk.mask = talk.mask[[2, 0]]
    talk.say(2)
    return talk.logits


def rows_that_change_places(m: Any) -> list[torch.Tensor]:
    talk = Talk(m)
    talk.read(prompts(48, 48))
    talk.say(1)
    talk.cache.reorder_cache(torch.tensor([1, 1]))
    talk.say(2)
    return talk.logits


def tokens_written_by_hand(m: Any) -> list[torch.Tensor]:
    talk = Talk(m)
    talk.read(prompts(48))
    talk.say(1)
    for layer in talk.cache.layers:
        layer.keys[:, :, 8:24] = -layer.keys[:, :, 8:24]
    talk.say(1)
    for layer in talk.cache.layers:
        layer.values = layer.values.flip(-1)
    talk.say(1)
    return talk.logits


def a_cache_that_another_filled(m: Any) -> list[torch.Tensor]:
    cache = Talk(model())
    cache.read(prompts(48))
    talk = Talk(copy.deepcopy(m), cache.cache)  # no layer of the copy has seen a forward
    talk.mask = cache.mask
    talk.say(3)
    return talk.logits


SCRIPTS = (
    later_turns,
    another_prompt_in_a_reset_cache,
    answers_after_one_prefix,
    a_copied_prefix,
    rows_that_leave,
    rows_that_change_places,
    tokens_written_by_hand,
    a_cache_that_another_filled,
)


def both(script: Script, flow: str, backend: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    reference.register(flow, FEW, PAGE)
    vortex.hf.register("few", flow=flow, budget=FEW, page_size=PAGE, backend=backend)
    return script(model(attention="reference")), script(model(attention="few"))


def alike(want: list[torch.Tensor], got: list[torch.Tensor]) -> bool:
    return all(torch.allclose(a, b, atol=1e-3, rtol=1e-3) for a, b in zip(want, got, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.__name__)
def test_changes_of_a_cache_are_seen(script: Script, backend: str) -> None:
    assert alike(*both(script, "quest", backend))


STALE = (another_prompt_in_a_reset_cache, rows_that_change_places, tokens_written_by_hand)


@pytest.mark.parametrize("script", STALE, ids=lambda s: s.__name__)
def test_stale_pages_show(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: a cache is taken for untouched, and for as long as it was."""
    monkeypatch.setattr(attention._Left, "still", lambda self, layer: True)
    trim = attention.Pages.trim
    monkeypatch.setattr(attention.CompiledPages, "trim", lambda self, n, places: places and trim(self, n, places))
    assert not alike(*both(script, "quest", "compiled"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_state_begins_anew_with_each_prompt(backend: str) -> None:
    assert alike(*both(later_turns, EMA, backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("script", [rows_that_change_places, answers_after_one_prefix], ids=lambda s: s.__name__)
def test_state_of_a_changed_cache_is_refused(script: Script, backend: str) -> None:
    vortex.hf.register("few", flow=EMA, budget=FEW, page_size=PAGE, backend=backend)
    with pytest.raises(VortexError, match="a flow with state over a cache that was changed"):
        script(model(attention="few"))


def test_beams() -> None:
    reference.register("quest", FEW, PAGE)
    vortex.hf.register("few", budget=FEW, page_size=PAGE)
    want, got, dense = (
        model(attention=name).generate(**prompts(40, 29), max_new_tokens=5, num_beams=2, do_sample=False)
        for name in ("reference", "few", "sdpa")
    )
    assert torch.equal(got, want)
    assert not torch.equal(got, dense)


def test_what_was_kept_goes_with_the_cache() -> None:
    vortex.hf.register("few", budget=FEW, page_size=PAGE)
    before = len(attention._KEPT)
    m = model(attention="few")
    m.generate(**prompts(40), max_new_tokens=3, do_sample=False)
    talk = Talk(m)
    talk.read(prompts(20))
    assert len(attention._KEPT) == before + 1
    del talk
    assert len(attention._KEPT) == before
