"""The proof on a real model: with all pages kept, a flow gives the tokens of transformers' own attention."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import torch

from vortex.evaluate.models import model_folder

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(scope="module")
def folder() -> Path:
    """Found before the cache of vortex is another one: unpacking takes half a minute."""
    return model_folder("smollm2")


@pytest.mark.full
def test_with_all_pages_eight_of_eight_prompts_give_the_same_tokens(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two batches of four prompts each, padded on the left, read in chunks; f32 on the CPU. Where the model answers
    nothing, or the same from one page, nothing is proved.
    """
    monkeypatch.syspath_prepend(str(BENCH))
    made = import_module("gpu_eval").tokens(folder, "cpu", torch.float32)
    assert (made["prompts"], made["same"]) == (8, 8), made["texts"]
    assert made["answered"] >= 6 and made["others_with_one_page"] >= 4, made["texts"]
    assert made["pages_read"]["all"] == 1.0 > made["pages_read"]["few"]
