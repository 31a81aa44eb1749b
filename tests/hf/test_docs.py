"""The example of docs/transformers.md runs, with a small model of random weights in the place of ``my-model``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.hf.models import WORDS, model

DOC = Path(__file__).parents[2] / "docs" / "transformers.md"


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    model().save_pretrained("my-model")
    words = Tokenizer(models.WordLevel({f"word{n}": n for n in range(WORDS)}, unk_token="word2"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="word2").save_pretrained("my-model")
    (block,) = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL)
    exec(compile(block, DOC, "exec"), {})
    said = capsys.readouterr().out
    assert "vortex: flow mass, Budget(pages=16" in said
    assert "2 layers through the flow, 0 dense" in said
    assert "1 prompts or chunks read densely, 63 decode steps" in said
    assert float(re.findall(r"read ([\d.]+)% of their pages", said)[0]) < 50, "the flow decides"
