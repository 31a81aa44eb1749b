"""SGLang's own server, started by its command line, asked as a client of OpenAI's interface asks."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import pytest

from tests.engine.harness import TOKENS, Lab, agree, prompts

pytestmark = [pytest.mark.engine, pytest.mark.full]

CONFIG = {"flow": "quest", "budget": {"pages": 3}}
SPECIAL = {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3}


def ask(url: str, **body: Any) -> Any:
    head = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps({"model": "any", "temperature": 0} | body).encode(), head)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def test_a_client_gets_the_tokens_of_the_simulation(newest: Lab) -> None:
    first, second = prompts(8, (150, 163))
    text = " ".join(f"t{i}" for i in second)
    asked = {"max_tokens": TOKENS, "ignore_eos": True, "skip_special_tokens": False}
    with newest.server(CONFIG) as address:
        by_ids = ask(f"{address}/v1/completions", prompt=first, **asked)
        by_text = ask(f"{address}/v1/completions", prompt=text, **asked)
        chat = ask(f"{address}/v1/chat/completions", messages=[{"role": "user", "content": text}], **asked)
    references = [{"flow": "quest", "pages": 3, "prompt": p, "tokens": TOKENS} for p in (first, second)]
    alone = newest.run({"engine": newest.settings(), "passes": [], "references": references})
    assert alone.result is not None, alone.log[-6000:]
    want = [*alone.result["references"], alone.result["references"][1]]
    for answer, tokens in zip((by_ids, by_text, chat), want, strict=True):
        choice = answer["choices"][0]
        said = choice["message"]["content"] if "message" in choice else choice["text"]
        assert not agree([SPECIAL[w] if w in SPECIAL else int(w[1:]) for w in said.split()], tokens)
        assert answer["usage"]["completion_tokens"] == TOKENS
