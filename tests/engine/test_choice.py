"""Requests that choose their budgets in one server: each says what a server with that budget alone says, whatever its
neighbours chose; a wrong choice is refused alone.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import pytest

from tests.engine.harness import TOKENS, Lab, agree, prompts

pytestmark = [pytest.mark.engine, pytest.mark.full]

PAGES = 3
"""Of the server's budget."""
LENGTHS = (150, 163, 176, 189, 201, 170)
CHOICES: tuple[Any, ...] = (None, {"dense": True}, {"pages": 6}, {"pages": 0}, {"pages": PAGES}, {"ratio": 1})
SAME: tuple[int | None, ...] = (PAGES, None, 6, 0, PAGES, None)
"""Pages of a server that says the same, None for all."""
WRONG: tuple[Any, ...] = ({"pages": -1}, {"page": 3}, {"dense": "yes"}, {"ratio": "x"}, "dense", {})


def check(lab: Lab, config: dict[str, Any], **settings: Any) -> None:
    """Two passes over the same prompts, the second with the choices handed round and wrong ones among them."""
    asked = prompts(9, LENGTHS)
    turned = [*range(1, len(asked)), 0]
    choices = [CHOICES[i] for i in turned]
    bad = prompts(10, (160,) * len(WRONG))
    both = [x for pair in zip(asked, bad, strict=True) for x in pair]
    passes = [
        {"prompts": asked, "choices": CHOICES, "tokens": TOKENS},
        {"prompts": both, "choices": [x for p in zip(choices, WRONG, strict=True) for x in p], "tokens": TOKENS},
    ]
    expected = [*zip(asked, SAME, strict=True), *zip(asked, (SAME[i] for i in turned), strict=True)]
    references: list[dict[str, Any]] = [
        {"flow": "quest", "pages": pages, "prompt": p, "tokens": TOKENS} for p, pages in expected
    ]
    references.append({"flow": "transformers", "prompt": asked[1], "tokens": TOKENS})
    done = lab.serve({"flow": "quest", "budget": {"pages": PAGES}, **config}, passes, references, **settings)
    *wanted, dense = done["references"]
    first, second = done["passes"]
    said = [request["ids"] for request in [*first, *second[::2]]]
    found = [agree(got, want) for got, want in zip(said, wanted, strict=True)]
    assert not any(found), found
    assert said[1] == [token for token, _ in dense]
    assert said[0] != said[len(asked)], "another choice changed nothing"
    for request in second[1::2]:
        assert request["refused"].startswith("VX9007: custom_params.vortex: "), request


@pytest.mark.parametrize("version", ["newest", "oldest"])
def test_requests_of_one_batch_say_what_servers_of_their_budgets_say(
    request: pytest.FixtureRequest, version: str
) -> None:
    check(request.getfixturevalue(version), {"per_request": {"dense": True}})


def test_they_do_so_beside_chunks_of_prompts(newest: Lab) -> None:
    check(newest, {"per_request": {"dense": True}}, chunked_prefill_size=48, enable_mixed_chunk=True)


def test_beside_a_table_they_choose_dense(newest: Lab) -> None:
    table = [1, 6, 0, 3]
    asked = prompts(9, LENGTHS[:2])
    references = [
        {"flow": "quest", "pages": pages, "prompt": p, "tokens": TOKENS}
        for p, pages in zip(asked, (table, None), strict=True)
    ]
    passes = [{"prompts": [*asked, asked[0]], "choices": [None, {"dense": True}, {"pages": 2}], "tokens": TOKENS}]
    config = {"flow": "quest", "budget": {"table": table}, "per_request": {"dense": True}}
    done = newest.serve(config, passes, references)
    *right, refused = done["passes"][0]
    found = [agree(got["ids"], want) for got, want in zip(right, done["references"], strict=True)]
    assert not any(found), found
    assert "'dense' alone can be asked for" in refused["refused"]


def test_a_client_of_the_server_chooses(newest: Lab) -> None:
    """By SGLang's own route and by OpenAI's; what is refused is an answer of 400 with the sentence."""
    (prompt,) = prompts(8, (163,))

    def ask(url: str, body: dict[str, Any]) -> Any:
        head = {"Content-Type": "application/json"}
        request = urllib.request.Request(url, json.dumps(body).encode(), head)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    with newest.server({"flow": "quest", "budget": {"pages": PAGES}, "per_request": {"pages": 64}}) as address:

        def tokens(choice: Any) -> Any:
            sampling = {"temperature": 0, "max_new_tokens": TOKENS, "ignore_eos": True, "custom_params": choice}
            made = ask(f"{address}/generate", {"input_ids": prompt, "sampling_params": sampling})
            return made if isinstance(made, tuple) else made["output_ids"]

        few, all_pages = tokens(None), tokens({"vortex": {"pages": 64}})
        code, why = tokens({"vortex": {"dense": True}})
        assert code == 400
        assert "it asks for all pages, and this server's 'per_request' allows 64 pages by score" in why
        body = {"model": "any", "temperature": 0, "prompt": prompt, "max_tokens": TOKENS, "ignore_eos": True}
        text = ask(f"{address}/v1/completions", {**body, "custom_params": {"vortex": {"pages": 64}}})
        plain = ask(f"{address}/v1/completions", body)
        code, why = ask(f"{address}/v1/completions", {**body, "custom_params": {"vortex": {"pages": 65}}})
        assert code == 400
        assert "it asks for 65 pages by score" in why
        assert tokens(None) == few
    assert text["choices"][0]["text"] != plain["choices"][0]["text"]
    references = [{"flow": "quest", "pages": n, "prompt": prompt, "tokens": TOKENS} for n in (PAGES, None)]
    alone = newest.run({"engine": newest.settings(), "passes": [], "references": references})
    assert alone.result is not None, alone.log[-6000:]
    found = [agree(got, want) for got, want in zip((few, all_pages), alone.result["references"], strict=True)]
    assert not any(found), found
